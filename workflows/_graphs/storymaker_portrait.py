"""StoryMaker: a person of one photo in the clothes of another image."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, load_analysis, load_photo, portrait, show
from _pieces_storymaker import SIZE, STORY, apply, character


def describe(graph: Graph) -> None:
    with graph.group("1. The person and the clothes"):
        photo = load_photo(graph, "A photo of the person", "person.jpg")
        clothes = load_photo(graph, "An image of the clothes", "clothes.jpg")
        graph.next_column()
        analysis = load_analysis(graph, "buffalo_l")
        _, node = character(graph, analysis, photo, "person", clothes=clothes)
        show(graph, "What StoryMaker sees of the clothes", node["body"])
    painter = apply(graph, node, 2)
    portrait(
        graph,
        STORY,
        painter.checkpoint,
        painter.model,
        "a person walking through an old town in the evening, full body",
        first_group=3,
        size=SIZE,
    )
    files_note(
        graph,
        "The face is that of the photo, the clothes are those of the other image. Disconnect **clothes** to keep the "
        "person's own: the person is then cut out of the photo by Mask R-CNN, or by a mask that you connect.",
        "Both strengths of **Apply Identity** are at the authors' 0.8. **body_strength** at 0 leaves hair and clothes "
        "to the prompt.",
    )
