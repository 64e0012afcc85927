"""A face cut out, changed by any other nodes, and pasted back where it was."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, Start, files_note, load_analysis, load_checkpoint, load_photo, prompts, sample, show


def describe(graph: Graph) -> None:
    with graph.group("1. The face"):
        photo = load_photo(graph, "An image", "person.jpg")
        analysis = load_analysis(graph, "buffalo_l")
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        show(graph, "The head that is cut out", faces["crops"])
    with graph.group("2. Change it"):
        checkpoint = load_checkpoint(graph, SD15)
        graph.next_column()
        positive, negative = prompts(graph, SD15, checkpoint["CLIP"], "portrait photo of a smiling person, sharp")
        latent = graph.node("VAEEncode", pixels=faces["crops"], vae=checkpoint["VAE"])
        graph.next_column()
        start = Start(positive, negative, latent)
        changed = sample(graph, SD15, checkpoint["VAE"], checkpoint["MODEL"], start, denoise=0.35)
        show(graph, "The changed head", changed[0])
    with graph.group("3. Put it back"):
        done = graph.node(
            "LikenessPasteFacesBack",
            image=photo["IMAGE"],
            faces=faces["faces"],
            crops=changed[0],
            colours="coarse colours",
        )
        graph.next_column()
        graph.node("SaveImage", images=done["image"], filename_prefix="likeness/edited", room=400, extra_height=410)
    files_note(
        graph,
        "In place of the second group put whatever changes an image: an upscaler, an edit model, inpainting, a swap. "
        "The crop stays square; its size may change.",
        "What was not changed in the crop stays in the image as it was. For changed hair paste the *square*.",
    )
