"""Files of results: taken from a server with care, named by the row, and whole or not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import MOST_PIXELS
from .journal import JournalRow, KeptFile
from .workers import BadFile, Served, Worker

FOLDER, PARTS = "images", ".part"
MOST_BYTES = 500 * 10**6  # of a file
MOST_FILES = 1000  # of a row
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"\x1aE\xdf\xa3", "webm"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"glTF", "glb"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
_PICTURES = ("png", "jpg", "gif", "webp", "bmp", "tiff", "avif")


@dataclass(frozen=True)
class WantedFiles:
    """Which files of a result are kept."""

    nodes: frozenset[str] = frozenset()  # ids; none: all
    temporary: bool = False
    most: int = MOST_BYTES

    def of(self, files: Sequence[Served]) -> list[Served]:
        """Those that are wanted."""
        kinds = ("output", "temp") if self.temporary else ("output",)
        return [f for f in files if f.type in kinds and (not self.nodes or f.node in self.nodes)]


class Keeper:
    """The folder of a run's files."""

    def __init__(self, run: Path, wanted: WantedFiles, shared: Path | None = None):
        self.run, self.wanted, self.shared = run, wanted, shared
        self._parts = run / PARTS
        self._parts.mkdir(exist_ok=True)

    async def collect(self, worker: Worker, row: JournalRow, files: Sequence[Served]) -> list[KeptFile]:
        """Fetch a row's files and put them in their places. BadFile, Away; then nothing has changed."""
        wanted = self.wanted.of(files)
        if len(wanted) > MOST_FILES:
            raise BadFile(f"the result has {len(wanted)} files, more than {MOST_FILES}")
        counts: dict[str, int] = {}
        parts: list[tuple[Path, KeptFile]] = []
        try:
            for served in wanted:
                k = counts[served.node] = counts.get(served.node, -1) + 1
                part = self._parts / secrets.token_hex(16)
                parts.append((part, KeptFile(served.node, k, "", "", 0)))
                if not self._taken_from_shared(served, part):
                    await worker.fetch(served, part, self.wanted.most)
                parts[-1] = part, await asyncio.to_thread(looked_at, part, row.row_id, served.node, k)
            await asyncio.to_thread(self._place, parts)  # a disk may take longer than a row
            return [kept for _, kept in parts]
        finally:
            for part, _ in parts:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def _place(self, parts: Sequence[tuple[Path, KeptFile]]) -> None:
        """Put a row's files where they belong, each whole or not at all, also after a power cut."""
        for part, kept in parts:
            place = self.run / kept.path
            place.parent.mkdir(parents=True, exist_ok=True)
            _to_disk(part)
            os.replace(part, place)

    def _taken_from_shared(self, served: Served, part: Path) -> bool:
        """From a folder that the server and we both see, where it is there. A server's names may not lead out of it."""
        if self.shared is None or served.type != "output":
            return False
        root = os.path.realpath(self.shared)
        path = os.path.realpath(os.path.join(root, served.subfolder, served.filename))
        if not Path(path).is_relative_to(root) or not os.path.isfile(path) or os.path.getsize(path) > self.wanted.most:
            return False
        try:
            os.link(path, part)
        except OSError:  # another file system
            shutil.copyfile(path, part)
        return True

    def sweep(self, known: set[str]) -> int:
        """Remove what a killed client left: parts, and files of rows that are not done. Returns how many files."""
        shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir(exist_ok=True)
        removed = 0
        for place, _, names in os.walk(self.run / FOLDER):
            for name in names:
                path = Path(place) / name
                if path.relative_to(self.run).as_posix() not in known:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed


def looked_at(part: Path, row_id: str, node: str, k: int) -> KeptFile:
    """What a fetched file is, by its bytes alone. BadFile where it is not what it must be."""
    digest, size, head = hashlib.sha256(), 0, b""
    with part.open("rb") as file:
        while block := file.read(2**20):
            head = head or block[:64]
            digest.update(block)
            size += len(block)
    suffix = suffix_of(head)
    width, height = _size(part, suffix) if suffix in _PICTURES else (None, None)
    safe = re.sub(r"[^0-9A-Za-z]", "_", node)[:40]
    path = f"{FOLDER}/{row_id[:2]}/{row_id}-{safe}-{k}.{suffix}"
    return KeptFile(node, k, path, digest.hexdigest(), size, width, height)


def suffix_of(head: bytes) -> str:
    """The suffix for a file that begins like this; `bin` for an unknown one. BadFile for a page in place of a file."""
    start = head.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadFile("the server sent a page in place of a file")
    for magic, suffix in _MAGIC:
        if head.startswith(magic):
            return suffix
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12], "bin")
    if head[4:8] == b"ftyp":
        return "avif" if head[8:12] in (b"avif", b"avis") else "mp4"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "safetensors"
    return "bin"


def _size(part: Path, suffix: str) -> tuple[int, int]:
    """Width and height of an image that is whole."""
    from PIL import Image

    try:
        with Image.open(part) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise BadFile(f"the image has {width}x{height} pixels, too many")
            if suffix == "png":
                picture.verify()  # every checksum, without the pixels
            else:
                picture.load()
    except BadFile:
        raise
    except Exception as error:  # whatever hostile bytes make Pillow raise
        raise BadFile(f"the image is damaged ({type(error).__name__})") from None
    return width, height


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
