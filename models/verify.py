"""Comparing the files that are here with what was published."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .content import is_lfs_pointer, sha256
from .lookup import locate
from .places import OUR_KINDS, folders
from .progress import Progress
from .registry import WEIGHT_SUFFIXES, ModelFile, registry
from .scan import is_file, walk


class Health(Enum):
    """What a check of one file says; the value is the sentence for the user."""

    OK = "matches its published checksum"
    UNPROVEN = "no checksum is published: the size is all that can be checked"
    RENAMED = "is a known file under another name"
    DIFFERENT = "has other content than the published file of this name"
    POINTER = "is a Git LFS pointer, not the model itself"
    UNKNOWN = "is not in the registry"
    UNREADABLE = "cannot be read"

    @property
    def is_problem(self) -> bool:
        return self in (Health.DIFFERENT, Health.POINTER, Health.UNREADABLE)


@dataclass(frozen=True)
class Check:
    """One checked file: `expected` by its name, `recognised` by its hash."""

    path: Path
    health: Health
    digest: str
    expected: ModelFile | None
    recognised: tuple[ModelFile, ...]
    reason: str = ""  # why it cannot be read

    @property
    def in_words(self) -> str:
        """The sentence for the user, after the file's name."""
        return f"{self.health.value} ({self.reason})" if self.reason else self.health.value


def check_file(path: Path, expected: ModelFile | None = None, progress: Progress | None = None) -> Check:
    """Hash one file and say what it is; a file that cannot be read is a finding, not an error."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return Check(path, Health.UNREADABLE, "", expected, (), "no file, but a folder, pipe or device")
        if is_lfs_pointer(path):
            return Check(path, Health.POINTER, "", expected, ())
        digest = sha256(path, progress)
    except (OSError, ValueError) as error:
        why = "a broken link" if path.is_symlink() and isinstance(error, FileNotFoundError) else _reason(error)
        return Check(path, Health.UNREADABLE, "", expected, (), why)
    recognised = tuple(model for model in registry() if digest in model.sha256)
    if expected is None:
        health = Health.RENAMED if recognised else Health.UNKNOWN
    elif expected.sha256:
        health = Health.OK if digest in expected.sha256 else Health.DIFFERENT
    elif expected.size_bytes not in (None, found.st_size):
        health = Health.DIFFERENT
    else:
        health = Health.UNPROVEN
    return Check(path, health, digest, expected, recognised)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def installed(everything: bool = False) -> dict[Path, ModelFile | None]:
    """Model files on this machine -> the registry entry their name or place stands for.

    With `everything`, also files of our kinds that no entry stands for (None), and links, pipes and the like that have
    a model's name.
    """
    found: dict[Path, ModelFile | None] = {}
    for model in registry():
        path = locate(model)
        if path is not None and is_file(path):
            found.setdefault(path, model)
    if everything:
        for kind in dict.fromkeys([*OUR_KINDS, *(model.kind for model in registry())]):
            for path in (path for folder in folders(kind) for path in walk(folder, everything=True)):
                if path.suffix.lower() in WEIGHT_SUFFIXES:
                    found.setdefault(path, None)
    return found
