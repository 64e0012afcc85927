"""A real ComfyUI server in a process of its own, and a client that follows a run as the browser does."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from likeness.miniature.comfyui_server import started

Prompt = dict[str, dict[str, Any]]


class PromptRefused(Exception):
    """The server did not accept the graph (HTTP 400). `errors` maps a node id to its messages."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.errors = _messages(answer.get("node_errors") or {})
        super().__init__(f"{answer.get('error', {}).get('message')} {self.errors}")


def _messages(node_errors: dict[str, Any]) -> dict[str, list[str]]:
    return {node: [f"{e['message']}: {e['details']}" for e in found["errors"]] for node, found in node_errors.items()}


class RunFailed(Exception):
    """A node raised. `message` is the sentence that the user reads."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.message: str = event["exception_message"].strip()
        trace = "".join(event.get("traceback", []))
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.message}\n{trace}")


class RunInterrupted(Exception):
    """The run was cancelled."""


@dataclass
class Run:
    """What happened in one run, in the order of the websocket's messages."""

    prompt_id: str
    executed: list[str] = field(default_factory=list)  # ids of the nodes that really ran
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node, value, max
    previews: int = 0
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # node -> ui results, from /history
    node_errors: dict[str, Any] = field(default_factory=dict)  # outputs that were left out of an accepted graph
    seconds: float = 0.0

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The messages of each node for which the host left out an output, and ran the others."""
        return _messages(self.node_errors)


@dataclass(frozen=True)
class Client:
    """Talks to one server."""

    address: str  # http://127.0.0.1:port

    def get(self, path: str, **query: str) -> bytes:
        """The body of a GET; raises `urllib.error.HTTPError`."""
        url = f"{self.address}{path}" + (f"?{urlencode(query)}" if query else "")
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str, **query: str) -> Any:
        return json.loads(self.get(path, **query))

    def post(self, path: str, body: Any, content_type: str = "application/json") -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self.get_json("/object_info" + (f"/{node}" if node else ""))

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def upload_image(self, name: str, image: np.ndarray) -> str:
        """Store (height, width, 3) uint8 RGB as PNG among the inputs; returns the name that LoadImage takes."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        return self._upload(name, png.getvalue(), "image/png")

    def upload_file(self, path: Path) -> str:
        """Store a JPEG as it is among the inputs; returns the name that LoadImage takes."""
        return self._upload(path.name, path.read_bytes(), "image/jpeg")

    def _upload(self, name: str, content: bytes, kind: str) -> str:
        edge = uuid.uuid4().hex
        fields = "".join(
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in (("type", "input"), ("overwrite", "true"))
        )
        head = (
            f'{fields}--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        answer = json.loads(self.post("/upload/image", body, f"multipart/form-data; boundary={edge}"))
        return "/".join(part for part in (answer["subfolder"], answer["name"]) if part)

    def image(self, reference: dict[str, str]) -> np.ndarray:
        """The image that an entry of `outputs[node]["images"]` names: (height, width, channels) uint8."""
        from PIL import Image

        with Image.open(io.BytesIO(self.get("/view", **reference))) as picture:
            return np.asarray(picture)

    def images(self, run: Run, node: str) -> list[np.ndarray]:
        return [self.image(reference) for reference in run.outputs[node]["images"]]

    def run(self, prompt: Prompt, *, timeout: float = 300, on_event: Callable[[str, dict], None] | None = None) -> Run:
        """Queue the graph and follow it to its end.

        Raises `PromptRefused`, `RunFailed`, `RunInterrupted`, or TimeoutError. `on_event(kind, data)` sees every
        message of this run as it comes (and may call `interrupt`).
        """
        return asyncio.run(asyncio.wait_for(self._follow(prompt, on_event), timeout))

    async def _follow(self, prompt: Prompt, on_event: Callable[[str, dict], None] | None) -> Run:
        import aiohttp

        client_id = uuid.uuid4().hex
        start = time.monotonic()
        async with (
            aiohttp.ClientSession(self.address) as session,
            session.ws_connect("/ws", params={"clientId": client_id}, max_msg_size=0) as events,
        ):
            async with session.post("/prompt", json={"prompt": prompt, "client_id": client_id}) as answer:
                accepted = await answer.json()
                if answer.status != 200:
                    raise PromptRefused(accepted)
            run = Run(accepted["prompt_id"], node_errors=accepted.get("node_errors") or {})
            async for message in events:
                if message.type is aiohttp.WSMsgType.BINARY:
                    run.previews += 1
                    continue
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") != run.prompt_id:
                    continue
                if on_event:
                    on_event(kind, data)
                if _note(run, kind, data):
                    async with session.get(f"/history/{run.prompt_id}") as answer:
                        run.outputs = (await answer.json())[run.prompt_id]["outputs"]
                    run.seconds = time.monotonic() - start
                    return run
        raise ConnectionError("the server closed the websocket in the middle of a run")


def _note(run: Run, kind: str, data: dict[str, Any]) -> bool:
    """Write one message into `run`; True when it was the last."""
    if kind == "executing":
        if data["node"] is None:
            return True
        run.executed.append(data["node"])
    elif kind == "execution_cached":
        run.cached = list(data["nodes"])
    elif kind == "progress":
        run.progress.append((data["node"], data["value"], data["max"]))
    elif kind == "execution_error":
        raise RunFailed(data)
    elif kind == "execution_interrupted":
        raise RunInterrupted(run.prompt_id)
    return False


@dataclass(frozen=True)
class Server:
    """A running server: its client, its base directory (models, input, output, custom_nodes) and its log."""

    client: Client
    base: Path
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextmanager
def running(host: Path, base: Path, pack: Path, *arguments: str, patience: float = 180) -> Iterator[Server]:
    """Start the server on the CPU with `pack` as its only custom node; stop it, and all it started, at the end."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with started(host, base, *arguments, pack=pack, environment=environment, own_group=True) as comfyui:
        server = Server(Client(comfyui.address), base, comfyui.log_file)
        if not comfyui.wait_until_ready(patience):
            ended = comfyui.process.poll()
            if ended is not None:
                raise RuntimeError(f"ComfyUI ended with {ended} before it was ready:\n{server.log()[-4000:]}")
            raise TimeoutError(f"ComfyUI was not ready after {patience:.0f} s:\n{server.log()[-4000:]}")
        yield server
