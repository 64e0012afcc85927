"""Ends that a user asks for: no server for too long, a row that takes too long, Ctrl-C. The same command goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from batch_fake import Fake, graph, in_background, serving
from typer.testing import CliRunner

from likeness import cli
from likeness.batch.work import End
from likeness.errors import LikenessError

from .conftest import QUICK
from .test_engine import assert_whole, manifest, until_made


def run(coroutine):
    return asyncio.run(coroutine)


def words_for(desk, fake, *words):
    paths = [desk.folder / "api.json", desk.folder / "rows.csv", "--out", desk.out, "--server", fake.url]
    return ["batch", "run", *map(str, paths), *words]


def likeness(desk, fake, *words):
    return CliRunner().invoke(cli.command_tree(), words_for(desk, fake, *words))


def counts(desk):
    return json.loads(CliRunner().invoke(cli.command_tree(), ["batch", "status", str(desk.out), "--json"]).output)


# --- --give-up


def test_without_any_server_for_too_long_the_batch_gives_up_and_goes_on_later(desk):
    desk.rows(8)

    async def go():
        fake = Fake(seconds=0.01)
        async with serving(fake) as fakes:

            async def end_it(engine):
                await until_made(desk, 3)
                await fake.kill()

            with pytest.raises(LikenessError, match=r"No server has answered for 0.6 seconds \(.*: start one, then"):
                await desk.run(fakes, settings=replace(QUICK, give_up=0.6), meanwhile=end_it)
            await fake.start()
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 8)

    run(go())


def test_a_server_that_is_away_for_less_is_waited_for(desk):
    desk.rows(8)

    async def go():
        fake = Fake(seconds=0.01)
        async with serving(fake) as fakes:

            async def away_for_a_moment(engine):
                await until_made(desk, 3)
                await fake.kill()
                await asyncio.sleep(0.2)
                await fake.start()

            end, made = await desk.run(fakes, settings=replace(QUICK, give_up=1.5), meanwhile=away_for_a_moment)
            assert end is End.DONE
            assert_whole(made, 8)

    run(go())


def test_give_up_on_the_command_line(desk):
    desk.rows(6)
    fake = Fake()
    fake.next_answers = ["400"] * 3
    with in_background(fake):
        assert likeness(desk, fake).exit_code == End.BREAKER.value
    said = likeness(desk, fake, "--give-up", "0.3", "--grace", "0.2")
    assert isinstance(said.exception, LikenessError) and "No server has answered for 0.3 seconds" in str(said.exception)
    assert counts(desk)["todo"] == 3
    again = Fake()
    again.port = fake.port
    with in_background(again):
        assert likeness(desk, again).exit_code == 1
    assert (counts(desk)["done"], counts(desk)["failed"]) == (3, 3)


# --- --timeout


@pytest.mark.parametrize(("faults", "state", "ran"), [(["hang"], "done", 2), (["hang"] * 9, "failed", 5)])
def test_a_row_that_runs_too_long_is_cancelled_by_its_id(desk, monkeypatch, faults, state, ran):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(3)

    async def go():
        fake = Fake()
        fake.faults = {1: list(faults)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes, settings=replace(QUICK, timeout=0.3, stall=60, zombie=60))
            row = manifest(made)[1]
            assert (row["state"], fake.made[1]) == (state, ran)
            assert fake.interrupted and None not in fake.interrupted
            assert end is (End.DONE if state == "done" else End.SOME_FAILED)
            assert state == "done" or "ran longer than 0.3 s" in row["error"]
            assert [row["state"] for row in manifest(made)][::2] == ["done", "done"]

    run(go())


def test_the_time_that_a_row_waits_in_the_queue_is_not_counted(desk):
    desk.rows(5)

    async def go():
        fake = Fake(seconds=0.4)
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes, settings=replace(QUICK, timeout=0.6))
            assert end is End.DONE and not fake.interrupted and max(fake.made.values()) == 1
            assert_whole(made, 5)

    run(go())


# --- Ctrl-C


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to a process of its own")
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(desk, times):
    """Once: running rows may finish. Twice: they are cancelled, and nobody else's."""
    desk.rows(12)
    fake = Fake(seconds=0.1)
    fake.faults = {3: ["hang"]} if times == 2 else {}
    with in_background(fake):
        client = subprocess.Popen(
            [sys.executable, "-m", "likeness.cli", *words_for(desk, fake)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: fake.made[3], client)
        fake.pending.append(("gui", graph(), {}))
        client.send_signal(signal.SIGINT)
        if times == 2:
            time.sleep(0.3)
            assert client.poll() is None, "what runs may end"
            client.send_signal(signal.SIGINT)
        said, errors = client.communicate(timeout=30)
        assert client.returncode == 130, errors
        assert "Traceback" not in errors and "stopped" in said
        ours = {posted["prompt_id"] for posted in fake.posted}
        assert set(fake.interrupted) <= ours and bool(fake.interrupted) is (times == 2)
        wait_until(lambda: "gui" in fake.history)
        before = counts(desk)
        assert before["sent"] == 0 and before["todo"] >= 5 and before["failed"] == 0
        assert likeness(desk, fake).exit_code == 0 and counts(desk)["done"] == 12
        fake.made[1] -= 1  # the stranger's colour
        assert {count for color, count in fake.made.items() if color != 3} == {1}, "nothing ran again"


def wait_until(happened, process=None):
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.01)
