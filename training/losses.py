"""The losses of a training as a table, one row per step, and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LikenessError
from ..storage import write_whole

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, str]
LOSSES = "losses.csv"


class LossLog:
    """`losses.csv` in a run folder: phase, step, every objective's value before its weight, and the weighted total."""

    def __init__(self, folder: Path, names: Sequence[str], writes: bool = True) -> None:
        self.file = folder / LOSSES
        self._columns = ["phase", "step", *names, "total"]
        self._writes = writes

    def keep_until(self, phase: str, step: int) -> None:
        """Forget what a phase wrote after its last saved step."""
        if self._writes:
            rows = [row for row in read_losses(self.file) if row["phase"] != phase or int(row["step"]) <= step]
            table = [dict(zip(self._columns, self._columns, strict=True)), *rows]
            with self._explained():
                write_whole(self.file, lambda part: self._write(part, "w", table))

    def add(self, phase: str, step: int, losses: Mapping[str, float]) -> None:
        """Append one step."""
        if self._writes:
            values = {name: f"{value:.6g}" for name, value in losses.items()}
            with self._explained():
                self._write(self.file, "a", [{"phase": phase, "step": str(step), **values}])

    def draw(self) -> None:
        """Draw `losses.png` beside the table."""
        if self._writes:
            with self._explained():
                loss_picture(read_losses(self.file)).save(self.file.with_suffix(".png"))

    def _write(self, path: Path, mode: str, rows: Sequence[Row]) -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerows(rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LikenessError(
                f"The losses could not be written to '{self.file}' ({error}): free some space and start again, the "
                "training goes on from its last saved state."
            ) from error


def read_losses(file: Path) -> list[Row]:
    """The rows of a table of losses, none if there is no table yet."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        # A row that a crash or a full disk has cut lacks its last columns.
        return [row for row in csv.DictReader(lines) if None not in row.values()]


_COLOURS = ((33, 102, 172), (214, 96, 77), (27, 120, 55), (118, 42, 131), (140, 81, 10), (90, 90, 90))
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 34, 30


def loss_picture(rows: Sequence[Row], size: tuple[int, int] = (800, 420)) -> Image.Image:
    """One curve per column over all steps, each a running mean (a fiftieth of the run wide), on a logarithmic scale."""
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    names = [name for name in (rows[0] if rows else {}) if name not in ("phase", "step")]
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    curves = {name: _running_mean(values, max(1, len(rows) // 50)) for name, values in columns.items()}
    heights = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in curves.values()] or [np.ones(1)])
    if not len(heights):
        heights = np.ones(1)
    low, high = np.floor(np.log10(heights.min())), np.ceil(np.log10(heights.max()) + 1e-9)
    high = max(high, low + 1)
    box = (_LEFT, _TOP, size[0] - _RIGHT, size[1] - _BOTTOM)

    def place(step: int, value: float) -> tuple[float, float]:
        across = step / max(1, len(rows) - 1)
        up = (np.log10(value) - low) / (high - low)
        return float(box[0] + across * (box[2] - box[0])), float(box[3] - up * (box[3] - box[1]))

    for power in range(int(low), int(high) + 1):
        y = place(0, 10.0**power)[1]
        draw.line((box[0], y, box[2], y), fill=(225, 225, 225))
        draw.text((8, y - 6), f"{10.0**power:g}", fill=(90, 90, 90))
    for number in range(1, len(rows)):
        if rows[number]["phase"] != rows[number - 1]["phase"]:
            x = place(number, 10.0**low)[0]
            draw.line((x, box[1], x, box[3]), fill=(170, 170, 170))
    draw.text((box[2] - 60, size[1] - 20), f"{len(rows)} steps", fill=(90, 90, 90))
    for number, (name, values) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [place(i, v) for i, v in enumerate(values) if np.isfinite(v) and v > 0]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        draw.text((_LEFT + 110 * number, 10), name, fill=colour)
    return picture


def _running_mean(values, width: int):
    """Over the last `width` values that are numbers."""
    import numpy as np

    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    last = np.arange(1, len(values) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])
