"""A ComfyUI at an address: the worker that all others end in. Its answers are bounded and never trusted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import LikenessError, one_line
from .graph import MOST_BYTES, Graph
from .workers import (
    Away,
    BadFile,
    Ending,
    Queue,
    Refused,
    Served,
    ServerFacts,
    State,
    Unwelcome,
    Upload,
    happens_within,
)

if TYPE_CHECKING:
    import aiohttp

OLDEST = (0, 3, 48)  # lets us choose the prompt's id, and speaks V3
_TARGETED_INTERRUPT = (0, 3, 57)
_JOB_ROUTES = (0, 26)  # with a route that cancels
API_KEY = "api_key_comfy_org"  # in a prompt's extra data
_MOST_FRAME = 32 * 2**20  # bytes of a websocket's message
_BLOCK = 2**18
_MOST_WORDS = 2000  # characters of an error that are kept


@dataclass(frozen=True)
class Access:
    """How servers are spoken to."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # secrets: never written anywhere
    api_key: str = field(default="", repr=False)  # a secret, too: what nodes that cost money are paid with
    ca: Path | None = None
    trust_env: bool = False
    timeout: float = 30.0  # seconds without a byte


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, without what must not be shown."""

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)


def read_address(text: str) -> ServerAddress:
    """An address as a user writes it. LikenessError for an invalid one; a password is never shown."""
    given = text.strip()
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        host = port = None
        parts = urlsplit("")
    shown = re.sub(r"//[^/@]*@", "//…@", given)
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or re.search(r"\s", url):
        raise LikenessError(f"The server {shown!r} is not an address: write one such as http://127.0.0.1:8188.")
    bracketed = f"[{host}]" if ":" in host else host
    clean = f"{parts.scheme}://{bracketed}" + (f":{port}" if port else "") + parts.path.rstrip("/")
    login = (parts.username or "", parts.password or "") if parts.username is not None else None
    return ServerAddress(clean, login)


class HttpServer:
    """A server that runs already."""

    def __init__(self, address: ServerAddress, access: Access | None = None):
        self.address, self.access = address, access or Access()
        self.version: tuple[int, ...] = ()
        self._session: aiohttp.ClientSession | None = None
        self._listening: asyncio.Task[None] | None = None
        self._client_id = uuid.uuid4().hex  # whoever connects last under an id gets its messages, and nobody else
        self._answered = asyncio.Event()  # after a silence: time to listen again
        self._news: dict[str, asyncio.Event] = {}
        self._heard: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self.address.url

    @property
    def has_ended(self) -> bool:
        return False

    # --- life

    async def open(self) -> None:
        aiohttp = _aiohttp()
        login = self.address.login
        context: Any = ssl.create_default_context(cafile=str(self.access.ca)) if self.access.ca else True
        await self._disconnect()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8, ssl=context),
            auth=aiohttp.BasicAuth(*login) if login else None,
            headers={"Accept-Encoding": "identity", **self.access.headers},
            timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_connect=10, sock_read=self.access.timeout),
            trust_env=self.access.trust_env,
            auto_decompress=False,  # a small answer cannot become a large one
        )
        self._listening = asyncio.create_task(self._listen())

    async def close(self) -> None:
        await self._disconnect()

    def listen_as(self, client: str) -> None:
        self._client_id = client
        if self._listening is not None:  # under another name
            self._listening.cancel()
            self._listening = asyncio.create_task(self._listen())

    async def _disconnect(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        if self._session is not None:
            await self._session.close()
        self._session = self._listening = None

    async def restart(self) -> bool:
        return False

    # --- what it is

    async def facts(self) -> ServerFacts:
        stats = await self._json("GET", "/system_stats")
        system = stats.get("system") if isinstance(stats, dict) else None
        if not isinstance(system, dict):
            raise Unwelcome(f"{self.name} does not answer as a ComfyUI does")
        self._answered.set()
        said = str(system.get("comfyui_version", ""))
        self.version = tuple(int(number) for number in re.findall(r"\d+", said.split("+")[0])[:4])
        devices = [d for d in stats.get("devices") or [] if isinstance(d, dict)]
        return ServerFacts(
            version=self.version,
            version_text=one_line(said)[:40],
            torch=one_line(system.get("pytorch_version", ""))[:40],
            devices=tuple(one_line(device.get("name", ""))[:100] for device in devices),
            extra={"vram": [device.get("vram_total") for device in devices]},
        )

    async def object_info(self) -> Mapping[str, Any]:
        info = await self._json("GET", "/object_info")
        if not isinstance(info, dict):
            raise Unwelcome(f"{self.name} does not describe its nodes")
        return info

    # --- running

    async def post(self, prompt_id: str, graph: Graph, extra: Mapping[str, Any]) -> None:
        self._news.setdefault(prompt_id, asyncio.Event())
        paid = {API_KEY: self.access.api_key} if self.access.api_key else {}  # the host keeps it out of its history
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id, "extra_data": {**extra, **paid}}
        async with self._ask("POST", "/prompt", json=body) as answer:
            text = await self._read(answer)
            if answer.status in (400, 413):
                raise Refused(self._without_secrets(_why_refused(_loads(text))))
            self._expect_success(answer)
            said = _loads(text)
        if not isinstance(said, dict) or said.get("prompt_id") != prompt_id:
            raise Unwelcome(
                f"{self.name} gave the prompt another id: it is older than ComfyUI 0.3.48, or is not a ComfyUI"
            )
        if said.get("node_errors"):  # the rest of the graph would run
            await self.cancel(prompt_id)
            raise Refused(self._without_secrets(_why_refused(said)))

    async def wake(self, prompt_id: str, seconds: float) -> bool:
        event = self._news.setdefault(prompt_id, asyncio.Event())
        if not await happens_within(event, seconds):
            return False
        event.clear()
        return True

    def heard(self, prompt_id: str) -> float:
        return self._heard.get(prompt_id, 0.0)

    async def ending(self, prompt_id: str) -> Ending | None:
        history = await self._json("GET", f"/history/{prompt_id}")
        entry = history.get(prompt_id) if isinstance(history, dict) else None
        if not isinstance(entry, dict):
            return None
        ending = _ending(entry)
        return replace(ending, error=self._without_secrets(ending.error)) if ending.error else ending

    def _without_secrets(self, words: str) -> str:
        """A server's words, which may repeat what it was sent."""
        for secret in (self.access.api_key, *self.access.headers.values()):
            words = words.replace(secret, "…") if secret else words
        return words

    async def state(self, prompt_id: str) -> State:
        if self.version >= _JOB_ROUTES:
            async with self._ask("GET", f"/api/jobs/{prompt_id}") as answer:
                text = await self._read(answer)
                if answer.status == 404:
                    return State.UNKNOWN
                self._expect_success(answer)
                said = _loads(text)
            status = said.get("status") if isinstance(said, dict) else None
            known = {"pending": State.WAITING, "in_progress": State.RUNNING}
            return known.get(str(status), State.FINISHED)
        queue = await self.queue()  # before history: a prompt goes from the one to the other in one step
        if prompt_id in queue.running:
            return State.RUNNING
        if prompt_id in queue.waiting:
            return State.WAITING
        return State.UNKNOWN if await self.ending(prompt_id) is None else State.FINISHED

    async def queue(self) -> Queue:
        said = await self._json("GET", "/queue")
        if not isinstance(said, dict):
            raise Unwelcome(f"{self.name} does not report its queue")

        def ids(key: str) -> frozenset[str]:
            items = said.get(key)
            return frozenset(str(item[1]) for item in items or [] if isinstance(item, list) and len(item) > 1)

        return Queue(ids("queue_running"), ids("queue_pending"))

    async def cancel(self, prompt_id: str) -> None:
        if self.version >= _JOB_ROUTES:
            async with self._ask("POST", f"/api/jobs/{prompt_id}/cancel") as answer:
                if answer.status not in (404, 405):
                    self._expect_success(answer)
                    return
        await self._do("/queue", {"delete": [prompt_id]})
        if self.version >= _TARGETED_INTERRUPT:  # before, it would stop whatever runs, perhaps somebody else's
            await self._do("/interrupt", {"prompt_id": prompt_id})

    async def forget(self, prompt_id: str) -> None:
        self._news.pop(prompt_id, None)
        self._heard.pop(prompt_id, None)
        await self._do("/history", {"delete": [prompt_id]})

    async def free(self) -> None:
        await self._do("/free", {"unload_models": True, "free_memory": True})

    # --- files

    async def fetch(self, file: Served, to: Path, most: int) -> None:
        async with self._ask("GET", "/view", params=_where(file)) as answer:
            if answer.status in (400, 403, 404):
                raise BadFile(f"{self.name} has no file {file.filename!r} any more")
            self._expect_success(answer)
            promised = answer.content_length
            if promised is not None and promised > most:
                raise BadFile(f"{file.filename!r} has {promised} bytes, more than {most}")
            size = 0
            with to.open("wb") as out:
                async for block in answer.content.iter_chunked(_BLOCK):
                    size += len(block)
                    if size > most:
                        raise BadFile(f"{file.filename!r} has more than {most} bytes")
                    out.write(block)
            if size == 0 or (promised is not None and size != promised):
                raise BadFile(f"{file.filename!r} came with {size} bytes of {promised}")

    async def has(self, file: Served, size: int | None = None) -> bool:
        async with self._ask("GET", "/view", params=_where(file)) as answer:
            return answer.status == 200 and (size is None or answer.content_length in (None, size))

    async def upload(self, upload: Upload) -> None:
        with upload.path.open("rb") as file:
            form = _aiohttp().FormData()
            form.add_field("type", upload.type)
            form.add_field("subfolder", upload.subfolder)
            form.add_field("overwrite", "true")
            form.add_field("image", file, filename=upload.filename, content_type="application/octet-stream")
            async with self._ask("POST", "/upload/image", data=form) as answer:
                text = await self._read(answer)
                if answer.status in (400, 413):
                    raise Refused(f"{self.name} does not accept the file {upload.path.name!r} (HTTP {answer.status})")
                self._expect_success(answer)
        said = _loads(text)
        if not isinstance(said, dict) or said.get("name") != upload.filename:
            raise Unwelcome(f"{self.name} stored the file {upload.path.name!r} under another name")

    # --- the wire

    @asynccontextmanager
    async def _ask(self, method: str, path: str, **content: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. Away for everything that went wrong on the way; redirects are not followed."""
        aiohttp = _aiohttp()
        if self._session is None:
            raise Away(f"{self.name} is not connected")
        try:
            async with self._session.request(
                method, self.address.url + path, allow_redirects=False, **content
            ) as answer:
                if 300 <= answer.status < 400:
                    raise Unwelcome(f"{self.name} redirects to another address, which is not followed")
                yield answer
        except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(
                getattr(error, "os_error", None), ConnectionRefusedError
            )
            raise Away(f"{self.name} does not answer ({_words(error)})", refused) from error

    def _expect_success(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status in (401, 403, 407):
            raise Unwelcome(f"{self.name} requires a key (HTTP {answer.status}): give it with --header-env")
        if answer.status >= 500 or answer.status in (408, 429):
            raise Away(f"{self.name} answers with HTTP {answer.status}")
        if answer.status != 200:
            raise Unwelcome(f"{self.name} does not answer as a ComfyUI does (HTTP {answer.status})")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise Unwelcome(f"{self.name} compresses its answers: start it without --enable-compress-response-body")

    async def _json(self, method: str, path: str) -> Any:
        async with self._ask(method, path) as answer:
            self._expect_success(answer)
            text = await self._read(answer)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Unwelcome(
                f"{self.name} does not answer as a ComfyUI does (no JSON at {path.split('/')[1]})"
            ) from None

    async def _do(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._ask("POST", path, json=body) as answer:
            self._expect_success(answer)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        async for block in answer.content.iter_chunked(_BLOCK):
            size += len(block)
            if size > MOST_BYTES:
                raise Unwelcome(f"{self.name} answers with more than {MOST_BYTES >> 20} MB")
            pieces.append(block)
        return b"".join(pieces)

    # --- the websocket, which may fall silent for ever: a hint and no more

    async def _listen(self) -> None:
        aiohttp, pause = _aiohttp(), 1.0
        while True:
            try:
                assert self._session is not None
                url = f"{self.address.url}/ws"
                async with self._session.ws_connect(
                    url, params={"clientId": self._client_id}, max_msg_size=_MOST_FRAME, heartbeat=30
                ) as socket:
                    pause = 1.0
                    self._wake_all()
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            self._note(_loads(message.data))
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
                pass
            self._wake_all()
            self._answered.clear()
            await happens_within(self._answered, pause)
            pause = min(pause * 2, 15.0)

    def _wake_all(self) -> None:
        for event in self._news.values():
            event.set()

    def _note(self, said: Any) -> None:
        data = said.get("data") if isinstance(said, dict) else None
        number = data.get("prompt_id") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(number, str) or number not in self._news:
            return
        self._heard[number] = time.monotonic()
        if said.get("type") == "executing" and data.get("node") is None:  # the last one, sent when history knows
            self._news[number].set()


def _where(file: Served) -> dict[str, str]:
    return {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError:
        raise LikenessError("Batches need aiohttp, which comes with ComfyUI: `pip install aiohttp`.") from None
    return aiohttp


def _words(error: BaseException) -> str:
    """What went wrong in a few words, without what the session sends."""
    text = one_line(str(error)) or type(error).__name__
    return re.sub(r"//[^/@\s]*@", "//…@", text)[:200]


def _loads(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _clean(text: Any) -> str:
    return one_line(str(text).strip())[:_MOST_WORDS]


def _why_refused(said: Any) -> str:
    """The host's own words about a graph that it did not take."""
    if not isinstance(said, dict):
        return "the server refused the graph"
    words = []
    nodes = said.get("node_errors")
    for number, found in nodes.items() if isinstance(nodes, dict) else ():
        errors = found.get("errors") if isinstance(found, dict) else None
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, dict):
                words.append(f"node {number}: {error.get('message')}: {error.get('details')}")
    error = said.get("error")
    first = error.get("message") if isinstance(error, dict) else error
    return _clean("; ".join(words) or first or "the server refused the graph")


