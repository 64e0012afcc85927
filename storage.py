"""Files that are whole or not there: after a crash, a kill, a full disk, or with two processes after one name."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import LikenessError

PART = ".part"  # files under way: ".<name>.<process>-<random>.part", beside the file they become
_ABANDONED = 3600.0  # seconds without a write after which such a file belongs to a process that was killed
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside this one, which then takes its place: whole or not at all, and on the disk.

    What was there before stays where writing fails, with whatever `write` raises. The folder must exist.
    """
    with _written(file, write) as part:
        part.replace(file)


def write_once(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a new file of this name: whole or not at all. FileExistsError when something has the name."""
    with _written(file, write) as part:
        _move_exclusively(part, file)


def write_new(
    folder: Path, stem: str, suffix: str, write: Callable[[Path], Any], taken: Callable[[str], Any] = lambda name: False
) -> Path:
    """Let `write` fill a new file: `stem` + `suffix`, or `stem_2`, `stem_3`, … when names are taken; returns its path.

    The name is taken exclusively: another process that saves under the same name at the same moment gets the next one,
    and nothing is ever overwritten. Nothing lies under the final name until it is whole. The folder must exist. A name
    for which `taken` is true is passed over as well, where something in another folder has it.
    """
    with _written(folder / (stem + suffix), write) as part:
        for candidate in free_names(stem, suffix):
            if taken(candidate):
                continue
            file = folder / candidate
            try:
                _move_exclusively(part, file)
            except FileExistsError:
                continue
            return file
    raise AssertionError("names never run out")


def keep_new(part: Path, file: Path) -> None:
    """Give a finished file that lies beside it this name, on the disk; FileExistsError when something has the name."""
    _to_disk(part, os.O_RDWR)
    _move_exclusively(part, file)
    part.unlink(missing_ok=True)  # a link may be left
    _folder_to_disk(file.parent)


def free_names(stem: str, suffix: str) -> Iterator[str]:
    """`stem` + `suffix`, then the numbered names that are tried when it is taken."""
    yield stem + suffix
    for number in itertools.count(2):
        yield f"{stem}_{number}{suffix}"


def set_aside(file: Path) -> Path:
    """Give a file (or whatever has its name) that cannot be used another name beside it, `<stem>.damaged<suffix>` or a
    numbered one; returns its path. Nothing of it is lost."""
    for name in free_names(f"{file.stem}.damaged", file.suffix):
        other = file.with_name(name)
        if not other.exists():
            file.rename(other)
            return other
    raise AssertionError("names never run out")


@contextmanager
def _written(file: Path, write: Callable[[Path], Any]) -> Iterator[Path]:
    """A file beside `file`, filled and on the disk, for the caller to move; it is gone afterwards."""
    start = f".{file.name[:50]}."  # file systems allow 255 bytes, and a letter may take four
    _sweep(file.parent, start)
    part = file.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        write(part)
        _to_disk(part, os.O_RDWR)
        yield part
        _folder_to_disk(file.parent)
    finally:
        part.unlink(missing_ok=True)


def _move_exclusively(part: Path, file: Path) -> None:
    """Give `part` the name `file`; FileExistsError when something has it."""
    if os.name == "nt":
        os.rename(part, file)  # refuses by itself
        return
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if file.exists():  # a file system without hard links: this look and the move are two steps
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file)) from None
        part.rename(file)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network folders that cannot
            raise
    finally:
        os.close(handle)


def _folder_to_disk(folder: Path) -> None:
    if os.name != "nt":  # Windows keeps folders itself
        _to_disk(folder, os.O_RDONLY)


def _sweep(folder: Path, start: str) -> None:
    """Remove what killed processes left of the same file."""
    too_old = time.time() - _ABANDONED
    for entry in os.scandir(folder):
        if entry.name.startswith(start) and entry.name.endswith(PART):
            try:
                if entry.stat(follow_symlinks=False).st_mtime < too_old:
                    os.unlink(entry.path)
            except OSError:  # another process was faster, or may remove it itself
                continue


# --- names and places that a user chooses, asked about before any work begins

_FORBIDDEN = frozenset('<>:"/\\|?*')  # on Windows; "/" everywhere
_DEVICES = frozenset(  # what Windows takes for a device, whatever follows the first dot
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"]
)
_LONGEST_NAME = 200  # bytes; file systems allow 255, and numbers, suffixes and ".part" come on top


def check_name(name: str, what: str) -> str:
    """`name`, where it can name a file on every system; LikenessError, starting with `what`, where it cannot."""
    if wrong := name_fault(name):
        shown = name if len(name) <= 60 else name[:60] + "…"
        raise LikenessError(f"{what} {shown!r} {wrong}: choose a short name of letters, digits, spaces, '-' and '_'.")
    return name


def name_fault(name: str) -> str:
    """Why some system cannot keep a file of this name, as the rest of a sentence; '' for a name that is safe."""
    if not name.strip(". "):
        return "is not a name"
    if any(0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "holds bytes that are not text"
    if wrong := next((letter for letter in name if letter in _FORBIDDEN or not letter.isprintable()), ""):
        return f"holds {wrong!r}, which is not allowed in a file name"
    if name != name.strip() or name.endswith("."):
        return "starts or ends with a space or a dot, which Windows drops"
    if name.split(".")[0].rstrip().upper() in _DEVICES:
        return "is the name of a device on Windows"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    return ""


def check_folder(folder: Path, what: str) -> None:
    """Make the folder where it is missing and try to write in it; LikenessError, starting with `what`, otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}-{secrets.token_hex(4)}{PART}"
        try:
            with probe.open("xb") as file:
                file.write(b"\0")
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise LikenessError(f"{what} {str(folder)!r} {_why_not(error)}: choose another folder.") from error


def _why_not(error: OSError | ValueError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "is a file, or is below one"
    if not isinstance(error, OSError):  # NUL or a lone surrogate
        return "cannot be the path of a folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "cannot be written to, because the disk is full"
    return f"cannot be written to ({error.strerror or type(error).__name__})"
