"""A drawn person tuned from three images as BLIP-Diffusion's vectors and a LoRA, and a portrait with both."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, load_miniature, train, use_miniature


def describe(graph: Graph) -> None:
    (person, _), world = drawn_person(graph), load_miniature(graph)
    trained = train(
        graph,
        "BLIPDiffusion",
        world,
        dataset=person["dataset"],
        name="drawn_subject",
        steps=300,
        learning_rate=0.001,
        vector_learning_rate=0.005,
        preview_every=100,
    )
    use_miniature(graph, world, trained, "a photo of a <ohwx> person in the snow")
