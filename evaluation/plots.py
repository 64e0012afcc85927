"""Images of results, drawn with Pillow (no host has matplotlib): sheets of cells, strips of dots, curves.

The same input gives the same pixels; `save_png` the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..storage import write_whole
from .statistics import Interval

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

WHITE, INK, FAINT, BAD = (255, 255, 255), (40, 40, 40), (205, 205, 205), (200, 30, 30)
PALETTE = ((31, 98, 160), (213, 94, 0), (0, 128, 96), (150, 70, 150), (120, 94, 20), (90, 90, 90))
CELL, GAP, LINE = 128, 6, 18  # pixels: side of a cell, between cells, height of a line of text
PLOT_WIDTH, STRIP, MARGIN = 860, 44, 24


@dataclass(frozen=True)
class Cell:
    """One place of a sheet. `picture` (H, W, 3) RGB 0..1, None for an empty place; `bad` puts a red frame around it."""

    picture: torch.Tensor | None = None
    label: str = ""
    bad: bool = False


@lru_cache
def _font(size: int = 13):
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _write(pen: ImageDraw, at: tuple[float, float], text: str, width: float, colour=INK, anchor: str = "la") -> None:
    """Text that is cut off where it would leave its place."""
    font = _font()
    shown = text
    while len(shown) > 1 and pen.textlength(shown, font=font) > width:
        shown = shown[:-2] + "…"
    pen.text(at, shown, fill=colour, font=font, anchor=anchor)


def thumbnail(picture: torch.Tensor, side: int = CELL) -> Image:
    """An image (H, W, 3) RGB 0..1 fitted into a white square; what is not a number is black."""
    from PIL import Image

    pixels = torch.nan_to_num(picture[..., :3].detach().float().cpu(), posinf=0.0, neginf=0.0).clamp(0, 1)
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(-1, -1, 3)
    small = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
    scale = side / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(small.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def labelled_sheet(
    rows: Sequence[Sequence[Cell]], heads: Sequence[str] = (), title: str = "", side: int = CELL
) -> Image:
    """Rows of labelled images below the heads of their columns, with a title above if there is one."""
    from PIL import Image, ImageDraw

    columns = max([len(heads), *(len(row) for row in rows)])
    top = GAP + LINE * (bool(title) + bool(heads))
    step = side + LINE + GAP
    size = (GAP + columns * (side + GAP), top + len(rows) * step + GAP)
    canvas = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(canvas)
    if title:
        _write(pen, (GAP, GAP), title, canvas.width - 2 * GAP)
    for column, head in enumerate(heads):
        _write(pen, (GAP + column * (side + GAP), top - LINE), head, side)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            x, y = GAP + column * (side + GAP), top + number * step
            if cell.picture is not None:
                canvas.paste(thumbnail(cell.picture, side), (x, y))
            if cell.bad:
                pen.rectangle((x, y, x + side - 1, y + side - 1), outline=BAD, width=3)
            _write(pen, (x + side / 2, y + side + 2), cell.label, side, BAD if cell.bad else INK, "ma")
    return canvas


@dataclass(frozen=True)
class _Axis:
    """Values low..high on pixels left..right, with round ticks."""

    low: float
    high: float
    left: float
    right: float

    @classmethod
    def of(cls, values: Sequence[float], left: float, right: float) -> _Axis:
        """An axis that shows all finite values with some room."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        room = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
        return cls(low - room, high + room, left, right)

    def at(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)

    def ticks(self) -> list[tuple[float, str]]:
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        digits = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]


def strip_plot(groups: Mapping[str, tuple[np.ndarray, Interval]], label: str) -> Image:
    """One strip for each group: a dot for each person's mean, a bar at the mean, a line for its interval."""
    from PIL import Image, ImageDraw

    left = 190
    values = [v for dots, mean in groups.values() for v in (*dots.tolist(), mean.mean, mean.low, mean.high)]
    axis = _Axis.of(values, left, PLOT_WIDTH - MARGIN)
    bottom = MARGIN + STRIP * len(groups)
    canvas = Image.new("RGB", (PLOT_WIDTH, bottom + 2 * LINE + 2 * GAP), WHITE)
    pen = ImageDraw.Draw(canvas)
    for value, text in axis.ticks():
        x = axis.at(value)
        pen.line((x, MARGIN, x, bottom), fill=FAINT)
        pen.text((x, bottom + 4), text, fill=INK, font=_font(), anchor="ma")
    _write(pen, (left, bottom + LINE + GAP), label, PLOT_WIDTH - left)
    for number, (name, (dots, mean)) in enumerate(groups.items()):
        colour, y = PALETTE[number % len(PALETTE)], MARGIN + STRIP * (number + 0.5)
        _write(pen, (left - 10, y), name, left - 20, colour, "rm")
        for place, value in enumerate(dots.tolist()):
            _dot(pen, axis.at(value), y + 9 - 5 * (place % 3), 3, _pale(colour))
        if mean.is_known:
            pen.line((axis.at(mean.low), y - 12, axis.at(mean.high), y - 12), fill=colour, width=3)
        if math.isfinite(mean.mean):
            x = axis.at(mean.mean)
            pen.line((x, y - 18, x, y + 14), fill=colour, width=3)
    return canvas


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], label_x: str, label_y: str) -> Image:
    """One line of points (x, y) for each name, in the order given; what lies up and right is better."""
    from PIL import Image, ImageDraw

    width, height, left = 700, 460, 70
    points = [point for line in lines.values() for point in line]
    across = _Axis.of([x for x, _ in points], left, width - MARGIN)
    up = _Axis.of([y for _, y in points], height - 3 * LINE, MARGIN + LINE)
    canvas = Image.new("RGB", (width, height + LINE * len(lines)), WHITE)
    pen = ImageDraw.Draw(canvas)
    for value, text in across.ticks():
        pen.line((across.at(value), up.left, across.at(value), up.right), fill=FAINT)
        pen.text((across.at(value), up.left + 4), text, fill=INK, font=_font(), anchor="ma")
    for value, text in up.ticks():
        pen.line((left, up.at(value), across.right, up.at(value)), fill=FAINT)
        pen.text((left - 6, up.at(value)), text, fill=INK, font=_font(), anchor="rm")
    _write(pen, (left, up.left + LINE + 4), label_x, width - left)
    _write(pen, (GAP, GAP), label_y, width)
    for number, (name, line) in enumerate(lines.items()):
        colour = PALETTE[number % len(PALETTE)]
        at = [(across.at(x), up.at(y)) for x, y in line if math.isfinite(x) and math.isfinite(y)]
        if len(at) > 1:
            pen.line(at, fill=_pale(colour), width=2)
        for x, y in at:
            _dot(pen, x, y, 5, colour)
        y = height + LINE * number
        _dot(pen, left, y + LINE / 2, 5, colour)
        _write(pen, (left + 14, y + 2), name, width - left)
    return canvas


def _dot(pen: ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _pale(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple((value + 2 * 160) // 3 for value in colour)  # type: ignore[return-value]


def save_png(image: Image, path: Path) -> Path:
    """A small file, whole or not at all: 256 colours, no dithering, no time stamp."""
    from PIL import Image

    small = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    write_whole(path, lambda part: small.save(part, format="png"))
    return path


def to_tensor(image: Image) -> torch.Tensor:
    """The image as the host's IMAGE: (1, H, W, 3) float 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy())[None].float() / 255
