"""Two saved identities blended into one person, and a portrait of that person."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, files_note, load_adapter, load_checkpoint, portrait


def describe(graph: Graph) -> None:
    with graph.group("1. Two saved people"):
        first = graph.node("LikenessLoadIdentity", file="person.safetensors")
        second = graph.node("LikenessLoadIdentity", file="person_2.safetensors")
        graph.next_column()
        blend = graph.node(
            "LikenessCombineIdentities",
            identity_1=first["identity"],
            identity_2=second["identity"],
            mode="blend",
            name="blend",
        )
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "ip-adapter-faceid_sdxl")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=blend["identity"],
        )
        graph.node("PreviewAny", title="What was applied", source=model["report"], extra_height=120)
    portrait(graph, SDXL, checkpoint, model["model"], "portrait photo of a person, natural light", first_group=3)
    files_note(
        graph,
        "`person.safetensors` and `person_2.safetensors` in `models/likeness_identities` are what the workflow "
        "**save_identity** writes when it is run for two people. Choose your own files in **Load Identity**.",
        "The weights of **Combine Identities** move the blend from one person to the other. With the mode "
        "*same person* it joins two files of one person instead.",
    )
