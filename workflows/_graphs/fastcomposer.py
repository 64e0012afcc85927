"""FastComposer: one person from a photo, through the prompt of an SD1.5 checkpoint."""

from __future__ import annotations

from _graph import Graph
from _pieces import SD15, files_note, load_adapter, load_checkpoint, one_person, sample_and_save
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    *_, identity = one_person(graph, "buffalo_l")
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SD15)
        adapter = load_adapter(graph, "fastcomposer")
        options = graph.node("LikenessFastComposerOptions")
    start = identity_prompt(
        graph,
        3,
        checkpoint,
        adapter,
        [identity],
        "a painting of a woman img in the style of Van Gogh",
        base=SD15,
        start_at=0.3,
        options=options["options"],
    )
    sample_and_save(graph, "4. Portrait", SD15, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "FastComposer works through the prompt: write the trigger word **img** right behind the word for the person, "
        "as in *a man img*. **start_at** is its most important setting, 1 - alpha of the official code: 0.2 for "
        "likeness, 0.4 to 0.5 where the style does not show.",
        "Its file holds a whole UNet, which **Identity Prompt** puts in place of the checkpoint's. To keep the look of "
        "another SD1.5 checkpoint, load that one, and connect the MODEL of SD1.5 itself to *original_model* of "
        "**FastComposer Options**.",
    )
