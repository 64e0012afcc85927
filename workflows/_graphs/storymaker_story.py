"""StoryMaker: four panels of a story with the same two characters, each with a prompt of its own."""

from __future__ import annotations

from _graph import Graph
from _pieces import SIDES, Start, files_note, load_analysis, load_photo, sample
from _pieces_storymaker import SIZE, STORY, apply, cast

PANELS = (
    "a man and a woman meeting at a railway station, rain, morning light",
    "a man and a woman in a train, looking at a map together",
    "a man and a woman hiking up a mountain, wide view",
    "a man and a woman sitting at a camp fire under the stars",
)


def describe(graph: Graph) -> None:
    width, height = SIZE
    with graph.group("1. The characters"):
        photos = [(side, load_photo(graph, f"The character on the {side}", f"person_{side}.jpg")) for side in SIDES]
        analysis = load_analysis(graph, "buffalo_l")
        characters = cast(graph, analysis, photos)
    painter = apply(graph, characters, 2)
    clip, vae = painter.checkpoint["CLIP"], painter.checkpoint["VAE"]
    with graph.group("3. The story"):
        texts = [
            graph.node("CLIPTextEncode", title=f"Panel {number}", text=text, clip=clip, room=360)
            for number, text in enumerate(PANELS, 1)
        ]
        graph.next_column()
        negative = graph.node("CLIPTextEncode", title="Negative prompt", text=STORY.negative, clip=clip, room=360)
        latent = graph.node("EmptyLatentImage", width=width, height=height, batch_size=1)
    with graph.group("4. Four panels"):
        painted = [
            sample(graph, STORY, vae, painter.model, Start(text, negative, latent), title=f"Panel {number}")
            for number, text in enumerate(texts, 1)
        ]
        graph.next_column()
        for number, picture in enumerate(painted, 1):
            graph.node(
                "SaveImage",
                title=f"Panel {number}",
                images=picture[0],
                filename_prefix=f"likeness/story_{number}",
                extra_height=260,
            )
    files_note(
        graph,
        "The characters are applied to the model once; every panel is a prompt and a sampler of its own. Copy both "
        "for a fifth.",
        "A panel with one character only: use a second **Apply Identity** with only that character.",
    )
