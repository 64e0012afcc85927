"""Reference images on their way to a CLIP image encoder.

Images are ComfyUI IMAGE tensors, (B, H, W, 3) in 0..1, until `normalise` makes them pixel values, (B, 3, S, S).
The default path is the official one: PIL's antialiased bicubic on 8 bits, long side truncated, centre crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import as_mask
from ..errors import LikenessError
from ..faces.photos import GREY

CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, which all published encoders keep
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_LONGEST_ASPECT = 8  # a longer image loses its ends before it is resized, or its resized copy would fill the memory


class Crop(Enum):
    """How an image becomes a square; the value is the name a user chooses."""

    CENTRE = "center"
    TOP = "top"
    BOTTOM = "bottom"
    LEFT = "left"
    RIGHT = "right"
    PAD = "pad"
    SQUASH = "squash"


class Resampling(Enum):
    """PIL's filters by name."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def to_rgb(images: Tensor, name: str = "image") -> Tensor:
    """Any image as (B, H, W, 3) float32 in 0..1: single images, grey ones, and ones with alpha.

    What is transparent is mid grey, as for everything that looks at faces: hidden colours are never encoded. Raises
    LikenessError naming the input when it is empty, misshapen or holds NaN.
    """
    if images.ndim == 2:
        images = images.unsqueeze(-1)
    if images.ndim == 3:
        images = images.unsqueeze(0)
    if images.ndim != 4 or images.shape[-1] not in (1, 2, 3, 4):
        raise LikenessError(
            f"the {name} has shape {tuple(images.shape)}: connect an IMAGE of shape (count, height, width, channels)."
        )
    if images.numel() == 0:
        raise LikenessError(f"the {name} is empty, its shape is {tuple(images.shape)}: connect at least one image.")
    images = images.float()
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        number = int(bad.nonzero()[0]) + 1
        raise LikenessError(f"image {number} of the {name} contains NaN: decode it again.")
    images = images.clamp(0.0, 1.0)
    colours, alpha = images, None
    if images.shape[-1] in (2, 4):
        colours, alpha = images[..., :-1], images[..., -1:]
    colours = colours.expand(-1, -1, -1, 3)
    return colours if alpha is None else colours * alpha + GREY * (1 - alpha)


# ---------------------------------------------------------------------------------------------------------------------
# A square of the encoder's size


@dataclass(frozen=True)
class _Placement:
    """An image is resized to (height, width); the square's corner lies at (top, left) of that, negative in padding."""

    height: int
    width: int
    top: int
    left: int


