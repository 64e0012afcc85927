"""What a batch has to do, has sent and has done, in one SQLite file that is right after any kill.

A row goes `todo -> sent -> done | failed | parked`, and back to `todo` where an attempt was lost. `sent` is committed
before the server is told of the row; what is in doubt after a kill is asked of the servers, by the attempt's own id.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .workers import Upload

FILE = "journal.sqlite"
VERSION = 1
_TABLES = """
create table run(key text primary key, value text not null) without rowid;
create table row(seq integer primary key, row_id text not null unique, idx integer not null, take integer not null,
    parent integer, "group" integer not null, state text not null, attempts integer not null default 0, server text,
    error_kind text, error text, done_at real, seconds real, cached integer);
create table line(idx integer primary key, seq integer not null, person text, cells text not null);
create table attempt(prompt_id text primary key, seq integer not null, n integer not null, server text not null,
    sent_at real not null, ended_at real, outcome text, detail text) without rowid;
create table file(seq integer not null, node text not null, k integer not null, path text not null,
    sha256 text not null, bytes integer not null, width integer, height integer,
    primary key(seq, node, k)) without rowid;
create table metric(seq integer not null, name text not null, value real, primary key(seq, name)) without rowid;
create table upload(name text primary key, path text not null, subfolder text not null, type text not null)
    without rowid;
create index row_state on row(state);
create index attempt_row on attempt(seq);
create index attempt_open on attempt(server) where ended_at is null;
create index row_parent on row(parent) where parent is not null;
"""


class RowState(str, Enum):
    """Where a row is."""

    TODO = "todo"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    PARKED = "parked"  # it has crashed servers: run last, one at a time


@dataclass(frozen=True)
class NewRow:
    """A row before it is written: `cells` are the values of the plan's inputs, then what the manifest shows."""

    row_id: str
    group: int
    person: str
    cells: Sequence[Any]


@dataclass(frozen=True)
class JournalRow:
    """A row to run."""

    seq: int
    row_id: str
    idx: int
    take: int
    group: int
    attempts: int
    person: str
    values: Sequence[Any]  # of the plan's inputs, in their order
    shown: Sequence[Any]


@dataclass(frozen=True)
class Attempt:
    """One time a row was sent."""

    prompt_id: str
    seq: int
    n: int
    server: str
    outcome: str  # empty while it is under way
    detail: str = ""


@dataclass(frozen=True)
class KeptFile:
    """A file of a row, below the run's folder."""

    node: str
    k: int
    path: str
    sha256: str
    bytes: int
    width: int | None = None
    height: int | None = None


