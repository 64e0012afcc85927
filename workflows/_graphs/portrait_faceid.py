"""One photo, one FaceID adapter, SD1.5: the smallest portrait."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files_note, load_adapter, load_checkpoint, one_person, portrait


def describe(graph: Graph) -> None:
    *_, identity = one_person(graph, "buffalo_l")
    with graph.group("2. Model and method"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "ip-adapter-faceid_sd15")
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
        )
    portrait(graph, SD15, checkpoint, model["model"], "portrait photo of a person, sharp, soft light", first_group=3)
    files_note(graph)
