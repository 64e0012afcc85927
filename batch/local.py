"""ComfyUI servers of our own: child processes on this machine that end with us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LikenessError
from .client import Access, HttpServer, read_address
from .workers import Away

_FOLDERS = ("output", "input", "temp", "user")
_STARTED = "server.pid"  # process and port
_START, _PROBE = 300.0, 0.3  # seconds
_LONGEST_BACKOFF = 60.0
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has but one


@dataclass(frozen=True)
class Comfy:
    """How a server is started."""

    folder: Path  # with main.py
    python: str = sys.executable
    arguments: Sequence[str] = ()
    base: Path | None = None  # with models and custom nodes; none: the folder


def find_comfy() -> Path:
    """The ComfyUI that COMFYUI_PATH names, else comfy-cli's default. LikenessError for none."""
    named = [Path(part).expanduser() for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    for folder in (*named, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "main.py").is_file():
            return folder.resolve()
    raise LikenessError("No ComfyUI was found for local workers: set COMFYUI_PATH to its folder.")


class LocalServer(HttpServer):
    """A child process, and the client that speaks to it on loopback."""

    is_own = True

    def __init__(self, number: int, comfy: Comfy, folder: Path, gpu: str | None = None, access: Access | None = None):
        super().__init__(read_address("http://127.0.0.1:1"), access)
        self.number, self.comfy, self.folder, self.gpu = number, comfy, folder, gpu
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0

    @property
    def name(self) -> str:
        return f"local{self.number}"

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def memory(self) -> int:
        """Bytes of main memory that the process holds (Linux; else 0)."""
        try:
            pages = int(Path(f"/proc/{self._process.pid if self._process else 0}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def open(self) -> None:
        if self.has_ended:
            await self._start()

    async def restart(self) -> bool:
        await self._stop()
        await asyncio.sleep(min(_LONGEST_BACKOFF, 2.0**self._failures - 1))
        self._failures += 1
        await self._start()
        self._failures = 0
        return True

    async def close(self) -> None:
        await super().close()
        await self._stop()

    async def _start(self) -> None:
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        await self._end_leftover()
        port = _free_port()
        self.address = read_address(f"http://127.0.0.1:{port}")
        command = [self.comfy.python, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        if self.comfy.base:
            command += ["--base-directory", str(self.comfy.base)]
        command += [word for name in _FOLDERS for word in (f"--{name}-directory", str(self.folder / name))]
        command += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:", *self.comfy.arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONUNBUFFERED": "1"}
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfy.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        (self.folder / _STARTED).write_text(f"{self._process.pid} {port}")
        await super().open()
        end = time.monotonic() + _START
        while True:
            try:
                await self.facts()
                return
            except Away as error:
                if self.has_ended or time.monotonic() > end:
                    last = " ".join((self.folder / "server.log").read_text(errors="replace").strip().splitlines()[-1:])
                    raise Away(f"{self.name} did not start ({last[-300:]})", is_dead=True) from error
                await asyncio.sleep(_PROBE)

    async def _end_leftover(self) -> None:
        """End the server that a killed client has left here, where the system did not (macOS, Windows)."""
        try:
            pid, port = map(int, (self.folder / _STARTED).read_text().split())
        except (OSError, ValueError):
            return
        self.address = read_address(f"http://127.0.0.1:{port}")
        await super().open()
        with contextlib.suppress(Away):
            said = await self._json("GET", "/system_stats")
            arguments = said.get("system", {}).get("argv") if isinstance(said, dict) else None
            if isinstance(arguments, list) and str(self.folder / "output") in arguments:  # it is ours, no other's
                _send(pid, _KILL)
        (self.folder / _STARTED).unlink(missing_ok=True)

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        (self.folder / _STARTED).unlink(missing_ok=True)
        for sign, patience in ((signal.SIGTERM, 10.0), (_KILL, 10.0)):
            _send(process.pid, sign)
            end = time.monotonic() + patience
            while process.poll() is None and time.monotonic() < end:
                await asyncio.sleep(0.05)
            if process.poll() is not None:
                return


def _send(pid: int, sign: int) -> None:
    """To a process that we started, and to all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sign) if hasattr(os, "killpg") else os.kill(pid, sign)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_parent() -> None:
    """In the child: a client that is killed leaves no server behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, _KILL)  # PR_SET_PDEATHSIG


def gpus() -> list[str]:
    """The GPUs of this machine, by number; none where there is no NVIDIA driver."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in said.stdout.splitlines() if line.strip().isdecimal()]


def local_servers(wanted: str, comfy: Comfy, folder: Path, access: Access | None = None) -> list[LocalServer]:
    """`2`, or `gpus` for one on each GPU."""
    if wanted == "gpus":
        found = gpus()
        if not found:
            raise LikenessError("There is no GPU for --local gpus: write a number, such as --local 1.")
        return [LocalServer(n, comfy, folder / f"local{n}", gpu, access) for n, gpu in enumerate(found)]
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 64:
        raise LikenessError(f"--local is {wanted!r}: write a number from 1 to 64, or gpus.")
    return [LocalServer(n, comfy, folder / f"local{n}", access=access) for n in range(int(wanted))]
