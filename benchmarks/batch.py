"""What a batch costs beside the servers' work: `python benchmarks/batch.py` (fake servers, no ComfyUI, three minutes).

Prints: rows per second against a bare post-and-wait loop that also downloads, for rows and images of several sizes;
scaling over four servers; what a row costs the client and the journal; time and memory for checking and writing down
100,000 rows. The servers run in a process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "batch"))

from batch_fake import Fake, graph, serving  # noqa: E402
from conftest import Desk  # noqa: E402 # pyright: ignore[reportAttributeAccessIssue] - of tests/batch

from likeness.batch.client import HttpServer, read_address  # noqa: E402
from likeness.batch.session import begin  # noqa: E402
from likeness.batch.work import WorkSettings  # noqa: E402

ROUNDS = 3  # of which the median counts


@dataclass(frozen=True)
class Case:
    """Servers, and the rows they get."""

    seconds: float  # that a row takes
    rows: int  # for each server
    padding: int = 0  # bytes that an image has besides its pixels
    lag: float = 0.0  # seconds until an answer arrives
    servers: int = 1

    def __str__(self) -> str:
        return f"rows of {self.seconds * 1000:g} ms, images of {self.padding / 1e6:g} MB, lag {self.lag * 1000:g} ms"


CASES = [Case(0.003, 400), Case(0.1, 50), Case(0.1, 50, 1_500_000, 0.005), Case(0.1, 50, 4_000_000, 0.01)]


# --- the servers, in a process of their own


async def serve(case: Case) -> None:
    """Run the servers until the client closes our input."""
    fakes = [Fake(seconds=case.seconds) for _ in range(case.servers)]
    for fake in fakes:
        fake.padding, fake.lag = case.padding, case.lag
    async with serving(*fakes):
        print(*(fake.port for fake in fakes), flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def served(case: Case) -> Iterator[list[Fake]]:
    """The servers, elsewhere: here stand-ins that know the addresses."""
    words = [str(value) for value in (case.seconds, case.rows, case.padding, case.lag, case.servers)]
    process = subprocess.Popen(
        [sys.executable, __file__, "serve", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        fakes = [Fake() for _ in range(case.servers)]
        for fake, port in zip(fakes, process.stdout.readline().split(), strict=True):
            fake.port = int(port)
        yield fakes
    finally:
        process.stdin.close()
        process.wait()


# --- what is compared


async def bare_loop(case: Case, fake: Fake) -> float:
    """Rows per second of: post, wait for the websocket, read history, download, post the next."""
    worker = HttpServer(read_address(fake.url))
    await worker.open()
    await worker.facts()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for number in range(case.rows):
            made, prompt = graph(), str(uuid.uuid4())
            made["1"]["inputs"]["color"] = number
            await worker.post(prompt, made, {})
            while (ending := await worker.ending(prompt)) is None:
                await worker.wake(prompt, 1.0)
            await worker.fetch(ending.files[0], Path(folder) / f"{number}.png", 10**8)
        seconds = time.perf_counter() - start
    await worker.close()
    return case.rows / seconds


async def batch(case: Case, fakes: list[Fake]) -> tuple[float, float]:
    """Rows per second between the first row and the last, and seconds of the client's CPU for a row."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        desk.rows(case.rows * case.servers)
        ends: list[tuple[float, float]] = []  # by the clock, and by the client's CPU

        def tell(kind: str, data: object) -> None:
            if kind == "done":
                ends.append((time.perf_counter(), time.process_time()))

        desk.tell = tell
        _, run = await desk.run(fakes, settings=WorkSettings())
        run.journal.close()
    (start, cpu_start), (end, cpu_end), count = ends[0], ends[-1], len(ends) - 1
    return count / (end - start), (cpu_end - cpu_start) / count


def compared(case: Case) -> None:
    """Print the batch beside the bare loop, on one server."""
    loops, batches, cpus = [], [], []
    for _ in range(ROUNDS):
        with served(case) as fakes:
            loops.append(asyncio.run(bare_loop(case, fakes[0])))
            rate, cpu = asyncio.run(batch(case, fakes))
            batches.append(rate)
            cpus.append(cpu)
    bare, ours = statistics.median(loops), statistics.median(batches)
    print(f"{case}: bare loop {bare:.2f} rows/s, batch {ours:.2f} ({ours / bare:.2f}), ", end="")
    print(
        f"added {(1 / ours - case.seconds) * 1000:.1f} ms per row, client CPU {statistics.median(cpus) * 1000:.1f} ms"
    )


def scaled(case: Case) -> None:
    """Print four servers beside one."""
    rates = []
    for count in (1, 4):
        many = replace(case, servers=count)
        found = []
        for _ in range(3):
            with served(many) as fakes:
                found.append(asyncio.run(batch(many, fakes))[0])
        rates.append(statistics.median(found))
    print(f"{case}: one server {rates[0]:.2f} rows/s, four {rates[1]:.2f} ({rates[1] / rates[0]:.2f})")


async def large(rows: int) -> None:
    """Check and write down a large table; the journal's cost for a row."""
    desk = Desk(Path(tempfile.mkdtemp()))
    lines = (f"{n},{n % 64 + 1},{n % 9 / 9:.3f},a person number {n},note {n}" for n in range(rows))
    desk.table("Paint.seed,Paint.width,Paint.strength,Paint.text,meta.note", *lines)
    async with serving(Fake()) as fakes:
        start = time.perf_counter()
        checked = await desk.check(fakes)
        seen = time.perf_counter()
        assert not checked.problems
        run = begin(desk.out, checked)
        written = time.perf_counter()
    print(f"check of {rows} rows x 5 columns: {seen - start:.1f} s; written down in {written - seen:.1f} s")
    start = time.perf_counter()
    todo = sum(1 for _ in run.journal.todo())
    print(f"rows to do read again: {todo} in {time.perf_counter() - start:.2f} s")
    start, cpu = time.perf_counter(), time.process_time()
    for seq in range(1, 2001):
        run.journal.sent(seq, str(uuid.uuid4()), 1, "s")
        run.journal.settle(seq, run.journal.state(seq))
    took, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"journal, sent and settled: {took / 2000 * 1e6:.0f} us per row, {used / 2000 * 1e6:.0f} us of CPU")
    run.journal.close()
    async with serving(Fake(seconds=60.0)) as fakes:
        start = time.perf_counter()
        paths = [str(desk.folder / "api.json"), str(desk.folder / "rows.csv"), "--out", str(desk.out)]
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "likeness.cli", "batch", "run", *paths, "--server", fakes[0].url),
            stdout=asyncio.subprocess.DEVNULL,
        )
        while not fakes[0].posted and client.returncode is None:
            await asyncio.sleep(0.005)
        print(f"the same command again: first row sent after {time.perf_counter() - start:.1f} s")
        client.kill()
        await client.wait()
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")


def main() -> None:
    """Print all figures."""
    if sys.argv[1:2] == ["serve"]:
        seconds, rows, padding, lag, servers = sys.argv[2:]
        asyncio.run(serve(Case(float(seconds), int(rows), int(padding), float(lag), int(servers))))
        return
    asyncio.run(large(100_000))
    for case in CASES:
        compared(case)
    scaled(Case(0.1, 60))


if __name__ == "__main__":
    main()
