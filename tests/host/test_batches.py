"""Batches on real servers: a table of 12 rows on two of them, one of which is killed on the way."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from helpers import server as server_module
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.batch.journal import Journal
from likeness.batch.local import LocalServer
from likeness.batch.workers import State
from likeness.cli.opening import open_faces
from likeness.errors import LikenessError
from likeness.miniature.comfyui_server import PACK, started

WORKFLOW = PACK / "workflows" / "api" / "miniature_portrait.api.json"
PLAIN = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


@pytest.fixture(scope="module")
def two(host_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two servers of the pack alone; each test may end the second one's process."""
    with ExitStack() as stack:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        bases = [tmp_path_factory.mktemp("batch_server") for _ in range(2)]
        servers = [
            stack.enter_context(started(host_path, base, environment=environment, own_group=True)) for base in bases
        ]
        for server in servers:
            assert server.wait_until_ready(240), server.log()[-2000:]
        yield servers


def likeness(*words: object):
    return CliRunner().invoke(cli.command_tree(), ["batch", *map(str, words)])


def manifest(run: Path) -> list[dict[str, str]]:
    with (run / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_facts_that_batches_stand_on(two):
    client, version = server_module.Client(two[0].address), comfyui_version(two[0])
    number = str(uuid.uuid4())
    assert post(client, number, PLAIN)["prompt_id"] == number
    entry = wait_for(client, number)
    assert entry["status"]["messages"][-1][0] == "execution_success"
    assert client.get_json(f"/history/{uuid.uuid4()}") == {}  # as for one that waits or runs
    client.post("/history", {"delete": [number]})
    assert client.get_json(f"/history/{number}") == {}
    again = str(uuid.uuid4())  # an equal graph: the old file is named, and none is written
    post(client, again, PLAIN)
    assert wait_for(client, again)["outputs"] == entry["outputs"]
    assert post(client, again, PLAIN)["prompt_id"] == again  # an id that was used is not refused: it runs twice
    upper = {"prompt": PLAIN, "prompt_id": number.upper()}
    if version >= (0, 25):
        with pytest.raises(OSError, match="400"):
            client.post("/prompt", upper)


def test_what_a_host_lets_pass(two):
    """HTTP 200 for a graph of which a part is wrong, unknown inputs, numbers as text, files that are no images."""
    client = server_module.Client(two[0].address)
    half = json.loads(json.dumps(PLAIN))
    half["1"]["inputs"] |= {"colour": 5, "width": "24"}
    half["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    said = post(client, number := str(uuid.uuid4()), half)
    assert list(said["node_errors"]) == ["3"]
    entry = wait_for(client, number)
    assert entry["status"]["status_str"] == "success" and list(entry["outputs"]) == ["2"]
    info = client.get_json("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"]
    assert upload(client, "likeness/deep", "no.png", b"no image")["subfolder"] == "likeness/deep"
    after = client.get_json("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"]
    assert after == info, "what lies in a subfolder does not lengthen the lists of everybody"


def test_a_file_gets_the_next_number_of_its_folder_whoever_else_counts(two):
    """The host lists the folder to find it, so that names are not unique among servers: ours come from the row."""
    for server in two:
        client = server_module.Client(server.address)
        assert saved(client, colored(11, "counted/x")) == ("counted", "x_00001_.png"), "the same name on each server"
    folder = two[0].log_file.parent / "output" / "counted"
    (folder / "x_00041_.png").write_bytes(b"of another server that shares the folder")
    client = server_module.Client(two[0].address)
    assert saved(client, colored(12, "counted/x")) == ("counted", "x_00042_.png")
    assert saved(client, colored(13, "counted/y")) == ("counted", "y_00001_.png")


def test_a_host_remembers_ten_thousand_runs_and_drops_the_oldest(host_nodes):
    import execution

    class Nobody:
        def queue_updated(self) -> None: ...

    queue = execution.PromptQueue(Nobody())
    assert not queue.history, "it begins with nothing: what was there before a restart is lost"
    for number in range(10_002):
        queue.put((number, f"prompt {number}", {}, {}, []))
        _, key = queue.get()
        queue.task_done(key, {"outputs": {}, "meta": {}}, status=None)
    assert len(queue.history) == 10_001 and "prompt 0" not in queue.history and "prompt 10001" in queue.history


def test_a_websocket_may_stay_open_and_silent_and_history_tells(two):
    """A second socket of the same client id takes the messages of the first, which is not closed."""
    import aiohttp

    from likeness.batch.client import HttpServer, read_address

    first, number = str(uuid.uuid4()), str(uuid.uuid4())

    async def go() -> None:
        worker = HttpServer(read_address(two[0].address))
        await worker.open()
        async with aiohttp.ClientSession() as session:
            try:
                await worker.facts()
                await worker.post(first, colored(15), {})
                assert await worker.wake(first, 10), "it listens"
                url = f"{two[0].address}/ws?clientId={worker._client_id}"
                async with session.ws_connect(url) as another:
                    await another.receive(timeout=10)
                    await worker.post(number, colored(14), {})
                    said = ""
                    while said != "executing: None":
                        message = await another.receive_json(timeout=10)
                        said = f"{message['type']}: {message['data'].get('node')}"
                    assert not await worker.wake(number, 0.3) and not worker.heard(number)
                    assert worker._listening is not None and not worker._listening.done()
                    ending = await worker.ending(number)
                    assert ending is not None and ending.status == "success"
            finally:
                await worker.close()

    asyncio.run(asyncio.wait_for(go(), 60))


def test_a_seed_that_the_browser_randomises_is_never_changed_by_the_host(two):
    client = server_module.Client(two[0].address)
    graph = long_graph(client, 1)
    graph["12"]["inputs"]["control_after_generate"] = "randomize"
    first, again = str(uuid.uuid4()), str(uuid.uuid4())
    post(client, first, graph)
    wait_for(client, first)
    post(client, again, graph)
    entry = wait_for(client, again)
    assert entry["prompt"][2]["12"]["inputs"]["seed"] == graph["12"]["inputs"]["seed"]
    cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    assert "12" in cached, "the same seed: nothing is sampled anew"


def test_one_prompt_is_cancelled_by_its_id_and_no_other(two):
    """What waits, what runs, and a stranger's beside them; over the routes that `client.cancel` takes."""
    from likeness.batch.client import HttpServer, read_address

    client = server_module.Client(two[0].address)
    running, ours, stranger = (str(uuid.uuid4()) for _ in range(3))

    async def go() -> None:
        worker = HttpServer(read_address(two[0].address))
        await worker.open()
        try:
            await worker.facts()
            for number, steps in ((running, 3000), (ours, 2), (stranger, 1)):
                post(client, number, long_graph(client, steps))
            while await worker.state(running) is not State.RUNNING:
                await asyncio.sleep(0.05)
            assert await worker.state(ours) is State.WAITING and await worker.ending(ours) is None
            assert await worker.state(str(uuid.uuid4())) is State.UNKNOWN
            queue = await worker.queue()
            assert running in queue.running and {ours, stranger} <= queue.waiting
            await worker.cancel(ours)
            assert await worker.state(ours) is not State.WAITING and await worker.state(running) is State.RUNNING
            await worker.cancel(str(uuid.uuid4()))  # one that nobody knows
            assert await worker.state(running) is State.RUNNING
            await worker.cancel(running)
            while (ending := await worker.ending(running)) is None:
                await asyncio.sleep(0.05)
            assert ending.status == "interrupted"
            assert wait_for(client, running)["status"]["status_str"] == "error"  # as for one that failed
            assert wait_for(client, stranger)["status"]["status_str"] == "success"
            assert await worker.state(stranger) is State.FINISHED
        finally:
            await worker.close()

    asyncio.run(asyncio.wait_for(go(), 120))


def long_graph(client, steps: int):
    """The miniature's portrait, for this many steps."""
    upload(client, "", "miniature_person.png", (PACK / "workflows" / "miniature_person.png").read_bytes())
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    graph["12"]["inputs"] |= {"steps": steps, "seed": steps}
    return graph


def colored(color: int, prefix: str = "x"):
    graph = json.loads(json.dumps(PLAIN))
    graph["1"]["inputs"]["color"], graph["2"]["inputs"]["filename_prefix"] = color, prefix
    return graph


def saved(client, graph) -> tuple[str, str]:
    """Folder and name of the one image that a graph saves."""
    post(client, number := str(uuid.uuid4()), graph)
    [picture] = wait_for(client, number)["outputs"]["2"]["images"]
    return picture["subfolder"], picture["filename"]


def post(client, number: str, graph) -> dict:
    return json.loads(client.post("/prompt", {"prompt": graph, "prompt_id": number}))


def upload(client, subfolder: str, name: str, content: bytes) -> dict:
    import urllib.request

    edge = uuid.uuid4().hex
    parts = [("subfolder", "", subfolder.encode()), ("image", f'; filename="{name}"', content)]
    body = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"{more}\r\n\r\n'.encode() + value + b"\r\n"
        for key, more, value in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(f"{client.address}/upload/image", body + f"--{edge}--\r\n".encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def comfyui_version(server) -> tuple[int, ...]:
    said = server_module.Client(server.address).get_json("/system_stats")["system"]["comfyui_version"]
    return tuple(int(part) for part in said.split("."))


def wait_for(client, number: str):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := client.get_json(f"/history/{number}").get(number):
            return found
        time.sleep(0.05)
    raise TimeoutError(number)


def test_identities_are_made_by_a_server_where_this_machine_has_no_face_models(two, tmp_path, monkeypatch):
    """Once for each person, as they would be made here, and sent as files to the node that loads them."""
    import torch

    from likeness.batch.people import PersonPhotos, identity_from
    from likeness.cli import opening
    from likeness.faces import Identity

    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    graph["12"]["inputs"]["steps"] = 2
    for number in ("1", "2", "3", "5"):
        del graph[number]
    graph["4"] = {"class_type": "LikenessLoadIdentity", "inputs": {"file": "nobody.safetensors"}}
    (tmp_path / "api.json").write_text(json.dumps(graph))
    content = (PACK / "workflows" / "miniature_person.png").read_bytes()
    for name in ("ann/1.png", "ann/2.png"):
        (tmp_path / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / name).write_bytes(content)
    Image.new("RGB", (64, 48)).save(tmp_path / "people" / "ann" / "3.png")  # nobody
    (tmp_path / "plan.json").write_text(
        json.dumps(
            {
                "workflow": "api.json",
                "people": {"photos": "people/*/*.png", "into": "LikenessLoadIdentity.file", "faces": "miniature"},
                "seeds": {"into": ["KSampler.seed"], "count": 2},
            }
        )
    )

    def no_models(name: str):
        raise LikenessError(f"{name} is not here: get it.")

    monkeypatch.setattr(opening, "open_faces", no_models)
    run = tmp_path / "run"
    result = likeness("run", tmp_path / "plan.json", "--out", run, "--server", two[0].address)
    assert result.exit_code == 0, result.output
    assert "analyses the photos of 1 people (miniature)" in result.output
    assert [(row["state"], row["person"]) for row in manifest(run)] == [("done", "ann")] * 2
    [file] = (run / "identities").glob("*.safetensors")
    made = Identity.load(file)
    here = identity_from(
        PersonPhotos("ann", sorted((tmp_path / "people" / "ann").glob("*.png"))), open_faces("miniature")
    )
    assert len(made) == 2 and made.left_out == [3] and made.recogniser == here.recogniser
    assert torch.allclose(made.embeddings, here.embeddings, atol=1e-5) and torch.equal(made.aligned, here.aligned)


def test_twelve_rows_on_two_servers_one_of_which_is_killed(two, tmp_path):
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    graph["12"]["inputs"]["steps"] = 4
    (tmp_path / "api.json").write_text(json.dumps(graph))
    (tmp_path / "person.png").write_bytes((PACK / "workflows" / "miniature_person.png").read_bytes())
    prompts = ("a photo of a smiling person", "a photo of a person in the snow", "a photo of a person in a red shirt")
    lines = [f"person.png,{prompt},{seed}" for prompt in prompts for seed in range(4)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["LoadImage.image,Positive prompt.text,KSampler.seed", *lines]) + "\n")
    run, servers = tmp_path / "run", [word for server in two for word in ("--server", server.address)]

    def kill() -> None:
        while len(list((run / "images").rglob("*.png"))) < 4:
            time.sleep(0.05)
        os.killpg(two[1].process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = likeness("run", tmp_path / "api.json", table, "--out", run, *servers, "--grace", 2, "--expect", 12)
    assert result.exit_code == 0, result.output
    killer.join(10)
    assert two[1].process.wait(10) == -signal.SIGKILL
    rows = manifest(run)
    assert [row["state"] for row in rows] == ["done"] * 12 and len({row["file"] for row in rows}) == 12
    assert {path.relative_to(run).as_posix() for path in (run / "images").rglob("*.png")} == {r["file"] for r in rows}
    by_hand = server_module.Client(two[0].address)
    graph["1"]["inputs"]["image"] = by_hand.upload_image("person.png", np.asarray(Image.open(tmp_path / "person.png")))
    graph["9"]["inputs"]["text"], graph["12"]["inputs"]["seed"] = prompts[2], 3
    [picture] = by_hand.images(by_hand.run(graph), "14")
    with Image.open(io.BytesIO((run / rows[11]["file"]).read_bytes())) as ours:
        assert np.array_equal(np.asarray(ours), picture)
        assert rows[11]["row_id"] in ours.info["likeness"]
    again = likeness("run", tmp_path / "api.json", table, "--out", run, "--server", two[0].address)
    assert again.exit_code == 0 and "12 rows done" in again.output


def test_a_killed_client_goes_on_and_nothing_runs_twice(two, tmp_path):
    """kill -9 of the client in the middle of a row; what its server had of it is adopted."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    graph["12"]["inputs"]["steps"] = 40
    (tmp_path / "api.json").write_text(json.dumps(graph))
    (tmp_path / "person.png").write_bytes((PACK / "workflows" / "miniature_person.png").read_bytes())
    table, run = tmp_path / "rows.csv", tmp_path / "run"
    table.write_text("LoadImage.image,KSampler.seed\n" + "".join(f"person.png,{seed}\n" for seed in range(5)))
    words = ["run", tmp_path / "api.json", table, "--out", run, "--server", two[0].address]
    client = subprocess.Popen([sys.executable, "-m", "likeness.cli", "batch", *map(str, words)])
    while len(list((run / "images").rglob("*.png"))) < 2:
        assert client.poll() is None
        time.sleep(0.01)
    client.kill()
    client.wait()
    post(server_module.Client(two[0].address), gui := str(uuid.uuid4()), PLAIN)
    journal = Journal.open(run / "journal.sqlite", read_only=True)
    under_way = [attempt.prompt_id for attempt in journal.under_way()]
    journal.close()
    assert under_way
    result = likeness(*words)
    assert result.exit_code == 0, result.output
    assert [row["state"] for row in manifest(run)] == ["done"] * 5
    assert {row["attempts"] for row in manifest(run)} == {"1"}, "nothing was sent twice"
    assert wait_for(server_module.Client(two[0].address), gui)["status"]["status_str"] == "success"


def test_a_real_zombie_is_found(two, tmp_path):
    """Waiting prompts of one number and one id end the server's worker thread: it answers, and runs nothing more.
    (The last test of these servers.)"""
    from likeness.batch.check import check_plan
    from likeness.batch.client import HttpServer, read_address
    from likeness.batch.plan import BatchPlan
    from likeness.batch.session import begin, execute
    from likeness.batch.work import WorkSettings

    client = server_module.Client(two[0].address)
    (tmp_path / "api.json").write_text(json.dumps(PLAIN))
    (tmp_path / "rows.csv").write_text("EmptyImage.color\n1\n")
    post(client, blocks := str(uuid.uuid4()), long_graph(client, 3000))
    while not client.get_json("/queue")["queue_running"]:
        time.sleep(0.01)
    same = {"prompt_id": str(uuid.uuid4()), "number": 7}
    client.post("/prompt", {"prompt": colored(1), **same})
    for color in (2, 3):  # queued nevertheless
        with pytest.raises(OSError, match="500"):
            client.post("/prompt", {"prompt": colored(color), **same})
    client.post("/interrupt", {"prompt_id": blocks})
    told = []

    async def go() -> None:
        worker = HttpServer(read_address(two[0].address))
        try:
            checked = await check_plan(
                BatchPlan(tmp_path / "api.json", tmp_path / "rows.csv"), [worker], open_faces, tmp_path
            )
            assert not checked.problems
            run = begin(tmp_path / "run", checked)
            settings = WorkSettings(zombie=1.0, give_up=2.0, poll=(0.1, 15.0))
            await execute(run, [(worker, checked.servers[0].nodes)], settings, tell=lambda kind, _: told.append(kind))
        finally:
            await worker.close()

    (tmp_path / "run").mkdir()
    with pytest.raises(LikenessError, match="accepts prompts but does not run them"):
        asyncio.run(asyncio.wait_for(go(), 60))
    assert "zombie" in told and "done" not in told


OWN = ["local", *(["ray"] if importlib.util.find_spec("ray") else [])]


@pytest.mark.parametrize("where", OWN)
def test_servers_of_our_own_are_started_and_end_with_the_batch(where, host_path, tmp_path, monkeypatch):
    """A host without our pack. The local one is also started again in between, and has forgotten queue and history."""
    monkeypatch.setenv("COMFYUI_PATH", str(host_path))
    (tmp_path / "api.json").write_text(json.dumps(PLAIN))
    (tmp_path / "rows.csv").write_text("EmptyImage.color\n" + "\n".join(map(str, range(4))) + "\n")
    number, restart, states = str(uuid.uuid4()), LocalServer.restart, []

    async def watched(self: LocalServer) -> bool:
        assert not any(name.startswith("Likeness") for name in await self.object_info())
        await self.post(number, PLAIN, {})
        while await self.ending(number) is None:
            await asyncio.sleep(0.05)
        states.append(await self.state(number))
        was_started = await restart(self)
        states.append(await self.state(number))
        return was_started

    monkeypatch.setattr(LocalServer, "restart", watched)
    own = ("--local", 1, "--recycle", 2) if where == "local" else ("--ray", "local", "--workers", 1, "--ray-gpus", 0)
    run = tmp_path / "run"
    result = likeness("run", tmp_path / "api.json", tmp_path / "rows.csv", "--out", run, *own, "--host-args=--cpu")
    assert result.exit_code == 0, result.output
    assert [row["state"] for row in manifest(run)] == ["done"] * 4
    assert states == ([State.FINISHED, State.UNKNOWN] if where == "local" else [])
