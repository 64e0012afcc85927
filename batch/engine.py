"""Runs rows on servers until all are done: two in flight on each, and what is lost is sent again.

Execution is at least once: a server that is cut off may finish a row that was given to another. Results are exactly
once: a row's files have names of their own, appear by a rename, and the row is done in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from ..errors import LikenessError, one_line
from .failures import Outcome, Then, decide, is_out_of_memory
from .graph import Address, Graph, Template, filled, prompt_id, save_prefix
from .journal import Attempt, Journal, Row, RowState
from .results import Keeper
from .rows import next_take
from .schema import Kind, Nodes
from .todo import Todo
from .workers import Away, BadFile, Ending, Queue, Refused, State, Unwelcome, Upload, Worker, happens

FIRST_BREAKER = 3  # failures in a row that stop a batch in which nothing ever went well
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Settings:
    """How a batch is run. All times in seconds."""

    window: int = 2  # rows in a server's queue: somebody else's prompt waits for no more
    grace: float = 30.0  # that a server may be away before its rows go elsewhere
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

    def values(self, row: Row) -> dict[Address, Any]:
        """What a row sets."""
        values = next_take(row.values, self.seeds, row.take) if row.take else row.values
        return dict(zip(self.holes, values, strict=True))

    def graph_of(self, row: Row, attempt: int) -> Graph:
        """What is posted for a row."""
        return filled(self.graph, self.values(row), self.prefixes, save_prefix(self.run, row.row_id, attempt))

    def extra(self, row: Row) -> dict[str, Any]:
        """What pictures carry besides their graph, so that the browser opens them as their workflow."""
        overrides = {str(address): value for address, value in self.values(row).items()}
        note = {"run": self.run, "row_id": row.row_id, "idx": row.idx, "overrides": overrides}
        return {"extra_pnginfo": {**({"workflow": self.ui} if self.ui else {}), "likeness": note}}

    def uploads_of(self, row: Row) -> list[Upload]:
        """The files of ours that a row needs."""
        return [self.uploads[v] for v in self.values(row).values() if isinstance(v, str) and v in self.uploads]


class Judge(Protocol):
    """Measures what was made. Called in a thread of its own."""

    def __call__(self, row: Row, files: Sequence[Path]) -> Mapping[str, float]: ...


Tell = Callable[[str, Mapping[str, Any]], None]


class Engine:
    """One batch, from where its journal stands to its end."""

    def __init__(
        self,
        work: Work,
        journal: Journal,
        keeper: Keeper,
        servers: Sequence[tuple[Worker, Nodes]],
        settings: Settings | None = None,
        judge: Judge | None = None,
        tell: Tell = lambda kind, data: None,
    ):
        self.work, self.journal, self.keeper = work, journal, keeper
        self.settings, self.judge, self.tell = settings or Settings(), judge, tell
        self.lanes = [Lane(self, worker, nodes) for worker, nodes in servers]
        self.todo = Todo(())
        self.stopping = 0  # 1: nothing new, 2: nothing more
        self.changed = asyncio.Event()
        self._judging: asyncio.Queue[int] = asyncio.Queue()
        self._unjudged = 0
        self._told_unjudged: set[str] = set()
        self._failure: BaseException | None = None
        self._in_a_row: tuple[str, int] = ("", 0)
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
        """Once: what runs may end. Twice: it is taken back."""
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
        await happens(self.changed, seconds)
        self.changed.clear()

    def fail(self, error: BaseException) -> None:
        """The batch cannot go on."""
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
                self.journal.ended(attempt.prompt_id, Outcome.LOST.value)
            elif attempt.server in lanes:
                lanes[attempt.server].adopt(attempt)
            else:
                self.journal.ended(attempt.prompt_id, Outcome.AWAY.value, "its server is not in this session")
                self.journal.settle(attempt.seq, RowState.TODO)
        adopted = {flight.row.seq for lane in self.lanes for flight in lane.flights.values()}
        for seq in self.journal.in_state(RowState.SENT):
            if seq not in adopted:
                self.journal.settle(seq, RowState.TODO)

    async def _watch(self) -> None:
        """Says once a minute that all servers are away, and stops where that was asked for."""
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
                self.fail(LikenessError(f"No server has answered for {self.settings.give_up:.0f} seconds ({why})."))
            for seq in self.todo.nobody_can(frozenset(lane.worker.name for lane in self.lanes)):
                self.journal.settle(seq, RowState.FAILED, "no server", "no server has the files that it names")
                self.tell("failed", {"seq": seq, "kind": "no server", "error": "no server has the files that it names"})
                self.changed.set()

    # --- rows

    def landed(self, row: Row, lane: Lane) -> None:
        """A row is done."""
        self._ever_done, self._in_a_row = True, ("", 0)
        if self.judge:
            self._judge_later(row.seq)
        self.changed.set()

    def came_to_nothing(self, row: Row, attempt: Attempt, outcome: Outcome, detail: str, lane: Lane) -> None:
        """An attempt has failed: decide what becomes of the row."""
        detail = one_line(detail)
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
            self._count_failure(f"{verdict.kind}: {verdict.error.split(':')[0]}", verdict.error)
        elif verdict.then is Then.PARK:
            self.journal.settle(row.seq, RowState.PARKED, verdict.kind, verdict.error)
            self.tell("parked", told)
        else:
            at_once = outcome in (Outcome.LOST, Outcome.STOPPED, Outcome.MEMORY, Outcome.DIED, Outcome.INTERRUPTED)
            pause = 0.0 if at_once or verdict.exclude else pause_before(row.attempts + 1)
            self.journal.settle(row.seq, RowState.TODO)
            self.todo.put(row.seq, row.group, pause, verdict.exclude, lane.lacking.get(row.seq, frozenset()))
            self.tell("again", {**told, "pause": pause})
        self.changed.set()

    def _count_failure(self, kind: str, error: str) -> None:
        before, count = self._in_a_row
        self._in_a_row = kind, count + 1 if kind == before else 1
        most = self.settings.breaker if self._ever_done else min(self.settings.breaker, FIRST_BREAKER)
        if 0 < most <= self._in_a_row[1] and not self._breaker:
            self._breaker = error
            self.tell("breaker", {"count": self._in_a_row[1], "error": error})

    async def _run_parked(self) -> None:
        """Rows that ended servers run one at a time, and only where we can start the server again."""
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
            except LikenessError as error:  # the pictures are there; `likeness batch report --measure` may come later
                self._tell_unjudged(row, str(error))
            except Exception as error:
                self.fail(error)
                return
            self._unjudged -= 1
            self.changed.set()

    def _tell_unjudged(self, row: Row, error: str) -> None:
        if error not in self._told_unjudged:
            self._told_unjudged.add(error)
            self.tell("unjudged", {"row": row.row_id, "idx": row.idx, "error": error})

    def _another_take(self, row: Row) -> None:
        take = row.take + 1
        values = dict(zip(self.work.holes, next_take(row.values, self.work.seeds, take), strict=True))
        template = Template(self.work.graph, self.work.holes, self.work.prefixes)
        seq = self.journal.another(row.seq, template.row_id(values), take)
        if seq is not None:
            self.todo.put(seq, row.group)
            self.tell("take", {"row": row.row_id, "idx": row.idx, "take": take})


def pause_before(attempt: int) -> float:
    """Seconds before an attempt that follows others: full jitter, so that many do not come at once."""
    return random.uniform(0, min(_LONGEST_PAUSE, 2.0 ** min(attempt, 10)))


@dataclass(eq=False)
class Flight:
    """A row that a server has."""

    row: Row
    attempt: Attempt
    sent: float  # monotonic
    in_queue: bool = True


class _Ended(Exception):
    """An attempt has come to nothing."""

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail
        super().__init__(detail)


class Lane:
    """One server: whether it is there, what it has of ours, and what it may get next."""

    def __init__(self, engine: Engine, worker: Worker, nodes: Nodes):
        self.engine, self.worker, self.nodes = engine, worker, nodes
        self.flights: dict[str, Flight] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.lacking: dict[int, frozenset[str]] = {}  # rows -> servers that cannot run them
        self.is_up = False
        self.is_trusted = False  # since a row went well: before, one at a time
        self.trouble = f"{worker.name} was not asked yet"
        self.pace = 0.0  # seconds between rows, smoothed
        self._last_done = 0.0
        self._uploaded: set[str] = set()
        self._uploading = asyncio.Lock()  # two rows in flight may need the same file
        self._came_up = asyncio.Event()
        self._down_since = 0.0
        self._is_dead = False
        self._quarantines = 0
        self._was_stuck, self._next_look = False, 0.0
        self._rows_since_start = 0
        self._alone = False

    @property
    def is_own(self) -> bool:
        """Whether we started it, and can do so again."""
        return bool(getattr(self.worker, "is_own", False))

    # --- life

    async def live(self) -> None:
        """Bring the server up, keep it busy, and bring it up again, for as long as the engine runs."""
        try:
            while True:
                if not self.is_up:
                    await self._bring_up()
                if self.engine.stopping > 1:
                    await self._take_back()
                self._fill()
                await self._recycle()
                await self._look_for_zombie()
                await self.engine._sleep(min(0.25, max(0.01, self.engine.todo.due_in())))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.engine.fail(error)

    async def _bring_up(self) -> None:
        pause = self.engine.settings.first_probe
        self._down_since = self._down_since or time.monotonic()
        while True:
            try:
                if self._is_dead or self.worker.has_ended:
                    await self.worker.restart()
                facts = await self.worker.facts()
                if (pinned := self.engine.work.pinned) and (facts.version_text, facts.torch) != tuple(pinned):
                    runs = f"ComfyUI {facts.version_text} and torch {facts.torch}"
                    raise Unwelcome(f"{self.worker.name} runs {runs}, but this run is pinned to {' and '.join(pinned)}")
                await self._tidy()
                break
            except Away as error:
                self.trouble = str(error)
                await self._pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self.is_up, self.is_trusted, self._down_since, self._is_dead = True, False, 0.0, False
        self._uploaded.clear()
        self.trouble = ""
        self._came_up.set()
        self.engine.tell("up", {"server": self.worker.name})

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the user wants to go."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.engine.stopping > 1 and self.flights:
                self._let_all_go()
            await asyncio.sleep(min(left, 0.5))

    async def _tidy(self) -> None:
        """Take back what was given up on and may lie in the server's queue."""
        old = self.engine.journal.given_up_on(self.worker.name)
        for prompt in old:
            await self.worker.cancel(prompt)
        self.engine.journal.taken_back(old)

    def down(self, error: Away) -> None:
        """The server does not answer."""
        self._is_dead = self._is_dead or error.is_dead
        if not self.is_up:
            return
        self.is_up, self._down_since, self.trouble = False, time.monotonic(), str(error)
        self._came_up.clear()
        self.engine.tell("down", {"server": self.worker.name, "error": str(error)})

    # --- servers of our own, which may grow over thousands of rows

    @property
    def _is_worn(self) -> bool:
        settings, used = self.engine.settings, self._rows_since_start + len(self.flights)
        if not self.is_own or not used:
            return False
        return 0 < settings.recycle <= used or 0 < settings.most_memory < getattr(self.worker, "memory", 0)

    async def _recycle(self) -> None:
        """Start a server of ours again once what it has is done."""
        if not self.is_up or self.flights or not self._is_worn:
            return
        self.engine.tell("recycled", {"server": self.worker.name, "rows": self._rows_since_start})
        self.is_up, self._rows_since_start = False, 0
        self._came_up.clear()
        try:
            await self.worker.restart()
        except Away as error:
            self.trouble, self._is_dead = str(error), True

    # --- what it gets

    def _fill(self) -> None:
        settings = self.engine.settings
        while self.is_up and self.engine.may_send and not self._alone and not self._is_worn:
            room = settings.window if self.is_trusted else 1
            if sum(f.in_queue for f in self.flights.values()) >= room or len(self.flights) >= 4 * settings.window:
                return
            live = frozenset(lane.worker.name for lane in self.engine.lanes if lane.is_up)
            taken = self.engine.todo.take(self.worker.name, live)
            if taken is None:
                return
            seq, cannot = taken
            row = self.engine.journal.row(seq)
            if not self._has_all(row):
                self.engine.todo.put(seq, row.group, cannot=cannot | {self.worker.name})
                self.lacking[seq] = cannot | {self.worker.name}
                continue
            self._launch(row)

    def _has_all(self, row: Row) -> bool:
        """Whether the server has the files that the row's choices name."""
        for address, value in self.engine.work.values(row).items():
            kind = self.engine.work.graph[address.node]["class_type"]
            spec = self.nodes[kind].spec(address.input) if kind in self.nodes else None
            if spec is not None and spec.kind is Kind.COMBO and not spec.open_ended and str(value) not in spec.options:
                return False
        return True

    async def alone(self, row: Row) -> None:
        """Run one row while nothing else runs here; the server may end with it."""
        self._alone = True
        try:
            while not self.is_up:
                await asyncio.sleep(0.1)
            await self._launch(row)
        finally:
            self._alone = False

    async def _take_back(self) -> None:
        for prompt in list(self.flights):
            with contextlib.suppress(Away):
                await self.worker.cancel(prompt)
        self._let_all_go()

    def _let_all_go(self) -> None:
        for flight in list(self.flights.values()):
            if flight.in_queue:
                self.engine.journal.ended(flight.attempt.prompt_id, Outcome.AWAY.value if not self.is_up else "stopped")
                self.engine.journal.settle(flight.row.seq, RowState.TODO)
        for task in self.tasks:
            task.cancel()
        self.flights.clear()
        self.engine.changed.set()

    # --- zombies: servers that answer, take prompts, and run none

    async def _look_for_zombie(self) -> None:
        most = self.engine.settings.zombie
        waiting = [flight for flight in self.flights.values() if flight.in_queue]
        now = time.monotonic()
        words = [max(self.worker.heard(f.attempt.prompt_id), f.sent) for f in waiting]
        if not self.is_up or not waiting or now - max(*words, self._last_done) < most / 2:
            self._was_stuck = False
            return
        if now < self._next_look:
            return
        self._next_look = now + most / 2
        try:
            queue = await self.worker.queue()
        except Away as error:
            self.down(error)
            return
        is_stuck = _is_stuck(queue, [flight.attempt.prompt_id for flight in waiting])
        if is_stuck and self._was_stuck:
            await self._quarantine(waiting)
        self._was_stuck = is_stuck

    async def _quarantine(self, waiting: Sequence[Flight]) -> None:
        self._quarantines += 1
        why = f"{self.worker.name} takes prompts and runs none: restart it"
        self.engine.tell("zombie", {"server": self.worker.name, "error": why})
        for flight in waiting:
            with contextlib.suppress(Away):
                await self.worker.cancel(flight.attempt.prompt_id)
        self.is_up, self.trouble, self._down_since = False, why, time.monotonic()
        self._came_up.clear()
        for flight in waiting:
            self._give_back(flight, Outcome.LOST, why)
        if not await self.worker.restart():
            await self._pause(min(self.engine.settings.zombie * 2**self._quarantines, 600.0))

    def _give_back(self, flight: Flight, outcome: Outcome, detail: str) -> None:
        """Somebody else than the row's own task says how it ended."""
        prompt = flight.attempt.prompt_id
        if self.flights.pop(prompt, None) is None:
            return
        for task in self.tasks:
            if task.get_name() == prompt:
                task.cancel()
        self.engine.came_to_nothing(flight.row, flight.attempt, outcome, detail, self)

    # --- one row

    def _launch(self, row: Row) -> asyncio.Task[None]:
        n = row.attempts + 1
        prompt = prompt_id(self.engine.work.run, row.row_id, n)
        flight = Flight(row, Attempt(prompt, row.seq, n, self.worker.name, ""), time.monotonic())
        return self._start(flight, self._send(flight))

    def adopt(self, attempt: Attempt) -> None:
        """Follow what an earlier client has sent."""
        flight = Flight(self.engine.journal.row(attempt.seq), attempt, time.monotonic())
        self._start(flight, self._see_through(flight, in_doubt=True))

    def _start(self, flight: Flight, work: Any) -> asyncio.Task[None]:
        self.flights[flight.attempt.prompt_id] = flight
        task = asyncio.create_task(self._guard(flight, work), name=flight.attempt.prompt_id)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _guard(self, flight: Flight, work: Any) -> None:
        prompt = flight.attempt.prompt_id
        try:
            await work
        except _Ended as ended:
            if self.flights.pop(prompt, None) is not None:
                self.engine.came_to_nothing(flight.row, flight.attempt, ended.outcome, ended.detail, self)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.engine.fail(error)
        finally:
            self.flights.pop(prompt, None)
            self.engine.changed.set()

    async def _send(self, flight: Flight) -> None:
        row, attempt, work = flight.row, flight.attempt, self.engine.work
        try:
            await self._bring_files(row)
        except Refused as error:
            self.engine.journal.sent(row.seq, attempt.prompt_id, attempt.n, attempt.server)
            raise _Ended(Outcome.INVALID, str(error)) from None
        except Away as error:  # it has not heard of the row
            self.down(error)
            self.flights.pop(attempt.prompt_id, None)
            self.engine.todo.put(row.seq, row.group)
            return
        graph, extra = work.graph_of(row, attempt.n), work.extra(row)
        self.engine.journal.sent(row.seq, attempt.prompt_id, attempt.n, attempt.server)
        self.engine.tell("sent", {"row": row.row_id, "idx": row.idx, "server": attempt.server, "attempt": attempt.n})
        in_doubt = False
        try:
            await self.worker.post(attempt.prompt_id, graph, extra)
        except Refused as error:
            raise _Ended(Outcome.INVALID, str(error)) from None
        except Away as error:  # it may have heard of it
            self.down(error)
            in_doubt = True
        await self._see_through(flight, in_doubt)

    async def _bring_files(self, row: Row) -> None:
        async with self._uploading:
            for upload in self.engine.work.uploads_of(row):
                if upload.name in self._uploaded:
                    continue
                if not upload.path.is_file():
                    raise Refused(f"the file {str(upload.path)!r} is not there any more")
                if not await self.worker.has(upload.served, upload.path.stat().st_size):
                    await self.worker.upload(upload)
                self._uploaded.add(upload.name)

    async def _see_through(self, flight: Flight, in_doubt: bool) -> None:
        """From the post to the row's files in their places."""
        ending = await self._follow(flight, in_doubt)
        flight.in_queue = False  # the next may be sent while this one's files come
        self.engine.changed.set()
        if ending.status == "interrupted":
            raise _Ended(Outcome.INTERRUPTED, "somebody interrupted it")
        if ending.status != "success":
            what = f"{ending.error_type}: {ending.error}" + (f" ({ending.node})" if ending.node.strip() else "")
            if is_out_of_memory(ending.error_type, ending.error):
                with contextlib.suppress(Away):
                    await self.worker.free()
                raise _Ended(Outcome.MEMORY, what)
            raise _Ended(Outcome.ERROR, what)
        await self._keep(flight, ending)

    async def _follow(self, flight: Flight, in_doubt: bool) -> Ending:
        """How the row ended on the server. The websocket is a hint, history the truth."""
        settings, prompt = self.engine.settings, flight.attempt.prompt_id
        pause, most = settings.poll
        while True:
            if not in_doubt:
                in_doubt = await self.worker.wake(prompt, pause)
            try:
                if (ending := await self.worker.ending(prompt)) is not None:
                    return ending
                if in_doubt or pause >= most:
                    await self._still_there(flight)
            except Away as error:
                await self._wait_for_server(flight, error)
                in_doubt, pause = True, settings.poll[0]
                continue
            in_doubt, pause = False, min(pause * 2, most)
            await self._check_patience(flight)

    async def _still_there(self, flight: Flight) -> None:
        if await self.worker.state(flight.attempt.prompt_id) is State.UNKNOWN:
            ran = self.worker.heard(flight.attempt.prompt_id) > 0
            raise _Ended(Outcome.DIED if ran else Outcome.LOST, f"{self.worker.name} was started again")

    async def _wait_for_server(self, flight: Flight, error: Away) -> None:
        self.down(error)
        settings = self.engine.settings
        left = max(0.0, self._down_since + settings.grace - time.monotonic())
        if self.worker.has_ended:  # what it had is lost with it
            ran = self.worker.heard(flight.attempt.prompt_id) > 0
            raise _Ended(Outcome.DIED if ran else Outcome.LOST, str(error))
        if not await happens(self._came_up, left):
            ran = self._is_dead and self.worker.heard(flight.attempt.prompt_id) > 0
            raise _Ended(Outcome.DIED if ran else Outcome.AWAY, self.trouble)

    async def _check_patience(self, flight: Flight) -> None:
        settings, now = self.engine.settings, time.monotonic()
        heard = self.worker.heard(flight.attempt.prompt_id)
        silent = now - max(heard, flight.sent) > settings.stall
        late = heard and 0 < settings.timeout < now - flight.sent
        if not silent and not late:
            return
        state = await self._state(flight)
        if state is not State.RUNNING:  # it waits behind others
            flight.sent = now
            return
        with contextlib.suppress(Away):
            await self.worker.cancel(flight.attempt.prompt_id)
        if self.is_own:
            await self.worker.restart()
        raise _Ended(
            Outcome.STALLED, "no progress was made" if silent else f"it ran longer than {settings.timeout:.0f} s"
        )

    async def _state(self, flight: Flight) -> State:
        try:
            return await self.worker.state(flight.attempt.prompt_id)
        except Away:
            return State.UNKNOWN

    async def _keep(self, flight: Flight, ending: Ending) -> None:
        engine, row, prompt = self.engine, flight.row, flight.attempt.prompt_id
        if not engine.keeper.wanted.of(ending.files) and not engine.work.allow_empty:
            raise _Ended(Outcome.EMPTY)
        while True:
            try:
                files = await engine.keeper.collect(self.worker, row, ending.files)
                break
            except BadFile as error:
                raise _Ended(Outcome.BAD_FILE, str(error)) from None
            except Unwelcome as error:
                raise _Ended(Outcome.BAD_FILE, str(error)) from None
            except Away as error:
                await self._wait_for_server(flight, error)
        self._rows_since_start += 1
        if engine.journal.done(row.seq, prompt, files, ending.seconds, ending.cached):
            self._note_pace()
            told = {"row": row.row_id, "idx": row.idx, "server": self.worker.name, "seconds": ending.seconds}
            engine.tell("done", {**told, "files": [file.path for file in files]})
            engine.landed(row, self)
        self.is_trusted, self._quarantines = True, 0
        self.flights.pop(prompt, None)
        with contextlib.suppress(Away):
            await self.worker.forget(prompt)

    def _note_pace(self) -> None:
        now = time.monotonic()
        if self._last_done:
            took = now - self._last_done
            self.pace = took if not self.pace else 0.8 * self.pace + 0.2 * took
        self._last_done = now


def _is_stuck(queue: Queue, ours: Sequence[str]) -> bool:
    return not queue.running and any(prompt in queue.waiting for prompt in ours)
