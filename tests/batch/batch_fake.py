"""A ComfyUI that computes nothing: its routes as the host has them, in this process, with faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

OBJECT_INFO: dict[str, Any] = {
    "EmptyImage": {
        "input": {
            "required": {
                "width": ["INT", {"min": 1, "max": 4096}],
                "height": ["INT", {"min": 1, "max": 4096}],
                "color": ["INT", {"min": 0, "max": 0xFFFFFF}],
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "strength": ["FLOAT", {"min": 0.0, "max": 2.0}],
                "text": ["STRING", {}],
                "fast": ["BOOLEAN", {}],
            },
            "optional": {"model": [["a.safetensors", "b.safetensors"], {}]},
        },
        "output": ["IMAGE"],
        "output_node": False,
    },
    "LoadImage": {
        "input": {"required": {"image": [["here.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
        "output_node": False,
    },
    "LikenessLoadIdentity": {
        "input": {"required": {"file": [["somebody.safetensors"], {}]}},
        "output": ["LIKENESS_IDENTITY"],
        "output_node": False,
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
    "LikenessLoadFaceAnalysis": {
        "input": {"required": {"model": [["buffalo_l", "OpenCV (YuNet + SFace)", "miniature"], {}]}},
        "output": ["LIKENESS_FACE_ANALYSIS"],
        "output_node": False,
    },
    "LikenessFindFaces": {"input": {"required": {}}, "output": ["LIKENESS_FACES"], "output_node": False},
    "LikenessIdentityFromPhotos": {"input": {"required": {}}, "output": ["LIKENESS_IDENTITY"], "output_node": False},
    "LikenessSaveIdentity": {
        "input": {"required": {"filename": ["STRING", {}]}, "optional": {"place": [["models", "output"], {}]}},
        "output": ["STRING"],
        "output_node": True,
    },
    "PaidNode": {
        "input": {"required": {"text": ["STRING", {}]}},
        "output": ["IMAGE"],
        "output_node": False,
        "api_node": True,
    },
}


def graph() -> dict[str, Any]:
    """A workflow for it."""
    empty = {"width": 8, "height": 8, "color": 1, "seed": 0, "strength": 1.0, "text": "x", "fast": True}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty, "_meta": {"title": "Paint"}},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "x"},
            "_meta": {"title": "Save"},
        },
    }


def png(color: int, text: dict[str, Any] | None = None, side: int = 8) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    notes, made = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        notes.add_text(key, json.dumps(value))
    Image.new("RGB", (side, side), (color >> 16 & 255, color >> 8 & 255, color & 255)).save(made, "PNG", pnginfo=notes)
    return made.getvalue()


def padded(picture: bytes, count: int) -> bytes:
    """The image with this many bytes of text before its end."""
    return picture[:-12] + _text_chunk(count) + picture[-12:] if count else picture


@cache
def _text_chunk(count: int) -> bytes:
    text = b"tEXt" + b"x\0" + b"x" * count
    return (count + 2).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")


class Fake:
    """One server. `faults` maps a row's colour to what goes wrong with it, as often as it is listed."""

    def __init__(self, version: str = "0.3.64", seconds: float = 0.0, info: dict[str, Any] | None = None):
        self.version, self.seconds, self.info = version, seconds, info or OBJECT_INFO
        self.pending: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.running: str | None = None
        self.history: dict[str, Any] = {}
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.runs: Counter[str] = Counter()  # of prompts
        self.made: Counter[int] = Counter()  # of colours
        self.faults: dict[int, list[str]] = {}
        self.next_answers: list[str] = []  # to POST /prompt
        self.posted: list[dict[str, Any]] = []
        self.uploaded: list[str] = []
        self.interrupted: list[Any] = []
        self.freed = 0
        self.most_waiting = 0
        self.is_zombie = self.is_silent = self.hangs = False
        self.redirect = ""
        self.folder: Path | None = None  # where it saves its files too
        self.views = 0
        self.view_faults: list[str] = []  # of the next files it sends
        self.lag = 0.0  # seconds until an answer arrives
        self.padding = 0  # bytes that every image is larger
        self.side = 8  # of its images
        self.sees: Callable[[bytes], bytes | None] | None = None  # a photo -> the identity file of who it shows
        self.seen: list[str] = []  # photos
        self.words = "it \x1b[31mbroke"  # of its errors
        self.contents: dict[int, bytes] = {}  # what it sends for a colour instead of an image
        self.headers: list[Any] = []
        self.port = 0
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._work = asyncio.Event()
        self._cancel = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(middlewares=[self._gate], client_max_size=2**28)
        app.add_routes(
            [
                web.get("/ws", self._ws),
                web.get("/system_stats", self._stats),
                web.get("/object_info", self._info),
                web.post("/prompt", self._prompt),
                web.get("/queue", self._queue),
                web.post("/queue", self._delete),
                web.get("/history/{id}", self._history),
                web.post("/history", self._forget),
                web.get("/view", self._view),
                web.post("/upload/image", self._upload),
                web.post("/interrupt", self._interrupt),
                web.post("/free", self._free),
                web.get("/api/jobs/{id}", self._job),
                web.post("/api/jobs/{id}/cancel", self._cancel_job),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        """As kill -9 does: what it knew is gone, files stay."""
        if self._task:
            self._task.cancel()
        self.pending, self.running, self.history = [], None, {}
        for socket in list(self._sockets.values()):
            with contextlib.suppress(Exception):
                await socket.close()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    # --- work

    async def _run(self) -> None:
        while True:
            if not self.pending or self.is_zombie:
                self._work.clear()
                await self._work.wait()
                continue
            number, prompt, extra = self.pending.pop(0)
            self.running = number
            self._cancel.clear()
            client = extra.get("client_id")
            await self._say(client, "execution_start", number)
            self.runs[number] += 1
            paint = next(n["inputs"] for n in prompt.values() if n["class_type"] in ("EmptyImage", "LoadImage"))
            color = int(paint.get("color", 0))
            self.made[color] += 1
            fault = self.faults[color].pop(0) if self.faults.get(color) else ""
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._cancel.wait(), 3600 if fault == "hang" else self.seconds or 0.0001)
            if fault == "die":
                self._dying = asyncio.create_task(self.kill())
                return
            self.history[number] = self._entry(
                number, prompt, extra, color, "interrupted" if self._cancel.is_set() else fault
            )
            if fault == "forget":
                del self.history[number]
            self.running = None
            await self._say(client, "executing", number)

    def _entry(self, number: str, prompt: Any, extra: Any, color: int, fault: str) -> dict[str, Any]:
        start = ["execution_start", {"prompt_id": number, "timestamp": 1000}]
        if fault in ("error", "memory", "type error", "interrupted"):
            kinds = {"memory": "torch.OutOfMemoryError", "type error": "TypeError", "error": "RuntimeError"}
            data = {"prompt_id": number, "timestamp": 1500, "node_id": "1", "node_type": "EmptyImage"}
            data |= {"exception_type": kinds.get(fault, ""), "exception_message": self.words}
            last = "execution_interrupted" if fault == "interrupted" else "execution_error"
            return {"status": {"status_str": "error", "messages": [start, [last, data]]}, "outputs": {}}
        if fault != "gone" and (save := prompt.get("save")) and save["class_type"] == "LikenessSaveIdentity":
            return self._identity(prompt, save["inputs"]["filename"], start)
        saver, node = next((n, v) for n, v in prompt.items() if v["class_type"] == "SaveImage")
        folder, _, name = str(node["inputs"]["filename_prefix"]).rpartition("/")
        file = {"filename": f"{name}_00001_.png", "subfolder": folder, "type": "output"}
        notes = {"prompt": prompt, **extra.get("extra_pnginfo", {})}
        content = self.contents.get(color) or padded(png(color, notes, self.side), self.padding)
        content = {"page": b"<!DOCTYPE html>", "cut": content[:-20], "gone": b""}.get(fault, content)
        if fault == "escape":
            file = {"filename": "../../../x.png", "subfolder": "../..", "type": "output"}
        if fault != "gone":
            self.files[file["type"], file["subfolder"], file["filename"]] = content
            if self.folder is not None:
                (self.folder / file["subfolder"]).mkdir(parents=True, exist_ok=True)
                (self.folder / file["subfolder"] / file["filename"]).write_bytes(content)
        outputs = {} if fault == "empty" else {saver: {"images": [file]}}
        last = ["execution_success", {"prompt_id": number, "timestamp": 1500}]
        return {"status": {"status_str": "success", "completed": True, "messages": [start, last]}, "outputs": outputs}

    def _identity(self, prompt: Any, name: str, start: Any) -> dict[str, Any]:
        image = prompt["photo"]["inputs"]["image"]
        assert self.sees is not None
        self.seen.append(image)
        folder, _, file = image.rpartition("/")
        made = self.sees(self.files["input", folder, file])
        if made is None:
            data = {"node_id": "find", "node_type": "LikenessFindFaces", "exception_type": "LikenessError"}
            data |= {"exception_message": "No face was found"}
            return {"status": {"status_str": "error", "messages": [start, ["execution_error", data]]}, "outputs": {}}
        folder, _, file = f"likeness/{name}.safetensors".rpartition("/")
        self.files["output", folder, file] = made
        outputs = {"save": {"text": [name], "files": [{"filename": file, "subfolder": folder, "type": "output"}]}}
        return {"status": {"status_str": "success", "messages": [start]}, "outputs": outputs}

    async def _say(self, client: Any, kind: str, number: str) -> None:
        socket = self._sockets.get(str(client))
        if socket is not None and not self.is_silent:
            with contextlib.suppress(Exception):
                await socket.send_json({"type": kind, "data": {"prompt_id": number, "node": None}})

    # --- routes

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if self.hangs:
            await asyncio.sleep(3600)
        if self.lag:
            await asyncio.sleep(self.lag)
        if self.redirect:
            raise web.HTTPFound(self.redirect)
        return await handler(request)

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query.get("clientId", "")] = socket
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                break
        return socket

    async def _stats(self, _: web.Request) -> web.Response:
        system = {"comfyui_version": self.version, "pytorch_version": "2", "argv": sys.argv}
        return web.json_response({"system": system, "devices": []})

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        said = await request.json()
        self.posted.append(said)
        number = said["prompt_id"]
        answer = self.next_answers.pop(0) if self.next_answers else ""
        if answer == "500":
            return web.Response(status=500)
        if answer == "400":
            return web.json_response({"error": {"message": "bad"}, "node_errors": {}}, status=400)
        extra = {**said.get("extra_data", {}), "client_id": said.get("client_id")}
        self.pending.append((number, said["prompt"], extra))
        self.most_waiting = max(self.most_waiting, len(self.pending) + (self.running is not None))
        self._work.set()
        if answer == "accepted, then 500":
            return web.Response(status=500)
        if answer == "reset" and request.transport is not None:
            request.transport.close()
        errors = {"2": {"errors": [{"message": "bad", "details": "x"}]}} if answer == "node errors" else {}
        return web.json_response({"prompt_id": number, "number": 1, "node_errors": errors})

    async def _queue(self, _: web.Request) -> web.Response:
        running = [[0, self.running, {}, {}, []]] if self.running else []
        return web.json_response(
            {"queue_running": running, "queue_pending": [[0, p[0], p[1], {}, []] for p in self.pending]}
        )

    async def _delete(self, request: web.Request) -> web.Response:
        gone = (await request.json()).get("delete", [])
        self.pending = [one for one in self.pending if one[0] not in gone]
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        return web.json_response({number: self.history[number]} if number in self.history else {})

    async def _forget(self, request: web.Request) -> web.Response:
        for number in (await request.json()).get("delete", []):
            self.history.pop(number, None)
        return web.Response()

    async def _view(self, request: web.Request) -> web.StreamResponse:
        self.views += 1
        fault = self.view_faults.pop(0) if self.view_faults else ""
        if fault in ("huge", "drip"):
            answer = web.StreamResponse()
            answer.content_length = 5 * 10**9 if fault == "huge" else 1000
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError):
                await answer.write(b"\x89PNG")
                await asyncio.sleep(1.0)
            return answer
        if fault:
            return web.Response(status=int(fault))
        key = tuple(request.query.get(name, "") for name in ("type", "subfolder", "filename"))
        found = self.files.get(key)  # type: ignore[arg-type]
        return web.Response(status=404) if found is None else web.Response(body=found, content_type="image/png")

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file: Any = form["image"]
        self.files[str(form["type"]), str(form["subfolder"]), file.filename] = file.file.read()
        self.uploaded.append(file.filename)
        return web.json_response({"name": file.filename, "subfolder": form["subfolder"], "type": form["type"]})

    async def _interrupt(self, request: web.Request) -> web.Response:
        said = json.loads(await request.text() or "{}")
        self.interrupted.append(said.get("prompt_id"))
        if said.get("prompt_id") in (None, self.running):
            self._cancel.set()
        return web.Response()

    async def _free(self, _: web.Request) -> web.Response:
        self.freed += 1
        return web.Response()

    def _has_jobs(self) -> bool:
        return tuple(map(int, self.version.split("."))) >= (0, 26)

    async def _job(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        waiting = number in [one[0] for one in self.pending]
        status = (
            "completed"
            if number in self.history
            else "in_progress"
            if number == self.running
            else "pending"
            if waiting
            else ""
        )
        if not status or not self._has_jobs():
            return web.Response(status=404)
        return web.json_response({"id": number, "status": status})

    async def _cancel_job(self, request: web.Request) -> web.Response:
        if not self._has_jobs():
            return web.Response(status=404)
        number = request.match_info["id"]
        self.pending = [one for one in self.pending if one[0] != number]
        self.interrupted.append(number)
        if number == self.running:
            self._cancel.set()
        return web.json_response({"cancelled": True})


@asynccontextmanager
async def serving(*fakes: Fake) -> AsyncIterator[list[Fake]]:
    """The servers, running."""
    for fake in fakes:
        await fake.start()
    try:
        yield list(fakes)
    finally:
        for fake in fakes:
            await fake.kill()


@contextmanager
def in_background(*fakes: Fake) -> Iterator[list[Fake]]:
    """The servers, running in a thread, for a command line that has this one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    for fake in fakes:
        wait_for(fake.start())
    try:
        yield list(fakes)
    finally:
        for fake in fakes:
            wait_for(fake.kill())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
