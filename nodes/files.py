"""Where nodes keep what the artist saves: never over what is there, never outside of our folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import models_download
from ..errors import LikenessError


@dataclass(frozen=True)
class Shelf:
    """Files of one kind: below the models folders of that kind, and below `output/<fallback>` where those cannot be
    written. A file's name is relative to its folder and means the same file in every folder."""

    kind: str  # of a models folder
    fallback: str  # folder below ComfyUI's output
    what: str  # one of the things kept here, for messages
    suffixes: tuple[str, ...] = (".safetensors",)  # that can be read; the first is written

    def folders(self) -> list[Path]:
        """Where these files lie, best first; some folders may not exist."""
        import folder_paths

        return [*models_download.folders(self.kind), Path(folder_paths.get_output_directory()) / self.fallback]

    def names(self) -> list[str]:
        """All files, sorted."""
        last = self.folders()[-1]
        found = {p.relative_to(last).as_posix() for s in self.suffixes for p in last.rglob(f"*{s}") if p.is_file()}
        return sorted(found.union(models_download.list_files(self.kind, set(self.suffixes))), key=str.lower)

    def find(self, name: str) -> Path | None:
        """The file of this name in the first folder that has it; LikenessError for names that lead out."""
        models_download.resolve(self.kind, name)  # refuses names that lead out
        relative = name.replace("\\", "/")
        return next((folder / relative for folder in self.folders() if (folder / relative).is_file()), None)

    def find_or_explain(self, name: str) -> Path:
        """The file of this name; LikenessError naming the folders searched when there is none."""
        path = self.find(name)
        if path is None:
            searched = " and ".join(str(folder) for folder in self.folders())
            raise LikenessError(f"{self.what} {name!r} was not found in {searched}: save one, or put the file there.")
        return path

    def fingerprint(self, name: str | None) -> str:
        """Changes when the file of this name does."""
        path = self.find(name) if name else None
        return f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}" if path else ""

    def save(self, filename: str, write: Callable[[Path], Any]) -> str:
        """Let `write` make a file under a free name in the first folder that can be written; returns that name.

        A number is added when the name is taken. Sub-folders in the name are fine.
        """
        name, reasons = self._free_name(filename), []
        for folder in self.folders():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
            except OSError as error:
                reasons.append(f"{folder}: {error.strerror or error}")
                continue
            return name
        raise LikenessError(
            f"{self.what} could not be written ({'; '.join(reasons)}): make one of these folders writable, or use a "
            "shorter filename."
        )

    def _free_name(self, filename: str) -> str:
        suffix = self.suffixes[0]
        stem = filename.strip().replace("\\", "/").removesuffix(suffix)
        try:
            models_download.resolve(self.kind, stem + suffix)
        except LikenessError:
            stem = ""
        if not stem or stem.endswith("/"):
            raise LikenessError(
                f"The filename {filename!r} does not name a file inside models/{self.kind}: use a name such as person, "
                "or family/person."
            )
        numbers, name = itertools.count(2), stem + suffix
        while self.find(name):
            name = f"{stem}_{next(numbers)}{suffix}"
        return name
