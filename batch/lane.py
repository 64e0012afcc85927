"""One server in a batch: rows are sent, followed, kept or given back, whatever happens to the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .failures import Failure, says_out_of_memory
from .graph import prompt_id
from .journal import Attempt, JournalRow, RowState
from .schema import CellKind, Nodes
from .workers import Away, BadFile, Ending, Refused, State, Unwelcome, Worker, happens_within

if TYPE_CHECKING:
    from .engine import Engine

LONGEST_PAUSE = 60.0


@dataclass(eq=False)
class Flight:
    """A row that a server has."""

    row: JournalRow
    attempt: Attempt
    sent: float  # monotonic
    number: int  # in the order of sending
    began: float = 0.0  # when the server first reported it: what waits behind others is not late
    in_queue: bool = True


class _Ended(Exception):
    """An attempt has failed."""

    def __init__(self, outcome: Failure, detail: str = "") -> None:
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
                pause = min(pause * 2, LONGEST_PAUSE)
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
        """Cancel what was given up on and may still be in the server's queue."""
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
            if not self.is_trusted and self.flights:  # the first row goes alone, until its files are here
                return
            if sum(flight.in_queue for flight in self.flights.values()) >= settings.window:
                return
            if len(self.flights) >= 4 * settings.window:
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

    def _has_all(self, row: JournalRow) -> bool:
        """Whether the server has the files that the row's choices name."""
        for address, value in self.engine.work.values(row).items():
            kind = self.engine.work.graph[address.node]["class_type"]
            spec = self.nodes[kind].spec(address.input) if kind in self.nodes else None
            if (
                spec is not None
                and spec.kind is CellKind.COMBO
                and not spec.open_ended
                and str(value) not in spec.options
            ):
                return False
        return True

    async def alone(self, row: JournalRow) -> None:
        """Run one row while nothing else runs here; the server may end with it."""
        self._alone = True
        try:
            while not self.is_up:
                await asyncio.sleep(0.1)
            await self._launch(row)
        finally:
            self._alone = False

    async def _take_back(self) -> None:
        for prompt in reversed(list(self.flights)):  # what waits first, so that it does not begin
            with contextlib.suppress(Away):
                await self.worker.cancel(prompt)
        self._let_all_go()

    def _let_all_go(self) -> None:
        for flight in list(self.flights.values()):
            if flight.in_queue:
                self.engine.journal.ended(flight.attempt.prompt_id, Failure.AWAY.value if not self.is_up else "stopped")
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
        is_stuck = queue.is_stuck([flight.attempt.prompt_id for flight in waiting])
        if is_stuck and self._was_stuck:
            await self._quarantine(waiting)
        self._was_stuck = is_stuck

    async def _quarantine(self, waiting: Sequence[Flight]) -> None:
        self._quarantines += 1
        why = f"{self.worker.name} accepts prompts but does not run them: restart it"
        self.engine.tell("zombie", {"server": self.worker.name, "error": why})
        for flight in waiting:
            with contextlib.suppress(Away):
                await self.worker.cancel(flight.attempt.prompt_id)
        self.is_up, self.trouble, self._down_since = False, why, time.monotonic()
        self._came_up.clear()
        for flight in waiting:
            self._give_back(flight, Failure.LOST, why)
        if not await self.worker.restart():
            await self._pause(min(self.engine.settings.zombie * 2**self._quarantines, 600.0))

    def _give_back(self, flight: Flight, outcome: Failure, detail: str) -> None:
        """Somebody else than the row's own task says how it ended."""
        prompt = flight.attempt.prompt_id
        if self.flights.pop(prompt, None) is None:
            return
        for task in self.tasks:
            if task.get_name() == prompt:
                task.cancel()
        self.engine.came_to_nothing(flight, outcome, detail, self)

    # --- one row

    def _launch(self, row: JournalRow) -> asyncio.Task[None]:
        n = row.attempts + 1
        prompt = prompt_id(self.engine.work.run, row.row_id, n)
        flight = Flight(
            row, Attempt(prompt, row.seq, n, self.worker.name, ""), time.monotonic(), next(self.engine.flight_numbers)
        )
        return self._start(flight, self._send(flight))

    def adopt(self, attempt: Attempt) -> None:
        """Follow what an earlier client has sent."""
        flight = Flight(
            self.engine.journal.row(attempt.seq), attempt, time.monotonic(), next(self.engine.flight_numbers)
        )
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
                self.engine.came_to_nothing(flight, ended.outcome, ended.detail, self)
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
            raise _Ended(Failure.INVALID, str(error)) from None
        except Away as error:  # the server does not know the row
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
            raise _Ended(Failure.INVALID, str(error)) from None
        except Away as error:  # the server may know it
            self.down(error)
            in_doubt = True
        await self._see_through(flight, in_doubt)

    async def _bring_files(self, row: JournalRow) -> None:
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
            raise _Ended(Failure.INTERRUPTED, "it was interrupted")
        if ending.status != "success":
            what = f"{ending.error_type}: {ending.error}" + (f" ({ending.node})" if ending.node.strip() else "")
            if says_out_of_memory(ending.error_type, ending.error):
                with contextlib.suppress(Away):
                    await self.worker.free()
                raise _Ended(Failure.MEMORY, what)
            raise _Ended(Failure.ERROR, what)
        await self._keep(flight, ending)

    async def _follow(self, flight: Flight, in_doubt: bool) -> Ending:
        """How the row ended on the server. The websocket is a hint, history the truth."""
        settings, prompt = self.engine.settings, flight.attempt.prompt_id
        pause, most = settings.poll
        if settings.timeout:
            most = max(pause, min(most, settings.timeout / 4))
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
            raise _Ended(Failure.DIED if ran else Failure.LOST, f"{self.worker.name} was started again")

    async def _wait_for_server(self, flight: Flight, error: Away) -> None:
        self.down(error)
        settings = self.engine.settings
        left = max(0.0, self._down_since + settings.grace - time.monotonic())
        if self.worker.has_ended:  # what it had is lost with it
            ran = self.worker.heard(flight.attempt.prompt_id) > 0
            raise _Ended(Failure.DIED if ran else Failure.LOST, str(error))
        if not await happens_within(self._came_up, left):
            ran = self._is_dead and self.worker.heard(flight.attempt.prompt_id) > 0
            raise _Ended(Failure.DIED if ran else Failure.AWAY, self.trouble)

    async def _check_patience(self, flight: Flight) -> None:
        settings, now = self.engine.settings, time.monotonic()
        heard = self.worker.heard(flight.attempt.prompt_id)
        flight.began = flight.began or heard
        silent = now - max(heard, flight.sent) > settings.stall
        late = heard and 0 < settings.timeout < now - flight.began
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
            Failure.STALLED, "no progress was made" if silent else f"it ran longer than {settings.timeout:g} s"
        )

    async def _state(self, flight: Flight) -> State:
        try:
            return await self.worker.state(flight.attempt.prompt_id)
        except Away:
            return State.UNKNOWN

    async def _keep(self, flight: Flight, ending: Ending) -> None:
        engine, row, prompt = self.engine, flight.row, flight.attempt.prompt_id
        if not engine.keeper.wanted.of(ending.files) and not engine.work.allow_empty:
            raise _Ended(Failure.EMPTY)
        while True:
            try:
                files = await engine.keeper.collect(self.worker, row, ending.files)
                break
            except BadFile as error:
                raise _Ended(Failure.BAD_FILE, str(error)) from None
            except Unwelcome as error:
                raise _Ended(Failure.BAD_FILE, str(error)) from None
            except Away as error:
                await self._wait_for_server(flight, error)
        self._rows_since_start += 1
        if engine.journal.done(row.seq, prompt, files, ending.seconds, ending.cached):
            self._note_pace()
            told = {"row": row.row_id, "idx": row.idx, "server": self.worker.name, "seconds": ending.seconds}
            engine.tell("done", {**told, "files": [file.path for file in files]})
            engine.landed(flight)
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
