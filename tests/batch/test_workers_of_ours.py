"""Servers that we start and end; and what a run asks of all servers: one version, a folder in common, known models."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from batch_fake import Fake, graph, serving

from likeness.batch.client import HttpServer
from likeness.batch.local import Comfy, LocalServer
from likeness.batch.session import model_digests
from likeness.batch.work import End

from .conftest import QUICK
from .test_engine import assert_whole, manifest, until_made


def run(coroutine):
    return asyncio.run(coroutine)


def own(fake, memory=0):
    """A worker that can start this server again."""

    class Own(HttpServer):
        is_own = True
        restarts = 0

        @property
        def has_ended(self):
            return fake._runner is None

        @property
        def memory(self):
            return memory

        async def restart(self):
            Own.restarts += 1
            await fake.kill()
            await fake.start()
            await self.open()
            return True

    return Own


def test_our_own_server_is_started_again_after_so_many_rows(desk):
    desk.rows(10)

    async def go():
        async with serving(Fake()) as fakes:
            worker = own(fakes[0])
            end, made = await desk.run(fakes, settings=replace(QUICK, recycle=3), worker=worker)
            assert end is End.DONE and worker.restarts == len(desk.told("recycled")) == 3
            assert max(fakes[0].made.values()) == 1, "what it has is done first"
            assert_whole(made, 10)

    run(go())


def test_our_own_server_is_started_again_when_it_has_grown(desk):
    desk.rows(4)

    async def go():
        async with serving(Fake()) as fakes:
            worker = own(fakes[0], memory=10**9)
            end, made = await desk.run(fakes, settings=replace(QUICK, most_memory=10**8), worker=worker)
            assert end is End.DONE and worker.restarts >= 2
            assert_whole(made, 4)
            assert worker.restarts <= 5

    run(go())


def test_somebody_elses_server_is_never_started_again(desk):
    desk.rows(5)

    async def go():
        async with serving(Fake()) as fakes:
            await desk.run(fakes, settings=replace(QUICK, recycle=1, most_memory=1))
            assert not desk.told("recycled")

    run(go())


def test_memory_of_a_child_is_known():
    worker = LocalServer(0, Comfy(folder=None), None)  # type: ignore[arg-type]
    assert worker.memory == 0
    worker._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 20
        while sys.platform == "linux" and worker.memory <= 10**5:  # it has only just begun
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        worker._process.kill()
        worker._process.communicate()


MAIN = """
import asyncio, sys

sys.path.insert(0, {tests!r})
from batch_fake import Fake

fake = Fake()
fake.port = int(sys.argv[sys.argv.index("--port") + 1])


async def main():
    await fake.start()
    await asyncio.sleep(3600)


asyncio.run(main())
"""


def test_a_server_that_a_killed_client_left_behind_is_ended_before_another_is_started(tmp_path, monkeypatch):
    """As on macOS and Windows, where nothing ends it with its parent. A stranger's process is never ended."""
    monkeypatch.setattr("likeness.batch.local._end_with_parent", None)
    (tmp_path / "main.py").write_text(MAIN.format(tests=str(Path(__file__).parent)))
    comfy = Comfy(tmp_path)

    async def go():
        left, again = (LocalServer(0, comfy, tmp_path / "worker") for _ in range(2))
        stranger = LocalServer(1, comfy, tmp_path / "stranger")
        await left.open()
        await stranger.open()
        try:
            await left._disconnect()  # the client is killed
            await again.open()
            assert left._process is not None and left._process.wait(10) < 0
            note = tmp_path / "worker" / "server.pid"
            assert again._process is not None and note.read_text().split()[0] == str(again._process.pid)
            await again.close()
            assert not note.exists()
            note.write_text((tmp_path / "stranger" / "server.pid").read_text())
            await again.open()
            assert stranger._process is not None and stranger._process.poll() is None
        finally:
            for server in (left, again, stranger):
                await server.close()

    run(go())


