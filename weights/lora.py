"""Low-rank changes of a model's weights, W + strength · (α / r) · up @ down (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import LikenessError


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One layer's change. Linear: down (r, in), up (out, r). Convolution: down (r, in, k, k), up (out, r, 1, 1), or
    with `mid` (r, r, k, k) between two 1x1 kernels. alpha None, or 0 as in old files, means alpha = rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """α / r"""
        return self.alpha / self.rank if self.alpha else 1.0

    def delta(self, strength: float = 1.0) -> Tensor:
        """The change of the weight, in its shape and in float32."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            product = torch.einsum("op,pqkl,qi->oikl", up.flatten(1), self.mid.float(), down.flatten(1))
        else:
            product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        return strength * self.scale * product


@contextmanager
def merged(
    model: nn.Module, changes: Mapping[str, LoraPair | Tensor], strength: float = 1.0, replaces: bool = False
) -> Iterator[nn.Module]:
    """The model with a LoRA, or whole differences, added to its own weights; restored bit by bit on leaving.

    changes: by the layer's path, for its weight; a bias by its whole name. replaces: they are weights themselves,
    towards which the model's move. Raises LikenessError when one does not fit, before anything is changed.
    """
    weights = targets_of(model, changes)
    originals = {path: weight.detach().clone() for path, weight in weights.items()}
    try:
        with torch.no_grad():
            for path, change in changes.items():
                weight = weights[path]
                if replaces:
                    assert isinstance(change, Tensor)
                    weight.lerp_(change.to(weight), strength)
                    continue
                delta = change.delta(strength) if isinstance(change, LoraPair) else strength * change
                weight += delta.to(weight).reshape(weight.shape)
        yield model
    finally:
        with torch.no_grad():
            for path, original in originals.items():
                weights[path].copy_(original)


def targets_of(model: nn.Module, changes: Mapping[str, LoraPair | Tensor]) -> dict[str, nn.Parameter]:
    """What changes act on, by their path. LikenessError when the model lacks one, or its shape is another."""
    known, found = dict(model.named_parameters()), {}
    for path, change in changes.items():
        if weight_name(path) not in known:
            raise LikenessError(
                f"This change of weights does not fit the model, which has no {weight_name(path)!r}. Choose a file "
                "made for this base model."
            )
        found[path] = known[weight_name(path)]
        check_fits(path, change, found[path])
    return found


def weight_name(path: str) -> str:
    """The name of what a change acts on: the layer's weight, or the bias that the path names."""
    return path if path.endswith(".bias") else f"{path}.weight"


def check_fits(path: str, change: LoraPair | Tensor, weight: Tensor) -> None:
    """LikenessError when the change of the layer at `path` does not fit its weight."""
    if isinstance(change, Tensor):
        fits, changed = change.shape == weight.shape, tuple(change.shape)
    else:
        changed = (change.up.shape[0], *change.down.shape[1:])
        fits = changed[0] == weight.shape[0] and change.down[0].numel() == weight[0].numel()
        if change.mid is not None:
            fits = changed[0] == weight.shape[0] and change.down.shape[1] == weight.shape[1]
    if not fits:
        raise LikenessError(
            f"This change of weights does not fit the model: {path} is {tuple(weight.shape)} there and the file "
            f"changes {changed}. Choose a file made for this base model."
        )
