"""Batches on real servers: a table of 12 rows on two of them, one of which is killed on the way."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
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
    return CliRunner().invoke(cli.build(), ["batch", *map(str, words)])


def manifest(run: Path) -> list[dict[str, str]]:
    with (run / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_facts_that_batches_stand_on(two):
    client, version = server_module.Client(two[0].address), comfyui_version(two[0])
    number = str(uuid.uuid4())
    body = {"prompt": PLAIN, "prompt_id": number}
    assert json.loads(client.post("/prompt", body))["prompt_id"] == number
    entry = wait_for(client, number)
    assert entry["status"]["messages"][-1][0] == "execution_success"
    assert client.get_json(f"/history/{uuid.uuid4()}") == {}  # as for one that waits or runs
    client.post("/history", {"delete": [number]})
    assert client.get_json(f"/history/{number}") == {}
    again = str(uuid.uuid4())  # an equal graph: the old file is named, and none is written
    client.post("/prompt", {"prompt": PLAIN, "prompt_id": again})
    assert wait_for(client, again)["outputs"] == entry["outputs"]
    if version >= (0, 26):
        assert client.get_json(f"/api/jobs/{again}")["status"] == "completed"
        assert json.loads(client.post(f"/api/jobs/{again}/cancel", {})) == {"cancelled": False}
    upper = {"prompt": PLAIN, "prompt_id": number.upper()}
    if version >= (0, 25):
        with pytest.raises(OSError, match="400"):
            client.post("/prompt", upper)


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


OWN = ["local", *(["ray"] if importlib.util.find_spec("ray") else [])]


@pytest.mark.parametrize("where", OWN)
def test_servers_of_our_own_are_started_and_end_with_the_batch(where, host_path, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host_path))
    (tmp_path / "api.json").write_text(json.dumps(PLAIN))
    (tmp_path / "rows.csv").write_text("EmptyImage.color\n" + "\n".join(map(str, range(4))) + "\n")
    own = ("--local", 1) if where == "local" else ("--ray", "local", "--workers", 1, "--ray-gpus", 0)
    run = tmp_path / "run"
    result = likeness("run", tmp_path / "api.json", tmp_path / "rows.csv", "--out", run, *own, "--host-args=--cpu")
    assert result.exit_code == 0, result.output
    assert [row["state"] for row in manifest(run)] == ["done"] * 4
