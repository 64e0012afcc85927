"""References in diffusers' transformers: the mathematics of `injection.references`, for training and for conformance.

These classes take position ids and a dense mask, so nothing of them is replaced; where references have the timestep 0,
a hook gives their tokens the modulation of it while the call lasts. Latents are (batch, channels, height, width) as the
transformer sees them, behind the VAE's shift and scale, with sides that are multiples of its patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapters.effects import Placement
from ...errors import LikenessError
from ..references import Sequences, Sight, Weight, target_bias, whole_bias


@dataclass(frozen=True, eq=False)
class References:
    """Clean latents that are attended to, (1 | batch, C, h, w) each, and how. weights: one per reference, or none."""

    latents: Sequence[Tensor]
    placement: Placement
    weights: Sequence[Weight] = ()
    sight: Sight = field(default_factory=Sight)
    timestep_zero: bool = False


class _Call(NamedTuple):
    """One call: tokens of target and references, their ids, how many of each, and log W."""

    tokens: Tensor
    text_ids: Tensor
    image_ids: Tensor
    parts: Sequences
    bias: Tensor | None


def velocity(
    net: nn.Module, x: Tensor, t: Tensor, text: Tensor, references: References, guidance: Tensor | None = None
) -> Tensor:
    """What a transformer predicts for noisy latents x at flow time t (batch,), 0..1, beside the references.

    text: (batch, L, dim); Krea 2's layers are flattened into the last axis. LikenessError for other classes.
    """
    known = {"Krea2Transformer2DModel": _krea2, "Flux2Transformer2DModel": _flux2, "QwenImageTransformer2DModel": _qwen}
    predict = known.get(type(net).__name__)
    if predict is None:
        raise LikenessError(
            f"{type(net).__name__} has no reference images: choose Krea 2, FLUX.2 or Qwen-Image-Edit as the base."
        )
    return predict(net, x, t, text, references, guidance)


def pack(latents: Tensor, patch: int) -> Tensor:
    """(batch, C, h, w) -> (batch, h/p·w/p, C·p²), channels first within a token."""
    batch, channels, h, w = latents.shape
    cut = latents.view(batch, channels, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpack(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """The way back, to latents of this size."""
    h, w = size
    cut = tokens.view(len(tokens), h // patch, w // patch, -1, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, h, w)


def _call(x: Tensor, text: int, references: References, patch: int) -> _Call:
    latents = [x, *(one.expand(len(x), -1, -1, -1) for one in references.latents)]
    tokens = [pack(one, patch) for one in latents]
    sizes = [(one.shape[-2], one.shape[-1]) for one in latents]
    text_ids, image_ids = references.placement(text, sizes[0], sizes[1:])
    parts = Sequences(text, tokens[0].shape[1], tuple(one.shape[1] for one in tokens[1:]))
    weights = references.weights or [Weight()] * len(references.latents)
    bias = whole_bias(parts, target_bias(parts, weights), references.sight)
    return _Call(
        torch.cat(tokens, 1),
        text_ids.to(x.device),
        image_ids.to(x.device),
        parts,
        None if bias is None else bias.to(x),
    )


@contextmanager
def _hooked(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _beside(now: Tensor, zero: Tensor, own: int, references: int) -> Tensor:
    """Modulation (batch, 1 | -, d) per token: `now` for the sequence's own tokens, `zero` for references."""
    now, zero = (one.unsqueeze(1) if one.ndim == 2 else one for one in (now, zero))
    return torch.cat([now.expand(-1, own, -1), zero.expand(-1, references, -1)], dim=1)


def _krea2(net: Any, x: Tensor, t: Tensor, text: Tensor, references: References, guidance: Tensor | None) -> Tensor:
    call = _call(x, text.shape[1], references, 2)
    parts, hooks = call.parts, []

    def at_zero(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        zero = F.gelu(net.time_embed(torch.zeros_like(t), dtype=output.dtype), approximate="tanh")
        return _beside(output, module.forward(zero), parts.own, parts.total - parts.own)

    def masked(module: nn.Module, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**keywords, "attention_mask": call.bias}

    if references.timestep_zero and parts.references:
        hooks.append(net.time_mod_proj.register_forward_hook(at_zero))
    if call.bias is not None:
        hooks += [block.attn.register_forward_pre_hook(masked, with_kwargs=True) for block in net.transformer_blocks]
    layers = text.unflatten(-1, (net.config.num_text_layers, -1))
    with _hooked(hooks):
        out = net(call.tokens, layers, t, torch.cat([call.text_ids, call.image_ids]), return_dict=False)[0]
    return unpack(out[:, : parts.target], (x.shape[-2], x.shape[-1]), 2)


def _flux2(net: Any, x: Tensor, t: Tensor, text: Tensor, references: References, guidance: Tensor | None) -> Tensor:
    call = _call(x, text.shape[1], references, net.config.patch_size)
    parts, hooks = call.parts, []
    guidance = guidance if net.config.guidance_embeds else None

    def at_zero(own: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            scaled = None if guidance is None else guidance.to(output.dtype) * 1000
            zero = module.forward(net.time_guidance_embed(torch.zeros_like(t).to(output.dtype), scaled))
            return _beside(output, zero, own, parts.total - parts.own)

        return hook

    if references.timestep_zero and parts.references:
        hooks = [
            net.double_stream_modulation_img.register_forward_hook(at_zero(parts.target)),
            net.single_stream_modulation.register_forward_hook(at_zero(parts.own)),
        ]
    mask = None if call.bias is None else {"attention_mask": call.bias}
    with _hooked(hooks):
        out = net(
            call.tokens,
            text,
            t,
            call.image_ids,
            call.text_ids,
            guidance,
            joint_attention_kwargs=mask,
            return_dict=False,
        )[0]
    return unpack(out[:, : parts.target], (x.shape[-2], x.shape[-1]), net.config.patch_size)


def _qwen(net: Any, x: Tensor, t: Tensor, text: Tensor, references: References, guidance: Tensor | None) -> Tensor:
    """Position ids and the timestep 0 are its class's own; that has no place for a mask."""
    call = _call(x, text.shape[1], references, net.config.patch_size)
    if call.bias is not None:
        raise LikenessError(
            "Qwen-Image-Edit in diffusers attends to references at strength 1 and everywhere: use strength 1, no mask."
        )
    if references.timestep_zero is not net.zero_cond_t:
        raise LikenessError(
            f"This Qwen-Image-Edit was {'' if net.zero_cond_t else 'not '}trained with references at timestep 0: "
            f"choose the scheme of {'2511' if net.zero_cond_t else '2509'}."
        )
    shapes = [(1, one.shape[-2] // 2, one.shape[-1] // 2) for one in (x, *references.latents)]
    out = net(call.tokens, text, None, t, [shapes] * len(x), return_dict=False)[0]
    return unpack(out[:, : call.parts.target], (x.shape[-2], x.shape[-1]), net.config.patch_size)
