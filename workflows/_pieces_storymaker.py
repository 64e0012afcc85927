"""What the graphs of StoryMaker share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from _graph import Graph, Node, Output
from _pieces import SDXL, files, find_person, load_adapter, load_checkpoint, load_encoder, show

# As published by the authors: UniPC, 25 steps, their negative prompt, and 960 x 1280 pixels.
STORY = replace(
    SDXL,
    steps=25,
    cfg=7.5,
    sampler="uni_pc",
    negative="bad quality, NSFW, low quality, ugly, disfigured, deformed",
)
SIZE = (960, 1280)
STRENGTH = 0.8  # of the adapter and of its LoRA


@dataclass(frozen=True)
class Painter:
    """The base model, and the MODEL that knows the characters."""

    checkpoint: Node
    model: Output


def character(
    graph: Graph, analysis: Node, photo: Node, name: str, before: Node | None = None, clothes: Node | None = None
) -> tuple[Node, Node]:
    """One person of a photo: the identity, and the node that adds face and body to the characters before."""
    _, identity = find_person(graph, analysis, photo["IMAGE"], name=name)
    linked: dict[str, Any] = {} if before is None else {"options": before["options"]}
    linked |= {} if clothes is None else {"clothes": clothes["IMAGE"]}
    needed = () if clothes else files("mask-rcnn")
    node = graph.node(
        "LikenessStoryMakerCharacter",
        title=f"StoryMaker Character: {name}",
        image=photo["IMAGE"],
        identity=identity["identity"],
        models=needed,
        **linked,
    )
    return identity, node


def cast(graph: Graph, analysis: Node, photos: Sequence[tuple[str, Node]]) -> Node:
    """All of them, one after the other; returns the last, which holds everybody."""
    last, shown = None, []
    for name, photo in photos:
        graph.next_column()
        _, last = character(graph, analysis, photo, name, last)
        shown.append((name, last))
    graph.next_column()
    for name, node in shown:
        show(graph, f"What is kept of the body ({name})", node["body"])
    assert last is not None
    return last


def apply(graph: Graph, characters: Node, first_group: int) -> Painter:
    """The group that lets the characters into a model."""
    with graph.group(f"{first_group}. Model and method"):
        checkpoint = load_checkpoint(graph, STORY)
        adapter = load_adapter(graph, "storymaker")
        encoder = load_encoder(graph)
        graph.next_column()
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            clip_vision=encoder[0],
            options=characters["options"],
            weight=STRENGTH,
            lora_strength=STRENGTH,
        )
    return Painter(checkpoint, model["model"])
