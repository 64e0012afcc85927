"""Workers on a cluster: a Ray of this machine, whose actors start stand-ins for ComfyUI. Skipped without Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from likeness.batch.check import check_plan
from likeness.batch.local import Comfy
from likeness.batch.ray_workers import ray_workers
from likeness.batch.session import begin, execute
from likeness.batch.work import End

from .conftest import QUICK
from .test_engine import assert_whole, until_made

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="likeness[ray] is not installed")

ROWS = 60
MAIN = """
import asyncio, os, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from batch_fake import Fake

(Path({pids!r}) / str(os.getpid())).write_text(str(os.getppid()))
fake = Fake(seconds=0.12)
fake.port = int(sys.argv[sys.argv.index("--port") + 1])


async def main():
    await fake.start()
    while True:
        await asyncio.sleep(0.1)
        Path({pids!r}, f"{{os.getpid()}}.made").write_text("\\n".join(map(str, fake.made.elements())))


asyncio.run(main())
"""


@pytest.fixture
def comfy(tmp_path):
    """A folder that is started as ComfyUI is, and notes its process and its actor's."""
    pids, folder = tmp_path / "pids", tmp_path / "comfy"
    pids.mkdir()
    folder.mkdir()
    (folder / "main.py").write_text(MAIN.format(tests=str(Path(__file__).parent), pids=str(pids)))
    yield Comfy(folder), pids
    importlib.import_module("ray").shutdown()


def processes(pids: Path) -> dict[int, int]:
    """The servers that were started, and their actors."""
    return {int(one.name): int(one.read_text()) for one in pids.iterdir() if one.name.isdecimal() and one.read_text()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_server_and_a_killed_actor_lose_no_row(desk, comfy):
    desk.rows(ROWS)
    started, pids = comfy

    async def go():
        workers = ray_workers("local", 2, started, gpus=0.0)
        try:
            checked = await check_plan(desk.plan(), workers, lambda name: None, desk.out / "identities")
            assert not checked.problems, [str(one) for one in checked.problems.found]
            run = begin(desk.out, checked)
            before = processes(pids)
            assert len(before) == 2 and len(set(before.values())) == 2

            async def kill(engine):
                one, two = before
                await until_made(desk, 3)
                os.kill(one, signal.SIGKILL)
                await until_made(desk, 8)
                os.kill(before[two], signal.SIGKILL)

            tasks = []
            servers = [(seen.worker, seen.nodes) for seen in checked.servers]
            end = await asyncio.wait_for(
                execute(
                    run,
                    servers,
                    replace(QUICK, grace=2.0, zombie=30, stall=60, poll=(0.1, 1.0)),
                    tell=desk.tell,
                    started=lambda engine: tasks.append(asyncio.ensure_future(kill(engine))),
                ),
                120,
            )
            await tasks[0]
            assert end is End.DONE
            assert_whole(run, ROWS)
            used = Counter(told["server"] for told in desk.told("done"))
            assert set(used) == {"ray0", "ray1"}
            assert len(processes(pids)) >= 4, "server and actor were started again"
            lost = next(run.journal.query("select count(*) from attempt where outcome != 'done'"))[0]
            made = sum(len(file.read_text().split()) for file in pids.glob("*.made"))
            assert made <= ROWS + lost
        finally:
            await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True)

    asyncio.run(go())
    assert not [pid for pid in processes(pids) if is_alive(pid)], "nothing outlives the batch"
