"""One image of a whole dataset: each photo with its mask, its caption and what was thought of it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from .dataset import Dataset, DatasetPicture, LeftOut

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, TEXT, MARGIN = 192, 400, 8  # pixels: side of an image, width of the text beside it, space around
MOST_ROWS = 60  # of a sheet; the report names all images
INK, USED, WARNED, REFUSED = (30, 30, 30), (20, 120, 40), (170, 100, 0), (190, 30, 30)
TINT = np.array([255, 196, 0], np.float32)


def sheet(dataset: Dataset) -> np.ndarray:
    """(height, width, 3) uint8: two columns of photo | photo with the mask's outside dimmed | caption and verdict."""
    from PIL import Image

    rows: list[DatasetPicture | LeftOut] = [*dataset.pictures, *dataset.left_out]
    hidden = max(0, len(rows) - MOST_ROWS)
    rows = rows[:MOST_ROWS]
    columns = 1 if len(rows) < 4 else 2
    width, height = 2 * CELL + TEXT + 4 * MARGIN, CELL + 2 * MARGIN
    lines = -(-len(rows) // columns)
    page = Image.new("RGB", (columns * width, lines * height + (24 if hidden else 0)), "white")
    for number, row in enumerate(rows):
        page.paste(_cell(row, width, height), (number % columns * width, number // columns * height))
    if hidden:
        _write(page, (MARGIN, lines * height + 2), [(f"and {hidden} more", INK)], 100)
    return np.array(page)


def _cell(row: DatasetPicture | LeftOut, width: int, height: int) -> Image:
    from PIL import Image

    cell = Image.new("RGB", (width, height), "white")
    cell.paste(_fitted(row.pixels), (MARGIN, MARGIN))
    if isinstance(row, DatasetPicture):
        shown = row.pixels if row.mask is None else _masked(row.pixels, row.mask)
        cell.paste(_fitted(shown), (CELL + 2 * MARGIN, MARGIN))
        verdict = [(remark, WARNED) for remark in row.remarks]
        verdict = [("used" if row.mask is not None else "used, without a mask", USED), *verdict]
        words = [(row.name, INK), (row.caption, INK), *verdict]
    else:
        words = [(row.name, INK), ("left out", REFUSED), *((reason, REFUSED) for reason in row.reasons)]
    _write(cell, (2 * CELL + 3 * MARGIN, MARGIN), words, 56)
    return cell


def _fitted(pixels: np.ndarray) -> Image:
    from PIL import Image

    picture = Image.fromarray(pixels)
    scale = CELL / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _masked(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image in a warm tint where the mask is white, dimmed elsewhere."""
    m = mask[..., None].astype(np.float32) / 255
    inside, outside = 0.75 * pixels + 0.25 * TINT, 0.3 * pixels
    return (m * inside + (1 - m) * outside).astype(np.uint8)


def _write(page: Image, at: tuple[int, int], words: list[tuple[str, Any]], columns: int) -> None:
    from PIL import ImageDraw, ImageFont

    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    x, y = at
    for text, colour in words:
        for line in textwrap.wrap(text, columns) or [""]:
            pen.text((x, y), line, fill=colour, font=font)
            y += 16
        y += 3
