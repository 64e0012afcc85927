"""PhotoMaker v1 for the person and IP-Adapter Plus for the style of an image."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SDXL,
    files_note,
    load_adapter,
    load_checkpoint,
    load_encoder,
    load_photo,
    one_person,
    sample_and_save,
)
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    *_, identity = one_person(graph, "buffalo_l")
    with graph.group("2. The style"):
        picture = load_photo(graph, "An image in the style you want", "style.jpg")
        checkpoint = load_checkpoint(graph, SDXL)
        graph.next_column()
        plus = load_adapter(graph, "ip-adapter-plus_sdxl_vit-h")
        encoder = load_encoder(graph)
        styled = graph.node(
            "LikenessApplyIdentity",
            title="Apply the style",
            model=checkpoint["MODEL"],
            adapter=plus["adapter"],
            clip_vision=encoder[0],
            options=graph.node("LikenessIPAdapterOptions", weight_type="style transfer", image=picture["IMAGE"])[0],
        )
    with graph.group("3. PhotoMaker"):
        adapter = load_adapter(graph, "photomaker-v1")
        options = graph.node("LikenessPhotoMakerOptions", merge="share of the steps")
    start = identity_prompt(
        graph,
        4,
        checkpoint,
        adapter,
        [identity],
        "painting of a woman img in a garden",
        model=styled["model"],
        start_at=0.35,
        options=options["options"],
    )
    sample_and_save(graph, "5. Portrait", SDXL, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "The two compose in any order. A later **start_at** leaves more of the image to the style, an earlier one "
        "more to the face.",
        "Version 1 of PhotoMaker reads only the photos: any face analysis will do, and its weights may be used "
        "commercially.",
    )
