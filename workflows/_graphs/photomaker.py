"""PhotoMaker v2: one person from two photos, through the prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SDXL,
    files_note,
    find_person,
    load_adapter,
    load_analysis,
    load_checkpoint,
    load_photo,
    sample_and_save,
    show,
)
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    with graph.group("1. The person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2)]
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        faces, identity = find_person(graph, analysis, photos)
        show(graph, "Which faces were taken", faces["preview"])
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "photomaker-v2")
    text = "cinematic photo of a woman img wearing a red scarf, snow, soft light"
    start = identity_prompt(graph, 3, checkpoint, adapter, [identity], text)
    sample_and_save(graph, "4. Portrait", SDXL, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "PhotoMaker works through the prompt: write the trigger word **img** right behind the word for the person, as "
        "in *a man img*. That word determines age and gender as well: try *boy* or *old woman*.",
        "Several photos of one person are better than one. **start_at** is the style strength: 0.2 is usual, 0.3 to "
        "0.5 for drawings and paintings. Sample with the MODEL of **Identity Prompt**, which has PhotoMaker's LoRA.",
    )
