"""What runs behind one block of a DiT: the block, or the patch that was there, plus our terms on the image's tokens.

In a double block image and text are apart; in a single one they are one sequence, the text first. Tokens behind the
image's own, as those of reference images, stay as the block left them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...weights.families import BlockKind, DitBlock
from .unet import KEY

PLACES = f"{KEY}_places"  # of our second entry in transformer_options

BlockFunction = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


@dataclass
class ImagePlaces:
    """Where the image's tokens lie in one call of the denoiser. grid: rows and columns of them. text: tokens before
    them in a single block, known once the first double block has run."""

    grid: tuple[int, int]
    text: int = 0


class Residuals(Protocol):
    """What a batch adds behind each block, under `KEY` in its transformer options."""

    def residual(self, block: DitBlock, images: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """images: (batch, L, width) on a grid of L = h·w places -> the same shape, None where nothing is added."""
        ...


class BlockPatch:
    """A replace patch of the host, for one block."""

    def __init__(self, block: DitBlock, base: BlockFunction | None) -> None:
        self.block = block
        self.found = base

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = self.found(args, extra) if self.found is not None else extra["original_block"](args)
        options = args["transformer_options"]
        places: ImagePlaces = options[PLACES]
        start = places.text
        if self.block.kind is BlockKind.DOUBLE:
            places.text, start = out["txt"].shape[1], 0
        images = out["img"]
        own = slice(start, start + places.grid[0] * places.grid[1])
        call: Residuals = options[KEY]
        residual = call.residual(self.block, images[:, own], places.grid)
        if residual is None:
            return out
        images = images.clone()  # another pack may keep what the block returned
        images[:, own] += residual
        return {**out, "img": images}
