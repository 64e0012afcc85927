"""kill -9 of the client and of servers, at random moments: every row once, no image lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys

from batch_fake import Fake, serving

from likeness.batch.session import open_run

from .test_engine import assert_whole

ROUNDS, ROWS = 20, 250


def test_twenty_kills_of_client_and_server_lose_and_double_nothing(desk):
    desk.rows(ROWS)
    chance = random.Random(7)

    async def client(servers):
        words = [word for fake in servers for word in ("--server", fake.url)]
        paths = [str(desk.folder / "api.json"), str(desk.folder / "rows.csv"), "--out", str(desk.out)]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "likeness.cli", "batch", "run", *paths, *words, "--grace", "1"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def go():
        one, two = Fake(seconds=0.04), Fake("0.33.0", seconds=0.04)
        async with serving(one, two) as servers:
            for number in range(ROUNDS):
                process = await client(servers)
                before = sum(one.runs.values()) + sum(two.runs.values())
                for _ in range(400):  # until it is at work, so that a kill hits something
                    await asyncio.sleep(0.02)
                    if sum(one.runs.values()) + sum(two.runs.values()) > before or process.returncode is not None:
                        break
                await asyncio.sleep(chance.uniform(0, 0.3))
                if number % 3 == 2:
                    victim = chance.choice(servers)
                    await victim.kill()
                    await asyncio.sleep(chance.uniform(0, 0.2))
                    await victim.start()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                await process.wait()
            assert len(one.made | two.made) < ROWS, "every kill hit a batch that was under way"
            last = await client(servers)
            _, errors = await asyncio.wait_for(last.communicate(), 90)
            assert last.returncode == 0, errors.decode()
            made = open_run(desk.out, read_only=False)
            assert_whole(made, ROWS)
            again = [prompt for fake in servers for prompt, count in fake.runs.items() if count > 1]
            assert not again  # no attempt was ever queued twice
            lost = next(made.journal.query("select count(*) from attempt where outcome != 'done'"))[0]
            assert sum(one.made.values()) + sum(two.made.values()) <= ROWS + lost

    asyncio.run(go())
