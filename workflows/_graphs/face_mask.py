"""Masks of the people in a photo: the face of one, the eyes and mouth, and everybody's surroundings."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, load_analysis, load_photo, show


def describe(graph: Graph) -> None:
    with graph.group("1. A photo"):
        photo = load_photo(graph, "A photo of one or more people", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Masks"):
        face = graph.node("LikenessFaceMask", faces=faces["faces"], region="face", grow=8, feather=12)
        show(graph, "The chosen face", face["preview"])
        graph.next_column()
        parts = graph.node("LikenessFaceMask", faces=faces["faces"], region="eyes", and_also="mouth", feather=4)
        show(graph, "Eyes and mouth", parts["preview"])
        graph.next_column()
        rest = graph.node("LikenessFaceMask", faces=faces["faces"], region="non-face", people="all faces together")
        show(graph, "Everything but faces", rest["preview"])
    files_note(
        graph,
        "No parsing network is needed for these: shapes are drawn around the keypoints. With one (`likeness models get "
        "facexlib/parsing_bisenet`) choose it as *parser*, and masks follow hair, ears, neck and clothes exactly.",
    )
