"""PhotoMaker v2: two people in one prompt, each behind a trigger word of their own."""

from __future__ import annotations

from _graph import Graph
from _pieces import SDXL, files_note, load_adapter, load_checkpoint, sample_and_save, two_people
from _pieces_photomaker import identity_prompt


def describe(graph: Graph) -> None:
    found = two_people(graph, "buffalo_l")
    with graph.group("2. Model and adapter"):
        checkpoint = load_checkpoint(graph, SDXL)
        adapter = load_adapter(graph, "photomaker-v2")
    start = identity_prompt(
        graph,
        3,
        checkpoint,
        adapter,
        [identity for _, identity in found],
        "photo of a woman left in a garden beside a man right, upper body, soft light",
        size=(1216, 832),
        trigger_word="left, right",
    )
    sample_and_save(graph, "4. Portrait", SDXL, checkpoint["VAE"], start.positive["model"], start)
    files_note(
        graph,
        "Two trigger words, **left** and **right**, stand for the two identities in that order, wherever and "
        "however often they are written. With a single word, its first place is the first identity, its second the "
        "next.",
        "Only the prompt keeps the two apart: different nouns (woman, man) help. Where the faces still mix, "
        "give each person a prompt of their own: two **Identity Prompt** nodes, one after the other on the MODEL, with "
        "ConditioningSetArea behind each.",
    )
