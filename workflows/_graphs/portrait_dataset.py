"""Photos of a person, and a portrait in a style, made ready for training and saved for editing."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, images, load_analysis, load_photo, show


def describe(graph: Graph) -> None:
    with graph.group("1. Photos of the person"):
        photos = [load_photo(graph, f"Photo {number}", f"person_{number}.jpg") for number in (1, 2, 3)]
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        person = graph.node(
            "LikenessPortraitDataset",
            trigger_word="ohwx",
            save_as="person",
            face_analysis=analysis[0],
            **images(photos),
        )
        graph.next_column()
        show(graph, "Photo, mask, caption, verdict", person["preview"])
        graph.node("PreviewAny", title="Report on the person", source=person["report"], extra_height=120)
    with graph.group("2. Portraits in the style"):
        style_photo = load_photo(graph, "A portrait in the style", "style.jpg")
        style = graph.node(
            "LikenessPortraitDataset",
            title="Portrait Dataset: style",
            kind="style",
            trigger_word="mystyle",
            framing="largest square",
            save_as="style",
            image=style_photo["IMAGE"],
            face_analysis=analysis[0],
        )
        graph.next_column()
        show(graph, "The face is not part of the style", style["preview"])
        graph.node("PreviewAny", title="Report on the style", source=style["report"], extra_height=120)
    files_note(
        graph,
        "With many photos, put them into a folder below `input` and write its name into *folder* instead. "
        "A `.txt` beside a photo is its caption, a `.mask.png` "
        "its mask.",
        "The datasets are in `output/likeness/datasets/person` and `style`. Edit captions and masks there, delete "
        "images, queue again: they are read back as they are, and never overwritten.",
    )
