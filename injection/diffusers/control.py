"""ControlNets that read tokens of their own in place of the text, and add to a diffusers UNet.

`control_residuals` is what one of them adds; the mathematics is that of `injection.control`, the same as in ComfyUI.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...adapters.effects import ControlContext
from ..control import open_at_step, residual_mask
from ..plan import Role, fit_rows
from .place import Place

_DOWN, _MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"


class ControlNet(NamedTuple):
    """A diffusers ControlNet and its hint. picture: (1 | images, 3, H, W) in 0..1."""

    net: Any
    picture: Tensor


class Controlled:
    """ControlNets that run before each call of a UNet, beside those whose residuals it is given. `eject` ends that."""

    def __init__(self, unet: nn.Module, pairs: Sequence[tuple[ControlContext, ControlNet]], place: Place) -> None:
        self.pairs = [pair for pair in pairs if pair[0].why_never is None]
        self.place = place
        self._signature = inspect.signature(unet.forward)
        self._hooks = [unet.register_forward_pre_hook(self._before, with_kwargs=True)] if self.pairs else []

    def eject(self) -> None:
        """Let the UNet run alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, _unet: nn.Module, args: Any, keywords: Any) -> tuple[Any, Any]:
        given = self._signature.bind_partial(*args, **keywords)
        told = given.arguments
        step, steps = self.place.step
        for effect, (net, picture) in self.pairs:
            found = control_residuals(
                net, effect, told["sample"], told["timestep"], picture, step=step, steps=steps, roles=self.place.roles,
                added_cond_kwargs=told.get("added_cond_kwargs"),
            )  # fmt: skip
            if found is None:
                continue
            down, middle = found
            if told.get(_MIDDLE) is not None:
                down = [a + b for a, b in zip(told[_DOWN], down, strict=True)]
                middle = told[_MIDDLE] + middle
            told[_DOWN], told[_MIDDLE] = tuple(down), middle
        return given.args, given.kwargs


def control_residuals(
    net: Any,
    control: ControlContext,
    sample: Tensor,
    timestep: Tensor | float,
    picture: Tensor,
    *,
    step: int,
    steps: int,
    roles: Sequence[Role] = (Role.UNCOND, Role.COND),
    **given: Any,
) -> tuple[list[Tensor], Tensor] | None:
    """What a diffusers ControlNet that reads the effect's tokens adds to a UNet: its down and mid residuals.

    sample: (chunks·images, 4, h, w), one chunk per role; picture: (1 | images, 3, H, W) in 0..1. None outside the
    window. The caller adds up the residuals of several nets, and passes what else the net needs as `given`.
    """
    if control.why_never is not None or not open_at_step(control.scope, step, steps):
        return None
    images = len(sample) // len(roles)
    halves = {Role.COND: control.tokens.cond, Role.UNCOND: control.tokens.uncond}
    context = torch.cat([fit_rows(halves[role], images) for role in roles]).to(sample)
    hint = torch.cat([fit_rows(picture, images)] * len(roles)).to(sample)
    down, middle = net(
        sample,
        timestep,
        encoder_hidden_states=context,
        controlnet_cond=hint,
        conditioning_scale=control.strength,
        return_dict=False,
        **given,
    )
    *down, middle = (_within(control, residual, images, len(roles)) for residual in (*down, middle))
    return down, middle


def _within(control: ControlContext, residual: Tensor, images: int, chunks: int) -> Tensor:
    height, width = residual.shape[-2:]
    mask = residual_mask(control.scope, (height, width), images, chunks)
    return residual if mask is None else residual * mask.to(residual)