def test_a_row_that_kills_our_own_server_is_tried_alone_and_then_told(desk):
    desk.rows(4)

    async def go():
        async with serving(Fake(seconds=0.01)) as fakes:
            fakes[0].faults = {2: ["die"] * 3}
            end, made = await desk.run(fakes, worker=own(fakes[0]))
            assert end is End.SOME_FAILED and fakes[0].made[2] == 3
            assert "kills the server" in manifest(made)[2]["error"]
            assert [row["state"] for row in manifest(made)] == ["done", "done", "failed", "done"]

    run(go())


def test_a_zombie_of_ours_is_started_again(desk):
    desk.rows(4)

    async def go():
        async with serving(Fake()) as fakes:
            fakes[0].is_zombie = True
            worker = own(fakes[0])

            async def wake(engine):
                while not worker.restarts:
                    await asyncio.sleep(0.01)
                fakes[0].is_zombie = False
                fakes[0]._work.set()

            end, made = await desk.run(fakes, worker=worker, meanwhile=wake, settings=replace(QUICK, poll=(0.02, 5.0)))
            assert end is End.DONE and desk.told("zombie")
            assert_whole(made, 4)

    run(go())


def test_pinned_servers_must_have_one_version(desk):
    desk.rows(2)

    async def go():
        async with serving(Fake("0.3.64"), Fake("0.33.0")) as fakes:
            checked = await desk.check(fakes, desk.plan(pin_version=True))
            assert "runs ComfyUI 0.33.0" in str(checked.problems.found[0])
            assert not (await desk.check(fakes)).problems

    run(go())


def test_a_server_that_comes_back_with_another_version_gets_no_row_of_a_pinned_run(desk):
    desk.rows(20)

    async def go():
        one, two = Fake("0.33.0", seconds=0.02), Fake("0.33.0", seconds=0.02)
        async with serving(one, two) as fakes:

            async def update(engine):
                await until_made(desk, 4)
                await one.kill()
                one.version = "0.34.0"
                one.posted.clear()
                await one.start()

            end, made = await desk.run(fakes, desk.plan(pin_version=True), meanwhile=update)
            assert end is End.DONE and not one.posted
            assert_whole(made, 20)

    run(go())


@pytest.mark.parametrize("is_there", [True, False])
def test_files_are_taken_from_a_folder_in_common_and_fetched_where_they_are_not_there(desk, is_there):
    desk.rows(4)
    common = desk.folder / "common"
    common.mkdir()

    async def go():
        async with serving(Fake()) as fakes:
            fakes[0].folder = common if is_there else None
            end, made = await desk.run(fakes, shared=common)
            assert end is End.DONE and (fakes[0].views == 0) is is_there
            assert_whole(made, 4)
            if is_there:
                assert {path.stat().st_nlink for path in (made.folder / "images").rglob("*.png")} == {2}

    run(go())


def test_a_servers_names_do_not_lead_out_of_the_folder_in_common(desk):
    desk.rows(2)
    common = desk.folder / "deep" / "er" / "common"
    common.mkdir(parents=True)
    (desk.folder / "x.png").write_bytes(b"a secret of the user's")

    async def go():
        async with serving(Fake()) as fakes:
            fakes[0].faults = {0: ["escape"], 1: ["escape"]}
            end, made = await desk.run(fakes, shared=common)
            assert end is End.DONE
            assert_whole(made, 2)

    run(go())


def test_digests_of_the_models_that_are_used(desk):
    made = graph()
    made["1"]["inputs"]["model"] = "b.safetensors"
    desk.write_graph(made)
    desk.table("Paint.model,Paint.color", "a.safetensors,1", ",2")
    (desk.folder / "models" / "checkpoints").mkdir(parents=True)
    (desk.folder / "models" / "checkpoints" / "a.safetensors").write_bytes(b"weights")

    async def go():
        async with serving(Fake()) as fakes:
            checked = await desk.check(fakes, desk.plan(models=desk.folder / "models"))
            expected = {"a.safetensors": hashlib.sha256(b"weights").hexdigest(), "b.safetensors": None}
            assert model_digests(checked) == expected

    run(go())
