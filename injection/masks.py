"""Where in the image an identity acts: a user's mask, brought to the token grid of an attention site.

The grid of a site is known exactly from the host (`activations_shape`). Guessing it from the number of tokens, as
diffusers 0.42.1 and cubiq/ComfyUI_IPAdapter_plus@9d076a3 do, is wrong for some 6 % of all image sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters.effects import MaskResize
from ..errors import logger

log = logger("likeness")

_ASPECT_TOLERANCE = 0.02  # a mask may be this much wider or narrower than the image without a word
LATENT_PIXELS = 8  # a latent of SD1.5 or SDXL covers 8 x 8 pixels


def resize_mask(mask: Tensor, size: tuple[int, int], how: MaskResize = MaskResize.AREA) -> Tensor:
    """(m, H, W) -> (m, h, w) for size = (h, w). BICUBIC is not clamped."""
    wide = mask.float().unsqueeze(1)
    if how is MaskResize.AREA:
        resized = F.adaptive_avg_pool2d(wide, size)
    elif how is MaskResize.NEAREST:
        resized = F.interpolate(wide, size=size, mode=how.value)
    else:
        resized = F.interpolate(wide, size=size, mode=how.value, align_corners=False)
    return resized.squeeze(1).to(mask.dtype)


def combined(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The region both masks let through, at the size of the larger one; None stands for everywhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    size = max(mask.shape[1:], other.shape[1:], key=lambda s: s[0] * s[1])
    resized = (resize_mask(m, (size[0], size[1]), MaskResize.BILINEAR) for m in (mask, other))
    first, second = resized
    return first * second


def crop_to_area(mask: Tensor, area: tuple[int, int, int, int], full_size: tuple[int, int]) -> Tensor:
    """The part of a mask that a conditioning limited to an area sees.

    mask: (m, H, W) over the whole image. area: ComfyUI's (height, width, y, x), and full_size the (height, width) of
    the whole, both in latent units. A mask that does not divide evenly into latents is brought to their size first.
    """
    height, width, top, left = area
    mask, rows, columns = _per_latent(mask, full_size)
    return mask[:, top * rows : (top + height) * rows, left * columns : (left + width) * columns]


def crop_to_lines(mask: Tensor, axis: int, lines: Sequence[int], full_size: tuple[int, int]) -> Tensor:
    """The part of a mask that a window over one side of the image sees: these rows (axis 0) or columns (axis 1).

    mask: (m, H, W) over the whole image. lines: in latent units, in any order. full_size: (height, width) of the
    whole, in latent units.
    """
    mask, *per_latent = _per_latent(mask, full_size)
    dim = axis + 1
    wide = mask.unflatten(dim, (full_size[axis], per_latent[axis]))
    return wide.index_select(dim, torch.tensor(lines, device=mask.device)).flatten(dim, dim + 1)


def _per_latent(mask: Tensor, full_size: tuple[int, int]) -> tuple[Tensor, int, int]:
    """A mask whose sides are multiples of the latents', and how many of its rows and columns make one latent."""
    if mask.shape[1] % full_size[0] or mask.shape[2] % full_size[1]:
        mask = resize_mask(mask, full_size)
    return mask, mask.shape[1] // full_size[0], mask.shape[2] // full_size[1]


def aspect_mismatch(mask_size: tuple[int, int], latent_size: tuple[int, int]) -> float:
    """How much wider or narrower the mask is than the image, as a share: 0.1 for 10 %. Sizes are (height, width)."""
    mask_height, mask_width = mask_size
    latent_height, latent_width = latent_size
    ratio = (mask_width * latent_height) / (mask_height * latent_width)
    return max(ratio, 1 / ratio) - 1


def warn_aspect(mask_size: tuple[int, int], latent_size: tuple[int, int]) -> None:
    """One warning per pair of sizes when a mask is stretched by more than 2 %. Sizes are (height, width)."""
    if aspect_mismatch(mask_size, latent_size) > _ASPECT_TOLERANCE:
        _warn_once(mask_size, latent_size)


@lru_cache(maxsize=256)
def _warn_once(mask_size: tuple[int, int], latent_size: tuple[int, int]) -> None:
    height, width = (side * LATENT_PIXELS for side in latent_size)
    log.warning(
        "The mask is %d x %d but the image %d x %d (width x height), so the mask is stretched: "
        "draw it in the image's proportions.",
        *(mask_size[1], mask_size[0], width, height),
    )


def warn_larger(mask_size: tuple[int, int], latent_size: tuple[int, int]) -> None:
    """One warning per size of mask when it is larger than the image: it may be meant for an image of which this is a
    tile. Sizes are (height, width)."""
    height, width = (side * LATENT_PIXELS for side in latent_size)
    if mask_size[0] > height and mask_size[1] > width:
        _warn_larger_once(mask_size, (height, width))


_warned_larger: set[tuple[int, int]] = set()


def _warn_larger_once(mask_size: tuple[int, int], picture: tuple[int, int]) -> None:
    if mask_size in _warned_larger:
        return
    _warned_larger.add(mask_size)
    log.warning(
        "The mask is %d x %d but the image only %d x %d (width x height). If a tiled upscaler or a detailer samples "
        "a part of a larger image here, that part gets the whole mask: see 'Masks with tiles and detailers' in "
        "docs/troubleshooting.md.",
        *(mask_size[1], mask_size[0], picture[1], picture[0]),
    )


@cache
def warn_tile() -> None:
    """One warning per session when an image is sampled in tiles at unknown places."""
    log.warning(
        "Another node cuts the image into tiles while sampling and does not say where they lie, so each tile gets "
        "the whole mask of the identity: see 'Masks with tiles and detailers' in docs/troubleshooting.md."
    )
