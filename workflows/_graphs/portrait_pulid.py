"""One person with PuLID: a photo, antelopev2, PuLID v1 and its options."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SDXL,
    files_note,
    find_person,
    load_analysis,
    load_checkpoint,
    load_photo,
    load_pulid,
    portrait,
    show,
)


def describe(graph: Graph) -> None:
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        graph.next_column()
        analysis = load_analysis(graph, "antelopev2")
        faces, identity = find_person(graph, analysis, photo["IMAGE"])
        graph.next_column()
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_pulid(graph)
        graph.next_column()
        options = graph.node("LikenessPuLIDOptions")
        applied = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter[0],
            identity=identity[0],
            options=options[0],
            weight=0.8,
        )
    portrait(
        graph,
        SDXL,
        checkpoint,
        applied["model"],
        "portrait of a person in a snowy forest, warm coat, soft light",
        first_group=3,
    )
    files_note(
        graph,
        "**PuLID Options**: *fidelity* keeps more of the person, *style* more of the prompt. With a Lightning or Turbo "
        "checkpoint set its own steps and a cfg of 1 to 2.",
    )
