"""What graphs share whose adapter works through the prompt, in which words stand for people or subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _graph import Graph, Node, Output
from _pieces import SDXL, Base, Start


def identity_prompt(
    graph: Graph,
    number: int,
    checkpoint: Node,
    adapter: Node,
    people: Sequence[Node],
    text: str,
    *,
    base: Base = SDXL,
    model: Output | None = None,
    size: tuple[int, int] | None = None,
    **settings: Any,
) -> Start:
    """The group before the sampling. The positive is an Identity Prompt, whose second output is the MODEL to sample
    with. people: their identities, in the order of the trigger words."""
    names = ["identity", *(f"identity_{number}" for number in range(2, len(people) + 1))][: len(people)]
    inputs: dict[str, Any] = {name: person["identity"] for name, person in zip(names, people, strict=True)}
    width, height = size or (base.side, base.side)
    with graph.group(f"{number}. Prompt"):
        positive = graph.node(
            "LikenessIdentityPrompt",
            clip=checkpoint["CLIP"],
            adapter=adapter["adapter"],
            text=text,
            model=model or checkpoint["MODEL"],
            room=360,
            **inputs,
            **settings,
        )
        graph.next_column()
        negative = graph.node(
            "CLIPTextEncode", title="Negative prompt", text=base.negative, clip=checkpoint["CLIP"], room=360
        )
        latent = graph.node("EmptyLatentImage", width=width, height=height, batch_size=1)
    return Start(positive, negative, latent)
