"""A drawn person learned by a LoRA, and a portrait with it."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, load_miniature, train, use_miniature


def describe(graph: Graph) -> None:
    (person, _), world = drawn_person(graph, trigger="sks"), load_miniature(graph)
    trained = train(
        graph,
        "DreamBooth",
        world,
        dataset=person["dataset"],
        name="drawn_person",
        steps=400,
        learning_rate=0.0005,
        rank=8,
        class_pictures=16,
        preview_every=100,
    )
    use_miniature(graph, world, trained, "a photo of a sks person in the snow", below_note=True)
