"""Folders that one process works in at a time, and what killed processes left there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import LikenessError
from .storage import write_whole

LOCK = ".running.lock"
OWNER = "running.json"  # who holds the lock, for people and for messages
_ABANDONED = 3600.0  # seconds without a change after which a folder of an unknown owner is nobody's
_THIS_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_THIS_START = secrets.token_hex(4)  # a container's first process has the same number after every start
_held: set[tuple[Path, int]] = set()  # folders and threads


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Within: no other process is within for this folder, which must exist. Nested calls are one.

    LikenessError, starting with `what`, names the process that is. The lock is the operating system's: it ends with the
    process that holds it, however that ends, so no stale one is ever in the way.
    """
    import filelock

    mine = folder.resolve(), threading.get_ident()
    if mine in _held:
        yield
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LikenessError(
            f"{what} {str(folder)!r} is in use by {_owner(folder)}: wait until that has ended, or stop it."
        ) from None
    try:
        _held.add(mine)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with suppress(OSError):  # the lock holds without a name on it
            write_whole(folder / OWNER, lambda part: part.write_text(json.dumps(owner), encoding="utf-8"))
        yield
    finally:
        _held.discard(mine)
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it is just being written, or was edited
        return "another process"


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, named after this process, readable by this user only, and gone afterwards unless it was
    renamed. What killed processes left under the prefix goes first."""
    sweep(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=owned(prefix), dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def owned(prefix: str) -> str:
    """The prefix with this process named after it: of temporary folders that `sweep` leaves alone while it lives."""
    return f"{prefix}{_THIS_HOST}-{os.getpid()}-{_THIS_START}-"


def sweep(parent: Path, prefix: str, alone: bool = False) -> None:
    """Remove the temporary folders in `parent` whose processes have ended. alone: whoever calls has locked the parent,
    so that none of them is in use."""
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(prefix) and _is_folder(entry)]
    for folder in found:
        if alone or _is_abandoned(folder, prefix):
            shutil.rmtree(folder, ignore_errors=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_abandoned(folder: Path, prefix: str) -> bool:
    known = re.fullmatch(r"([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-.*", folder.name[len(prefix) :])
    if known and known[1] == _THIS_HOST:
        pid = int(known[2])
        return known[3] != _THIS_START if pid == os.getpid() else not _is_running(pid)
    try:  # of another machine, or of a version that wrote no owner
        return folder.stat().st_mtime < time.time() - _ABANDONED
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    """Whether there is a process of this number; True where that cannot be told."""
    if os.name == "nt":  # where os.kill ends processes
        try:
            import psutil
        except ImportError:
            return True
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
