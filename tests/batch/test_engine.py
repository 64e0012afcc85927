"""Batches on fake servers: every row once, whatever happens to the servers."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import time
import uuid
from dataclasses import replace

import pytest
from batch_fake import Fake, graph, serving
from PIL import Image

from likeness.batch import results
from likeness.batch.manifest import write_manifest
from likeness.batch.report import write_all
from likeness.batch.work import End

from .conftest import QUICK


def run(coroutine):
    return asyncio.run(coroutine)


def manifest(made):
    with write_manifest(made).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_whole(made, count):
    """The oracle: each row once and only once in the table, no image lost, and nothing beside them."""
    rows = manifest(made)
    assert [row["state"] for row in rows] == ["done"] * count
    files = [row["file"] for row in rows]
    assert len(set(files)) == count
    for row in rows:
        content = (made.folder / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        with Image.open(made.folder / row["file"]) as picture:
            assert picture.getpixel((0, 0)) == tuple(int(row["Paint.color"]).to_bytes(3, "big"))
    there = {path.relative_to(made.folder).as_posix() for path in (made.folder / "images").rglob("*") if path.is_file()}
    assert there == set(files) and not list((made.folder / ".part").iterdir())


def test_rows_run_once_each_two_in_flight_and_history_is_forgotten(desk):
    desk.rows(30)

    async def go():
        async with serving(Fake()) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert fakes[0].most_waiting <= 2 and not fakes[0].history
            assert max(fakes[0].runs.values()) == 1 and len(fakes[0].runs) == 30
            for said in fakes[0].posted:
                assert "number" not in said and "front" not in said
                assert str(uuid.UUID(said["prompt_id"])) == said["prompt_id"]
            assert_whole(made, 30)
            write_all(made)
            assert "30 done" in (made.folder / "report.md").read_text()
            assert (made.folder / "sheet" / "0001.html").read_text().count("<figure") == 30

    run(go())


def test_a_picture_carries_its_row(desk):
    desk.rows(1)

    async def go():
        async with serving(Fake()) as fakes:
            _, made = await desk.run(fakes)
            [row] = manifest(made)
            with Image.open(made.folder / row["file"]) as picture:
                assert row["row_id"] in picture.info["likeness"] and "EmptyImage" in picture.info["prompt"]

    run(go())


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
@pytest.mark.parametrize("answer", ["500", "accepted, then 500", "reset"])
def test_a_doubtful_post_is_looked_up_before_it_is_repeated(desk, version, answer):
    desk.rows(4)

    async def go():
        fake = Fake(version)
        fake.next_answers = [answer]
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 4)
            assert max(fake.made.values()) == 1

    run(go())


@pytest.mark.parametrize(
    ("faults", "state", "runs", "words"),
    [
        (["error"], "done", 2, ""),
        (["error", "error"], "failed", 2, "error: RuntimeError"),
        (["type error"], "failed", 1, "error: TypeError"),
        (["memory"], "done", 2, ""),
        (["memory", "memory"], "failed", 2, "memory"),
        (["empty"], "failed", 1, "empty"),
        (["gone"], "done", 2, ""),
        (["cut"], "done", 2, ""),
        (["page"], "done", 2, ""),
        (["forget"], "done", 2, ""),
        (["interrupted"], "done", 2, ""),
        (["interrupted", "interrupted"], "failed", 2, "interrupted"),
        (["escape"], "done", 1, ""),
    ],
)
def test_what_becomes_of_a_row_that_goes_wrong_on_the_only_server(desk, monkeypatch, faults, state, runs, words):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(3)

    async def go():
        fake = Fake()
        fake.faults = {1: list(faults)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            row = manifest(made)[1]
            assert (row["state"], fake.made[1]) == (state, runs)
            assert words in row["error"] and "\x1b" not in row["error"]
            assert end is (End.DONE if state == "done" else End.SOME_FAILED)
            assert fake.freed == faults.count("memory")
            assert not list(desk.folder.rglob("x.png")) or faults == ["escape"]
            assert not (desk.folder / "x.png").exists()

    run(go())


def test_a_row_that_fails_is_tried_on_another_server(desk):
    desk.rows(6)

    async def go():
        one, two = Fake(seconds=0.02), Fake(seconds=0.02)
        one.faults = two.faults = {2: ["error"]}
        async with serving(one, two) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert one.made[2] == two.made[2] == 1
            assert_whole(made, 6)

    run(go())


@pytest.mark.parametrize("answer", ["400", "node errors"])
def test_a_refused_graph_is_a_failed_row_at_once(desk, answer):
    desk.rows(2)

    async def go():
        fake = Fake()
        fake.next_answers = [answer]
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.SOME_FAILED
            assert [row["state"] for row in manifest(made)] == ["failed", "done"]
            assert "bad" in manifest(made)[0]["error"] and fake.made[1] == 1

    run(go())


def test_a_systematic_mistake_stops_the_batch(desk):
    desk.rows(100)

    async def go():
        fake = Fake()
        fake.next_answers = ["400"] * 100
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.BREAKER and len(fake.posted) == 3
            assert made.journal.counts() == {"failed": 3, "todo": 97}

    run(go())


def test_files_that_come_late_do_not_end_a_series_of_failures(desk, monkeypatch):
    desk.rows(60)
    to_disk = results._to_disk

    def slow(path):
        time.sleep(0.1)
        to_disk(path)

    monkeypatch.setattr(results, "_to_disk", slow)

    async def go():
        fake = Fake()
        fake.faults = {n: ["type error"] for n in range(5, 60)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.BREAKER and 20 <= made.journal.counts()["failed"] <= 22

    run(go())


def test_twenty_failures_in_a_row_stop_a_batch_that_went_well(desk):
    desk.rows(60)

    async def go():
        fake = Fake()
        fake.faults = {n: ["type error"] for n in range(5, 60)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.BREAKER and 20 <= made.journal.counts()["failed"] <= 22

    run(go())


def test_a_killed_server_loses_no_row(desk):
    desk.rows(40)

    async def go():
        one, two = Fake(seconds=0.01), Fake(seconds=0.01)
        async with serving(one, two) as fakes:

            async def kill(engine):
                await until_made(desk, 10)
                await one.kill()

            end, made = await desk.run(fakes, meanwhile=kill)
            assert end is End.DONE
            assert_whole(made, 40)
            assert desk.told("down")

    run(go())


def made_so_far(desk):
    return len(desk.told("done"))


async def until_made(desk, count):
    """Wait until this many rows are done."""
    while made_so_far(desk) < count:
        await asyncio.sleep(0.005)


def test_a_restarted_server_is_used_again(desk):
    desk.rows(30)

    async def go():
        fake = Fake(seconds=0.02)
        async with serving(fake) as fakes:

            async def restart(engine):
                await until_made(desk, 5)
                await fake.kill()
                await asyncio.sleep(0.1)
                await fake.start()

            end, made = await desk.run(fakes, meanwhile=restart)
            assert end is End.DONE
            assert_whole(made, 30)

    run(go())


def test_a_silent_websocket_costs_time_and_no_row(desk):
    desk.rows(5)

    async def go():
        fake = Fake()
        fake.is_silent = True
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 5)

    run(go())


def test_a_zombie_is_found_and_its_rows_go_elsewhere(desk):
    desk.rows(12)

    async def go():
        one, two = Fake(seconds=0.02), Fake(seconds=0.02)
        one.is_zombie = True
        async with serving(one, two) as fakes:
            end, made = await desk.run(fakes, settings=replace(QUICK, poll=(0.02, 5.0)))
            assert end is End.DONE
            assert_whole(made, 12)
            assert desk.told("zombie")

    run(go())


def test_a_server_that_hangs_is_away(desk):
    desk.rows(12)

    async def go():
        one, two = Fake(seconds=0.02), Fake(seconds=0.02)
        async with serving(one, two) as fakes:

            async def freeze(engine):
                await until_made(desk, 3)
                one.hangs = True

            end, made = await desk.run(fakes, meanwhile=freeze)
            assert end is End.DONE
            assert_whole(made, 12)

    run(go())


def test_a_row_that_makes_no_progress_is_cancelled_by_its_own_id(desk, monkeypatch):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(3)

    async def go():
        fake = Fake()
        fake.faults = {1: ["hang"]}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes, settings=replace(QUICK, stall=0.3, zombie=60))
            assert end is End.DONE
            assert fake.interrupted and None not in fake.interrupted
            assert_whole(made, 3)

    run(go())


def test_stopping_once_finishes_what_runs_and_twice_takes_it_back(desk):
    desk.rows(20)

    async def go(times):
        fake = Fake(seconds=0.05)
        async with serving(fake) as fakes:
            before = made_so_far(desk)

            async def press(engine):
                await until_made(desk, before + 3)
                for _ in range(times):
                    engine.stop()

            end, made = await desk.run(fakes, meanwhile=press)
            assert end is End.STOPPED
            assert not fake.pending and None not in fake.interrupted
            return made

    made = run(go(1))
    assert "sent" not in made.journal.counts()
    made = run(go(2))
    assert made.journal.counts()["todo"] > 5

    async def rest():
        async with serving(Fake()) as fakes:
            return await desk.run(fakes)

    end, made = run(rest())
    assert end is End.DONE
    assert_whole(made, 20)


def test_somebody_elses_prompt_waits_for_two_rows_at_most_and_is_not_touched(desk):
    desk.rows(20)

    async def go():
        fake = Fake(seconds=0.01)
        async with serving(fake) as fakes:
            places = []

            async def gui(engine):
                await until_made(desk, 4)
                places.append(len(fake.pending) + (fake.running is not None))
                fake.pending.append(("gui", fakes[0].posted[0]["prompt"], {}))

            end, _ = await desk.run(fakes, meanwhile=gui)
            assert end is End.DONE and places[0] <= 2
            assert "gui" in fake.history and not fake.interrupted

    run(go())


def test_equal_rows_run_once_and_have_a_line_each(desk):
    desk.table("Paint.color,meta.note", "5,a", "5,b", "6,c")

    async def go():
        fake = Fake()
        async with serving(fake) as fakes:
            _, made = await desk.run(fakes)
            rows = manifest(made)
            assert [row["meta.note"] for row in rows] == ["a", "b", "c"]
            assert rows[0]["file"] == rows[1]["file"] and sum(fake.made.values()) == 2

    run(go())


def test_a_row_that_kills_servers_is_parked_and_then_told(desk):
    desk.rows(6)

    async def go():
        fake = Fake(seconds=0.01)
        fake.faults = {3: ["die", "die", "die"]}
        async with serving(fake) as fakes:

            async def raise_it(engine):
                while True:
                    await asyncio.sleep(0.05)
                    if fake._runner is None:
                        await fake.start()

            end, made = await desk.run(fakes, meanwhile=raise_it)
            assert end is End.SOME_FAILED and fake.made[3] == 2
            rows = manifest(made)
            assert [row["state"] for row in rows] == ["done"] * 3 + ["failed"] + ["done"] * 2
            assert "poison" in rows[3]["error"]

    run(go())


def test_rows_stay_on_the_servers_that_have_their_files(desk):
    from copy import deepcopy

    from batch_fake import OBJECT_INFO

    poor = deepcopy(OBJECT_INFO)
    poor["EmptyImage"]["input"]["optional"]["model"][0] = ["a.safetensors"]
    desk.table("Paint.color,Paint.model", *(f"{n},{'ab'[n % 2]}.safetensors" for n in range(12)))

    async def go():
        one, two = Fake(seconds=0.01, info=poor), Fake(seconds=0.01)
        async with serving(one, two) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert all(color % 2 == 0 for color in one.made)
            assert_whole(made, 12)

    run(go())


def test_rows_that_save_nothing_are_done_where_that_is_allowed(desk):
    desk.rows(2)

    async def go():
        fake = Fake()
        fake.faults = {1: ["empty"]}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes, desk.plan(allow_empty=True))
            assert end is End.DONE and fake.made[1] == 1
            assert [(row["state"], bool(row["file"])) for row in manifest(made)] == [("done", True), ("done", False)]

    run(go())


def test_without_the_breaker_every_row_is_tried(desk):
    desk.rows(30)

    async def go():
        fake = Fake()
        fake.faults = {n: ["type error"] for n in range(30)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes, settings=replace(QUICK, breaker=0))
            assert end is End.SOME_FAILED and made.journal.counts() == {"failed": 30}

    run(go())


def test_a_row_that_needs_more_memory_goes_to_another_server(desk):
    desk.rows(6)

    async def go():
        one, two = Fake(seconds=0.02), Fake(seconds=0.02)
        one.faults = {n: ["memory"] * 2 for n in range(6)}
        async with serving(one, two) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE and one.freed
            assert_whole(made, 6)

    run(go())


def test_a_server_that_begins_to_redirect_gets_no_more_rows(desk):
    desk.rows(12)

    async def go():
        one, two = Fake(seconds=0.02), Fake(seconds=0.02)
        async with serving(one, two) as fakes:

            async def turn(engine):
                await until_made(desk, 3)
                one.redirect = two.url

            end, made = await desk.run(fakes, meanwhile=turn)
            assert end is End.DONE
            assert_whole(made, 12)
            assert any("redirects to another address" in told["error"] for told in desk.told("down"))

    run(go())


def test_a_picture_opens_as_its_workflow_where_that_is_known(desk):
    """A file as it is posted holds the browser's workflow too; hosts write it into images."""
    import json

    ui = {"nodes": [{"id": 1}], "links": []}
    (desk.folder / "api.json").write_text(json.dumps({"prompt": graph(), "workflow": ui}))
    desk.rows(1)

    async def go():
        async with serving(Fake()) as fakes:
            _, made = await desk.run(fakes)
            [row] = manifest(made)
            with Image.open(made.folder / row["file"]) as picture:
                assert json.loads(picture.info["workflow"]) == ui

    run(go())
