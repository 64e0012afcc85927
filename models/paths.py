"""Names that others hand to us: relative ones, which stay inside a folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

from ..errors import LikenessError


def relative(name: str) -> PurePosixPath:
    """`name` as a path that stays inside a folder. Workflows come from strangers, so anything else is refused."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise LikenessError(f"The file name {name!r} leaves the models folder: choose a file from the list instead.")
    return path
