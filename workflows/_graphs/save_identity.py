"""Several photos of one person to a file, to be used without photos and without face models."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, images, load_analysis, load_photo, show


def describe(graph: Graph) -> None:
    with graph.group("1. Photos of one person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], **images(photos))
        show(graph, "Which faces were taken", faces["preview"])
    with graph.group("2. The identity"):
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
        graph.node("LikenessSaveIdentity", identity=identity["identity"], filename="person")
        graph.node("PreviewAny", title="Report", source=identity["report"], extra_height=120)
        graph.next_column()
        show(graph, "The portraits in the file", identity["portraits"])
    files_note(
        graph,
        "Three to ten different photos keep a person better than one. The report names photos that do not look like "
        "the others; they are left out.",
        "More photos? Put them into a folder of ComfyUI's `input`, and enter its name as *folder* of **Find Faces**.",
        "The file goes to `models/likeness_identities/person.safetensors`, the next one to `person_2.safetensors`: "
        "nothing is overwritten. It holds biometric data of a person: share it only with that person's consent.",
    )
