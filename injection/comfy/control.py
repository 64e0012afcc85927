"""A ControlNet of the host that reads tokens of its own in place of the text.

The host's own hook, `cross_attn_controlnet`, is one for all ControlNets of a prompt: a depth net chained to
InstantID's would read the face, and of two people's nets both the last one's. Here each net has its own tokens. They
ride on the conditioning it is attached to (`model_conds`), so that the host sorts and batches them as it does the text:
whatever the order of halves, prompts and regions, positive and negative stay one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from comfy.controlnet import ControlBase
from torch import Tensor

from ...adapters.effects import ControlContext, Scope
from ...errors import LikenessError
from ..control import open_at_step, residual_mask
from ..plan import Role
from .run import context_window
from .text import ConditioningEntries

# As the host hands it on: "input", "middle", "output" -> one residual per place.
ControlOutput = dict[str, list[Tensor | None]]
_numbers = itertools.count(1)


class IdentityControl(ControlBase):
    """One of the host's ControlNets, `net`, among the others of a prompt; it reads what lies under `key` there.

    net: a copy of its own, with hint and strength, never chained itself: the chain runs through this object.
    """

    def __init__(self, net: Any, key: str, scope: Scope) -> None:
        super().__init__()
        self.net = net
        self.key = key
        self.scope = scope
        self._sigmas: tuple[Tensor, list[float]] | None = None  # of the run, as the host has them and as numbers
        self._masks: dict[Any, Tensor | None] = {}

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict
    ) -> Any:
        """What this net and all before it add. The others see the prompt as it came."""
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if not self._is_open(t, transformer_options):
            return before
        if self.key not in cond:
            raise LikenessError(
                "A prompt with Identity ControlNet has lost the face's tokens in another node: connect Identity "
                "ControlNet after the nodes that change the prompt."
            )
        own = {**cond, "crossattn_controlnet": cond[self.key]}
        found = self.net.get_control(x_noisy, t, own, batched_number, transformer_options)
        if found is None:
            return before
        images = len(x_noisy) // batched_number
        rows = _rows(transformer_options, images)
        if self.scope.mask is not None or self.scope.image_weights is not None:
            found = {
                place: [None if r is None else self._within(r, images, batched_number, rows) for r in residuals]
                for place, residuals in found.items()
            }
        return found if before is None else added(before, found)

    def _is_open(self, t: Tensor, options: dict) -> bool:
        """By the steps of the run; by noise level where the steps are unknown."""
        if self.scope.whole_run:
            return True
        now, steps = float(t.flatten()[0]), options.get("sample_sigmas")
        if steps is None or len(steps) < 2:
            highest, lowest = self.timestep_range or (float("inf"), 0.0)
            return lowest <= now <= highest
        if self._sigmas is None or self._sigmas[0] is not steps:
            self._sigmas = (steps, steps.tolist())
        sigmas = self._sigmas[1]
        step = sum(now <= sigma for sigma in sigmas[1:-1])
        return open_at_step(self.scope, step, len(sigmas) - 1)

    def _within(self, residual: Tensor, images: int, chunks: int, rows: tuple[int, ...] | None) -> Tensor:
        size = (residual.shape[-2], residual.shape[-1])
        key = (size, images, chunks, rows, residual.device, residual.dtype)
        if key not in self._masks:
            mask = residual_mask(self.scope, size, images, chunks, rows)
            self._masks[key] = None if mask is None else mask.to(residual)
        mask = self._masks[key]
        return residual if mask is None else residual * mask

    # What the host asks of every ControlNet

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """The start of a sampling run."""
        self.timestep_percent_range = (self.scope.start, self.scope.end)
        super().pre_run(model, percent_to_timestep_function)
        self.net.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        """The end of a sampling run: nothing of it is kept."""
        super().cleanup()
        self.net.cleanup()
        self._sigmas, self._masks = None, {}

    def get_models(self) -> list[Any]:
        """What has to be loaded."""
        return super().get_models() + self.net.get_models()

    def get_extra_hooks(self) -> list[Any]:
        """Hooks that other nodes gave the nets."""
        return super().get_extra_hooks() + self.net.get_extra_hooks()

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes beside the weights."""
        return super().inference_memory_requirements(dtype) + self.net.inference_memory_requirements(dtype)

    def copy(self) -> IdentityControl:
        """The same net, for another chain."""
        other = IdentityControl(self.net.copy(), self.key, self.scope)
        self.copy_to(other)
        return other

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> IdentityControl:
        """The same net with weights of its own on another card (newer hosts)."""
        other = IdentityControl(self.net.deepclone_multigpu(load_device), self.key, self.scope)
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


def controlled(
    prompts: Mapping[Role, ConditioningEntries], net: Any, picture: Tensor, effect: ControlContext
) -> dict[Role, ConditioningEntries]:
    """The prompts with a ControlNet that reads the effect's tokens; the given ones are left as they are.

    net: what the host's loader gives. picture: its hint, (images, H, W, 3) in 0..1. Nets that the prompts have already
    stay as they are, and keep reading the text.
    """
    if effect.why_never is not None:
        return dict(prompts)
    tokens = {Role.COND: effect.tokens.cond, Role.UNCOND: effect.tokens.uncond}
    key, hint = f"likeness_control_{next(_numbers)}", picture[..., :3].movedim(-1, 1)
    nets: dict[Any, IdentityControl] = {}  # one for each chain, shared by the halves, which then are one batch

    def with_net(role: Role, options: Mapping[str, Any]) -> dict[str, Any]:
        before = options.get("control")
        if before not in nets:
            own = net.copy().set_cond_hint(hint, effect.strength)
            nets[before] = IdentityControl(own, key, effect.scope)
            nets[before].set_previous_controlnet(before)
        carried = {**options.get("model_conds", {}), key: CONDCrossAttn(tokens[role])}
        return {**options, "control": nets[before], "control_apply_to_uncond": False, "model_conds": carried}

    return {
        role: [[states, with_net(role, options)] for states, options in prompt]  # type: ignore[misc]
        for role, prompt in prompts.items()
    }


def text_width(net: Any) -> int | None:
    """Channels of the text that a ControlNet of the host reads; None when it reads none."""
    network = getattr(net, "control_model", None)
    if not isinstance(network, torch.nn.Module):
        return None
    layers: dict[str, Any] = dict(network.named_modules())
    return next((int(layers[name].in_features) for name in layers if name.endswith("attn2.to_k")), None)


def added(before: ControlOutput, found: ControlOutput) -> ControlOutput:
    """The sums of two nets' residuals, place by place. Neither is changed."""
    return {
        place: [
            a if b is None else b if a is None else a + b
            for a, b in itertools.zip_longest(before.get(place, ()), found.get(place, ()))
        ]
        for place in {**before, **found}
    }


def _rows(options: dict, images: int) -> tuple[int, ...] | None:
    """Which images of the batch a context window takes; None for all of them."""
    window = context_window(options)
    return window[1] if window is not None and window[0] == 0 and len(window[1]) == images else None
