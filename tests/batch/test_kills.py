"""What a client that was killed had sent; full disks; files that come badly; keys that are written nowhere."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from batch_fake import Fake, graph, in_background, serving
from typer.testing import CliRunner

from likeness import cli
from likeness.batch import results
from likeness.batch.client import Access
from likeness.batch.work import End
from likeness.errors import LikenessError

from .conftest import QUICK
from .test_engine import assert_whole, made_so_far, manifest


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
@pytest.mark.parametrize("fate", ["finished", "waiting", "lost", "cleaned"])
def test_what_a_killed_client_had_sent_is_asked_of_its_server_first(desk, monkeypatch, version, fate):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(6)

    async def go():
        fake = Fake(version, seconds=0.15)
        async with serving(fake) as fakes:

            async def until_two_are_sent(engine):
                flights = engine.lanes[0].flights
                while made_so_far(desk) < 1 or sum(flight.in_queue for flight in flights.values()) < 2:
                    await asyncio.sleep(0.002)
                while len(fake.posted) < made_so_far(desk) + 2:
                    await asyncio.sleep(0.001)
                raise RuntimeError("killed")

            work = asyncio.ensure_future(desk.run(fakes, meanwhile=lambda engine: kill(engine, work)))

            async def kill(engine, work):
                with pytest.raises(RuntimeError):
                    await until_two_are_sent(engine)
                work.cancel()

            with pytest.raises(asyncio.CancelledError):
                await work
            sent = [said["prompt_id"] for said in fake.posted]
            if fate == "waiting":
                assert fake.pending or fake.running
            else:
                while fake.pending or fake.running:
                    await asyncio.sleep(0.01)
            if fate == "lost":
                fake.history.clear()
            if fate == "cleaned":
                fake.files.clear()
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 6)
            again = len(fake.posted) - len({said["prompt"]["1"]["inputs"]["color"] for said in fake.posted})
            assert (again == 0) is (fate in ("finished", "waiting"))
            assert max(fake.runs.values()) == 1 and len(set(sent)) == len(sent)

    run(go())


def test_what_a_killed_client_had_sent_is_heard_of_again(desk):
    """Rows that are adopted are not silent: the host tells their client, whoever that is now."""
    desk.rows(4)

    async def go():
        fake = Fake(seconds=1.0)
        async with serving(fake) as fakes:

            async def kill(engine):
                while len(fake.posted) < 1 or not fake.running:
                    await asyncio.sleep(0.01)
                work.cancel()

            work = asyncio.ensure_future(desk.run(fakes, meanwhile=kill))
            with pytest.raises(asyncio.CancelledError):
                await work
            fake.seconds = 0.01
            start = asyncio.get_running_loop().time()
            end, made = await desk.run(fakes, settings=replace(QUICK, poll=(20.0, 20.0), stall=60, zombie=60))
            assert end is End.DONE and asyncio.get_running_loop().time() - start < 10
            assert_whole(made, 4)
            assert max(fake.made.values()) == 1

    run(go())


def test_the_same_graph_never_saves_under_the_same_name_twice(desk, monkeypatch):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(2)

    async def go():
        fake = Fake()
        fake.faults = {0: ["error"]}
        async with serving(fake) as fakes:
            await desk.run(fakes)
            prefixes = [said["prompt"]["2"]["inputs"]["filename_prefix"] for said in fake.posted]
            assert len(prefixes) == len(set(prefixes)) == 3
            assert all(prefix.startswith("likeness/") and prefix.count("/") == 3 for prefix in prefixes)

    run(go())


# --- full disks


def test_a_full_disk_ends_the_batch_in_a_sentence_and_loses_nothing(desk, monkeypatch):
    desk.rows(10)
    to_disk, count = results._to_disk, 0

    def full(path):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(path)

    async def go():
        async with serving(Fake()) as fakes:
            monkeypatch.setattr(results, "_to_disk", full)
            with pytest.raises(LikenessError, match="is full: free some space"):
                await desk.run(fakes)
            monkeypatch.setattr(results, "_to_disk", to_disk)
            end, made = await desk.run(fakes)
            assert end is End.DONE and len(fakes[0].posted) == 10, "what was made before is fetched, not made again"
            assert_whole(made, 10)

    run(go())


def test_a_full_disk_under_the_journal_ends_the_batch_in_a_sentence_and_loses_nothing(desk):
    desk.rows(60)

    async def go():
        async with serving(Fake()) as fakes:

            async def fill(engine):
                (pages,) = engine.journal._db.execute("pragma page_count").fetchone()
                engine.journal._db.execute(f"pragma max_page_count={pages}")

            with pytest.raises(LikenessError, match=r"journal .* cannot be written .*full"):
                await desk.run(fakes, meanwhile=fill)
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 60)

    run(go())


def client(desk, fakes, *words, limit=None, **environment):
    servers = [word for fake in fakes for word in ("--server", fake.url)]
    paths = [str(desk.folder / "api.json"), str(desk.folder / "rows.csv"), "--out", str(desk.out)]
    return subprocess.run(
        [sys.executable, "-m", "likeness.cli", "batch", "run", *paths, *servers, "--grace", "1", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        preexec_fn=limit,
    )


def test_a_picture_that_the_disk_does_not_take_whole_is_no_picture(desk):
    desk.rows(2)
    fake = Fake()
    fake.padding = 1_000_000

    resource = pytest.importorskip("resource")  # Windows has none

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))

    with in_background(fake):
        said = client(desk, [fake], limit=limit)
        assert said.returncode == 1 and "is full: free some space" in said.stderr and "Traceback" not in said.stderr
        assert not list((desk.out / "images").rglob("*.png"))
        assert client(desk, [fake]).returncode == 0
        assert len(list((desk.out / "images").rglob("*.png"))) == 2


# --- files that come badly


@pytest.mark.parametrize("fault", ["huge", "drip", "500", "404", "403"])
def test_a_file_that_comes_badly_is_asked_for_again_and_never_kept(desk, monkeypatch, fault):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(3)

    async def go():
        fake = Fake()
        fake.view_faults = ["", fault]
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.DONE
            assert_whole(made, 3)
            again = {"huge": 1, "404": 1, "403": 1}.get(fault, 0)  # else the same result is fetched once more
            assert len(fake.posted) == 3 + again

    run(go())


# --- keys


def test_a_key_reaches_its_server_alone_and_no_file(desk):
    desk.rows(3)
    one, two, key = Fake(), Fake(seconds=0.05), "Bearer 0123456789abcdef0123"
    with in_background(one, two):
        words = ("--header-env", f"127.0.0.1:{one.port}:Authorization=THE_KEY", "--json")
        said = client(desk, [one, two], *words, THE_KEY=key)
        assert said.returncode == 0, said.stderr
    assert {headers.get("Authorization") for headers in one.headers} == {key}, "the websocket, too"
    assert not any("Authorization" in headers for headers in two.headers)
    assert key not in said.stdout + said.stderr
    for path in desk.folder.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("option", "words", "value", "said"),
    [
        ("--header-env", "Authorization", "x", "write one such as"),
        ("--header-env", "*:Authorization=THE_KEY", None, "is not set"),
        ("--header-env", "*:Authorization=THE_KEY", "a\nb", "line break"),
        ("--header-env", "elsewhere:1:Authorization=THE_KEY", "x", "which is not a --server"),
        ("--api-key-env", "THE_KEY", "x", "write one such as gpu1:8188=COMFY_KEY"),
        ("--api-key-env", "*=THE_KEY", None, "is not set"),
        ("--api-key-env", "elsewhere:1=THE_KEY", "x", "which is not a --server"),
        ("--api-key-env", "*=THE_KEY", "x", "add --allow-paid"),
    ],
)
def test_a_key_that_cannot_be_used_is_told(desk, monkeypatch, option, words, value, said):
    desk.rows(1)
    monkeypatch.delenv("THE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    paths = [str(desk.folder / "api.json"), str(desk.folder / "rows.csv"), "--out", str(desk.out)]
    paid = () if "allow-paid" in said else ("--allow-paid",)
    words = ["batch", "run", *paths, "--server", "http://127.0.0.1:9", option, words, *paid]
    ended = CliRunner().invoke(cli.command_tree(), words)
    assert isinstance(ended.exception, LikenessError)
    assert said in str(ended.exception) and (value is None or value == "x" or value not in str(ended.exception))


def paid_graph():
    made = graph()
    made["3"] = {"class_type": "PaidNode", "inputs": {"text": "x"}, "_meta": {"title": "Paid"}}
    return made


def test_an_api_key_is_sent_to_the_servers_that_may_spend_and_is_written_nowhere(desk):
    """Neither where the server repeats it in an error."""
    desk.write_graph(paid_graph())
    desk.rows(6)
    key = "comfyui-" + "0123456789abcdef" * 4
    one, two = Fake(seconds=0.02), Fake(seconds=0.02)
    one.faults, one.words = {1: ["type error"], 3: ["type error"]}, f"Unauthorized: {key} is unknown"
    two.faults = {1: ["type error"], 3: ["type error"]}
    with in_background(one, two):
        words = ("--allow-paid", "--api-key-env", f"127.0.0.1:{one.port}=THE_KEY", "--json")
        said = client(desk, [one, two], *words, THE_KEY=key)
        assert said.returncode == 1 and "is unknown" in said.stdout
        refused = client(desk, [one, two], *words)
        assert "is not set" in refused.stderr
    assert {posted["extra_data"].get("api_key_comfy_org") for posted in one.posted} == {key}
    assert not any("api_key_comfy_org" in posted["extra_data"] for posted in two.posted)
    assert not any("api_key" in str(posted["extra_data"]["extra_pnginfo"]) for posted in one.posted)
    assert key not in said.stdout + said.stderr
    for path in desk.folder.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path


def test_an_api_key_in_a_column_is_refused(desk):
    desk.write_graph(paid_graph())
    desk.table("Paint.color,Paid.api_key_comfy_org", "1,x")

    async def go():
        async with serving(Fake()) as fakes:
            found = (await desk.check(fakes, desk.plan(allow_paid=True))).problems.found
            assert "is named like a key or a password" in str(found[0])

    run(go())


def test_nobody_sees_a_key_in_what_is_printed_of_an_access():
    shown = repr(Access({"Authorization": "hidden-1"}, "hidden-2"))
    assert "hidden" not in shown


def test_a_password_in_an_address_is_never_shown(desk):
    desk.rows(1)
    fake = Fake()
    with in_background(fake):
        address = f"http://somebody:pa55word@127.0.0.1:{fake.port}"
        said = client(desk, [], "--server", address)
        assert said.returncode == 0 and "pa55word" not in said.stdout + said.stderr
    assert fake.headers[0]["Authorization"].startswith("Basic ")
    for path in desk.out.rglob("*"):
        assert path.is_dir() or b"pa55word" not in path.read_bytes(), path


def test_a_manifest_is_plain_for_spreadsheets(desk):
    desk.table("Paint.color,meta.note", '1,"=HYPERLINK(""http://x"")"', "2,-5", "3,@x")

    async def go():
        async with serving(Fake()) as fakes:
            _, made = await desk.run(fakes)
            assert [row["meta.note"] for row in manifest(made)] == ['\'=HYPERLINK("http://x")', "-5", "'@x"]

    run(go())
