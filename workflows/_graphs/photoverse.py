"""PhotoVerse: one photo of a person as a word of the prompt and as a second branch of cross-attention."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files_note, load_checkpoint, load_photoverse, load_vit_l, one_person, sample_and_save
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    *_, identity = one_person(graph, "buffalo_l")
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter, encoder = load_photoverse(graph), load_vit_l(graph)
        graph.next_column()
        options = graph.node("LikenessPhotoVerseOptions", gamma=1.0, sigma=1.2)
    start = identity_prompt(
        graph,
        3,
        checkpoint,
        adapter,
        [identity],
        "a photo of S* wearing a red hat on the beach",
        base=SD15,
        trigger_word="S*",
        start_at=0.0,
        clip_vision=encoder["CLIP_VISION"],
        options=options["options"],
    )
    sample_and_save(graph, "4. Portrait", SD15, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "**S\\*** stands for the person: no word such as *man* before it. **gamma** is the strength of the prompt and "
        "**sigma** that of the photo: less gamma and more sigma for likeness (0.8 and 1.5), the other way round for "
        "style (1.2 and 0.4).",
        "No official weights were published. The file is that of an unofficial re-implementation, linked in its "
        "readme; one that `likeness train` wrote does as well. For the unofficial file a low cfg (1 to 2) is usual.",
    )
