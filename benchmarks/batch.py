"""What a batch costs beside the servers' work: `python benchmarks/batch.py` (fake servers, no ComfyUI, about a minute).

Prints: rows per second against a bare post-and-wait loop that also downloads, scaling over four servers, the journal's
cost per row, and time and memory for checking and writing down 100,000 rows.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "batch"))

from batch_fake import Fake, graph, serving  # noqa: E402
from conftest import QUICK, Desk  # noqa: E402 # pyright: ignore[reportAttributeAccessIssue] - of tests/batch

from likeness.batch.client import HttpServer, read_address  # noqa: E402
from likeness.batch.session import begin  # noqa: E402

SECONDS, ROWS = 0.1, 100  # of a fake row; rows for each server


async def bare_loop(fake: Fake, folder: Path) -> float:
    """Rows per second of: post, wait for the websocket, read history, download, post the next."""
    worker = HttpServer(read_address(fake.url))
    await worker.open()
    await worker.facts()
    start = time.perf_counter()
    for number in range(ROWS):
        made, prompt = graph(), str(uuid.uuid4())
        made["1"]["inputs"]["color"] = number
        await worker.post(prompt, made, {})
        while (ending := await worker.ending(prompt)) is None:
            await worker.wake(prompt, 1.0)
        await worker.fetch(ending.files[0], folder / f"{number}.png", 10**6)
    seconds = time.perf_counter() - start
    await worker.close()
    return ROWS / seconds


async def batch(count: int) -> float:
    """Rows per second on so many servers."""
    desk = Desk(Path(tempfile.mkdtemp()))
    desk.rows(ROWS * count)
    async with serving(*(Fake(seconds=SECONDS) for _ in range(count))) as fakes:
        start = 0.0

        async def note(engine: object) -> None:
            nonlocal start
            start = time.perf_counter()

        _, run = await desk.run(fakes, settings=QUICK, meanwhile=note)
        seconds = time.perf_counter() - start
    run.journal.close()
    return ROWS * count / seconds


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
    start = time.perf_counter()
    for seq in range(1, 2001):
        run.journal.sent(seq, str(uuid.uuid4()), 1, "s")
        run.journal.settle(seq, run.journal.state(seq))
    print(f"journal: {(time.perf_counter() - start) / 2000 * 1e6:.0f} us per row (sent and settled)")
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")


def main() -> None:
    """Print all figures."""
    asyncio.run(large(100_000))

    async def loop() -> float:
        async with serving(Fake(seconds=SECONDS)) as fakes:
            return await bare_loop(fakes[0], Path(tempfile.mkdtemp()))

    bare, one, four = asyncio.run(loop()), asyncio.run(batch(1)), asyncio.run(batch(4))
    print(f"rows of {SECONDS} s: bare loop {bare:.2f} rows/s, batch {one:.2f} ({one / bare:.3f}), ", end="")
    print(f"on four servers {four:.2f} ({four / one:.2f})")


if __name__ == "__main__":
    main()
