"""Names that others hand to us: relative ones, which stay inside a folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

from ..errors import LikenessError


def relative(name: str) -> PurePosixPath:
    """`name` as a path that stays inside a folder. Workflows come from strangers, so anything else is refused."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise LikenessError(f"The file name {name!r} is not valid text: choose a file from the list instead.")
    path = PurePosixPath(name.replace("\\", "/"))
    if any(len(part.encode()) > 255 for part in path.parts):
        raise LikenessError(f"The file name {name[:60] + '…'!r} is too long: choose a file from the list instead.")
    if not path.parts or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise LikenessError(f"The file name {name!r} leaves the models folder: choose a file from the list instead.")
    return path
