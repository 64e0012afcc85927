"""A drawn person and a style of drawing learned together, and that person in that style."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, drawn_style, load_miniature, train, use_miniature


def describe(graph: Graph) -> None:
    person, analysis = drawn_person(graph)
    style = drawn_style(graph, analysis, "2. Portraits in the style", "The face is not part of the style")
    world = load_miniature(graph, first_group=3)
    trained = train(
        graph,
        "MagiCapture",
        world,
        number=4,
        person=person["dataset"],
        style=style["dataset"],
        name="drawn",
        inversion_steps=300,
        tuning_steps=300,
        rank=8,
        preview_every=100,
        person_templates="a photo of a {} person",
        style_templates="a {} picture of a person",
        face_analysis=analysis[0],
    )
    text = "a embedding:drawn-style picture of a embedding:drawn-person person"
    use_miniature(graph, world, trained, text, first_group=6)