def _placement(height: int, width: int, size: int, crop: Crop) -> _Placement:
    if crop is Crop.SQUASH:
        return _Placement(size, size, 0, 0)
    fitted = max(height, width) if crop is Crop.PAD else min(height, width)
    new_height = max(size * height // fitted, 1)  # truncated, as the official preprocessing does
    new_width = max(size * width // fitted, 1)
    spare_height, spare_width = new_height - size, new_width - size
    top = {Crop.TOP: 0, Crop.BOTTOM: spare_height}.get(crop, _half(spare_height))
    left = {Crop.LEFT: 0, Crop.RIGHT: spare_width}.get(crop, _half(spare_width))
    return _Placement(new_height, new_width, top, left)


def _half(spare: int) -> int:
    return int(spare / 2)  # towards zero, for cuts and for padding


def _without_far_ends(images: Tensor, crop: Crop) -> Tensor:
    """Images (B, H, W, ...) no longer than the longest aspect, cut where the crop would cut them anyway."""
    if crop in (Crop.SQUASH, Crop.PAD):
        return images
    height, width = images.shape[1:3]
    longest = _LONGEST_ASPECT * min(height, width)
    spare_height, spare_width = max(height - longest, 0), max(width - longest, 0)
    top = {Crop.TOP: 0, Crop.BOTTOM: spare_height}.get(crop, spare_height // 2)
    left = {Crop.LEFT: 0, Crop.RIGHT: spare_width}.get(crop, spare_width // 2)
    return images[:, top : top + longest, left : left + longest]


def to_square(
    images: Tensor,
    size: int = CLIP_SIZE,
    crop: Crop = Crop.CENTRE,
    resampling: Resampling = Resampling.BICUBIC,
    fill: tuple[float, float, float] = CLIP_MEAN,
) -> Tensor:
    """(B, H, W, 3) -> (B, size, size, 3), rounded to 8 bits. fill: the colour of padding, CLIP's mean by default, which
    the encoder sees as zero."""
    images = _without_far_ends(to_rgb(images), crop)
    place = _placement(images.shape[1], images.shape[2], size, crop)
    filled = np.round(np.array(fill) * 255).astype(np.uint8)
    squares = []
    for image in images:
        resized = _resize_8bit(image, place.height, place.width, resampling)
        squares.append(_cut(resized, place.top, place.left, size, filled))
    return torch.from_numpy(np.stack(squares)).to(images.device).float() / 255


def _resize_8bit(image: Tensor, height: int, width: int, resampling: Resampling) -> np.ndarray:
    """(H, W, 3) in 0..1 -> (height, width, 3) uint8 by PIL, whose antialiasing the encoders were trained with."""
    from PIL import Image

    picture = Image.fromarray((image * 255).round().to(torch.uint8).cpu().numpy())
    return np.asarray(picture.resize((width, height), Image.Resampling[resampling.name]))


def _cut(picture: np.ndarray, top: int, left: int, size: int, fill: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    square = np.empty((size, size, 3), np.uint8)
    square[:] = fill
    inside = picture[max(top, 0) : min(top + size, height), max(left, 0) : min(left + size, width)]
    row, column = max(-top, 0), max(-left, 0)
    square[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return square


def normalise(images: Tensor) -> Tensor:
    """(B, S, S, 3) in 0..1 -> pixel values (B, 3, S, S), zero for CLIP's mean colour."""
    mean, std = images.new_tensor(CLIP_MEAN), images.new_tensor(CLIP_STD)
    return ((images - mean) / std).movedim(-1, 1)


def pixel_values(
    images: Tensor, size: int = CLIP_SIZE, crop: Crop = Crop.CENTRE, sharpening: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """What the encoder is shown: (B, H, W, 3) -> (B, 3, size, size).

    sharpening: 0 off … 1 strong, see `sharpen`. mask: (m, H, W) in 0..1, what counts of the image; the rest becomes
    CLIP's mean colour.
    """
    squares = to_square(images, size, crop)
    if sharpening:
        squares = sharpen(squares, sharpening)
    pixels = normalise(squares)
    return pixels if mask is None else pixels * mask_to_square(mask, size, crop).unsqueeze(1).to(pixels)


def mask_to_square(mask: Tensor, size: int = CLIP_SIZE, crop: Crop = Crop.CENTRE) -> Tensor:
    """A mask cut like its image: (m, H, W) -> (m, size, size), zero in padding."""
    mask = _without_far_ends(as_mask(mask, "The reference mask"), crop)
    place = _placement(mask.shape[1], mask.shape[2], size, crop)
    resized = F.interpolate(mask.unsqueeze(1), (place.height, place.width), mode="bicubic", antialias=True).squeeze(1)
    around = (-place.left, size + place.left - place.width, -place.top, size + place.top - place.height)
    return F.pad(resized, around).clamp(0.0, 1.0)


def sharpen(images: Tensor, amount: float) -> Tensor:
    """Contrast adaptive sharpening (AMD FidelityFX CAS). (B, H, W, 3) in 0..1, amount 0 … 1 -> the same.

    Each pixel is weighed against its four neighbours, the less the more contrast there is already; even amount 0
    sharpens a little. Beyond the border everything is black.
    """
    height, width = images.shape[1:3]
    padded = F.pad(images.movedim(-1, 1), (1, 1, 1, 1))
    around = torch.stack([padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)])
    cross, diagonal = around[[1, 3, 4, 5, 7]], around[[0, 2, 6, 8]]
    low = cross.amin(0) + diagonal.amin(0)  # each pair of sums lies in 0..2
    high = cross.amax(0) + diagonal.amax(0)
    room = torch.minimum(low, 2 - high) / (high + 1e-6)  # to black or to white, as a share of the brightest
    weight = -room.clamp(0.0, 1.0).sqrt() * (1 / 8 + amount * (1 / 5 - 1 / 8))
    neighbours = around[[1, 3, 5, 7]].sum(0)
    return ((neighbours * weight + around[4]) / (1 + 4 * weight)).clamp(0.0, 1.0).movedim(1, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles without overlap: more detail of one reference


def split_tiles(images: Tensor, tiles: int) -> Tensor:
    """(B, H, W, 3) -> (B, tiles², H/tiles, W/tiles, 3), row by row; what does not divide is left out at the far sides.

    Raises LikenessError when a tile would be smaller than a pixel.
    """
    height, width = images.shape[1] // tiles, images.shape[2] // tiles
    if height == 0 or width == 0:
        raise LikenessError(
            f"an image of {images.shape[2]} x {images.shape[1]} pixels cannot be cut into {tiles} x {tiles} tiles: "
            "use fewer tiles or a larger image."
        )
    whole = images[:, : height * tiles, : width * tiles]
    grid = whole.unflatten(1, (tiles, height)).unflatten(3, (tiles, width))  # (B, row, y, column, x, 3)
    return grid.transpose(2, 3).flatten(1, 2)


def merge_tile_hidden(hidden: Tensor, tiles: int) -> Tensor:
    """Hidden states of all tiles as those of one image. (B · tiles², 1 + g², dim) -> (B, 1 + g², dim)

    The patches are laid out side by side and averaged down to g x g; so are the class tokens, to one.
    """
    g = math.isqrt(hidden.shape[1] - 1)
    class_tokens = hidden[:, :1].unflatten(0, (-1, tiles * tiles)).mean(1)
    patches = hidden[:, 1:].unflatten(1, (g, g)).movedim(-1, 1)  # (B · tiles², dim, g, g)
    merged = F.adaptive_avg_pool2d(_side_by_side(patches, tiles), g)
    return torch.cat([class_tokens, merged.flatten(2).transpose(1, 2)], dim=1)


def mean_tile_embeds(embeds: Tensor, tiles: int) -> Tensor:
    """Pooled embeddings of all tiles as one. (B · tiles², dim) -> (B, dim)"""
    return embeds.unflatten(0, (-1, tiles * tiles)).mean(1)


def merge_tile_embeds(embeds: Tensor, tiles: int) -> Tensor:
    """The same as ComfyUI_IPAdapter_plus does it: each embedding is taken for a square image, and they are averaged
    down side by side. This has no meaning, and widths that are not square (1280 of ViT-bigG) get the mean instead.
    """
    g = math.isqrt(embeds.shape[-1])
    if g * g != embeds.shape[-1]:
        return mean_tile_embeds(embeds, tiles)
    pictures = embeds.unflatten(1, (1, g, g))
    return F.adaptive_avg_pool2d(_side_by_side(pictures, tiles), g).flatten(1)


def _side_by_side(pictures: Tensor, tiles: int) -> Tensor:
    """(B · tiles², C, g, g) -> (B, C, tiles · g, tiles · g)"""
    grid = pictures.unflatten(0, (-1, tiles, tiles))  # (B, row, column, C, y, x)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Overlapping tiles: every part of a reference acts in its own part of the image

TILE = 256
_MOST_TILES = 4
_NEARLY_SQUARE = (0.75, 1.33)  # height / width, both exclusive


@dataclass(frozen=True)
class Tiles:
    """A reference cut for the "tiled" mode.

    images: (n, 256, 256, 3), from left to right, then from top to bottom. boxes: where each lies, as (top, left,
    bottom, right) shares of the whole.
    """

    images: Tensor
    boxes: tuple[tuple[float, float, float, float], ...]

    def masks(self, height: int, width: int, limit: Tensor | None = None) -> Tensor:
        """One mask per tile for an image of this size, (n, height, width), 1 inside. limit: (1, height, width) that
        all are multiplied with. Where tiles overlap, both act; see `share_overlaps`."""
        masks = torch.zeros(len(self.boxes), height, width)
        for mask, (top, left, bottom, right) in zip(masks, self.boxes, strict=True):
            rows = slice(math.floor(top * height + 1e-6), math.ceil(bottom * height - 1e-6))
            columns = slice(math.floor(left * width + 1e-6), math.ceil(right * width - 1e-6))
            mask[rows, columns] = 1
        return masks if limit is None else masks * limit


def overlapping_tiles(image: Tensor, sharpening: float = 0.0) -> Tiles:
    """Cut one reference, (1, H, W, 3), into tiles of 256 that overlap evenly and together cover it.

    A nearly square one is cropped to a square and quartered. Another gets up to four tiles along its long side; what
    is longer than that is cropped evenly at both ends.
    """
    image = to_rgb(image)[:1]
    height, width = image.shape[1:3]
    low, high = _NEARLY_SQUARE
    if low < height / width < high:
        whole = to_square(image, 2 * TILE, Crop.CENTRE, Resampling.LANCZOS)
    else:
        image = _at_most_four_tiles(image)
        short = min(image.shape[1:3])
        size = [max(TILE * side // short, TILE) for side in image.shape[1:3]]
        resized = _resize_8bit(image[0], size[0], size[1], Resampling.LANCZOS)
        whole = torch.from_numpy(resized.copy()).unsqueeze(0).to(image.device).float() / 255
    if sharpening:
        whole = sharpen(whole, sharpening)
    rows, columns = _starts(whole.shape[1]), _starts(whole.shape[2])
    corners = [(top, left) for top in rows for left in columns]
    images = torch.cat([whole[:, top : top + TILE, left : left + TILE] for top, left in corners])
    full_height, full_width = whole.shape[1:3]
    boxes = tuple(
        (top / full_height, left / full_width, (top + TILE) / full_height, (left + TILE) / full_width)
        for top, left in corners
    )
    return Tiles(images, boxes)


def share_overlaps(masks: Tensor) -> Tensor:
    """Masks (n, H, W) divided by their sum where it exceeds 1, so that overlapping tiles do not act twice."""
    return masks / masks.sum(0, keepdim=True).clamp(min=1.0)


def _at_most_four_tiles(image: Tensor) -> Tensor:
    height, width = image.shape[1:3]
    longest = _MOST_TILES * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return image[:, top : top + longest, left : left + longest]


def _starts(length: int) -> list[int]:
    """Where tiles begin along a side, evenly spread from end to end."""
    count = math.ceil(length / TILE)
    return [round(i * (length - TILE) / max(count - 1, 1)) for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Noise, mostly for negative references


class ReferenceNoise(Enum):
    """What noise does to a reference; the value is the name a user chooses."""

    FADE = "fade"  # the image fades into noise
    DISSOLVE = "dissolve"  # single pixels turn into noise
    GAUSSIAN = "gaussian"  # noise is added
    SHUFFLE = "shuffle"  # patches of the image change places: its colours without its shapes


_SHUFFLE_GRID = 32  # patches along each side


def add_noise(
    images: Tensor, kind: ReferenceNoise, strength: float, generator: torch.Generator, blur: int = 0
) -> Tensor:
    """(B, H, W, 3) in 0..1 -> the same. strength: 0 leaves the image, 1 is the most. blur: radius in pixels.

    All randomness comes from `generator`, of any device; the global one is not touched.
    """
    images = to_rgb(images)
    if kind is ReferenceNoise.SHUFFLE:
        noisy = torch.stack([_shuffled(image, strength, generator) for image in images])
    elif kind is ReferenceNoise.GAUSSIAN:
        normal = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
        noisy = images + strength * normal
    else:
        noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
        if kind is ReferenceNoise.DISSOLVE:
            chance = torch.rand((*images.shape[:3], 1), generator=generator, device=generator.device).to(images)
            noisy = torch.where(chance < strength, noise, images)
        else:
            noisy = images + strength * (noise - images)
    return _blurred(noisy.clamp(0.0, 1.0), blur)


def _shuffled(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A share of the patches of (H, W, 3) changes places among themselves; a rest that fills no patch stays."""
    height, width = (max(side // _SHUFFLE_GRID, 1) for side in image.shape[:2])
    rows, columns = image.shape[0] // height, image.shape[1] // width
    region = image[: rows * height, : columns * width]
    patches = region.unflatten(1, (columns, width)).unflatten(0, (rows, height)).transpose(1, 2).flatten(0, 1)
    count = round(min(max(strength, 0.0), 1.0) * len(patches))
    chosen = torch.randperm(len(patches), generator=generator, device=generator.device)[:count].to(image.device)
    order = torch.arange(len(patches), device=image.device)
    order[chosen.sort().values] = chosen
    moved = patches[order].unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    result = image.clone()
    result[: rows * height, : columns * width] = moved
    return result


def _blurred(images: Tensor, radius: int) -> Tensor:
    """Gaussian blur of (B, H, W, 3) with sigma radius / 2; the border is repeated outwards."""
    if radius <= 0:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.softmax(-2 * (offsets / radius) ** 2, dim=0).expand(3, 1, -1)
    channels = images.movedim(-1, 1)
    channels = F.conv2d(F.pad(channels, (radius, radius, 0, 0), mode="replicate"), kernel.unsqueeze(2), groups=3)
    channels = F.conv2d(F.pad(channels, (0, 0, radius, radius), mode="replicate"), kernel.unsqueeze(3), groups=3)
    return channels.movedim(1, -1)
