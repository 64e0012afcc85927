"""Files of ours that rows need: looked at before anything runs, and named by their content on servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import LikenessError
from ..models.content import sha256
from .problems import Fault, nearest
from .workers import Upload

INPUTS, IDENTITIES = "likeness", "likeness/batch"  # subfolders on a server: its lists show the top level only
MOST_UPLOAD = 100 * 10**6  # bytes; what a server takes by default
MOST_PIXELS = 200_000_000
_PICTURES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tiff", "GIF": "gif"}
_OTHER = frozenset(
    [
        "mp4",
        "webm",
        "mov",
        "mkv",
        "avi",
        "gif",
        "wav",
        "mp3",
        "flac",
        "ogg",
        "opus",
        "m4a",
        "aac",
        "glb",
        "gltf",
        "obj",
        "stl",
        "ply",
        "txt",
        "csv",
        "json",
    ]
)


class Files:
    """Paths as a table writes them, below one folder; each file is read once."""

    def __init__(self, root: Path):
        self.root = Path(os.path.realpath(root))
        self.uploads: dict[str, Upload] = {}

    def input(self, text: str, pictures: bool) -> str:
        """The name that an upload input holds on a server for this file. Fault for a file that cannot be used."""
        path = self._inside(text)
        suffix = _picture_suffix(path) if pictures else _other_suffix(path)
        return self._named(path, lambda digest: Upload(f"{INPUTS}/{digest}.{suffix}", path, INPUTS, "input"))

    def identity(self, text: str) -> str:
        """The same for an identity file and Load Identity."""
        from ..faces import Identity

        path = self._inside(text)
        try:
            Identity.load(path)
        except LikenessError as error:
            raise Fault(f"is not an identity ({error})", "make one with `likeness identity` or Save Identity") from None
        return self.add_identity(path)

    def add_identity(self, path: Path) -> str:
        """The name for an identity file that is known to be one, wherever it lies."""
        return self._named(path, lambda digest: Upload(f"batch/{digest}.safetensors", path, IDENTITIES, "output"))

    def add_picture(self, path: Path) -> str:
        """The name for a photo of a person, wherever it lies."""
        suffix = _picture_suffix(path)
        return self._named(path, lambda digest: Upload(f"{INPUTS}/{digest}.{suffix}", path, INPUTS, "input"))

    def _named(self, path: Path, upload: Callable[[str], Upload]) -> str:
        made = upload(sha256_of(path)[:32])
        self.uploads.setdefault(made.name, made)
        return made.name

    def _inside(self, text: str) -> Path:
        try:
            path = Path(os.path.realpath(self.root / text))
            inside = path.is_relative_to(self.root)
            exists = inside and path.exists()
            size = path.stat().st_size if exists and path.is_file() else -1
        except (OSError, ValueError):  # too long, a NUL, a loop of links
            raise Fault("cannot be a path", "write a path below the folder of files") from None
        if not inside:
            raise Fault(f"leads out of the folder {str(self.root)!r}", "copy the file there, or choose --files")
        if not exists:
            raise Fault("does not exist", _near(path) or f"paths start at {str(self.root)!r}")
        if size < 0:
            raise Fault("is not a file", "name a file")
        if not 0 < size <= MOST_UPLOAD:
            raise Fault(f"has {size} bytes", f"give a file of 1 to {MOST_UPLOAD // 10**6} million bytes")
        return path


def sha256_of(path: Path) -> str:
    """The digest of a file's content. Fault where it may not be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise Fault(f"cannot be read ({error.strerror or error})", "check the permissions") from None


def _near(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in os.scandir(path.parent))[:5000]
    except OSError:
        return ""
    said = nearest(path.name, names)
    return said if said.startswith("did") else ""


def _picture_suffix(path: Path) -> str:
    """By the content, whatever the name says. Only the header is read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            kind, (width, height) = str(picture.format), picture.size
    except Image.DecompressionBombError:
        raise Fault("has too many pixels", "give a smaller image") from None
    except Exception:  # whatever a hostile header makes Pillow raise
        raise Fault("is not an image", "give a PNG, JPEG or WebP file") from None
    if width * height > MOST_PIXELS:
        raise Fault(f"has {width}x{height} pixels, too many", "give a smaller image")
    if kind not in _PICTURES:
        raise Fault(f"is a {kind} file, which the host may be unable to read", "save it as PNG or JPEG")
    return _PICTURES[kind]


def _other_suffix(path: Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _OTHER:
        raise Fault("is of a type that is not uploaded", f"give one of {', '.join(sorted(_OTHER))}")
    return suffix
