"""A drawn person learned as a new word, and a portrait with that word."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, load_miniature, train, use_miniature


def describe(graph: Graph) -> None:
    (person, _), world = drawn_person(graph), load_miniature(graph)
    trained = train(
        graph,
        "TextualInversion",
        world,
        dataset=person["dataset"],
        name="drawn_person",
        steps=400,
        learning_rate=0.005,
        vectors=2,
        preview_every=100,
    )
    use_miniature(graph, world, trained, "a photo of a embedding:drawn_person person in the snow")
