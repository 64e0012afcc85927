"""What became of every line of the table: a manifest for spreadsheets and for `likeness evaluate`."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LikenessError, one_line
from ..storage import name_fault, write_whole
from .problems import plain_cell, write_table
from .session import BatchRun

MANIFEST, FAILED, BY_NAME = "manifest.csv", "failed.csv", "by-name"
_FACTS = ("file", "sha256", "width", "height", "seconds", "server", "attempts", "take", "cached_nodes", "error")
METRICS = ("percent", "id_sim", "detected")


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: the best take of a row, with its first file."""

    idx: int
    seq: int
    row_id: str
    state: str
    person: str
    shown: Mapping[str, Any]
    facts: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: bool | None = None  # among the best of those that differ in the seed alone

    @property
    def file(self) -> str:
        """Its first file, below the run's folder; empty for none."""
        return str(self.facts.get("file") or "")


def read_entries(run: BatchRun) -> Iterator[Entry]:
    """Every line, in the table's order, as it stands now."""
    best = _best_takes(run) if run.facts["judging"]["below"] else {}
    ranks = _ranks(run, best) if run.facts["judging"]["keep"] else {}
    metrics = _metrics(run)
    for idx, first, person, cells in run.journal.query("select idx, seq, person, cells from line order by idx"):
        seq = best.get(int(first), int(first))
        found = next(
            run.journal.query(
                "select row_id, state, seconds, server, attempts, take, cached, error_kind, error from row where seq=?",
                (seq,),
            )
        )
        row_id, state, seconds, server, attempts, take, cached, kind, error = found
        file = next(
            run.journal.query(
                "select path, sha256, width, height from file where seq=? order by node, k limit 1", (seq,)
            ),
            ("", "", "", ""),
        )
        said = f"{kind}: {error}" if kind and error else kind or ""
        facts = (*file, seconds, server, attempts, take, cached, said)
        shown = dict(zip(run.shown, json.loads(cells)[1], strict=True))
        yield Entry(
            idx,
            seq,
            row_id,
            state,
            person or "",
            shown,
            dict(zip(_FACTS, facts, strict=True)),
            metrics.get(seq, {}),
            ranks.get(idx),
        )


def _metrics(run: BatchRun) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for seq, name, value in run.journal.query("select seq, name, value from metric"):
        found.setdefault(seq, {})[name] = value
    return found


def _best_takes(run: BatchRun) -> dict[int, int]:
    """For rows that were repeated with other seeds, the take that is most like the person."""
    found: dict[int, tuple[float, int]] = {}
    for first, seq, percent in run.journal.query(
        "select coalesce(parent, row.seq), row.seq, value from row join metric on metric.seq = row.seq "
        "where name='percent' and state='done'"
    ):
        if first not in found or percent > found[first][0]:
            found[first] = percent, seq
    return {first: seq for first, (_, seq) in found.items()}


def _ranks(run: BatchRun, best: Mapping[int, int]) -> dict[int, bool]:
    """For each line whether it is among the best of the lines that differ from it in the seed alone."""
    metrics = _metrics(run)
    groups: dict[str, list[tuple[float, int]]] = {}
    shown = [n for n, name in enumerate(run.shown) if name != "seed"]
    seeds = {int(hole) for hole in run.work.seeds}
    for idx, seq, person, cells in run.journal.query("select idx, seq, person, cells from line"):
        values, written = json.loads(cells)
        key = json.dumps([person, [v for n, v in enumerate(values) if n not in seeds], [written[n] for n in shown]])
        percent = metrics.get(best.get(seq, seq), {}).get("percent", -1.0)
        groups.setdefault(key, []).append((-percent, idx))
    keep = run.facts["judging"]["keep"]
    return {
        idx: place < keep and less <= 0  # somebody judged it
        for found in groups.values()
        for place, (less, idx) in enumerate(sorted(found))
    }


def header(run: BatchRun) -> list[str]:
    """The manifest's columns."""
    kept = ["kept"] if run.facts["judging"]["keep"] else []
    return ["idx", "row_id", "state", "person", *run.shown, *_FACTS, *METRICS, *kept]


def cells_of(run: BatchRun, entry: Entry, plain: bool = True) -> list[Any]:
    """A line of the manifest; `plain` texts are never a formula for a spreadsheet."""
    shown = [entry.shown[name] for name in run.shown]
    facts = [entry.facts[name] for name in _FACTS]
    metrics = [entry.metrics.get(name) for name in METRICS]
    kept = [int(bool(entry.kept))] if run.facts["judging"]["keep"] else []
    cells = [entry.idx, entry.row_id, entry.state, entry.person, *shown, *facts, *metrics, *kept]
    if not plain:
        return cells
    return [_written(cell) for cell in cells]


def _written(cell: Any) -> Any:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.6g}"
    if isinstance(cell, (list, dict)):
        cell = json.dumps(cell, ensure_ascii=False)
    return plain_cell(cell) if isinstance(cell, str) else cell


