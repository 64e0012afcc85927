"""Runs rows on servers until all are done: two in flight on each, and what is lost is sent again.

Execution is at least once: a server that is cut off may finish a row that was given to another. Results are exactly
once: a row's files have names of their own, appear by a rename, and the row is done in one transaction.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import time
from collections.abc import Sequence

from ..errors import LikenessError, one_line
from .failures import Failure, Then, decide
from .graph import GraphTemplate
from .journal import Journal, JournalRow, RowState
from .lane import LONGEST_PAUSE, Flight, Lane
from .results import Keeper
from .rows import next_take
from .schema import Nodes
from .todo import Todo
from .work import End, Judge, Tell, Work, WorkSettings
from .workers import Worker, happens_within

FIRST_BREAKER = 3  # failures in a row that stop a batch in which nothing ever went well


class Engine:
    """One batch, from where its journal stands to its end."""

    def __init__(
        self,
        work: Work,
        journal: Journal,
        keeper: Keeper,
        servers: Sequence[tuple[Worker, Nodes]],
        settings: WorkSettings | None = None,
        judge: Judge | None = None,
        tell: Tell = lambda kind, data: None,
    ):
        self.work, self.journal, self.keeper = work, journal, keeper
        self.settings, self.judge, self.tell = settings or WorkSettings(), judge, tell
        self.lanes = [Lane(self, worker, nodes) for worker, nodes in servers]
        self.todo = Todo(())
        self.stopping = 0  # 1: nothing new, 2: nothing more
        self.changed = asyncio.Event()
        self._judging: asyncio.Queue[int] = asyncio.Queue()
        self._unjudged = 0
        self._told_unjudged: set[str] = set()
        self._failure: BaseException | None = None
        self.flight_numbers = itertools.count()
        self._in_a_row: tuple[str, list[int]] = ("", [])  # failures of one kind, by the number of their flight
        self._breaker = ""
        self._ever_done = False
        self._last_answer = time.monotonic()
        self._told_away = time.monotonic()

    # --- from start to end

    async def go(self) -> End:
        """Run until nothing is left, or until it is stopped. LikenessError where the disk or the journal fails."""
        self.keeper.sweep(self.journal.known_paths())
        self._ever_done = bool(self.journal.counts().get("done"))
        self._reconcile()
        self.todo = Todo(self.journal.todo())
        for seq in self.journal.unjudged() if self.judge else ():
            self._judge_later(seq)
        tasks = [asyncio.create_task(lane.live()) for lane in self.lanes]
        tasks.append(asyncio.create_task(self._watch()))
        if self.judge:
            tasks.append(asyncio.create_task(self._judge_all()))
        try:
            while not self._is_over():
                await self._sleep(0.5)
                if not self.stopping and self._is_idle():
                    await self._run_parked()
            if self._failure is not None:
                raise self._failure
        finally:
            self.stopping = max(self.stopping, 1)
            for task in [*tasks, *(task for lane in self.lanes for task in lane.tasks)]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._breaker:
            return End.BREAKER
        if self.stopping and (self.todo or self._is_waiting()):
            return End.STOPPED
        left = self.journal.counts()
        return End.SOME_FAILED if any(left.get(state) for state in ("failed", "parked", "todo", "sent")) else End.DONE

    def stop(self) -> None:
        """Once: running rows may finish. Twice: they are cancelled."""
        self.stopping += 1
        self.changed.set()

    def _is_waiting(self) -> bool:
        return bool(self.journal.in_state(RowState.TODO, RowState.SENT))

    def _is_idle(self) -> bool:
        return not self.todo and not any(lane.flights for lane in self.lanes) and not self._unjudged

    def _is_over(self) -> bool:
        if self._failure is not None:
            return True
        if self.stopping or self._breaker:
            return not any(lane.flights for lane in self.lanes)
        return self._is_idle() and not self.journal.in_state(RowState.PARKED)

    @property
    def may_send(self) -> bool:
        """Whether new rows may be sent."""
        return not self.stopping and not self._breaker and self._failure is None

    async def _sleep(self, seconds: float) -> None:
        await happens_within(self.changed, seconds)
        self.changed.clear()

    def fail(self, error: BaseException) -> None:
        """The batch cannot continue."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error = LikenessError(
                f"The disk with {str(self.keeper.run)!r} is full: free some space, then run the same command again; "
                "nothing is lost."
            )
        self._failure = self._failure or error
        self.changed.set()

    def _reconcile(self) -> None:
        """What a killed client had sent: asked of its servers, or given up where those are not ours any more."""
        lanes = {lane.worker.name: lane for lane in self.lanes}
        for attempt in self.journal.under_way():
            if self.journal.state(attempt.seq) is not RowState.SENT:
                self.journal.ended(attempt.prompt_id, Failure.LOST.value)
            elif attempt.server in lanes:
                lanes[attempt.server].adopt(attempt)
            else:
                self.journal.ended(attempt.prompt_id, Failure.AWAY.value, "its server is not in this session")
                self.journal.settle(attempt.seq, RowState.TODO)
        adopted = {flight.row.seq for lane in self.lanes for flight in lane.flights.values()}
        for seq in self.journal.in_state(RowState.SENT):
            if seq not in adopted:
                self.journal.settle(seq, RowState.TODO)

    async def _watch(self) -> None:
        """Says once a minute that no server can be reached, and stops where that was asked for."""
        while True:
            await asyncio.sleep(min(1.0, self.settings.grace))
            now = time.monotonic()
            if any(lane.is_up for lane in self.lanes):
                self._last_answer = now
            elif now - self._told_away >= 60.0:
                self._told_away = now
                self.tell(
                    "waiting", {"seconds": now - self._last_answer, "servers": [lane.trouble for lane in self.lanes]}
                )
            if 0 < self.settings.give_up <= now - self._last_answer:
                why = "; ".join(lane.trouble for lane in self.lanes)
                self.fail(
                    LikenessError(
                        f"No server has answered for {self.settings.give_up:g} seconds ({why}): start one, then run "
                        "the same command again; nothing is lost."
                    )
                )
            for seq in self.todo.nobody_can(frozenset(lane.worker.name for lane in self.lanes)):
                self.journal.settle(seq, RowState.FAILED, "no server", "no server has the files that it names")
                self.tell("failed", {"seq": seq, "kind": "no server", "error": "no server has the files that it names"})
                self.changed.set()

    # --- rows

    def landed(self, flight: Flight) -> None:
        """A row is done. Failures of rows that were sent before it are no series any more; its files may come late."""
        kind, numbers = self._in_a_row
        self._ever_done, self._in_a_row = True, (kind, [one for one in numbers if one > flight.number])
        if self.judge:
            self._judge_later(flight.row.seq)
        self.changed.set()

    def came_to_nothing(self, flight: Flight, outcome: Failure, detail: str, lane: Lane) -> None:
        """An attempt has failed: decide what becomes of the row."""
        row, attempt, detail = flight.row, flight.attempt, one_line(detail)
        self.journal.ended(attempt.prompt_id, outcome.value, detail)
        live = [one for one in self.lanes if one.is_up] or self.lanes
        verdict = decide(self.journal.attempts(row.seq), len(live))
        told = {
            "row": row.row_id,
            "idx": row.idx,
            "server": lane.worker.name,
            "outcome": outcome.value,
            "error": detail,
        }
        if verdict.then is Then.FAIL:
            self.journal.settle(row.seq, RowState.FAILED, verdict.kind, verdict.error)
            self.tell("failed", {**told, "kind": verdict.kind, "error": verdict.error})
            self._count_failure(f"{verdict.kind}: {verdict.error.split(':')[0]}", verdict.error, flight.number)
        elif verdict.then is Then.PARK:
            self.journal.settle(row.seq, RowState.PARKED, verdict.kind, verdict.error)
            self.tell("parked", told)
        else:
            at_once = outcome in (Failure.LOST, Failure.STOPPED, Failure.MEMORY, Failure.DIED, Failure.INTERRUPTED)
            pause = 0.0 if at_once or verdict.exclude else pause_before(row.attempts + 1)
            self.journal.settle(row.seq, RowState.TODO)
            self.todo.put(row.seq, row.group, pause, verdict.exclude, lane.lacking.get(row.seq, frozenset()))
            self.tell("again", {**told, "pause": pause})
        self.changed.set()

    def _count_failure(self, kind: str, error: str, number: int) -> None:
        before, numbers = self._in_a_row
        self._in_a_row = kind, [*(numbers if kind == before else ()), number]
        most = self.settings.breaker if self._ever_done else min(self.settings.breaker, FIRST_BREAKER)
        if 0 < most <= len(self._in_a_row[1]) and not self._breaker:
            self._breaker = error
            self.tell("breaker", {"count": len(self._in_a_row[1]), "error": error})

    async def _run_parked(self) -> None:
        """Rows that crashed servers run one at a time, and only where we can start the server again."""
        own = next((lane for lane in self.lanes if lane.is_own), None)
        for seq in self.journal.in_state(RowState.PARKED):
            if own is None:
                error = "ended two servers; try it alone with `likeness batch retry --local 1`"
                self.journal.settle(seq, RowState.FAILED, "poison", error)
                self.tell("failed", {"seq": seq, "kind": "poison", "error": error})
                continue
            await own.alone(self.journal.row(seq))

    # --- likeness

    def _judge_later(self, seq: int) -> None:
        self._unjudged += 1
        self._judging.put_nowait(seq)

    async def _judge_all(self) -> None:
        assert self.judge is not None
        while True:
            seq = await self._judging.get()
            row = self.journal.row(seq)
            files = [self.keeper.run / file.path for file in self.journal.files(seq)]
            try:
                metrics = await asyncio.to_thread(self.judge, row, files)
                if metrics.get("percent", float("inf")) < self.work.below and row.take < self.work.most_takes:
                    self._another_take(row)  # first: after a kill between the two the row is judged again
                self.journal.measure(seq, metrics)
                self.tell("judged", {"row": row.row_id, "idx": row.idx, **metrics})
            except LikenessError as error:  # the images are there; `likeness batch report --measure` may come later
                self._tell_unjudged(row, str(error))
            except Exception as error:
                self.fail(error)
                return
            self._unjudged -= 1
            self.changed.set()

    def _tell_unjudged(self, row: JournalRow, error: str) -> None:
        if error not in self._told_unjudged:
            self._told_unjudged.add(error)
            self.tell("unjudged", {"row": row.row_id, "idx": row.idx, "error": error})

    def _another_take(self, row: JournalRow) -> None:
        take = row.take + 1
        values = dict(zip(self.work.holes, next_take(row.values, self.work.seeds, take), strict=True))
        template = GraphTemplate(self.work.graph, self.work.holes, self.work.prefixes)
        seq = self.journal.another(row.seq, template.row_id(values), take)
        if seq is not None:
            self.todo.put(seq, row.group)
            self.tell("take", {"row": row.row_id, "idx": row.idx, "take": take})


def pause_before(attempt: int) -> float:
    """Seconds before an attempt that follows others: full jitter, so that many do not come at once."""
    return random.uniform(0, min(LONGEST_PAUSE, 2.0 ** min(attempt, 10)))
