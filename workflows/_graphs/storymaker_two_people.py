"""StoryMaker: two people in one image, face, hair and clothes of both."""

from __future__ import annotations

from _graph import Graph
from _pieces import SIDES, files_note, load_analysis, load_photo, portrait
from _pieces_storymaker import SIZE, STORY, apply, cast


def describe(graph: Graph) -> None:
    with graph.group("1. The two people"):
        photos = [(side, load_photo(graph, f"The person on the {side}", f"person_{side}.jpg")) for side in SIDES]
        analysis = load_analysis(graph, "buffalo_l")
        characters = cast(graph, analysis, photos)
    painter = apply(graph, characters, 2)
    portrait(
        graph,
        STORY,
        painter.checkpoint,
        painter.model,
        "a man and a woman having a picnic on a meadow, a lake in the background",
        first_group=3,
        size=SIZE,
    )
    files_note(
        graph,
        "One **StoryMaker Character** for each person, in a chain: their order matters, and three is the maximum. "
        "Mask R-CNN cuts each person out of the photo; a mask that you connect is used instead.",
        "StoryMaker keeps the two apart by itself. To say where each may appear, connect a mask to **region**.",
    )
