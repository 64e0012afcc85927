"""What a batch says while it runs: a bar on a terminal, a line now and then elsewhere, or events as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import one_line

if TYPE_CHECKING:
    from ..batch.engine import Engine
    from ..batch.session import BatchRun

_LINE = 30.0  # seconds between lines where nobody watches


class Teller:
    """Says what happens: a bar on a terminal, a line now and then elsewhere, or events as JSON."""

    def __init__(self, events: bool):
        self.events = events
        self.engine: Engine | None = None
        self._bar: Any = None
        self._done = self._failed = self._total = 0
        self._said = 0.0

    def begin(self, run: BatchRun) -> None:
        """The run starts or resumes."""
        counts = run.journal.counts()
        self._total, self._done = sum(counts.values()), counts.get("done", 0)
        self._failed = counts.get("failed", 0)
        if self.events:
            self("begin", {"run": run.id, "rows": self._total, **counts})
        elif sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit="row", smoothing=0.05)

    def end(self, why: str) -> None:
        """The run has ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self("end", {"why": why, "done": self._done, "failed": self._failed})

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        self._done += kind == "done"
        self._failed += kind == "failed"
        self._total += kind == "take"
        if self.events:
            print(json.dumps({"event": kind, "time": round(time.time(), 3), **data}, ensure_ascii=False), flush=True)
            return
        if self._bar is not None and kind in ("done", "failed"):
            self._bar.total = self._total
            self._bar.update()
            self._bar.set_postfix_str(self._servers(), refresh=False)
        elif kind == "done" and time.monotonic() - self._said > _LINE:
            self._said = time.monotonic()
            print(one_line(f"{self._done} of {self._total} rows done, {self._servers()}"))
        if kind in _SENTENCES:
            self._say(one_line(_SENTENCES[kind].format_map({**_NOTHING, **data})))

    def _say(self, sentence: str) -> None:
        if self._bar is not None:
            self._bar.write(sentence)
        else:
            print(sentence, flush=True)

    def _servers(self) -> str:
        """How many servers are up, and how long it will take with them."""
        lanes = self.engine.lanes if self.engine is not None else []
        up = [lane for lane in lanes if lane.is_up]
        rate = sum(1 / lane.pace for lane in up if lane.pace > 0)
        left = max(0, self._total - self._done - self._failed)
        when = f", {_duration(left / rate)} left" if rate else ""
        return f"{self._failed} failed, {len(up)}/{len(lanes)} servers{when}"


_NOTHING = dict.fromkeys(
    ("server", "error", "kind", "idx", "path", "why", "done", "failed", "count", "note", "rows"), ""
)
_SENTENCES = {
    "down": "{server} is away: {error}",
    "up": "{server} is there",
    "zombie": "{error}",
    "failed": "row {idx} failed ({kind}): {error}",
    "recycled": "{server} is started again after {rows} rows",
    "unjudged": "row {idx} was not judged: {error}",
    "parked": "row {idx} has crashed servers, and is run last",
    "breaker": "stopped: {count} failures of one kind in a row ({error})",
    "waiting": "no server answers; waiting",
    "journal": "{note}",
    "extended": "{rows} new rows",
    "end": "{why}: {done} rows done, {failed} failed",
    "wrote": "{path}",
}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
