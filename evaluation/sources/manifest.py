"""The run of a batch as a study: a tolerant reader of `manifest.csv`, one line for each row of the batch.

What is needed: the columns `person` and `file`, a path below the run's folder. What is used where it is there: `state`
(only rows that are `done` have an image), `seed`, `seconds`, a `prompt`, a `method`, and the inputs that were varied,
which are columns with a point in their name (`Sampler.cfg`). All other columns are left alone.

Methods are told apart by the column `method` or `meta.method`; without one, by the inputs that take several values for
one and the same person, prompts and seeds excepted; without any, the run is one method, called by its folder's name.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import LikenessError
from ...faces.photos import PICTURE_SUFFIXES
from .study import Study, StudyPicture, of_people

MANIFEST, JOURNAL, RECORD = "manifest.csv", "journal.sqlite", "run.json"
DONE = "done"
_METHOD, _PROMPT = ("method", "meta.method"), ("prompt", "meta.prompt")
_SAID, _SEEDS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "positive"), ("seed", "noise_seed")
_LIKE_A_FORMULA = ("=", "+", "-", "@")  # such cells were given an apostrophe, so that no spreadsheet computes them


@dataclass(frozen=True)
class _Row:
    """A line of the manifest."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def is_run(folder: Path) -> bool:
    """Whether a batch wrote this folder."""
    return any((folder / name).is_file() for name in (MANIFEST, JOURNAL, RECORD))


def survey_run(run: Path, people: Path | None = None, by: Sequence[str] = ()) -> Study:
    """The images that a batch has made, with the photos in `people/<person>`, by default in the run's folder.

    `by` names the columns that tell methods apart. LikenessError for a manifest that cannot be read, that has no
    image of a person, or that names a file outside of the run's folder.
    """
    columns, rows = _read(run / MANIFEST)
    unknown = [column for column in by if column not in columns]
    if unknown:
        raise LikenessError(f"{MANIFEST} has no column '{unknown[0]}': choose some of {', '.join(columns)}.")
    shown = [row for row in rows if row["file"] and row["person"] and row.cells.get("state", DONE) == DONE]
    shown = [row for row in shown if PurePosixPath(row["file"]).suffix.lower() in PICTURE_SUFFIXES]
    paths = {row.line: _inside(run, row) for row in shown}
    shown = [row for row in shown if paths[row.line].is_file()]
    if not shown:
        raise LikenessError(f"No line of {run / MANIFEST} is an image of a person: let the batch run first.")
    telling = list(by) or _telling(columns, shown)
    saying = [column for column in columns if column in _PROMPT] or [c for c in columns if _input(c) in _SAID]
    results = [
        StudyPicture(
            method=_method(row, telling) or run.resolve().name,
            person=row["person"],
            prompt=" / ".join(filter(None, dict.fromkeys(_text(row[column]) for column in saying))),
            seed=_seed(row, columns),
            path=paths[row.line],
            measures=_seconds(row["seconds"]),
        )
        for row in shown
    ]
    study = of_people(run, results, people)
    return replace(study, warnings=(*study.warnings, *_without_picture(rows, shown)))


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    if not path.is_file():
        raise LikenessError(f"The batch in {path.parent} has no {MANIFEST} yet: let it run to its end.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = [column for column in reader.fieldnames or [] if column]
            rows = [_Row(reader.line_num, {c: row[c] or "" for c in columns}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LikenessError(f"{path} cannot be read ({error}): restore it, or let the batch write it again.") from None
    for column in ("person", "file"):
        if column not in columns:
            raise LikenessError(f"{path} has no column '{column}': choose the folder that a batch of people wrote.")
    return columns, rows


def _inside(run: Path, row: _Row) -> Path:
    """The row's file; a manifest may come from elsewhere, so it names nothing outside of its own folder."""
    name = row["file"]
    path = run / PurePosixPath(name)
    foreign = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts
    if foreign or not path.resolve().is_relative_to(run.resolve()):
        raise LikenessError(
            f"Line {row.line} of {MANIFEST} names '{name}', which is not in the run's folder: take a manifest that the "
            "batch itself wrote."
        )
    return path


# --- which column says what


def _input(column: str) -> str:
    """The input's name of `<node>.<input>`, else nothing."""
    return column.rpartition(".")[2] if "." in column and not column.startswith("meta.") else ""


def _telling(columns: Sequence[str], rows: Iterable[_Row]) -> list[str]:
    """The columns that tell methods apart."""
    named = [column for column in columns if column in _METHOD]
    if named:
        return named[:1]
    settings = [c for c in columns if _input(c) and _input(c) not in (*_SAID, *_SEEDS)]
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for column in settings:
            values.setdefault((column, row["person"]), set()).add(row[column])
    return [column for column in settings if any(len(v) > 1 for (name, _), v in values.items() if name == column)]


def _method(row: _Row, telling: Sequence[str]) -> str:
    if len(telling) == 1 and telling[0] in _METHOD:
        return _text(row[telling[0]])
    return ", ".join(f"{column}={_text(row[column])}" for column in telling)


def _text(cell: str) -> str:
    return cell[1:] if cell.startswith(tuple(f"'{sign}" for sign in _LIKE_A_FORMULA)) else cell


def _seed(row: _Row, columns: Sequence[str]) -> int:
    column = next((c for c in columns if c == "seed"), next((c for c in columns if _input(c) in _SEEDS), ""))
    try:
        return int(row[column] or 0)
    except ValueError:
        raise LikenessError(
            f"Line {row.line} of {MANIFEST} has the seed {row[column][:40]!r}, which is not a whole number: correct it."
        ) from None


def _seconds(cell: str) -> dict[str, float]:
    """What an image took, where that was measured."""
    try:
        seconds = float(cell)
    except ValueError:
        return {}
    return {"seconds": seconds} if 0 <= seconds < math.inf else {}


def _without_picture(rows: Sequence[_Row], shown: Sequence[_Row]) -> tuple[str, ...]:
    """A warning about rows that nobody judges."""
    judged = {row.line for row in shown}
    missing = Counter(row.cells.get("state", DONE) or "unknown" for row in rows if row.line not in judged)
    if not missing:
        return ()
    missing["done, but without an image of a person"] = missing.pop(DONE, 0)
    kinds = ", ".join(f"{count} {state}" for state, count in sorted(missing.items()) if count)
    return (f"{sum(missing.values())} of {len(rows)} rows of the batch are not judged ({kinds})",)
