"""A drawn person whom SeFi-IDE has learned from one image, named in a prompt."""

from __future__ import annotations

from _graph import Graph
from _pieces import MINIATURE, Start, sample_and_save
from _pieces_miniature import load_miniature


def describe(graph: Graph) -> None:
    world = load_miniature(graph, first_group=1)
    with graph.group("2. Subject"):
        person = graph.node("LikenessLoadSubject", file="drawn_face.safetensors")
    with graph.group("3. Prompt"):
        named = graph.node(
            "LikenessSubjectPrompt",
            clip=world["clip"],
            model=world["model"],
            subject=person["subject"],
            text="a photo of a smiling <ohwx> in the snow",
        )
        graph.node("PreviewAny", title="What each stage reads", source=named["report"], extra_height=120)
    with graph.group("4. Negative and size"):
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text=MINIATURE.negative, clip=world["clip"])
        latent = graph.node("EmptyLatentImage", width=MINIATURE.side, height=MINIATURE.side, batch_size=1)
    sample_and_save(graph, "5. Portrait", MINIATURE, world["vae"], named["model"], Start(named, negative, latent))
    graph.note(
        "# 1. Run train_sefi_ide\n\n"
        "Nothing has to be downloaded. It writes `drawn_face.safetensors` to "
        "`models/sefi_ide`.\n\n# 2. Press Run\n\n"
        "For a subject of your own put **Load Checkpoint** in the place of **Load Miniature**, "
        "with the base that it was trained on. Prompts call it by its word in brackets, without a class word: "
        "`a photo of <ohwx> with eyes closed`, `a photo of an old <ohwx>`. If a prompt is not followed, lower "
        "`strength`, or `keys` alone in the first stages (0, 1, 1, 1, 1).",
    )
