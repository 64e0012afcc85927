"""FastComposer: two people in one image, bound to their words in the order of the prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files_note, load_adapter, load_checkpoint, sample_and_save, two_people
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    found = two_people(graph, "buffalo_l")
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "fastcomposer")
        options = graph.node("LikenessFastComposerOptions", strengths="1.0, 1.0")
    start = identity_prompt(
        graph,
        3,
        checkpoint,
        adapter,
        [identity for _, identity in found],
        "a woman img and a man img cooking together in a kitchen, soft light",
        base=SD15,
        start_at=0.3,
        options=options["options"],
    )
    sample_and_save(graph, "4. Portrait", SD15, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "The first **img** is the first identity, the second the second. FastComposer was trained to keep people "
        "apart: every word looks only where its person is, so that no masks are needed.",
        "Where one of the two is weaker, raise its number in *strengths* of **FastComposer Options**. Up to four "
        "people fit into one prompt.",
    )