def write_manifest(run: BatchRun, path: Path | None = None) -> Path:
    """`manifest.csv`, and beside it the same as Parquet, verbatim, where pyarrow is there."""
    path = path or run.folder / MANIFEST
    write_whole(
        path, lambda part: write_table(part, header(run), (cells_of(run, entry) for entry in read_entries(run)))
    )
    if importlib.util.find_spec("pyarrow"):
        _parquet(run, path.with_suffix(".parquet"), header(run))
    return path


def write_failed(run: BatchRun) -> Path | None:
    """A table of the failed lines, with the columns of the user's table; None where none failed."""
    failed = [entry for entry in read_entries(run) if entry.state == "failed"]
    path = run.folder / FAILED
    if not failed:
        path.unlink(missing_ok=True)
        return None
    names = ["person", *run.shown, "meta.error"]
    rows = [
        [_written(entry.person), *(_written(entry.shown[name]) for name in run.shown), _written(entry.facts["error"])]
        for entry in failed
    ]
    write_whole(path, lambda part: write_table(part, names, rows))
    return path


def export(run: BatchRun, to: Path) -> int:
    """The run as one table elsewhere, CSV, JSON lines or Parquet by its suffix; returns how many lines."""
    suffix, count = to.suffix.lower(), 0
    names = header(run)
    if suffix == ".parquet":
        return _parquet(run, to, names)
    if suffix not in (".csv", ".jsonl"):
        raise LikenessError(f"The table {to.name!r} is not a .csv, .jsonl or .parquet file: choose one of these.")

    def write(part: Path) -> None:
        nonlocal count
        with part.open("w", encoding="utf-8", newline="") as file:
            if suffix == ".csv":
                writer = csv.writer(file)
                writer.writerow(names)
            for entry in read_entries(run):
                count += 1
                if suffix == ".csv":
                    writer.writerow(cells_of(run, entry))
                else:
                    record = dict(zip(names, cells_of(run, entry, plain=False), strict=True))
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")

    write_whole(to, write)
    return count


def _parquet(run: BatchRun, to: Path, names: list[str]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LikenessError("Parquet needs pyarrow: `pip install pyarrow`, or export to .csv.") from None
    rows = [cells_of(run, entry, plain=False) for entry in read_entries(run)]
    columns = {name: [_flat(row[n]) for row in rows] for n, name in enumerate(names)}
    for name in run.shown:  # a column of the user's may hold texts and numbers
        columns[name] = [None if value is None else str(value) for value in columns[name]]
    write_whole(to, lambda part: pyarrow.parquet.write_table(pyarrow.table(columns), part))
    return len(rows)


def _flat(cell: Any) -> Any:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, (list, dict)) else None if cell == "" else cell


# --- a second, readable name for every image


def link_by_name(run: BatchRun, template: str) -> int:
    """Hard links (or copies) below `by-name/`, called as the template says; returns how many."""
    folder = run.folder / BY_NAME
    shutil.rmtree(folder, ignore_errors=True)
    made = 0
    for entry in read_entries(run):
        if entry.state != "done" or not entry.file or entry.kept is False:
            continue
        source = run.folder / entry.file
        name = readable_name(template, entry)
        place = folder / f"{name}{source.suffix}"
        if place.exists():
            place = folder / f"{name}-{entry.row_id[:8]}{source.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            try:
                os.link(source, place)
            except OSError as error:
                if isinstance(error, (FileExistsError, FileNotFoundError)):
                    raise
                shutil.copyfile(source, place)
            made += 1
    return made


_FIELD = re.compile(r"\{([^{}:]+)(?::(\d{1,3}))?\}")


def readable_name(template: str, entry: Entry) -> str:
    """The template with a row's values, safe on every system; `{name:24}` is cut to 24 letters."""
    known = {"person": entry.person, "idx": entry.idx, "row_id": entry.row_id, **entry.shown}

    def value(match: re.Match[str]) -> str:
        text = one_line(str(known.get(match[1], "")))[: int(match[2] or 60)]
        return re.sub(r"[^\w .,()+=@-]", "_", text).strip(" .") or "_"

    parts = [_FIELD.sub(value, part) for part in template.split("/")]
    return "/".join(
        part if not name_fault(part) else f"_{re.sub(r'[^0-9A-Za-z_-]', '_', part)[:100]}" for part in parts
    )


def check_template(template: str, known: list[str]) -> None:
    """LikenessError for a template that names an unknown column, or leads out of its folder."""
    unknown = [name for name, _ in _FIELD.findall(template) if name not in ("person", "idx", "row_id", *known)]
    if unknown:
        raise LikenessError(f"--name has {{{unknown[0]}}}, which is not a column: choose some of {', '.join(known)}.")
    if template.startswith(("/", "\\")) or ".." in template or "\\" in template:
        raise LikenessError(
            f"--name is {template!r}, which leads out of its folder: write one such as {{person}}/{{seed}}."
        )
