"""The style of a reference image, without its content: IP-Adapter Plus with options."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, files_note, load_adapter, load_checkpoint, load_encoder, load_photo, portrait, show


def describe(graph: Graph) -> None:
    with graph.group("1. The reference"):
        picture = load_photo(graph, "An image in the style you want", "style.jpg")
        prepared = graph.node("LikenessPrepareReference", image=picture["IMAGE"], sharpening=0.1)
        noise = graph.node("LikenessReferenceNoise", image=prepared[0], kind="fade", strength=0.7, seed=1)
        graph.next_column()
        show(graph, "What the encoder sees", prepared[0])
        show(graph, "What to keep away from", noise[0])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-plus_sdxl_vit-h")
        encoder = load_encoder(graph)
        graph.next_column()
        options = graph.node(
            "LikenessIPAdapterOptions",
            weight_type="style transfer",
            image=prepared[0],
            image_negative=noise[0],
        )
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            clip_vision=encoder[0],
            options=options[0],
        )
    portrait(graph, SDXL, checkpoint, model["model"], "portrait of a woman in a garden", first_group=3)
    files_note(
        graph,
        "*style transfer* takes colours and brushwork and leaves the layout to the prompt; *composition* does the "
        "opposite, *linear* takes both. For a person in this style, put an **Apply Identity** with a FaceID adapter "
        "before or after this one.",
    )
