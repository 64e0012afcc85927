"""A drawn person and a style of drawing, each learned as a concept of its own."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, drawn_style, load_miniature, train, use_miniature


def describe(graph: Graph) -> None:
    person, analysis = drawn_person(graph)
    style = drawn_style(graph, analysis, "2. Images in the style", "What the style is learned from")
    world = load_miniature(graph, first_group=3)
    both = {
        "layers": "keys and values",
        "steps": 200,
        "learning_rate": 0.001,
        "start_words": "person",
        "face_mask": False,
        "preview_every": 100,
    }
    trained = train(
        graph,
        "CustomDiffusion",
        world,
        number=4,
        dataset=person["dataset"],
        name="drawn_person",
        class_pictures=16,
        **both,
    )
    train(
        graph,
        "CustomDiffusion",
        world,
        number=6,
        dataset=style["dataset"],
        name="drawn_style",
        prior_weight=0.0,
        class_pictures=0,
        **both,
    )
    use_miniature(graph, world, trained, "a photo of a <ohwx> person in the snow", first_group=8)
