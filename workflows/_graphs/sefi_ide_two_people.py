"""Two drawn people whom SeFi-IDE has learned, named in one prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces import MINIATURE, Start, sample_and_save
from _pieces_miniature import load_miniature


def describe(graph: Graph) -> None:
    world = load_miniature(graph, first_group=1)
    with graph.group("2. Subjects"):
        people = [
            graph.node("LikenessLoadSubject", file=f"{name}.safetensors") for name in ("drawn_face", "drawn_face_two")
        ]
    with graph.group("3. Prompt"):
        named = graph.node(
            "LikenessSubjectPrompt",
            clip=world["clip"],
            model=world["model"],
            subject=people[0]["subject"],
            subject_2=people[1]["subject"],
            text="a photo of <ohwx> and <sks> in the snow",
        )
        graph.node("PreviewAny", title="What each stage reads", source=named["report"], extra_height=120)
    with graph.group("4. Negative and size"):
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text=MINIATURE.negative, clip=world["clip"])
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=1)
    sample_and_save(graph, "5. Portrait", MINIATURE, world["vae"], named["model"], Start(named, negative, latent))
    graph.note(
        "# 1. Run train_sefi_ide\n\n"
        "Nothing has to be downloaded. It writes `drawn_face.safetensors` and `drawn_face_two.safetensors` to "
        "`models/sefi_ide`.\n\n# 2. Press Run\n\n"
        "The miniature draws one face in an image, so this one is of both. With subjects of your own and the base that "
        "they were trained on (**Load Checkpoint** in the place of **Load Miniature**) the two stand side by side: say "
        "where, as in `<ohwx> on the left and <sks> on the right`. Two files that use the same word need another one "
        "in **Load Subject**.",
    )
