"""Which size a photo has as a reference, and as what a vision-language encoder sees. Sizes are (height, width).

Every base was trained on one rule; the pixels it loses or invents are seen in the likeness. Sources: lbouaraba/
comfyui-krea2edit 1.2.6, ostris/ai-toolkit@27a03a9, black-forest-labs/flux2@ab7cca6, diffusers 0.42.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError

Size = tuple[int, int]

TOKEN = 16  # pixels on a side of a token, in all of these models
NEARLY = 0.92  # of a side: a photo that fills this much of the target is cropped to it
MEGAPIXEL, FLUX2_ONE = 1024**2, 2024**2  # largest areas of a reference
GROUNDING_AREA = 384**2  # of what a labelled text shows the encoder
LEAST_SIDE, LEAST_GROUNDING, WIDEST = 64, 28, 8


class Resample(Enum):
    """How pixels are computed; every one of them is anti-aliased."""

    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
    AREA = "area"


@dataclass(frozen=True)
class Fitted:
    """A photo's way to a reference: resized to `before`, cut to `crop` of it, resized to `size`.

    before: None where nothing comes before the cut. crop: (top, left, height, width).
    """

    crop: tuple[int, int, int, int]
    size: Size
    before: Size | None = None
    resample: Resample = Resample.BICUBIC

    def apply(self, images: Tensor) -> Tensor:
        """(n, H, W, c), 0..1 -> (n, h, w, c), 0..1. A mask of the photo goes the same way."""
        images = images.movedim(-1, 1).float()
        if self.before is not None:
            images = _resized(images, self.before, self.resample)
        top, left, height, width = self.crop
        images = images[..., top : top + height, left : left + width]
        return _resized(images, self.size, self.resample).clamp(0, 1).movedim(1, -1)


Fit = Callable[[Size, Size, int], Fitted]  # the photo's size, the target's in pixels, how many references there are


def _resized(images: Tensor, size: Size, resample: Resample) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    if resample is Resample.BICUBIC:
        return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    if resample is Resample.AREA:
        return F.interpolate(images, size=size, mode="area")
    return _lanczos(images, size)


def _lanczos(images: Tensor, size: Size) -> Tensor:
    """Pillow's, in float: it is what FLUX.2's own code shrinks with."""
    import numpy as np
    import torch
    from PIL import Image

    height, width = size
    planes = [
        [np.asarray(Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS)) for plane in one]
        for one in images.cpu()
    ]
    return torch.from_numpy(np.array(planes)).to(images.device)


def _whole(size: Size) -> tuple[int, int, int, int]:
    return (0, 0, *size)


def _centred(outer: Size, inner: Size) -> tuple[int, int, int, int]:
    (height, width), (h, w) = outer, inner
    return ((height - h) // 2, (width - w) // 2, h, w)


def _floored(side: float) -> int:
    return max(TOKEN, int(side) // TOKEN * TOKEN)


def _rounded(side: float, step: int) -> int:
    return round(side / step) * step


# --- references


def fit(photo: Size, target: Size, references: int = 1) -> Fitted:
    """Krea 2 Identity Edit v1.2: as large as the target lets it be; one of nearly its shape is cropped to all of it."""
    (h, w), (th, tw) = photo, target
    s = min(tw / w, th / h)
    if h * s >= NEARLY * th and w * s >= NEARLY * tw:
        s, size = max(tw / w, th / h), target
        crop = min(h, round(th / s)), min(w, round(tw / s))
    else:
        size = min(_floored(h * s), _floored(th)), min(_floored(w * s), _floored(tw))
        crop = min(h, max(1, round(size[0] / s))), min(w, max(1, round(size[1] / s)))
    return Fitted(_centred(photo, crop), size)


def crop(photo: Size, target: Size, references: int = 1) -> Fitted:
    """Krea 2 Identity Edit v1 and v1.1: cut to the target's proportions and resized to its size."""
    (h, w), (th, tw) = photo, target
    s = max(tw / w, th / h)
    return Fitted(_centred(photo, (min(h, max(1, round(th / s))), min(w, max(1, round(tw / s))))), target)


def native(photo: Size, target: Size | None = None, references: int = 1) -> Fitted:
    """ai-toolkit's Krea 2 edit, ReID: the photo's own size, at most a megapixel, in multiples of 16."""
    h, w = photo
    s = min(1.0, math.sqrt(MEGAPIXEL / (h * w)))
    return Fitted(_whole(photo), (max(TOKEN, _rounded(h * s, TOKEN)), max(TOKEN, _rounded(w * s, TOKEN))))


def flux2(photo: Size, target: Size | None = None, references: int = 1) -> Fitted:
    """FLUX.2: one reference of at most 2024², several of at most 1024² each, cut to multiples of 16."""
    h, w = photo
    if min(h, w) < LEAST_SIDE or max(h, w) > WIDEST * min(h, w):
        raise LikenessError(
            f"A reference image is {w} x {h} pixels, and FLUX.2 reads none with a side below {LEAST_SIDE} or longer "
            f"than {WIDEST} times the other: choose a larger or less narrow image."
        )
    limit = FLUX2_ONE if references == 1 else MEGAPIXEL
    if h * w > limit:
        s = math.sqrt(limit / (h * w))
        h, w = int(h * s), int(w * s)
    cut = _centred((h, w), (h // TOKEN * TOKEN, w // TOKEN * TOKEN))
    return Fitted(cut, cut[2:], before=(h, w), resample=Resample.LANCZOS)


def qwen(photo: Size, target: Size | None = None, references: int = 1) -> Fitted:
    """Qwen-Image-Edit 2509 and 2511: a megapixel whatever the photo has, in multiples of 32."""
    return Fitted(_whole(photo), _of_area(photo, MEGAPIXEL))


def _of_area(photo: Size, area: int) -> Size:
    """The official rounding, which does not keep the proportions exactly."""
    ratio = photo[1] / photo[0]
    width = math.sqrt(area * ratio)
    return max(32, _rounded(width / ratio, 32)), max(32, _rounded(width, 32))


# --- what the text encoder sees


def seen_whole(photo: Size, longest: int) -> Size:
    """Krea 2 Identity Edit: the longest side at most `longest` pixels (0: as it is), never enlarged."""
    h, w = photo
    s = min(1.0, longest / max(h, w)) if longest else 1.0
    return max(1, round(h * s)), max(1, round(w * s))


def seen_small(photo: Size, longest: int = 0) -> Size:
    """ai-toolkit's Krea 2 edit, ReID: at most 384², never enlarged, no side below 28."""
    h, w = photo
    s = min(1.0, math.sqrt(GROUNDING_AREA / (h * w)))
    return max(LEAST_GROUNDING, round(h * s)), max(LEAST_GROUNDING, round(w * s))


def seen_by_qwen(photo: Size, longest: int = 0) -> Size:
    """Qwen-Image-Edit: 384² whatever the photo has, in multiples of 32."""
    return _of_area(photo, GROUNDING_AREA)
