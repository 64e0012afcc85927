"""A generated portrait enlarged, its face restored and pasted at the new size: MagiCapture's finishing steps."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, find_person, load_analysis, load_photo, show
from _pieces_restoration import GUARD_NOTE, load_restorer, load_upscaler


def describe(graph: Graph) -> None:
    with graph.group("1. The portrait, and who it should be"):
        portrait = load_photo(graph, "A generated portrait", "person.jpg")
        photo = load_photo(graph, "A photo of the person", "person_1.jpg")
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        _, identity = find_person(graph, analysis, photo["IMAGE"])
    with graph.group("2. Networks"):
        upscaler = load_upscaler(graph)
        restorer = load_restorer(graph)
    with graph.group("3. Finish"):
        done = graph.node(
            "LikenessUpscalePortrait",
            image=portrait["IMAGE"],
            upscale_model=upscaler[0],
            scale_by=2.0,
            restorer=restorer[0],
            face_analysis=analysis[0],
            identity=identity["identity"],
        )
        graph.next_column()
        show(graph, "Before and after", done["comparison"])
        graph.node("PreviewAny", title="Report", source=done["report"], extra_height=120)
        graph.next_column()
        graph.node("SaveImage", images=done["image"], filename_prefix="likeness/portrait", room=400, extra_height=410)
    files_note(
        graph,
        GUARD_NOTE
        + " Here it compares with the person's photo: what brings the portrait nearer to it is never held back.",
        "In a graph of yours connect the images of **VAE Decode** in place of the first photo.",
    )
