"""A drawn person learned from one image as tokens of every stage of denoising."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import drawn_person, load_miniature, note_on_training, train


def describe(graph: Graph) -> None:
    (person, _), world = drawn_person(graph), load_miniature(graph)
    train(
        graph,
        "SeFiIDE",
        world,
        dataset=person["dataset"],
        name="drawn_face",
        steps=400,
        learning_rate=0.01,
        tokens="table",
        templates="a photo of {}\na portrait of {}\nthe face of {}",
        sample_prompts="a photo of {}\na photo of {} in the snow",
        preview_every=100,
    )
    note_on_training(graph)
