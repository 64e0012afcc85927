"""What the graphs of InstantID share."""

from __future__ import annotations

from collections.abc import Sequence

from _graph import Graph, Node, Output
from _pieces import Start, files

SIDE = 1016  # slightly off the sizes of the training images, among which are many with watermarks
STRENGTH = 0.8  # the official one, of adapter and net


def load_net(graph: Graph) -> Node:
    """InstantID's ControlNet."""
    needed = files("instantid/controlnet")
    return graph.node("ControlNetLoader", control_net_name=needed[0].name, models=needed)


def keypoints(graph: Graph, faces: Node, start: Start, title: str | None = None, **settings: Output | float) -> Node:
    """The faces' keypoints at the size of the image."""
    return graph.node("LikenessFaceKeypoints", title=title, faces=faces["faces"], latent=start.latent[0], **settings)


def control_each(
    graph: Graph,
    start: Start,
    adapter: Node,
    net: Node,
    people: Sequence[tuple[str | None, Node, Node]],
    masks: Sequence[Node] = (),
    **asked: Output,
) -> dict[str, Output]:
    """The prompts with a net for each person. people: (title, identity, keypoints); masks: one for each, or none.
    asked: further inputs of every Identity ControlNet."""
    positive, negative = start.positive[0], start.negative[0]
    for number, (title, identity, drawn) in enumerate(people):
        control = graph.node(
            "LikenessIdentityControlNet",
            title=title,
            positive=positive,
            negative=negative,
            adapter=adapter["adapter"],
            control_net=net[0],
            identity=identity["identity"],
            image=drawn["image"],
            strength=STRENGTH,
            **({"attn_mask": masks[number][0]} if masks else {}),
            **asked,
        )
        positive, negative = control[0], control[1]
    return {"positive": positive, "negative": negative}
