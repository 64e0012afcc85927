"""The five keypoints of a face, drawn for InstantID's ControlNet."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, files_note, load_analysis, load_photo, show


def describe(graph: Graph) -> None:
    with graph.group("1. A photo with the pose you want"):
        photo = load_photo(graph, "A photo with the pose", "pose.jpg")
        analysis = load_analysis(graph, "antelopev2")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        show(graph, "Which face was taken", faces["preview"])
    with graph.group("2. Keypoints"):
        keypoints = graph.node("LikenessFaceKeypoints", faces=faces["faces"], width=SDXL.side, height=SDXL.side)
        show(graph, "For the ControlNet of InstantID", keypoints[0])
    files_note(
        graph,
        "Width and height are those of the image you make: lines and dots have the size InstantID was trained "
        "with, whatever the photo's size. Eyes, nose and mouth corners come from the detector; any face analysis "
        "with keypoints will do.",
    )