class Journal:
    """The file. One process writes it (see `locks.locked`); others may read meanwhile."""

    def __init__(self, connection: sqlite3.Connection, path: Path, is_wal: bool):
        self._db, self.path, self.is_wal = connection, path, is_wal

    # --- opening

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any], durable: bool = False) -> Journal:
        """A new journal that knows these facts of the run; it counts once `fill` has ended."""
        for leftover in (path, *_companions(path)):
            leftover.unlink(missing_ok=True)
        journal = cls._open(path, durable)
        with journal._step() as db:
            for statement in filter(str.strip, _TABLES.split(";")):
                db.execute(statement)
            db.executemany("insert into run values(?, ?)", [(k, json.dumps(v)) for k, v in run.items()])
            db.execute("insert into run values('version', ?)", (str(VERSION),))
        return journal

    @classmethod
    def open(cls, path: Path, durable: bool = False, read_only: bool = False) -> Journal:
        """A journal that is there. LikenessError for a file that is not one, or is of a newer version."""
        try:
            journal = cls._open(path, durable, read_only)
            version = journal.get("version")
        except sqlite3.Error as error:
            raise LikenessError(
                f"The journal {str(path)!r} cannot be read ({error}): restore it, or choose a new --out folder."
            ) from None
        if version != VERSION:
            raise LikenessError(f"The journal {str(path)!r} was written by another version: update this pack.")
        return journal

    @classmethod
    def _open(cls, path: Path, durable: bool, read_only: bool = False) -> Journal:
        uri = f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30, check_same_thread=False)
        if read_only:
            return cls(db, path, False)
        is_wal = _try_wal(db)  # network folders cannot
        db.execute(f"pragma synchronous={'full' if durable or not is_wal else 'normal'}")
        db.execute("pragma temp_store=memory")
        db.execute("pragma cache_size=-16000")
        return cls(db, path, is_wal)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """What is done within is there after a kill as a whole, or not at all."""
        try:
            self._db.execute("begin immediate")
            yield self._db
            self._db.execute("commit")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            if isinstance(error, sqlite3.OperationalError):
                raise LikenessError(
                    f"The journal {str(self.path)!r} cannot be written ({error}): free some space, then run the same "
                    "command again; nothing is lost."
                ) from error
            raise

    # --- the run

    def get(self, key: str) -> Any:
        """A fact of the run; None for an unknown one."""
        found = self._db.execute("select value from run where key=?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def set(self, key: str, value: Any) -> None:
        """Note a fact of the run."""
        with self._step() as db:
            db.execute("insert or replace into run values(?, ?)", (key, json.dumps(value)))

    def fill(self, rows: Iterable[NewRow], uploads: Iterable[Upload], facts: Mapping[str, Any]) -> tuple[int, int]:
        """Write all rows, in their order, after those there are; rows of equal content become one. Returns how many
        lines and how many rows are new. All or nothing."""
        lines = fresh = 0
        with self._step() as db:
            (idx,) = db.execute("select coalesce(max(idx) + 1, 0) from line").fetchone()
            for row in rows:
                found = db.execute(
                    "insert or ignore into row(row_id, idx, take, \"group\", state) values(?, ?, 0, ?, 'todo')",
                    (row.row_id, idx + lines, row.group),
                )
                fresh += found.rowcount
                seq = (
                    found.lastrowid
                    if found.rowcount
                    else db.execute("select seq from row where row_id=?", (row.row_id,)).fetchone()[0]
                )
                cells = json.dumps(row.cells, separators=(",", ":"), ensure_ascii=False)
                db.execute("insert into line values(?, ?, ?, ?)", (idx + lines, seq, row.person, cells))
                lines += 1
            db.executemany(
                "insert or ignore into upload values(?, ?, ?, ?)",
                [(u.name, str(u.path), u.subfolder, u.type) for u in uploads],
            )
            db.executemany("insert or replace into run values(?, ?)", [(k, json.dumps(v)) for k, v in facts.items()])
        return lines, fresh

    # --- rows

    def todo(self) -> Iterator[tuple[int, int]]:
        """Number and group of every row that is to be run, group by group."""
        yield from self._db.execute('select seq, "group" from row where state=\'todo\' order by "group", seq')

    def row(self, seq: int) -> JournalRow:
        """A row by its number."""
        row_id, idx, take, group, attempts, person, cells = self._db.execute(
            'select row_id, row.idx, take, "group", attempts, person, cells from row join line on line.idx = row.idx '
            "where row.seq=?",
            (seq,),
        ).fetchone()
        values, shown = json.loads(cells)
        return JournalRow(seq, row_id, idx, take, group, attempts, person, values, shown)

    def seq_of(self, row_id: str) -> int | None:
        """The number of a row by its id, or by its beginning where that is unique."""
        found = self._db.execute(
            "select seq from row where row_id >= ? and row_id < ? limit 2", (row_id, row_id + "g")
        ).fetchall()
        return found[0][0] if len(found) == 1 else None

    def in_state(self, *states: RowState) -> list[int]:
        """The numbers of the rows in these states."""
        marks = ",".join("?" * len(states))
        return [
            seq for (seq,) in self._db.execute(f"select seq from row where state in ({marks}) order by seq", states)
        ]

    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        return dict(self._db.execute("select state, count(*) from row group by state"))

    def lines(self) -> int:
        """How many lines the table has, after people, grid and seeds."""
        return self._db.execute("select count(*) from line").fetchone()[0]

    def state(self, seq: int) -> RowState:
        """Where a row is."""
        return RowState(self._db.execute("select state from row where seq=?", (seq,)).fetchone()[0])

    def sent(self, seq: int, prompt_id: str, n: int, server: str) -> None:
        """Before the server is told of it."""
        with self._step() as db:
            db.execute("update row set state='sent', attempts=?, server=? where seq=?", (n, server, seq))
            db.execute(
                "insert or replace into attempt(prompt_id, seq, n, server, sent_at) values(?, ?, ?, ?, ?)",
                (prompt_id, seq, n, server, time.time()),
            )

    def done(self, seq: int, prompt_id: str, files: Sequence[KeptFile], seconds: float, cached: int) -> bool:
        """The row's files are in their places. False where another attempt was first; then nothing changes."""
        with self._step() as db:
            db.execute("update attempt set ended_at=?, outcome='done' where prompt_id=?", (time.time(), prompt_id))
            changed = db.execute(
                "update row set state='done', done_at=?, seconds=?, cached=?, error_kind=null, error=null, "
                "server=(select server from attempt where prompt_id=?) where seq=? and state != 'done'",
                (time.time(), seconds, cached, prompt_id, seq),
            )
            if not changed.rowcount:
                return False
            db.execute("delete from file where seq=?", (seq,))
            db.executemany(
                "insert into file values(?, ?, ?, ?, ?, ?, ?, ?)",
                [(seq, f.node, f.k, f.path, f.sha256, f.bytes, f.width, f.height) for f in files],
            )
        return True

    def ended(self, prompt_id: str, outcome: str, detail: str = "") -> None:
        """An attempt has failed; what becomes of the row is said apart."""
        with self._step() as db:
            db.execute(
                "update attempt set ended_at=?, outcome=?, detail=? where prompt_id=? and ended_at is null",
                (time.time(), outcome, detail[:2000], prompt_id),
            )

    def settle(self, seq: int, state: RowState, kind: str = "", error: str = "") -> None:
        """Put a row that is not done into another state."""
        with self._step() as db:
            db.execute(
                "update row set state=?, error_kind=?, error=?, done_at=? where seq=? and state != 'done'",
                (state.value, kind or None, error[:2000] or None, time.time() if kind else None, seq),
            )

    def again(self, seqs: Iterable[int]) -> int:
        """Failed rows are to be run again, as if they never had been; returns how many."""
        with self._step() as db:
            changed = db.executemany(
                "update row set state='todo', error_kind=null, error=null where seq=? "
                "and state in ('failed', 'parked')",
                [(seq,) for seq in seqs],
            )
            db.execute(
                "update attempt set outcome='earlier ' || outcome where outcome not like 'earlier %' and seq in "
                "(select seq from row where state='todo')"
            )
            return changed.rowcount

    def another(self, seq: int, row_id: str, take: int) -> int | None:
        """A further take of a row, with another seed; its number, or None where there is an equal row."""
        with self._step() as db:
            found = db.execute(
                'insert or ignore into row(row_id, idx, take, parent, "group", state) '
                "select ?, idx, ?, coalesce(parent, seq), \"group\", 'todo' from row where seq=?",
                (row_id, take, seq),
            )
            return found.lastrowid if found.rowcount else None

    # --- attempts

    def attempts(self, seq: int) -> list[Attempt]:
        """What was tried for a row, in order."""
        found = self._db.execute(
            "select prompt_id, seq, n, server, coalesce(outcome, ''), coalesce(detail, '') from attempt where seq=? "
            "and coalesce(outcome, '') not like 'earlier %' order by n",
            (seq,),
        )
        return [Attempt(*values) for values in found]

    def under_way(self) -> list[Attempt]:
        """Attempts of which the end is not known."""
        found = self._db.execute(
            "select prompt_id, seq, n, server, '' from attempt where ended_at is null order by sent_at"
        )
        return [Attempt(*values) for values in found]

    def given_up_on(self, server: str) -> list[str]:
        """Prompts that a server may still hold though nobody waits for them."""
        found = self._db.execute("select prompt_id from attempt where server=? and outcome='away'", (server,))
        return [prompt for (prompt,) in found]

    def taken_back(self, prompt_ids: Iterable[str]) -> None:
        """The server does not hold them any more."""
        with self._step() as db:
            db.executemany("update attempt set outcome='lost' where prompt_id=?", [(one,) for one in prompt_ids])

    # --- what was made

    def uploads(self) -> dict[str, Upload]:
        """Files that rows need, by their names in graphs."""
        return {u[0]: Upload(u[0], Path(u[1]), u[2], u[3]) for u in self._db.execute("select * from upload")}

    def files(self, seq: int) -> list[KeptFile]:
        """The files of a row."""
        found = self._db.execute(
            "select node, k, path, sha256, bytes, width, height from file where seq=? order by node, k", (seq,)
        )
        return [KeptFile(*values) for values in found]

    def known_paths(self) -> set[str]:
        """The paths of all files."""
        return {path for (path,) in self._db.execute("select path from file")}

    def measure(self, seq: int, metrics: Mapping[str, float]) -> None:
        """Write down what a judge found."""
        with self._step() as db:
            db.executemany(
                "insert or replace into metric values(?, ?, ?)", [(seq, name, value) for name, value in metrics.items()]
            )

    def metrics(self, seq: int) -> dict[str, float]:
        """What a judge found."""
        return dict(self._db.execute("select name, value from metric where seq=?", (seq,)))

    def unjudged(self) -> list[int]:
        """Rows that are done and that nobody has judged."""
        found = self._db.execute(
            "select seq from row where state='done' and seq not in (select seq from metric) order by seq"
        )
        return [seq for (seq,) in found]

    def takes(self, seq: int) -> list[int]:
        """A row and its further takes."""
        found = self._db.execute("select seq from row where seq=?1 or parent=?1 order by take", (seq,))
        return [one for (one,) in found]

    def query(self, text: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """For reports: rows of a select."""
        yield from self._db.execute(text, values)


def _try_wal(db: sqlite3.Connection) -> bool:
    try:
        if db.execute("pragma journal_mode=wal").fetchone()[0] != "wal":
            return False
        db.execute("begin immediate")  # some network folders say yes and mean no
        db.execute("commit")
        return True
    except sqlite3.OperationalError:
        db.execute("pragma journal_mode=delete")
        return False


def _companions(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]
