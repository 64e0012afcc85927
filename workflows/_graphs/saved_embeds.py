"""A portrait after saved encodings: no reference image and no encoder is needed."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files_note, load_adapter, load_checkpoint, portrait


def describe(graph: Graph) -> None:
    with graph.group("1. The saved reference"):
        embeds = graph.node("LikenessLoadEmbeds", file="reference.safetensors")
        options = graph.node("LikenessIPAdapterOptions", embeds=embeds[0])
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "ip-adapter-plus_sd15")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter[0],
            weight=0.8,
            options=options[0],
        )
        graph.node("PreviewAny", title="What was applied", source=model["report"], extra_height=120)
    portrait(graph, SD15, checkpoint, model["model"], "portrait photo of a person, sharp, soft light", first_group=3)
    files_note(
        graph,
        "`reference.safetensors` in `models/likeness_embeds` is what the workflow **save_embeds** writes: run it "
        "first, then reload the page. Encodings fit the adapter they were made for.",
    )
