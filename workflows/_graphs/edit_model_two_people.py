"""Two people as reference images of an edit model, each in a half of the image."""

from __future__ import annotations

from _graph import Graph
from _pieces import apply_each, files_note, halves, sample_and_save, two_people
from _pieces_edit_models import QWEN_EDIT, load_qwen_edit, shown_prompt


def describe(graph: Graph) -> None:
    width, height, seam = 1216, 832, 96
    found = two_people(graph, "buffalo_l")
    with graph.group("2. Where they stand"):
        masks = halves(graph, width, height, seam)
    with graph.group("3. Model and references"):
        parts = load_qwen_edit(graph)
        graph.next_column()
        model = apply_each(graph, parts.model, parts.adapter, [identity for _, identity in found], masks)
    text = "The person of image 1 and the person of image 2 sit side by side in a café, upper body, soft light"
    start = shown_prompt(graph, 4, parts, model, text, (width, height))
    sample_and_save(graph, "5. Portrait", QWEN_EDIT, parts.vae, model, start, negative=start.negative["negative"])
    files_note(
        graph,
        "The order of the two **Apply Identity** nodes is the order of the images: the left person is image 1 for the "
        "model and for the text. Outside of their mask people are not looked at, so that they mix less; they still "
        "meet through the text and where the halves touch.",
        "**Identity Report** says who looks like whom in the image.",
    )
