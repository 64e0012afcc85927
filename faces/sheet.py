"""Photos from files, and a contact sheet of what was seen in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .found import FoundFaces, preview
from .identity import Identity
from .photos import read_photo

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLE = Path(__file__).with_name("sample.jpg")
ROW = 256  # height of a row of the sheet in pixels


def read_photos(paths: Sequence[Path]) -> list[np.ndarray]:
    """Image files as (H, W, 3) uint8 RGB; see `photos.read_photo`."""
    return [read_photo(path) for path in paths]


def sample_photos() -> list[np.ndarray]:
    """The photograph that comes with the pack, (H, W, 3) uint8 RGB: Eileen Collins (NASA, public domain)."""
    return read_photos([SAMPLE])


def contact_sheet(found: FoundFaces, identity: Identity) -> Image:
    """The photos with their boxes, a row each, then a row of the heads and one of the aligned portraits."""
    import PIL.Image as pil

    def row_of(pictures: Sequence[np.ndarray]) -> Image:
        scaled = [pil.fromarray(p).resize((max(1, round(p.shape[1] * ROW / p.shape[0])), ROW)) for p in pictures]
        row = pil.new("RGB", (sum(picture.width for picture in scaled), ROW))
        left = 0
        for picture in scaled:
            row.paste(picture, (left, 0))
            left += picture.width
        return row

    seen = (preview(found) * 255).byte().numpy()  # padded to one size
    rows = [row_of([p[: q.shape[0], : q.shape[1]]]) for p, q in zip(seen, found.photos, strict=True)]
    rows += [row_of(list(crops.numpy())) for crops in (identity.heads, identity.portraits) if len(crops)]
    sheet = pil.new("RGB", (max(row.width for row in rows), ROW * len(rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * ROW))
    return sheet
