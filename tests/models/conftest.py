"""A machine without ComfyUI, without model files and without a network, and a web server that can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from likeness.models import transfer
from likeness.models_download import ModelFile

OF_THE_USER = (
    *("LIKENESS_MODELS", "COMFYUI_PATH", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"),
    *("HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home directory; returns its `models` directory (not created)."""
    monkeypatch.delitem(sys.modules, "folder_paths", raising=False)
    for name in OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "_RETRY_SECONDS", 0.0)
    return home / "comfy" / "ComfyUI" / "models"


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the test server can be reached: whoever tries fails loudly."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"the network was used: {address}")
        connect(self, address)

    def no_names(host: str, *arguments: Any, **keywords: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise AssertionError(f"the network was used: {host}")
        return getaddrinfo(host, *arguments, **keywords)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", no_names)


@dataclass
class Page:
    """What the server has at one path and how it misbehaves.

    `drops`: bytes after which each next answer breaks off; `script`: answers in place of the server.
    """

    body: bytes = b""
    status: int = 200
    ranges: bool = True
    drops: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    script: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None


@dataclass
class Server:
    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [headers.get("range") for _, headers in self.requests]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
            page = state.pages.get(self.path, Page(status=404))
            if page.script:
                with contextlib.suppress(OSError):  # the other side may leave
                    page.script(self)
                self.close_connection = True
                return
            body, status, extra = page.body, page.status, dict(page.headers)
            start = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
            changed = self.headers.get("If-Range", extra.get("ETag")) != extra.get("ETag")
            if status == 200 and start and page.ranges and not changed:
                if int(start) >= len(body):
                    status, body, extra = 416, b"", {"Content-Range": f"bytes */{len(body)}"}
                else:
                    extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    status, body = 206, body[int(start) :]
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **extra}.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body[: page.drops.pop(0)] if page.drops and status < 300 else body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def model(server: Server) -> Callable[..., ModelFile]:
    """Makes a registry entry for a file on the test server; the hash is that of `body`."""

    def make(body: bytes = b"", **changes: Any) -> ModelFile:
        record: dict[str, Any] = {
            "name": "thing",
            "system": "ip_adapter",
            "variant": "test",
            "url": f"{server.address}/thing.bin",
            "filename": "thing.bin",
            "folder": "ipadapter",
            "size_bytes": None,
            "sha256": (hashlib.sha256(body).hexdigest(),),
            "licence": "MIT",
            "commercial": True,
            "needed_by": "a test",
            "notes": "",
        }
        return ModelFile(**{**record, **changes})

    return make


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A stand-in for ComfyUI's `folder_paths`, as the host fills it before it loads custom nodes."""
    module = types.ModuleType("folder_paths")
    models = tmp_path / "host" / "models"
    shared = {".ckpt", ".pt", ".bin", ".pth", ".safetensors"}
    entries: dict[str, tuple[list[str], set[str]]] = {
        kind: ([str(models / kind)], shared) for kind in ("loras", "clip_vision", "photomaker", "controlnet")
    }

    def add_model_folder_path(kind: str, path: str, is_default: bool = False) -> None:
        paths, _ = entries.setdefault(kind, ([], set()))
        if path not in paths:
            paths.insert(0 if is_default else len(paths), path)

    for name, value in {
        "models_dir": str(models),
        "supported_pt_extensions": shared,
        "folder_names_and_paths": entries,
        "add_model_folder_path": add_model_folder_path,
        "get_folder_paths": lambda kind: entries[kind][0][:],
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    return module


@pytest.fixture
def put() -> Callable[..., Path]:
    """Writes a small file, with its folders."""

    def write(path: Path, content: bytes = b"weights") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def page() -> type[Page]:
    """Makes pages of the test server."""
    return Page
