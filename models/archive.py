"""Unpacking the zip files that face packs are published in."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import LikenessError
from .content import sha256
from .progress import CHUNK
from .scan import walk


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into `folder`, without the archive's own top folder, leaving files that are there untouched."""
    staging = folder.with_name(folder.name + ".part.d")
    try:
        with zipfile.ZipFile(archive) as file:
            members = [entry for entry in file.infolist() if not entry.is_dir() and "__MACOSX" not in entry.filename]
            if sum(entry.file_size for entry in members) > shutil.disk_usage(archive.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for entry in members:
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                unsafe = path.is_absolute() or ".." in path.parts or PureWindowsPath(entry.filename).drive
                if unsafe or stat.S_ISLNK(entry.external_attr >> 16):
                    raise LikenessError(
                        f"{archive.name} holds {entry.filename!r}, which leads out of its folder: it was not unpacked."
                    )
                inner = path.relative_to(folder.name) if path.parts[0] == folder.name else path
                (staging / inner).parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as source, (staging / inner).open("wb") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
        for path in list(walk(staging)):
            final = folder / path.relative_to(staging)
            if not final.exists():
                final.parent.mkdir(parents=True, exist_ok=True)
                path.replace(final)
            elif sha256(final) != sha256(path):
                raise LikenessError(
                    f"{final} has other content than the one in {archive.name}: it was left as it is; "
                    "move it away to unpack the archive."
                )
    except zipfile.BadZipFile as error:
        raise LikenessError(f"{archive} is not a whole zip file: delete it and try again.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
