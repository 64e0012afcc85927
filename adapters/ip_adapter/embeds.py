"""Working with encodings of reference pictures: how weight scales keys and values, how several images become one,
and how an encoding is kept in a file.

The modes and their names follow cubiq/ComfyUI_IPAdapter_plus@9d076a3, so that workflows carry over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...checks import LARGEST_FACTOR, all_finite, check_number
from ...errors import LikenessError
from ...storage import write_once
from ...weights.files import read_content, read_weights
from ..types import KeyValueScaling, v_only

# ---------------------------------------------------------------------------------------------------------------------
# Scaling: (keys, values, weight, channels) -> (keys, values). Larger keys sharpen the softmax, smaller flatten it.

_WIDEST = 1280  # channels of the widest layers of SD1.5 and SDXL; narrower ones are penalised in proportion


def k_and_v(keys: Tensor, values: Tensor, weight: float, channels: int) -> tuple[Tensor, Tensor]:
    """softmax(q wKᵀ) wV."""
    return keys * weight, values * weight


def k_and_v_penalised(keys: Tensor, values: Tensor, weight: float, channels: int) -> tuple[Tensor, Tensor]:
    """softmax(q pKᵀ) pV with p = w · channels / 1280."""
    return k_and_v(keys, values, weight * channels / _WIDEST, channels)


def k_mean_v_penalised(keys: Tensor, values: Tensor, weight: float, channels: int) -> tuple[Tensor, Tensor]:
    """softmax(q pKᵀ) (V − m + pm), m the mean of V over its tokens: what tells the tokens apart keeps its size."""
    p = weight * channels / _WIDEST
    mean = values.mean(dim=1, keepdim=True)
    return keys * p, values - mean + p * mean


class EmbedsScaling(Enum):
    """What the weight multiplies; the value is the name a user chooses."""

    V_ONLY = "V only"
    K_AND_V = "K+V"
    K_AND_V_PENALISED = "K+V w/ C penalty"
    K_MEAN_V_PENALISED = "K+mean(V) w/ C penalty"

    @property
    def function(self) -> KeyValueScaling:
        """The scaling itself."""
        return _SCALINGS[self]


_SCALINGS: dict[EmbedsScaling, KeyValueScaling] = {
    EmbedsScaling.V_ONLY: v_only,
    EmbedsScaling.K_AND_V: k_and_v,
    EmbedsScaling.K_AND_V_PENALISED: k_and_v_penalised,
    EmbedsScaling.K_MEAN_V_PENALISED: k_mean_v_penalised,
}

# ---------------------------------------------------------------------------------------------------------------------
# Several pictures: (n, ...) -> (1, ...), or (n, ...) where every image stays itself.


def _concat(rows: Tensor) -> Tensor:
    return rows


def _add(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, keepdim=True)


def _subtract(rows: Tensor) -> Tensor:
    return rows[:1] - rows[1:].mean(dim=0, keepdim=True)


def _average(rows: Tensor) -> Tensor:
    return rows.mean(dim=0, keepdim=True)


def _norm_average(rows: Tensor) -> Tensor:
    """Not a mean of directions: the norm runs over the images, number by number. Where all are zero, zero stays."""
    norms = rows.norm(dim=0, keepdim=True)
    return (rows / norms.where(norms != 0, torch.ones_like(norms))).mean(dim=0, keepdim=True)


def _max(rows: Tensor) -> Tensor:
    return rows.amax(dim=0, keepdim=True)


def _min(rows: Tensor) -> Tensor:
    return rows.amin(dim=0, keepdim=True)


class CombineMode(Enum):
    """How several images make one reference; the value is the name a user chooses."""

    CONCAT = "concat"
    ADD = "add"
    SUBTRACT = "subtract"
    AVERAGE = "average"
    NORM_AVERAGE = "norm average"
    MAX = "max"
    MIN = "min"


_COMBINATIONS: dict[CombineMode, Callable[[Tensor], Tensor]] = {
    CombineMode.CONCAT: _concat,
    CombineMode.ADD: _add,
    CombineMode.SUBTRACT: _subtract,
    CombineMode.AVERAGE: _average,
    CombineMode.NORM_AVERAGE: _norm_average,
    CombineMode.MAX: _max,
    CombineMode.MIN: _min,
}
_AVERAGES = (CombineMode.AVERAGE, CombineMode.NORM_AVERAGE)


def join_embeds(rows: Tensor, mode: CombineMode, weights: Sequence[float] | None = None) -> Tensor:
    """Several encodings, or the tokens made of them, as one. rows: (n, ...) -> (1, ...), for "concat" (n, ...).

    One image stays as it is. weights: a factor per image; in the averages only their proportion matters.
    Combine before the projection for the behaviour of existing workflows; after it, each image keeps its own tokens
    until the end. Raises LikenessError for an empty batch, and for weights that do not fit.
    """
    if len(rows) == 0:
        raise LikenessError("there is no image to combine: connect at least one.")
    if weights is not None:
        rows = rows * _per_row(weights, rows, mode)
    return rows if len(rows) == 1 else _COMBINATIONS[mode](rows)


def combine_uncond(rows: Tensor, mode: CombineMode) -> Tensor:
    """The unconditioned counterpart of `join_embeds`: that of the first image.

    Only "concat" keeps all of them, and only where they differ: under a softmax, copies of one row count as one.
    """
    alike = bool((rows == rows[:1]).all())
    return rows if mode is CombineMode.CONCAT and not alike else rows[:1]


def join_tokens(tokens: Tensor) -> Tensor:
    """Tokens of n images as one row, so that they share a softmax. (n, n_tokens, dim) -> (1, n · n_tokens, dim)"""
    return tokens.flatten(0, 1).unsqueeze(0)


def renormalised(combined: Tensor, rows: Tensor) -> Tensor:
    """`combined` at the mean length of `rows`: recogniser embeddings were trained as unit vectors, a mean is shorter.

    combined: (m, dim), rows: (n, dim) -> (m, dim)
    """
    length = rows.norm(dim=-1).mean()
    return torch.nn.functional.normalize(combined, dim=-1) * length


def _per_row(weights: Sequence[float], rows: Tensor, mode: CombineMode) -> Tensor:
    factors = torch.tensor(list(weights), dtype=rows.dtype, device=rows.device)
    if len(factors) != len(rows):
        raise LikenessError(
            f"there are {len(factors)} weights for {len(rows)} images to combine: give one weight for each."
        )
    for number, weight in enumerate(weights, 1):
        check_number(weight, f"The weight of image {number}", -LARGEST_FACTOR, LARGEST_FACTOR)
    if mode in _AVERAGES:
        mean = factors.mean()
        if mean == 0:
            raise LikenessError(f"the weights {list(weights)} add up to zero, which leaves no average: change one.")
        factors = factors / mean
    return factors.reshape(-1, *[1] * (rows.ndim - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Files

_FORMAT = "likeness image embeddings"
_VERSION = 1


@dataclass(frozen=True)
class ImageEmbeds:
    """The encoding of reference images as an image encoder gave it, before an adapter's projection.

    cond, uncond: (n, dim) pooled or (n, sequence, dim) hidden states; uncond is None where the file had none.
    adapter: the kind of adapter it was made for, such as "IP-Adapter Plus"; encoder: such as "ViT-H". Both are None
    where unknown, as in files of other packs.
    """

    cond: Tensor
    uncond: Tensor | None = None
    adapter: str | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        for encoding in (self.cond, self.uncond):
            if encoding is not None and not all_finite(encoding, LARGEST_FACTOR**2):
                raise LikenessError(
                    "The encoding of the reference holds values that are NaN or too large: check the images, "
                    "the weights and the CLIP vision model it was made with."
                )

    def check_fits(self, width: int, hidden_states: bool, adapter_name: str) -> None:
        """Raise LikenessError unless an adapter that reads encodings of this width, pooled or hidden, can use these."""
        made = f"made with {self.encoder}" if self.encoder else "of an unknown encoder"
        if self.adapter:
            made += f" for {self.adapter}"
        if self.cond.shape[-1] != width:
            raise LikenessError(
                f"the saved embeddings are {self.cond.shape[-1]} wide ({made}), but {adapter_name} reads width "
                f"{width}: encode the images again with the encoder this adapter needs."
            )
        if (self.cond.ndim == 3) != hidden_states:
            has, needs = ("every token", "one vector") if not hidden_states else ("one vector", "every token")
            raise LikenessError(
                f"the saved embeddings hold {has} of the encoder ({made}), but {adapter_name} reads {needs}: "
                "encode the images again for this adapter."
            )


def save_embeds(path: Path, embeds: ImageEmbeds) -> None:
    """Write a new file, whole or not at all; LikenessError when the name is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_once(path, partial(write_embeds, embeds))
    except FileExistsError:
        raise LikenessError(
            f"{path.name!r} exists already and is not overwritten: save the embeddings under another name."
        ) from None


