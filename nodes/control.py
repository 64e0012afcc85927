"""Systems with a ControlNet of their own, which reads the person in place of the text."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.instantid import EmbeddingPooling, InstantIDOptions
from ..errors import LikenessError, logger
from .adapters import CATEGORY, embedded_by
from .choices import choices, finite, in_order, member
from .node import Node
from .references import Options
from .schema import (
    AdapterSocket,
    IdentitySocket,
    OptionsSocket,
    any_recogniser_input,
    mask_input,
    options_input,
    schema,
    share_input,
    strength_input,
    window_inputs,
)

log = logger("likeness")


class IdentityControlNet(Node):
    """CONDITIONING, ControlNet and identity to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessIdentityControlNet",
            display_name="Identity ControlNet",
            category=CATEGORY,
            description="Adds the ControlNet that belongs to an adapter, such as InstantID's IdentityNet: keypoints "
            "tell it where the face is, and it reads the identity in place of the text. Other ControlNets on the "
            "same prompt keep reading the text. For several people chain this node, with one mask each.",
            search_aliases=["InstantID", "IdentityNet", "Apply InstantID ControlNet", "face ControlNet"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                AdapterSocket.Input("adapter", tooltip="InstantID's ip-adapter.bin, from Load Identity Adapter."),
                io.ControlNet.Input("control_net", tooltip="InstantID's ControlNet, from Load ControlNet Model."),
                IdentitySocket.Input("identity", tooltip="The person."),
                io.Image.Input(
                    "image",
                    display_name="keypoints",
                    tooltip="From Face Keypoints, at the size of the image you make: where the face is, and how it "
                    "is turned.",
                ),
                strength_input(
                    "0.8 is the official value. Lower it where the image looks burnt; 0 is exactly off.",
                    default=0.8,
                    most=10.0,
                    step=0.01,
                ),
                *window_inputs(
                    "Fraction of the sampler's steps after which the ControlNet starts.",
                    "Fraction of the sampler's steps after which the ControlNet stops; an early end leaves the "
                    "details to the prompt.",
                ),
                mask_input(
                    "Where in the image the ControlNet acts; any size, soft edges allowed. Use the same mask as in "
                    "this person's Apply Identity."
                ),
                options_input("From InstantID Options."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the ControlNet."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the ControlNet."),
                io.String.Output(display_name="report", tooltip="What was applied."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        adapter: Any,
        control_net: Any,
        identity: Any,
        image: torch.Tensor,
        strength: float = 0.8,
        start_at: float = 0.0,
        end_at: float = 1.0,
        attn_mask: torch.Tensor | None = None,
        options: Any = None,
    ) -> io.NodeOutput:
        """Check, encode once, and put the net onto both prompts."""
        from ..adapters.effects import ControlContext, Scope
        from ..adapters.image_prep import to_rgb
        from ..adapters.system import Request
        from ..checks import as_mask
        from ..injection.comfy.control import controlled
        from ..injection.plan import Role
        from ..weights.families import TransformerLayout
        from .adapter_socket import as_managed

        finite(strength=strength, start_at=start_at, end_at=end_at)
        in_order(start_at, end_at)
        adapter, options = as_managed(adapter), options or Options()
        if not adapter.needs.keypoints:
            raise LikenessError(
                f"The adapter {adapter.name!r} has no ControlNet of its own: choose InstantID's ip-adapter.bin, or use "
                "Apply ControlNet for other ControlNets."
            )
        # Opacity is left out: what is transparent around a drawn face must stay black.
        picture = to_rgb(image[..., :-1] if image.shape[-1] in (2, 4) else image, "input keypoints")
        if not bool(picture.any()):
            raise LikenessError(
                "The input keypoints is a black image, which shows no face: connect Face Keypoints of a photo with a "
                "face."
            )
        mask = None if attn_mask is None else as_mask(attn_mask, "The mask 'attn_mask'")
        request = Request(
            layout=TransformerLayout.of_blocks([]),
            attention={},
            strength=strength,
            scope=Scope(start_at, end_at, mask, options.mask_resize),
            identity=identity,
            options=options.reference,
            seen_by=embedded_by,
        )
        [effect] = [effect for effect in adapter.effects(request) if isinstance(effect, ControlContext)]
        _check_net(control_net, adapter.name, effect.tokens.cond.shape[-1])
        prompts = controlled({Role.COND: positive, Role.UNCOND: negative}, control_net, picture, effect)
        report = _report(adapter, request, effect)
        log.info("[likeness] %s", report)
        return io.NodeOutput(prompts[Role.COND], prompts[Role.UNCOND], report)


def _check_net(control_net: Any, adapter: str, width: int) -> None:
    """LikenessError unless the ControlNet reads texts as wide as the adapter's tokens."""
    from ..injection.comfy.control import text_width
    from ..weights.families import OTHER, of_text_width

    found = text_width(control_net)
    if found == width:
        return
    family = OTHER if found is None else of_text_width(found)
    what = "reads no text" if found is None else f"reads text of width {found}"
    if family is not OTHER:
        what = f"was made for {family.title}"
    raise LikenessError(
        f"The control_net ({type(control_net).__name__}) {what}, but the tokens of {adapter!r} are {width} wide: "
        "connect Load ControlNet Model with the ControlNet published beside the adapter."
    )


def _report(adapter: Any, request: Any, effect: Any) -> str:
    """One line that answers 'why does it have no effect?'."""
    who = repr(request.identity.name)
    if effect.why_never is not None:
        return f"ControlNet of {adapter.name}: {who} has no effect, because {effect.why_never}."
    scope, tokens = effect.scope, effect.tokens.cond.shape[1]
    return (
        f"ControlNet of {adapter.adapter.title} ({adapter.name}): reads {who} as {tokens} tokens in place of the text, "
        f"strength {effect.strength:g}, from {scope.start:g} to {scope.end:g} of the steps."
    )


class InstantIDOptionsNode(Node):
    """What can be set about InstantID beyond its strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessInstantIDOptions",
            display_name="InstantID Options",
            category=CATEGORY,
            description="Options of InstantID, for Apply Identity and Identity ControlNet. With its defaults it "
            "changes nothing.",
            search_aliases=["Apply InstantID Advanced"],
            inputs=[
                io.Combo.Input(
                    "photos",
                    options=choices(EmbeddingPooling),
                    default=EmbeddingPooling.MEAN.value,
                    tooltip="How several photos are combined: their mean embedding, or the tokens of each, one after "
                    "the other.",
                ),
                share_input(
                    "noise",
                    0.0,
                    "Random noise that the negative half reads instead of zeros. 0 is official; 0.2 to 0.4 reduces "
                    "burnt colours at high cfg. Connect the same options to both nodes.",
                ),
                any_recogniser_input("a recogniser other than antelopev2"),
            ],
            outputs=[
                OptionsSocket.Output(display_name="options", tooltip="For Apply Identity and Identity ControlNet.")
            ],
        )

    @classmethod
    def execute(
        cls, photos: str = EmbeddingPooling.MEAN.value, noise: float = 0.0, any_recogniser: bool = False
    ) -> io.NodeOutput:
        """Turn words into choices."""
        finite(noise=noise)
        return io.NodeOutput(
            Options(InstantIDOptions(member(EmbeddingPooling, photos, "photos"), noise, any_recogniser))
        )


NODES = [IdentityControlNet, InstantIDOptionsNode]
