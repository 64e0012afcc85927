"""The real ComfyUI: where it is, and its server in a process of its own with this pack as the only custom node."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PACK = Path(__file__).parents[1]
PACK_FOLDER = "ComfyUI-Likeness"  # below custom_nodes
HOW_TO_GET_IT = "run `make comfyui`, or set COMFYUI_PATH to its folder"
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)""", re.MULTILINE)
_FOLDERS = ("custom_nodes", "input", "output", "models")  # below the server's base directory
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has but one


def named_places() -> list[Path]:
    """The folders that `COMFYUI_PATH` names, separated as in PATH."""
    return [Path(part).expanduser() for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]


def usual_places(checkout: Path = PACK) -> list[Path]:
    """What `make comfyui` brought into the checkout, the newest first; then comfy-cli's default and one beside it."""
    brought = sorted((checkout / ".comfyui").glob("*"), key=lambda place: version_key(version_of(place)), reverse=True)
    workspace = Path.home() / "comfy"
    return [*brought, workspace / "ComfyUI", workspace / "ComfyUI-new"]


def all_comfyui(places: Iterable[Path]) -> list[Path]:
    """Those of these folders that hold a ComfyUI, each once."""
    return list(dict.fromkeys(folder.resolve() for folder in places if (folder / "main.py").is_file()))


def version_of(comfyui: Path) -> str | None:
    """ComfyUI's version, read without importing it; None where there is none to read."""
    try:
        found = _VERSION.search((comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def version_key(version: str | None) -> tuple[int, ...]:
    """What versions are ordered by: the numbers they start with ('0.3.64' before '0.33.0'); an unknown one is first."""
    numbers = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(int(number) for number in numbers[1].split(".")) if numbers else ()


@dataclass(frozen=True)
class Server:
    """A server's process, which may not be ready yet, or have ended."""

    process: subprocess.Popen
    address: str  # http://127.0.0.1:port
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self, patience: float, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait until it answers; False when it has ended, or has not answered after `patience` seconds.

        `meanwhile` is called after each attempt that failed.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/system_stats", timeout=5).close()
                return True
            except OSError:  # URLError and timeouts are such
                time.sleep(0.2)
                meanwhile()
        return False


@contextmanager
def started(
    comfyui: Path,
    base: Path,
    *arguments: str,
    pack: Path = PACK,
    environment: Mapping[str, str] | None = None,
    own_group: bool = False,
    port: int = 0,
) -> Iterator[Server]:
    """Start a server on the CPU with `base` for its models, inputs, outputs and custom nodes; stop it at the end.

    With `own_group` all that it starts ends with it (not on Windows). port: 0 for a free one.
    """
    for name in _FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_FOLDER
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    port = port or _free_port()
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    log_file = base / "server.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=comfyui,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=own_group,
        )
    try:
        yield Server(process, f"http://127.0.0.1:{port}", log_file)
    finally:
        _stop(process, own_group)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _stop(process: subprocess.Popen, own_group: bool) -> None:
    """Ask, and after ten seconds insist; of a group nobody is left, even when the server itself has ended."""
    send = partial(os.killpg, process.pid) if own_group else process.send_signal
    for sign in (signal.SIGTERM, _KILL):
        try:
            send(sign)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
