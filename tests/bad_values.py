"""Names, numbers and files that users, broken disks and attackers hand to a program: the command line, nodes, settings.

Import it as `import bad_values`. Nothing here may end in a traceback, a hang, or a file outside of the folder that was
asked for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

NAMES = (
    *("", " ", ".", "..", "...", "/abs", "../x", "a/b", "a\\b", "C:\\x", "D:evil", "a:x", "\\\\server\\share"),
    *("a\0b", "a\nb", "\x1b[2J", "\ud800", "x\udcff", "a" * 300, "é" * 150),
    *("CON", "nul", "com1.txt", "AUX .png", "LPT¹", "conin$", "x.", "x ", " x", "a*", "a?", '"', "a|b", "<", ">"),
)
"""What cannot name a file on every system."""

GOOD_NAMES = ("anna", "anna (v2)", "李明", "Zoë-2_b", ".hidden", "console", "com", "a.b.c", "x" * 200)

NUMBERS = (
    *("nan", "NaN", "-nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "1e38", "1e-38", str(10**18), str(-(10**18))),
    *("", " ", "one", "1,5", "0x10", "١", "1" * 400),
)
"""What is not a number, or none that makes sense, as it is typed on a command line."""


def _missing(path: Path) -> None:
    pass


def _folder(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        try:
            os.chdir(path.parent)  # the address of a socket is short
            server.bind(path.name)
        finally:
            os.chdir(here)


def _empty(path: Path) -> None:
    path.touch()


def _garbage(path: Path) -> None:
    path.write_bytes(bytes(range(255, -1, -1)) * 40)


def _ones(path: Path) -> None:
    path.write_bytes(b"\xff" * 100_000)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


def _broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _looping_link(path: Path) -> None:
    path.symlink_to(path.name)


FILES: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "folder": _folder,
    "fifo": _fifo,
    "socket": _socket,
    "empty": _empty,
    "garbage": _garbage,
    "ones": _ones,
    "unreadable": _unreadable,  # not for root, who reads everything
    "broken link": _broken_link,
    "looping link": _looping_link,
}
"""Makers of what lies at a path where a file is expected. Pipes, sockets and links are for systems that have them."""


def close(monkeypatch: pytest.MonkeyPatch, *closed: Path, number: int = 13) -> None:
    """Make folders refuse whoever looks into them, also where the tests run as root."""

    def guarded(real: Callable[..., object], inside_only: bool) -> Callable[..., object]:
        def call(place: object, *arguments: object, **keywords: object) -> object:
            path = Path(os.fsdecode(place))  # type: ignore[arg-type]
            for folder in closed:
                if folder in path.parents or (folder == path and not inside_only):
                    raise OSError(number, os.strerror(number), str(path))
            return real(place, *arguments, **keywords)

        return call

    monkeypatch.setattr(os, "scandir", guarded(os.scandir, False))
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name), True))
