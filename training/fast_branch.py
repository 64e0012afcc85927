"""PuLID's fast branch: a few differentiable steps from noise to clean latents, and what its layers see on the way.

The base model is frozen and shared. A LoRA that lets it sample in a few steps is switched on for the branch alone
(`switched_on`), so that the denoising loss trains on the base as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LikenessError
from ..injection.sites import sites_of_diffusers_unet
from ..weights.files import read_weights
from ..weights.lora import LoraPair, targets_of
from ..weights.lora_files import UNET, read_lora, unet_spellings
from .few_step import FewStep

Predict = Callable[[Tensor, int], Tensor]  # what the network is given at a step, and the step's number


@dataclass(frozen=True)
class ThroughSteps:
    """Through which steps' predictions a gradient flows. count: None for all; at_random: any so many, not the last."""

    count: int | None = None
    at_random: bool = False

    @classmethod
    def of(cls, words: str) -> ThroughSteps:
        """Of "all", "last:K" or "random:K"."""
        found = re.fullmatch(r"(last|random):([1-9][0-9]*)", words)
        return cls() if found is None else cls(int(found[2]), found[1] == "random")

    def steps(self, of: int, random: torch.Generator) -> frozenset[int]:
        """Those of a sampling of so many steps."""
        if self.count is None or self.count >= of:
            return frozenset(range(of))
        if self.at_random:
            return frozenset(torch.randperm(of, generator=random)[: self.count].tolist())
        return frozenset(range(of - self.count, of))


def sample(
    branch: FewStep, predict: Predict, noise: Tensor, between: Sequence[Tensor | None], through: Collection[int]
) -> Tensor:
    """x_0 of x_T ~ N(0, I). between: the noise drawn behind each step.

    Of a step that is not in `through` the prediction is a constant; the update around it stays differentiable, so that
    the gradient reaches earlier steps that are.
    """
    x = branch.begin(noise)
    for step in range(len(branch.timesteps)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step in through):
            prediction = predict(branch.model_input(x, step), step)
        x = branch.update(x, prediction, step, between[step])
    return x


# What the layers see --------------------------------------------------------------------------------------------------


class QueryProbe:
    """Listens to the queries of the image and the keys of the text at all cross-attention layers of a UNet.

    With gradient, with checkpointing too; while nothing is recorded it costs nothing.
    """

    def __init__(self, unet: nn.Module) -> None:
        self.sites = sites_of_diffusers_unet(unet)
        self._unet = unet
        self._seen: dict[tuple[int, str], Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in the UNet until this is left."""
        with ExitStack() as hooks:
            for site in self.sites:
                attention: Any = self._unet.get_submodule(f"{site.diffusers_path}.attn2")
                for half in ("to_q", "to_k"):
                    hook = getattr(attention, half).register_forward_hook(self._keep((site.slot, half)))
                    hooks.callback(hook.remove)
            yield

    @contextmanager
    def recording(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """After one pass and the block's end: (queries, keys) of every layer, (batch, heads, tokens, d)."""
        found: list[tuple[Tensor, Tensor]] = []
        self.start()
        yield found
        found += self.take()

    def start(self) -> None:
        """Record the next pass."""
        self._seen = {}

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """What was recorded of it, by layer in slot order."""
        seen, self._seen = self._seen, None
        assert seen is not None
        return [
            (_heads(seen[site.slot, "to_q"], site.heads), _heads(seen[site.slot, "to_k"], site.heads))
            for site in self.sites
        ]

    def _keep(self, key: tuple[int, str]) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._seen is not None:
                self._seen[key] = output

        return hook


def _heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


# The few-step LoRA ----------------------------------------------------------------------------------------------------


def load_few_step(file: Path, unet: nn.Module) -> dict[str, LoraPair]:
    """A few-step LoRA of any spelling for this UNet. LikenessError, naming the file, when it is none."""
    weights, metadata = read_weights(file)
    try:
        pairs = read_lora(weights, unet_spellings(unet), UNET, metadata).pairs
        targets_of(unet, pairs)
    except LikenessError as error:
        raise LikenessError(f"The few-step LoRA '{file.name}' cannot be used: {error}") from error
    if not pairs:
        raise LikenessError(
            f"'{file.name}' holds no LoRA of this base model: write one such as LCM-LoRA or SDXL-Lightning's, made for "
            "it, into data.few_step."
        )
    return dict(pairs)


@contextmanager
def switched_on(unet: nn.Module, pairs: Mapping[str, LoraPair], strength: float = 1.0) -> Iterator[None]:
    """A frozen LoRA beside the UNet's layers until this is left; their own weights are not touched."""
    device, dtype = next(unet.parameters()).device, next(unet.parameters()).dtype
    with ExitStack() as hooks:
        for path, pair in pairs.items():
            layer = unet.get_submodule(path)
            beside = _beside(layer, pair, strength, device, dtype)
            # Before others, so that what listens to a layer hears the whole of it.
            hooks.callback(layer.register_forward_hook(beside, prepend=True).remove)
        yield


def _beside(
    layer: nn.Module, pair: LoraPair, strength: float, device: torch.device, dtype: torch.dtype
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    down, up = (value.to(device, dtype) for value in (pair.down, pair.up))
    mid = None if pair.mid is None else pair.mid.to(device, dtype)
    factor = strength * pair.scale

    def linear(_layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + factor * F.linear(F.linear(given[0].to(down), down.flatten(1)), up.flatten(1))

    def convolution(_layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        how = {"stride": _layer.stride, "padding": _layer.padding, "dilation": _layer.dilation}
        x = given[0].to(down)
        x = F.conv2d(x, down, **how) if mid is None else F.conv2d(F.conv2d(x, down), mid, **how)
        return output + factor * F.conv2d(x, up.reshape(*up.shape[:2], 1, 1))

    return convolution if isinstance(layer, nn.Conv2d) else linear
