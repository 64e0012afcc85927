"""One photo, one FaceID adapter, SD1.5: the smallest portrait."""

from __future__ import annotations

from _graph import Graph
from _pieces import (
    SD15,
    files_note,
    find_person,
    load_adapter,
    load_analysis,
    load_checkpoint,
    load_photo,
    portrait,
    show,
)


def describe(graph: Graph) -> None:
    with graph.group("1. The person"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        graph.next_column()
        faces, identity = find_person(graph, analysis, photo["IMAGE"])
        show(graph, "Which face was taken", faces["preview"])
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
