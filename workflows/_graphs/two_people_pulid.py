"""Two people in one image with PuLID, each in its own half."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, apply_each, files_note, halves, load_checkpoint, load_pulid, portrait, two_people


def describe(graph: Graph) -> None:
    width, height, seam = 1216, 832, 96
    found = two_people(graph, "antelopev2")
    with graph.group("2. Where they stand"):
        masks = halves(graph, width, height, seam)
    with graph.group("3. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_pulid(graph)
        graph.next_column()
        model = apply_each(graph, checkpoint["MODEL"], adapter, [identity for _, identity in found], masks)
    portrait(
        graph,
        SDXL,
        checkpoint,
        model,
        "photo of two people standing side by side in a garden, upper body, soft light",
        first_group=4,
        size=(width, height),
    )
    files_note(
        graph,
        "Each person has one half of the image: white is where a person may appear. For another division, load "
        "or paint masks and connect them to the two **Apply Identity** nodes.",
    )
