"""The losses of a training as a table, one row per step, and as an image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LikenessError, logger
from ..storage import set_aside, write_new, write_whole

if TYPE_CHECKING:
    from PIL import Image

log = logger(__name__)
Row = dict[str, str]
LOSSES, LOSSES_PICTURE = "losses.csv", "losses.png"


class LossLog:
    """`losses.csv` in a run folder: phase, step, every objective's value before its weight, and the weighted total.

    It decides over nothing, so a table that something else has changed or holds open does not stop the training: what
    cannot be read is set aside, and what cannot be written waits.
    """

    def __init__(self, folder: Path, names: Sequence[str], writes: bool = True) -> None:
        self.file = folder / LOSSES
        self._columns = ["phase", "step", *names, "total"]
        self._writes = writes
        self._waiting: list[Row] = []

    def keep_until(self, phase: str, step: int) -> None:
        """Forget what a phase wrote after its last saved step."""
        if not self._writes:
            return
        with self._explained():
            rows, holds_only_losses = _read(self.file)
            holds_only_losses &= all(set(row) <= set(self._columns) for row in rows[:1])
            rows = [row for row in rows if row["phase"] != phase or int(row["step"]) <= step]
            try:
                if not holds_only_losses:
                    other = set_aside(self.file).name
                    log.warning("%s contained something other than losses: it is now %s.", self.file, other)
                write_whole(self.file, partial(self._write_table, rows))
            except PermissionError as error:  # another program holds it
                new = write_new(self.file.parent, self.file.stem, self.file.suffix, partial(self._write_table, rows))
                log.warning("%s cannot be written to (%s): the losses continue in %s.", self.file, error, new.name)
                self.file = new

    def add(self, phase: str, step: int, losses: Mapping[str, float]) -> None:
        """Append one step."""
        if not self._writes:
            return
        values = {name: f"{value:.6g}" for name, value in losses.items()}
        row = {**dict.fromkeys(self._columns, ""), **values, "phase": phase, "step": str(step)}
        rows = [*self._waiting, row]
        with self._explained():
            try:
                self._write(self.file, "a", rows)
                self._waiting = []
            except PermissionError as error:
                if not self._waiting:
                    log.warning("%s cannot be written to (%s): close it elsewhere; its rows wait.", self.file, error)
                self._waiting = rows

    def draw(self) -> None:
        """Draw `losses.png` beside the table."""
        if not self._writes:
            return
        with self._explained():
            rows = [*read_losses(self.file), *self._waiting]
            if self._waiting:
                new = write_new(self.file.parent, self.file.stem, self.file.suffix, partial(self._write_table, rows))
                log.warning("%s could not be written to: all losses are in %s.", self.file, new.name)
            picture = self.file.parent / LOSSES_PICTURE
            if picture.is_dir():
                set_aside(picture)
            write_whole(picture, partial(loss_picture(rows).save, format="png"))

    def _write_table(self, rows: Sequence[Row], path: Path) -> None:
        self._write(path, "w", [dict(zip(self._columns, self._columns, strict=True)), *rows])

    def _write(self, path: Path, mode: str, rows: Sequence[Row]) -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerows(rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LikenessError(
                f"The losses could not be written to '{self.file}' ({error}): free some space and start again; the "
                "training resumes from its last saved state."
            ) from error


def read_losses(file: Path) -> list[Row]:
    """The rows of a table of losses, none if there is no table yet."""
    return _read(file)[0]


def _read(file: Path) -> tuple[list[Row], bool]:
    """The rows that are losses, and whether the file holds nothing else.

    A last row that a crash or a full disk has cut does no harm. Spreadsheets write marks of byte order and semicolons.
    """
    if not file.is_file():
        return [], not file.exists()  # a folder or a pipe has the name
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
    except PermissionError:
        return [], False
    lines = text.replace("\0", "").splitlines()
    first = lines[0] if lines else ""
    try:
        header, *table = csv.reader(lines, delimiter=";" if first.startswith("phase;") else ",") if lines else [[]]
    except csv.Error:  # a field of 128 KB
        return [], False
    if header[:2] != ["phase", "step"] or header[-1] != "total" or len({*header}) < len(header):
        return [], not text.strip()
    are_losses = [len(row) == len(header) and _are_losses(row) for row in table]
    rows = [dict(zip(header, row, strict=True)) for row, good in zip(table, are_losses, strict=True) if good]
    was_cut = not text.endswith(("\n", "\r"))
    return rows, all(are_losses[:-1] if was_cut else are_losses) and not {"\0", "\ufffd"} & {*text}


def _are_losses(row: Sequence[str]) -> bool:
    """Whether a row is a phase, a step and numbers or gaps."""
    try:
        step, _ = int(row[1]), [float(value) for value in row[2:] if value]
    except ValueError:
        return False
    return step >= 0


_COLOURS = ((33, 102, 172), (214, 96, 77), (27, 120, 55), (118, 42, 131), (140, 81, 10), (90, 90, 90))
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 34, 30
_DRAWN = 1e-30, 1e30  # what lies outside is drawn at the edge


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
    heights = np.clip(heights, *_DRAWN) if len(heights) else np.ones(1)
    low, high = np.floor(np.log10(heights.min())), np.ceil(np.log10(heights.max()) + 1e-9)
    high = max(high, low + 1)
    box = (_LEFT, _TOP, size[0] - _RIGHT, size[1] - _BOTTOM)

    def place(step: int, value: float) -> tuple[float, float]:
        across = step / max(1, len(rows) - 1)
        up = (np.log10(np.clip(value, *_DRAWN)) - low) / (high - low)
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
