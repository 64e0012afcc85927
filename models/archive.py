"""Unpacking the zip files that face packs are published in."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import LikenessError
from ..storage import keep_new, name_fault
from .content import sha256
from .progress import CHUNK

_MOST_MEMBERS = 1000
_DEEPEST = 5  # folders inside each other
_LEAST_BOUND, _GROWTH = 16 << 20, 10  # bytes that any archive may hold; beyond, how many times its own size
_ABANDONED = 3600.0  # seconds after which an unfinished folder belongs to a process that was killed


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into `folder`, without the archive's own top folder, leaving files that are there untouched.

    Raises LikenessError for an archive that is damaged, encrypted, empty or absurdly large, and for members that some
    system would put elsewhere; then nothing of it is kept.
    """
    with _staging(folder) as staging:
        try:
            with zipfile.ZipFile(archive) as file:
                members = _members(archive, file, folder.name)
                _must_fit(archive, [entry for entry, _ in members])
                for entry, inner in members:
                    (staging / inner).parent.mkdir(parents=True, exist_ok=True)
                    with (staging / inner).open("xb") as sink:
                        for piece in _pieces(archive, file, entry):
                            sink.write(piece)
        except (zipfile.BadZipFile, struct.error, IndexError, OverflowError, RuntimeError, ValueError) as error:
            if isinstance(error, LikenessError):
                raise
            raise LikenessError(f"{archive} is not a complete zip file ({error}): delete it and try again.") from error
        _move(staging, folder, [inner for _, inner in members], archive)


def _members(archive: Path, file: zipfile.ZipFile, top: str) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files in the archive, and where each of them belongs below the folder."""
    entries = [entry for entry in file.infolist() if not entry.is_dir() and "__MACOSX" not in entry.filename]
    if not entries:
        raise LikenessError(f"{archive.name} holds no files: delete it and try again.")
    if len(entries) > _MOST_MEMBERS:
        raise LikenessError(f"{archive.name} holds {len(entries)} files, which no face pack does: it was not unpacked.")
    members: dict[str, tuple[zipfile.ZipInfo, PurePosixPath]] = {}
    for entry in entries:
        path = PurePosixPath(entry.orig_filename.replace("\\", "/"))  # `filename` ends at a NUL
        if fault := _fault(entry, path):
            raise LikenessError(f"{archive.name} holds {entry.filename[:100]!r}, which {fault}: it was not unpacked.")
        inner = path.relative_to(top) if path.parts[0] == top and len(path.parts) > 1 else path
        members[_as_any_system(inner)] = entry, inner
    folders = {_as_any_system(above) for _, inner in members.values() for above in inner.parents}
    if len(members) < len(entries) or folders & members.keys():
        raise LikenessError(
            f"{archive.name} holds two files whose names differ only in case, which some systems cannot tell apart: "
            "it was not unpacked."
        )
    return list(members.values())


def _fault(entry: zipfile.ZipInfo, path: PurePosixPath) -> str:
    """Why a member is refused, by the rules of every system, as the rest of a sentence."""
    if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16):
        return "leads out of its folder"
    if not path.parts:
        return "has no name"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in an unusual way"
    if len(path.parts) > _DEEPEST:
        return "is nested deeper than in any face pack"
    if fault := next(filter(None, map(name_fault, path.parts)), ""):
        return f"leads out of its folder or cannot be kept on some systems, because a name in it {fault}"
    return ""


def _as_any_system(path: PurePosixPath) -> str:
    """One spelling for all names that some system takes for the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _must_fit(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    whole, bound = sum(entry.file_size for entry in entries), max(_LEAST_BOUND, _GROWTH * archive.stat().st_size)
    if whole > bound:
        raise LikenessError(
            f"{archive.name} would unpack to {whole} bytes, more than {_GROWTH} times its own size, as no face pack "
            "does: it was not unpacked."
        )
    if whole > shutil.disk_usage(archive.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pieces(archive: Path, file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of one member: as many as it says of itself, and no more."""
    done = 0
    try:
        with file.open(entry) as source:
            while piece := source.read(CHUNK):
                done += len(piece)
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise LikenessError(f"{archive} is not a complete zip file ({error}): delete it and try again.") from error
    if done != entry.file_size:
        raise LikenessError(f"{archive} is not a complete zip file: delete it and try again.")


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder beside the final one, on the same disk; it is gone afterwards, and so is what a killed process left."""
    start, end = f".{folder.name}.", ".part.d"
    for left in folder.parent.glob(f"{start}*{end}"):
        if left.lstat().st_mtime < time.time() - _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(suffix=end, prefix=start, dir=folder.parent))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, folder: Path, members: Iterable[PurePosixPath], archive: Path) -> None:
    moves = [(staging / inner, folder / inner) for inner in members]
    for path, final in moves:
        if os.path.lexists(final) and not (final.is_file() and sha256(final) == sha256(path)):
            raise LikenessError(
                f"{final} has other content than the one in {archive.name}: it was left as it is; "
                "move it away to unpack the archive."
            )
    for path, final in moves:
        if not os.path.lexists(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            keep_new(path, final)
