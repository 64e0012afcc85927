"""What a batch is and how it is run, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from .graph import Address, Graph, save_prefix, with_values
from .journal import JournalRow
from .rows import next_take
from .workers import Upload


@dataclass(frozen=True)
class WorkSettings:
    """How a batch is run. All times in seconds."""

    window: int = 2  # rows in a server's queue: somebody else's prompt waits for no more
    grace: float = 30.0  # that a server may be unreachable before its rows go elsewhere
    zombie: float = 30.0  # with rows that wait and none that runs
    stall: float = 900.0  # without a word of a row
    timeout: float = 0.0  # of a row; 0: none
    give_up: float = 0.0  # without any server; 0: never
    poll: tuple[float, float] = (1.0, 15.0)
    breaker: int = 20  # failures in a row of one kind; 0: never
    recycle: int = 0  # rows after which a server of our own is started again; 0: never
    most_memory: int = 0  # bytes of main memory after which it is; 0: any
    first_probe: float = 1.0


class End(Enum):
    """Why a batch ended; the values are exit codes."""

    DONE = 0
    SOME_FAILED = 1
    BREAKER = 3
    STOPPED = 130


@dataclass(frozen=True, eq=False)
class Work:
    """What the rows have in common."""

    run: str  # its id
    graph: Graph
    holes: Sequence[Address]
    prefixes: Sequence[Address]
    uploads: Mapping[str, Upload]
    seeds: Mapping[int, int] = field(default_factory=dict)
    ui: Mapping[str, Any] | None = None
    allow_empty: bool = False
    below: float = 0.0  # percent; a row that is less like the person gets another take
    most_takes: int = 0
    pinned: tuple[str, str] | None = None  # versions of ComfyUI and torch; servers with others get no row

    def values(self, row: JournalRow) -> dict[Address, Any]:
        """What a row sets."""
        values = next_take(row.values, self.seeds, row.take) if row.take else row.values
        return dict(zip(self.holes, values, strict=True))

    def graph_of(self, row: JournalRow, attempt: int) -> Graph:
        """What is posted for a row."""
        return with_values(self.graph, self.values(row), self.prefixes, save_prefix(self.run, row.row_id, attempt))

    def extra(self, row: JournalRow) -> dict[str, Any]:
        """What images carry besides their graph, so that the browser opens them as their workflow."""
        overrides = {str(address): value for address, value in self.values(row).items()}
        note = {"run": self.run, "row_id": row.row_id, "idx": row.idx, "overrides": overrides}
        return {"extra_pnginfo": {**({"workflow": self.ui} if self.ui else {}), "likeness": note}}

    def uploads_of(self, row: JournalRow) -> list[Upload]:
        """The files of ours that a row needs."""
        return [self.uploads[v] for v in self.values(row).values() if isinstance(v, str) and v in self.uploads]


class Judge(Protocol):
    """Measures what was made. Called in a thread of its own."""

    def __call__(self, row: JournalRow, files: Sequence[Path]) -> Mapping[str, float]: ...


Tell = Callable[[str, Mapping[str, Any]], None]
