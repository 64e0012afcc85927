"""BLIP-Diffusion: the subject of one image, in words that say where it is and in which style."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files, files_note, load_checkpoint, load_photo, sample_and_save
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    with graph.group("1. The subject"):
        image = load_photo(graph, "The subject, large, on a plain background", "subject.jpg")
        options = graph.node(
            "LikenessBlipDiffusionOptions", category="cat", images=image["IMAGE"], ratios="", target="", repeats=20
        )
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SD15)
        needed = files("blip-diffusion-qformer")
        adapter = graph.node(
            "LikenessLoadIdentityAdapter",
            adapter_file=f"blip_diffusion/{needed[0].name}",
            models=(*needed, *files("bert-base-uncased-vocab")),
        )
    text = "on a beach at sunset, oil painting, thick brush strokes"
    start = identity_prompt(
        graph, 3, checkpoint, adapter, [], text, base=SD15, start_at=0.0, options=options["options"]
    )
    sample_and_save(graph, "4. Image", SD15, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "BLIP-Diffusion puts 16 vectors of the image into the prompt. Say in one English word what the image shows "
        "(**category**); the prompt then says only what is around it. The prompt becomes *a cat on a beach …*, "
        "repeated until the text is full. **target** makes another thing of it, such as a tiger.",
        "To choose the place yourself, write the trigger word before the noun, as in *a photo of a img cat*. People "
        "were left out of what the released model was trained on: its faces are weak. Tune it on your photos with "
        "**Train BLIP-Diffusion**, or use another method for faces.",
    )
