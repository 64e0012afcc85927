"""The unfinished file of a download: how much is there, the hash of it so far, and who is writing it."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import LikenessError
from .progress import CHUNK
from .scan import is_file

_TAKEN = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})


class PartialFile:
    """A part file, open and locked while it is written; one in which nothing lies is removed in the end.

    One that is longer than `limit` bytes is of another file, and begun again. Raises LikenessError when another process
    writes it, or something that is no file has its name.
    """

    def __init__(self, path: Path, limit: int) -> None:
        if os.path.lexists(path) and not is_file(path):
            raise LikenessError(f"{path} is in the way of the download and is not a file: move it away.")
        self.path = path
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)), "r+b")
        try:
            if not _lock(self._file):
                raise LikenessError(f"Another process is downloading {path}: wait until it has finished.")
            self._begin()
            if os.fstat(self._file.fileno()).st_size > limit:
                self.restart()
            while chunk := self._file.read(CHUNK):
                self._count(chunk)
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> None:
        self._hasher, self.done, self.etag, self.head = hashlib.sha256(), 0, "", b""

    def _count(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self.head += chunk[: max(0, 1024 - len(self.head))]
        self.done += len(chunk)

    @property
    def digest(self) -> str:
        """The SHA-256 of what is there."""
        return self._hasher.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Add what has arrived."""
        self._file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._begin()

    def starts_with(self, *signatures: bytes) -> bool:
        """Whether a text file of one of these kinds is there."""
        return self.head.lstrip().lower().startswith(signatures)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done:
            self._file.close()
        elif os.name == "nt":  # where no open file can be removed
            self._file.close()
            self.path.unlink(missing_ok=True)
        else:  # while it is still ours
            self.path.unlink(missing_ok=True)
            self._file.close()


def _lock(file: BinaryIO) -> bool:
    """Keep other processes from writing this file, until it is closed; False when one of them does."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # a byte that is never read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN  # some network folders know no locks
    finally:
        file.seek(0)
    return True
