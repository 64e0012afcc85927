"""Tables of rows: CSV, TSV, JSON lines or Parquet, read line by line and as often as needed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import LikenessError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
MOST_BYTES = 4 * 2**30
MOST_ROWS = 10_000_000  # of a batch
_LONGEST_LINE = 4 * 2**20  # letters
_ZIP, _GZIP, _UTF16 = b"PK\x03\x04", b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Line:
    """A row of the table: where it stands, and its cells by column. An empty cell is left out."""

    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A file of rows."""

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in SUFFIXES:
            raise LikenessError(f"The table {self.path.name!r} is not one of {', '.join(SUFFIXES)}: save it as CSV.")
        if not self.path.is_file():
            raise LikenessError(f"The table {str(self.path)!r} does not exist: check the path.")
        if self.path.stat().st_size > MOST_BYTES:
            raise LikenessError(f"The table {self.path.name!r} is larger than {MOST_BYTES >> 30} GB: split it.")
        with self.path.open("rb") as file:
            head = file.read(4)
        if head.startswith((_ZIP, _GZIP)):
            raise LikenessError(f"The table {self.path.name!r} is a spreadsheet or an archive: save it as CSV (UTF-8).")
        if head.startswith(_UTF16):
            raise LikenessError(f"The table {self.path.name!r} is saved as UTF-16: save it as CSV (UTF-8).")

    @cached_property
    def columns(self) -> Sequence[str]:
        """All columns, in the file's order. For JSON lines those of every line."""
        if self._is_text:
            with self._readable(), self._open() as file:
                return self._header(next(self._reader(file), []))
        found: dict[str, None] = {}
        for line in self:
            found.update(dict.fromkeys(line.cells))
        return self._header(list(found))

    def __iter__(self) -> Iterator[Line]:
        """Every line that holds anything. LikenessError, naming the line, where the file cannot be read."""
        with self._readable():
            yield from self._text() if self._is_text else self._parquet() if self._is_parquet else self._json()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise self._broken(1, f"cannot be read ({error}): check its quotes") from None
        except UnicodeDecodeError as error:
            raise LikenessError(
                f"The table {self.path.name!r} holds the byte 0x{error.object[error.start]:02x}, which is not UTF-8: "
                "save it as CSV (UTF-8)."
            ) from None
        except OSError as error:
            raise LikenessError(
                f"The table {str(self.path)!r} cannot be read ({error.strerror or error}): check the file."
            ) from None

    @property
    def _is_text(self) -> bool:
        return self.path.suffix.lower() in (".csv", ".tsv")

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix.lower() == ".parquet"

    @contextmanager
    def _open(self) -> Iterator[io.TextIOWrapper]:
        """The file; while it is open, csv takes cells as long as our longest line. Its limit is the process's."""
        before = csv.field_size_limit(_LONGEST_LINE)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield file
        finally:
            csv.field_size_limit(before)

    def _reader(self, file: io.TextIOWrapper) -> Any:
        return csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)

    def _header(self, names: Sequence[str]) -> Sequence[str]:
        if not any(names):
            raise LikenessError(f"The table {self.path.name!r} is empty: its first line names the columns.")
        if len(names) == 1 and ";" in names[0]:
            raise LikenessError(f"The table {self.path.name!r} is divided by semicolons: save it with commas.")
        seen: set[str] = set()
        for place, name in enumerate(names, 1):
            if not name.strip():
                raise LikenessError(f"Column {place} of the table {self.path.name!r} has no name: give it one.")
            if name in seen:
                raise LikenessError(f"The table {self.path.name!r} has two columns {name!r}: remove or rename one.")
            seen.add(name)
        return names

    def _text(self) -> Iterator[Line]:
        with self._open() as file:
            reader = self._reader(file)
            number = 1
            try:
                header = self._header(next(reader, []))
                number = reader.line_num + 1
                for cells in reader:
                    if len(cells) > len(header):
                        raise self._broken(
                            number,
                            f"has {len(cells)} cells, but there are {len(header)} columns: put quotes around text "
                            "that holds a comma",
                        )
                    if any(cells):
                        yield Line(number, {name: cell for name, cell in zip(header, cells, strict=False) if cell})
                    number = reader.line_num + 1
            except csv.Error as error:
                raise self._broken(number, f"cannot be read ({error}): check its quotes") from None

    def _json(self) -> Iterator[Line]:
        with self._open() as file:
            number = 0
            while text := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(text) > _LONGEST_LINE:
                    raise self._broken(number, f"is longer than {_LONGEST_LINE} characters: shorten it")
                if not text.strip():
                    continue
                try:
                    cells = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise self._broken(number, f"is not valid JSON ({error}): write one object per line") from None
                if not isinstance(cells, dict):
                    raise self._broken(number, "is not an object: write one object per line")
                yield Line(number, {name: cell for name, cell in cells.items() if cell is not None})

    def _parquet(self) -> Iterator[Line]:
        try:
            import pyarrow.parquet
        except ImportError:
            raise LikenessError("Parquet tables need pyarrow: `pip install pyarrow`, or save it as CSV.") from None
        try:
            number, file = 0, pyarrow.parquet.ParquetFile(self.path)
            self._expect_bounded(file.metadata)
            for batch in file.iter_batches(1000):
                for cells in batch.to_pylist():
                    number += 1
                    yield Line(number, {name: cell for name, cell in cells.items() if cell not in (None, "")})
        except (pyarrow.ArrowException, ValueError) as error:
            raise LikenessError(
                f"The table {self.path.name!r} is not a Parquet file ({error}): save it again."
            ) from None

    def _expect_bounded(self, said: Any) -> None:
        """A few bytes of Parquet may stand for billions of rows: its header tells before anything is unpacked."""
        if said.num_rows > MOST_ROWS:
            raise LikenessError(f"The table {self.path.name!r} has {said.num_rows} rows: split it.")
        if sum(said.row_group(n).total_byte_size for n in range(said.num_row_groups)) > MOST_BYTES:
            raise LikenessError(f"The table {self.path.name!r} unpacks to more than {MOST_BYTES >> 30} GB: split it.")

    def _broken(self, line: int, what: str) -> LikenessError:
        return LikenessError(f"Line {line} of the table {self.path.name!r} {what}.")
