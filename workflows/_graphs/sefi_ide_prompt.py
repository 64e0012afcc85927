"""A drawn person whom SeFi-IDE has learned from one image, named in a prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import subjects_portrait


def describe(graph: Graph) -> None:
    subjects_portrait(graph, "2. Subject", ["drawn_face"], "a photo of a smiling <ohwx> in the snow")
    graph.note(
        "# 1. Run train_sefi_ide\n\n"
        "Nothing has to be downloaded. It writes `drawn_face.safetensors` to "
        "`models/sefi_ide`.\n\n# 2. Press Run\n\n"
        "For a subject of your own put **Load Checkpoint** in the place of **Load Miniature**, "
        "with the base that it was trained on. Prompts call it by its word in brackets, without a class word: "
        "`a photo of <ohwx> with eyes closed`, `a photo of an old <ohwx>`. If a prompt is not followed, lower "
        "`strength`, or `keys` alone in the first stages (0, 1, 1, 1, 1).",
    )
