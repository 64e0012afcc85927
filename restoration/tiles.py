"""Large images through a network tile by tile, in memory that is bounded.

Tiles overlap and fade into each other, so that no seam shows; an image that fits one tile runs whole. Steeper than
ComfyUI's fade, which is linear, ours leaves less of what a network makes of a tile's border. When memory is full the
tile is halved, down to `SMALLEST`, and the image begun again. ComfyUI's `tiled_scale_multidim` cannot fade so, and
makes a feather of full size for every tile: 3 to 4 times our time around the network (docs/speed.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..device_errors import is_out_of_memory

TILE, OVERLAP, SMALLEST = 512, 32, 128
CPU_TILE = 320  # smaller tensors stay in the allocator's arena and in the caches: half the time
GRID = 16  # pixels; networks that fold 2 x 2 or see windows of 8 or 16 lay the same grid over a tile as over the whole
STEEP = 3  # power of the fade; errors at seams are a tenth to a hundredth of those of a linear one
STRETCH = 1.25  # how much longer a tile may be, if that saves a row or a column of them
Side = tuple[int, int]  # height, width
TileNetwork = Callable[[Tensor], Tensor]  # (1, C, h, w), 0..1 -> (1, C', s h, s w)


class Tile(NamedTuple):
    """A window of the image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def tiles_of(height: int, width: int, tile: Side = (TILE, TILE), overlap: int = OVERLAP) -> Iterator[Tile]:
    """The windows of an image, row by row; one, where it fits."""
    if height <= tile[0] and width <= tile[1]:
        yield Tile(0, 0, height, width)
        return
    for top in _starts(height, tile[0], overlap):
        for left in _starts(width, tile[1], overlap):
            yield Tile(top, left, min(tile[0], height - top), min(tile[1], width - left))


def _starts(length: int, tile: int, overlap: int) -> range:
    return range(0, length - overlap, tile - overlap) if length > tile else range(1)


def fitted(height: int, width: int, tile: int = TILE, overlap: int = OVERLAP) -> Side:
    """Tiles about this large that cover the image with the fewest pixels seen twice, all of nearly one size, which
    begin on the grid."""
    return _fitted(height, tile, overlap), _fitted(width, tile, overlap)


def _fitted(length: int, tile: int, overlap: int) -> int:
    count = max(math.ceil((length - overlap) / (int(STRETCH * tile) - overlap)), 1)
    return overlap + _on_grid(max(math.ceil((length + (count - 1) * overlap) / count) - overlap, 1))


def _on_grid(length: int) -> int:
    return math.ceil(length / GRID) * GRID


def upscaled(
    picture: Tensor,
    network: TileNetwork,
    scale: float,
    tile: Side = (TILE, TILE),
    overlap: int = OVERLAP,
    after_each: Callable[[], object] = lambda: None,
    power: int = 1,
) -> Tensor:
    """An image (1, C, H, W) through a network that enlarges it `scale` times: (1, C', s H, s W) float32 on the CPU.

    after_each is called after every tile, for progress and cancelling. power: of the fade; 1 is ComfyUI's. Raises
    whatever says that memory is full when even the smallest tile is too large.
    """
    while True:
        try:
            return _upscaled(picture, network, scale, tile, overlap, after_each, power)
        except Exception as error:
            if not is_out_of_memory(error) or max(tile) // 2 < SMALLEST:
                raise
        # Outside of the handler, which holds on to the tensors of the attempt. A narrow image keeps its whole width.
        tile = halved(tile[0]), halved(tile[1])


def halved(side: int) -> int:
    """A tile's side for the next attempt; what is small already stays, and longer than the overlap."""
    return max(_on_grid(side // 2), min(side, SMALLEST))


def _upscaled(
    picture: Tensor,
    network: TileNetwork,
    scale: float,
    tile: Side,
    overlap: int,
    after_each: Callable[[], object],
    power: int,
) -> Tensor:
    height, width = picture.shape[-2:]
    if height <= tile[0] and width <= tile[1]:
        whole = network(picture).float().cpu()
        after_each()
        return whole
    total = share = None
    size = round(scale * height), round(scale * width)
    for top, left, tall, wide in tiles_of(height, width, tile, overlap):
        made = network(picture[..., top : top + tall, left : left + wide]).float().cpu()
        if total is None or share is None:
            total, share = made.new_zeros(1, made.shape[1], *size), made.new_zeros(1, 1, *size)
        rows, columns = (
            slice(start, start + length)
            for start, length in ((round(scale * top), made.shape[2]), (round(scale * left), made.shape[3]))
        )
        there = total[..., rows, columns]
        made = made[..., : there.shape[-2], : there.shape[-1]]
        weight = feather(*made.shape[-2:], round(overlap * scale), power)
        there.addcmul_(made, weight)
        share[..., rows, columns] += weight
        after_each()
    assert total is not None and share is not None
    return total.div_(share)


@lru_cache(maxsize=8)
def feather(height: int, width: int, fade: int, power: int = 1) -> Tensor:
    """The weights (1, 1, height, width) of a tile, rising from 1/fade at its border to 1, to this power; a side that is
    not longer than the fade has none."""

    def along(length: int) -> Tensor:
        weights = torch.ones(length)
        if fade < length:
            for step in range(fade):
                weights[step] *= (step + 1) / fade
                weights[length - 1 - step] *= (step + 1) / fade
        return weights

    return (along(height)[:, None] * along(width))[None, None] ** power