def _ending(entry: Mapping[str, Any]) -> Ending:
    """What a history entry says."""
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    messages = [
        (str(message[0]), message[1])
        for message in status.get("messages") or []
        if isinstance(message, list) and len(message) == 2 and isinstance(message[1], dict)
    ]
    times = [data["timestamp"] for _, data in messages if isinstance(data.get("timestamp"), (int, float))]
    seconds = max(0.0, (times[-1] - times[0]) / 1000) if len(times) > 1 else 0.0
    cached = next((len(data.get("nodes") or []) for kind, data in messages if kind == "execution_cached"), 0)
    last, data = messages[-1] if messages else ("", {})
    if status.get("status_str") == "success":
        return Ending("success", _served(entry.get("outputs")), cached=cached, seconds=seconds)
    if last == "execution_interrupted":  # it has the status "error" as well
        return Ending("interrupted", cached=cached, seconds=seconds)
    return Ending(
        "error",
        error_type=_clean(data.get("exception_type", "unknown"))[:200],
        error=_clean(data.get("exception_message", "the server does not say why")),
        node=_clean(f"{data.get('node_type', '')} {data.get('node_id', '')}")[:200],
        cached=cached,
        seconds=seconds,
    )


def _served(outputs: Any) -> tuple[Served, ...]:
    """Every file of a history entry: images, sound, video, in the nodes' order."""
    found = []
    for node, lists in outputs.items() if isinstance(outputs, dict) else ():
        for items in lists.values() if isinstance(lists, dict) else ():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict) and isinstance(item.get("filename"), str) and item["filename"]:
                    texts = [item.get("subfolder") or "", item.get("type") or "output"]
                    found.append(Served(str(node), item["filename"], *map(str, texts)))
    return tuple(found)
