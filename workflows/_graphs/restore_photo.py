"""The faces of an old photo restored, none of them made somebody else."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, load_analysis, load_photo, show
from _pieces_restoration import GUARD_NOTE, load_restorer


def describe(graph: Graph) -> None:
    with graph.group("1. The photo"):
        photo = load_photo(graph, "An old photo", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        restorer = load_restorer(graph)
    with graph.group("2. Restoration"):
        done = graph.node(
            "LikenessRestoreFaces",
            image=photo["IMAGE"],
            restorer=restorer[0],
            face_analysis=analysis[0],
            colours="mean and contrast",
            texture=0.25,
        )
        graph.next_column()
        show(graph, "Before and after", done["comparison"])
        show(graph, "What was done to each face", done["preview"])
        graph.next_column()
        graph.node("SaveImage", images=done["image"], filename_prefix="likeness/restored", room=400, extra_height=410)
        graph.node("PreviewAny", title="Report", source=done["report"], extra_height=120)
    files_note(
        graph,
        GUARD_NOTE,
        "To enlarge the photo as well, see the workflow **finish_portrait**. CodeFormer repairs more of a badly "
        "damaged face, and is for non-commercial use only.",
    )
