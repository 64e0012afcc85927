"""Everything at once on three real servers: kill -9, a standstill, a zombie, an interrupting GUI, a client that dies.

LIKENESS_CHAOS_ROWS=500 makes it as long as the specification has it; by default it is short.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from helpers import server as server_module
from PIL import Image

from likeness.batch.journal import Journal
from likeness.miniature.comfyui_server import started

ROWS = int(os.environ.get("LIKENESS_CHAOS_ROWS", "90"))
IS_LONG = ROWS >= 500
KILLS = 10 if IS_LONG else 3  # of the client
STANDSTILL = 40 if IS_LONG else 8  # seconds
POISON = 9_999_999  # a row whose server ends
TOKEN = "token-that-no-file-may-hold"
NODE = '''
import os, time, torch

class CountedRow:
    """An image of one colour; says in a file that it ran."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"color": ("INT", {"default": 0, "min": 0, "max": 16777215}),
                             "seconds": ("FLOAT", {"default": 0.1, "min": 0, "max": 600, "step": 0.01})}}

    def run(self, color, seconds):
        with open(os.environ["COUNTED_ROWS"], "a") as file:
            file.write(f"{color}\\n")
        if color == POISON:
            os._exit(1)
        time.sleep(seconds)
        channels = [color >> shift & 255 for shift in (16, 8, 0)]
        return (torch.tensor(channels).div(255).expand(1, 16, 16, 3).clone(),)

