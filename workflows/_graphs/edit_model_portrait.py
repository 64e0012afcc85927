"""One person as a reference image of an edit model."""

from __future__ import annotations

from _graph import Graph
from _pieces import files_note, one_person, sample_and_save
from _pieces_edit_models import QWEN_EDIT, load_qwen_edit, shown_prompt


def describe(graph: Graph) -> None:
    _, _, identity = one_person(graph, "buffalo_l")
    with graph.group("2. Model and references"):
        parts = load_qwen_edit(graph)
        model = graph.node(
            "LikenessApplyIdentity",
            model=parts.model,
            adapter=parts.adapter["adapter"],
            identity=identity["identity"],
        )
    text = "Create a photo of the person of image 1 laughing at a night market, upper body, warm light"
    start = shown_prompt(graph, 3, parts, model["model"], text, (832, 1216))
    negative = start.negative["negative"]
    sample_and_save(graph, "4. Portrait", QWEN_EDIT, parts.vae, model["model"], start, negative=negative)
    files_note(
        graph,
        "The model looks at the head of the person's photo at every step. **strength** of Apply Identity is how much "
        "more: 1 is official, 2 to 4 for more likeness, which copies more of the photo as well.",
        "The expression is the prompt's: keep the strength low where it should change. **Identity Prompt** shows the "
        "photo to the text encoder, and its **negative** does as well.",
        "For Krea 2, FLUX.2 or Qwen-Image-Edit 2511 load that model, its text encoder and its VAE, and choose the "
        "**scheme** in Reference Adapter; for a LoRA add Load LoRA before Apply Identity.",
    )
