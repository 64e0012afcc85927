"""What graphs for FLUX share: its own prompt, whose guidance is part of it, and a latent of 16 channels."""

from __future__ import annotations

from _graph import Graph, Node, Output
from _pieces import Base, Start, sample_and_save

FLUX = Base("flux1-dev-fp8", 24, 1.0, "euler", "simple", 1024, negative="")
PULID_GUIDANCE = 4.0  # as PuLID was published with


def prompt(graph: Graph, number: int, clip: Output, text: str, guidance: float, size: tuple[int, int]) -> Start:
    """The group before the sampling. Without guidance by a negative prompt (cfg 1) the negative is never read."""
    width, height = size
    with graph.group(f"{number}. Prompt"):
        encoded = graph.node("CLIPTextEncode", title="Prompt", text=text, clip=clip, room=360)
        graph.next_column()
        positive = graph.node("FluxGuidance", conditioning=encoded[0], guidance=guidance)
        negative = graph.node("ConditioningZeroOut", title="Not read at cfg 1", conditioning=encoded[0])
        latent = graph.node("EmptySD3LatentImage", width=width, height=height, batch_size=1)
    return Start(positive, negative, latent)


def portrait(
    graph: Graph,
    checkpoint: Node,
    model: Output,
    text: str,
    *,
    first_group: int,
    guidance: float = PULID_GUIDANCE,
    size: tuple[int, int] = (896, 1152),
) -> None:
    """The last two groups: a prompt, and one portrait after it."""
    start = prompt(graph, first_group, checkpoint["CLIP"], text, guidance, size)
    sample_and_save(graph, f"{first_group + 1}. Portrait", FLUX, checkpoint["VAE"], model, start)
