"""Two drawn people, each learned as tokens of every stage of denoising."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import another_drawn_person, drawn_person, load_miniature, note_on_training, train


def describe(graph: Graph) -> None:
    (person, analysis), world = drawn_person(graph), load_miniature(graph)
    settings = {
        "steps": 400,
        "learning_rate": 0.01,
        "tokens": "table",
        "templates": "a photo of {}\na portrait of {}\nthe face of {}",
        "sample_prompts": "a photo of {}\na photo of {} in the snow",
        "preview_every": 100,
    }
    train(graph, "SeFiIDE", world, dataset=person["dataset"], name="drawn_face", **settings)
    other = another_drawn_person(graph, analysis, 5, "sks")
    train(graph, "SeFiIDE", world, number=6, dataset=other["dataset"], name="drawn_face_two", **settings)
    note_on_training(graph)
