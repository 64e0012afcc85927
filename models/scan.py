"""Looking through folders that may hold anything.

What cannot be read is left out, with one warning for each place. Only regular files count: a named pipe would be waited
for without end, and links may be broken or lead back to where they lie.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from ..errors import logger

log = logger("likeness")

_DEEPEST = 40  # levels below a folder
_ROUTES = 4  # by which one folder is listed: links that cross each other multiply without end
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EBADF, errno.EINVAL})
_told: set[str] = set()


def is_file(path: Path) -> bool:
    """Whether a regular file can be reached there."""
    found = _status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Whether a folder can be reached there."""
    found = _status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def folder_entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing where it cannot be read. Names that are not text are left out."""
    return [folder / entry.name for entry in _listed(folder)]


def walk(folder: Path, everything: bool = False) -> Iterator[Path]:
    """Files below `folder`, links followed as ComfyUI does, hidden directories left out; what lies higher comes first.

    Only regular files; with `everything`, also broken links, pipes and whatever else is no folder.
    """
    waiting: deque[tuple[Path, tuple[tuple[int, int], ...]]] = deque([(folder, ())])
    routes: Counter[tuple[int, int]] = Counter()
    while waiting:
        place, above = waiting.popleft()
        found = _status(place)
        if found is None:
            continue
        here = (found.st_dev, found.st_ino)
        routes[here] += 1
        if here in above or routes[here] > _ROUTES:
            continue
        if len(above) >= _DEEPEST:
            _tell(folder, f"holds folders more than {_DEEPEST} levels deep: what lies deeper is left out.")
            continue
        for entry in _listed(place):
            if _is(os.DirEntry.is_dir, entry):
                if not entry.name.startswith("."):
                    waiting.append((place / entry.name, (*above, here)))
            elif everything or _is(os.DirEntry.is_file, entry):
                yield place / entry.name


def first_file(places: Iterable[Path], name: PurePosixPath) -> Path | None:
    """The regular file of this name in the first of the places that has it."""
    return next((folder / name for folder in places if is_file(folder / name)), None)


def onnx_files(folder: Path) -> list[Path]:
    """The ONNX files that lie in a folder; none where there is no such folder."""
    if not is_folder(folder):
        return []
    return [path for path in folder_entries(folder) if path.suffix == ".onnx" and is_file(path)]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            listed = sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        _leave_out(folder, error)
        return []
    if not all(_is_text(entry.name) for entry in listed):
        _tell(folder, "holds names that are not valid text: these files are left out; rename them.")
    return [entry for entry in listed if _is_text(entry.name)]


def _is(question: Callable[[os.DirEntry[str]], bool], entry: os.DirEntry[str]) -> bool:
    """What the folder itself says of an entry: the file is asked only where that is a link."""
    try:
        return question(entry)
    except (OSError, ValueError) as error:
        _leave_out(Path(entry.path), error)
        return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        _leave_out(path, error)
        return None


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _leave_out(path: Path, error: OSError | ValueError) -> None:
    if isinstance(error, OSError) and error.errno not in _NOTHING_THERE:
        _tell(_closed_folder(path), f"cannot be read ({error.strerror}): model files in it are left out.")


def _closed_folder(path: Path) -> Path:
    """The folder that keeps us from `path`: the last above it that can be seen, or `path` itself."""
    for place in (path, *path.parents):
        try:
            place.stat()
        except OSError:
            continue
        return place
    return path


def _tell(place: Path, what: str) -> None:
    """One warning for each place, however often it is looked at."""
    if str(place) not in _told:
        _told.add(str(place))
        log.warning("%r %s", str(place), what)