NODE_CLASS_MAPPINGS = {"CountedRow": CountedRow}
'''.replace("POISON", str(POISON))
GRAPH = {
    "1": {"class_type": "CountedRow", "inputs": {"color": 0, "seconds": 0.1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


class Place:
    """A server's port and folder; the server there can be ended and started again."""

    def __init__(self, comfyui: Path, base: Path, counted: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (base / "custom_nodes").mkdir(parents=True)
        (base / "custom_nodes" / "counted.py").write_text(NODE)
        self.comfyui, self.base = comfyui, base
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment |= {"OMP_NUM_THREADS": "1", "COUNTED_ROWS": str(counted)}
        self.stack = ExitStack()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        server = started(self.comfyui, self.base, environment=self.environment, own_group=True, port=self.port)
        self.server = self.stack.enter_context(server)

    def wait_until_ready(self) -> None:
        assert self.server.wait_until_ready(240), self.server.log()[-2000:]

    @property
    def has_ended(self) -> bool:
        return self.server.process.poll() is not None

    def send(self, sign: signal.Signals) -> None:
        os.killpg(self.server.process.pid, sign)


@pytest.fixture
def places(host_path: Path, tmp_path: Path) -> Iterator[list[Place]]:
    made = [Place(host_path, tmp_path / f"server_{number}", tmp_path / "counted.txt") for number in range(3)]
    try:
        for place in made:
            place.start()
        for place in made:
            place.wait_until_ready()
        yield made
    finally:
        for place in made:
            with suppress(ProcessLookupError):
                place.send(signal.SIGCONT)
            place.stack.close()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups and SIGSTOP")
def test_whatever_happens_every_row_is_there_once(places, tmp_path):
    colors = random.Random(3).sample(range(1, 1 << 24), ROWS)
    assert POISON not in colors
    colors.insert(ROWS // 2, POISON)
    (tmp_path / "api.json").write_text(json.dumps(GRAPH))
    (tmp_path / "rows.csv").write_text("CountedRow.color\n" + "".join(f"{color}\n" for color in colors))
    before, run = {path.name for path in tmp_path.iterdir()}, tmp_path / "run"
    words = ["run", tmp_path / "api.json", tmp_path / "rows.csv", "--out", run, "--grace", 2]
    words += [word for place in places for word in ("--server", place.address)]
    words += ["--header-env", "*:X-Secret=BATCH_SECRET"]
    gui = suffer([*map(str, words)], places, run, len(colors))

    with (run / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["CountedRow.color"]) for row in rows] == colors
    assert [row["state"] for row in rows] == ["failed" if color == POISON else "done" for color in colors]
    files = [row["file"] for row in rows if row["state"] == "done"]
    assert len(set(files)) == ROWS
    assert {path.relative_to(run).as_posix() for path in (run / "images").rglob("*") if path.is_file()} == set(files)
    for row in rows:
        if row["state"] == "done":
            content = (run / row["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["sha256"]
            with Image.open(run / row["file"]) as image:  # what an undisturbed run would have made
                assert image.getpixel((0, 0)) == tuple(int(row["CountedRow.color"]).to_bytes(3, "big"))
    ran = Counter(map(int, (tmp_path / "counted.txt").read_text().split()))
    journal = Journal.open(run / "journal.sqlite", read_only=True)
    attempts = {color: len(journal.attempts(number)) for number, color in enumerate(colors, 1)}
    journal.close()
    assert all(ran[color] <= attempts[color] for color in colors), "nothing ran that was not sent"
    assert {path.name for path in tmp_path.iterdir()} == before | {"run", "counted.txt"}
    assert not [path for path in run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    said = server_module.Client(places[2].address).get_json("/history")
    assert gui not in said or said[gui]["status"]["status_str"] == "success", "somebody else's prompt was left alone"


def suffer(words: list[str], places: list[Place], run: Path, rows: int) -> str:
    """Run the batch through all of it, to its end; returns the id of a prompt that is somebody else's."""
    one, two, three = places
    gui = str(uuid.uuid4())
    later: list[tuple[float, Callable[[], object]]] = []  # (time, what happens then)
    started_at: dict[Place, float] = {}  # share of done rows from which an administrator starts it again
    clients = [client(words)]

    def kill_one() -> None:
        one.send(signal.SIGKILL)
        started_at[one] = 0.5

    def stop_two() -> None:
        two.send(signal.SIGSTOP)
        later.append((time.monotonic() + STANDSTILL, lambda: two.send(signal.SIGCONT)))

    def kill_client() -> None:
        clients[-1].kill()

    events: list[tuple[float, Callable[[], object]]] = [
        *((0.05 + 0.8 * number / KILLS, kill_client) for number in range(KILLS)),
        (0.15, lambda: server_module.Client(one.address).post("/interrupt", {})),  # whatever runs, from "the GUI"
        (0.2, kill_one),
        (0.3, stop_two),
        (0.7, lambda: make_zombie(three, gui)),
    ]
    events.sort(key=lambda event: event[0])
    end = time.monotonic() + 300 + 2 * ROWS
    while True:
        share = len(list((run / "images").rglob("*.png"))) / rows
        assert time.monotonic() < end, f"{share:.0%} of the rows are done"
        while events and events[0][0] <= share:
            later.append((time.monotonic(), events.pop(0)[1]))
        for moment, event in [(moment, event) for moment, event in later if time.monotonic() >= moment]:
            later.remove((moment, event))
            try:
                event()
            except OSError:  # that server is just being started again
                later.append((time.monotonic() + 1, event))
        for place in places:
            if place.has_ended and share >= started_at.get(place, 0):
                place.start()
        if (code := clients[-1].poll()) is not None:
            said = clients[-1].stdout.read()  # pyright: ignore[reportOptionalMemberAccess]
            if code >= 0:
                break
            clients.append(client(words))
        time.sleep(0.05)
    assert code == 1 and not events and not later and len(clients) == KILLS + 1, said
    return gui


def client(words: list[str]) -> subprocess.Popen[str]:
    """The batch in a process of its own, which may be killed."""
    command = [sys.executable, "-m", "likeness.cli", "batch", *words]
    environment = os.environ | {"BATCH_SECRET": TOKEN}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def make_zombie(place: Place, gui: str) -> None:
    """Somebody else's prompt runs; then waiting prompts of one number and one id end the server's worker thread."""
    host = server_module.Client(place.address)
    long = json.loads(json.dumps(GRAPH))
    long["1"]["inputs"]["seconds"] = 3.0
    host.post("/prompt", {"prompt": long, "prompt_id": gui})
    same = {"prompt": GRAPH, "prompt_id": str(uuid.uuid4()), "number": 7}
    for _ in range(3):
        with suppress(OSError):  # it says 500, and queues them nevertheless
            host.post("/prompt", same)
