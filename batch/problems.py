"""What is wrong with a batch, found before anything runs: where, what, and what to do about it."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import one_line
from ..storage import write_whole

MOST_KEPT = 100_000  # problems; the rest is counted
_MOST_SHOWN = 80  # characters of a value


class Fault(ValueError):
    """What is wrong with one value, and what to do about it."""

    def __init__(self, reason: str, suggestion: str = "") -> None:
        self.reason, self.suggestion = reason, suggestion
        super().__init__(reason)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `line` counts from 1 as editors do; 0 where a file as a whole is meant."""

    file: str
    line: int
    column: str
    value: str
    reason: str
    suggestion: str

    def __str__(self) -> str:
        where = self.file + (f", line {self.line}" if self.line else "")
        where += f", column {self.column!r}" if self.column else ""
        said = f"{where}: {self.reason}" if self.column or not self.value else f"{where}: {self.value}: {self.reason}"
        return one_line(f"{said}; {self.suggestion}." if self.suggestion else f"{said}.")


@dataclass
class Problems:
    """Collects problems and warnings; all of them, for a whole table must be corrected in one go."""

    found: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    count: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, file: str, line: int, column: str, value: object, fault: Fault) -> None:
        """Note one; `value` is shortened."""
        self.count += 1
        if len(self.found) < MOST_KEPT:
            text = "" if value is None else str(value)
            shown = text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
            self.found.append(Problem(file, line, column, shown, fault.reason, fault.suggestion))

    def warn(self, sentence: str) -> None:
        """A sentence to show once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def write(self, path: Path) -> None:
        """All problems as CSV."""
        header = ("file", "line", "column", "value", "reason", "suggestion")
        rows = [
            (p.file, p.line or "", p.column, plain_cell(p.value), plain_cell(p.reason), plain_cell(p.suggestion))
            for p in self.found
        ]
        write_whole(path, lambda part: write_table(part, header, rows))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file as every spreadsheet reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def plain_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: what begins like one gets an apostrophe."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'did you mean ...', or the first of what is known."""
    names = [str(name) for name in known]
    if not names:
        return ""
    close = difflib.get_close_matches(word, names[:5000], count, 0.5)
    folded = [name for name in names if name.lower() == word.lower()]
    if found := list(dict.fromkeys(folded + close))[:count]:
        return f"did you mean {' or '.join(map(repr, found))}?".rstrip("?")
    more = ", …" if len(names) > count else ""
    return f"there are {', '.join(map(repr, names[:count]))}{more}" if len(names) > 1 else f"there is {names[0]!r}"
