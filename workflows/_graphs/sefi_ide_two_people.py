"""Two drawn people whom SeFi-IDE has learned, named in one prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces_miniature import subjects_portrait


def describe(graph: Graph) -> None:
    subjects_portrait(graph, "2. Subjects", ["drawn_face", "drawn_face_two"], "a photo of <ohwx> and <sks> in the snow")
    graph.note(
        "# 1. Run train_sefi_ide\n\n"
        "Nothing has to be downloaded. It writes `drawn_face.safetensors` and `drawn_face_two.safetensors` to "
        "`models/sefi_ide`.\n\n# 2. Press Run\n\n"
        "The miniature draws one face in an image, so this one is of both. With subjects of your own and the base that "
        "they were trained on (**Load Checkpoint** in the place of **Load Miniature**) the two stand side by side: say "
        "where, as in `<ohwx> on the left and <sks> on the right`. Two files that use the same word need another one "
        "in **Load Subject**.",
    )