def write_embeds(embeds: ImageEmbeds, path: Path) -> None:
    """The content of a safetensors file that says what it fits, for a caller that keeps it whole (`storage`)."""
    from safetensors.torch import save

    tensors = {"cond": embeds.cond.detach().cpu().contiguous()}
    if embeds.uncond is not None:
        tensors["uncond"] = embeds.uncond.detach().cpu().clone().contiguous()
    metadata = {"format": _FORMAT, "version": str(_VERSION), "width": str(embeds.cond.shape[-1])}
    metadata |= {k: v for k, v in (("adapter", embeds.adapter), ("encoder", embeds.encoder)) if v}
    path.write_bytes(save(tensors, metadata))


def load_embeds(path: Path) -> ImageEmbeds:
    """Read a file of `save_embeds`, or the `.ipadpt` of ComfyUI_IPAdapter_plus (one tensor, nothing else said).

    Raises LikenessError when the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise LikenessError(f"the embeddings file '{path.name}' does not exist: choose a file from the list.")
    if path.suffix.lower() == ".ipadpt":
        return _load_ipadpt(path)
    tensors, metadata = read_weights(path)
    if metadata.get("format") != _FORMAT or "cond" not in tensors:
        raise LikenessError(f"'{path.name}' holds no image embeddings: choose a file saved by Save Embeds.")
    if not metadata.get("version", "").isdecimal() or int(metadata["version"][:9]) > _VERSION:
        raise LikenessError(f"'{path.name}' was saved by a newer version of this pack: update the pack to read it.")
    return ImageEmbeds(
        cond=_checked(tensors["cond"], path),
        uncond=_checked(tensors["uncond"], path) if "uncond" in tensors else None,
        adapter=metadata.get("adapter"),
        encoder=metadata.get("encoder"),
    )


def _load_ipadpt(path: Path) -> ImageEmbeds:
    content, _ = read_content(path)
    if not isinstance(content, Tensor):
        raise LikenessError(f"'{path.name}' holds no single tensor of embeddings: choose an .ipadpt file.")
    return ImageEmbeds(cond=_checked(content, path))


def _checked(embeds: Tensor, path: Path) -> Tensor:
    if embeds.ndim not in (2, 3) or 0 in embeds.shape or not embeds.is_floating_point():
        raise LikenessError(
            f"'{path.name}' holds a tensor of shape {tuple(embeds.shape)}, which is not an image embedding: "
            "save the embeddings again."
        )
    if not all_finite(embeds, LARGEST_FACTOR**2):
        raise LikenessError(f"{path.name!r} holds values that are NaN or too large: save the embeddings again.")
    return embeds
