"""Where nodes keep what the user saves: never over what is there, never outside of our folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .. import models_download
from ..errors import LikenessError
from ..storage import check_name, write_new


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
        """All files, sorted. A folder that may not be read has none."""
        last = self.folders()[-1]
        found = {
            (Path(place) / name).relative_to(last).as_posix()
            for place, _, names in os.walk(last)
            for name in names
            if name.endswith(self.suffixes) and os.path.isfile(os.path.join(place, name))
        }
        return sorted(found.union(models_download.list_files(self.kind, set(self.suffixes))), key=str.lower)

    def find(self, name: str) -> Path | None:
        """The file of this name in the first folder that has it; LikenessError for names that lead out."""
        try:
            models_download.resolve(self.kind, name)  # refuses names that lead out
            relative = name.replace("\\", "/")
            return next((folder / relative for folder in self.folders() if (folder / relative).is_file()), None)
        except OSError:  # no file can have so long a name, or the folder may not be read
            return None

    def find_or_explain(self, name: str) -> Path:
        """The file of this name; LikenessError naming the folders searched when there is none."""
        path = self.find(name)
        if path is None:
            searched = " and ".join(str(folder) for folder in self.folders())
            raise LikenessError(f"{self.what} {name!r} was not found in {searched}: save one, or put the file there.")
        return path

    def fingerprint(self, name: str | None) -> str:
        """Changes when the file of this name does."""
        try:
            path = self.find(name) if name and isinstance(name, str) else None
            stat = path.stat() if path else None
        except (LikenessError, OSError):  # it leads out, or has just gone: running the node says so
            path = stat = None
        return f"{path} {stat.st_mtime_ns} {stat.st_size}" if stat else ""

    def save(self, filename: str, write: Callable[[Path], Any], to_output: bool = False) -> str:
        """Let `write` make a file under a free name in the first folder that can be written, or below ComfyUI's
        output; returns that name.

        A number is added when the name is taken in any of the folders, also by another process at this moment; the
        file is there whole or not at all. Sub-folders in the name are fine.
        """
        stem, reasons = self._stem(filename), []
        for folder in self.folders()[-1:] if to_output else self.folders():
            place = folder / stem.parent
            try:
                place.mkdir(parents=True, exist_ok=True)
                path = write_new(
                    place,
                    stem.name,
                    self.suffixes[0],
                    write,
                    taken=lambda name: self.find((stem.parent / name).as_posix()),
                )
            except OSError as error:
                reasons.append(f"{folder}: {error.strerror or error}")
                continue
            return path.relative_to(folder).as_posix()
        raise LikenessError(
            f"{self.what} could not be written ({'; '.join(reasons)}): make one of these folders writable, or free "
            "some space."
        )

    def served(self, name: str) -> dict[str, str]:
        """A file below ComfyUI's output, as clients ask for it."""
        place = PurePosixPath(self.fallback) / name
        return {"filename": place.name, "subfolder": place.parent.as_posix(), "type": "output"}

    def _stem(self, filename: str) -> PurePosixPath:
        """The wanted name without its suffix, a path inside the folders."""
        wanted = filename.strip().replace("\\", "/").removesuffix(self.suffixes[0])
        stem = PurePosixPath() if wanted.endswith("/") else PurePosixPath(wanted)
        try:
            models_download.resolve(self.kind, f"{stem}{self.suffixes[0]}")
        except LikenessError:
            stem = PurePosixPath()
        if not stem.name:
            raise LikenessError(
                f"The filename {filename!r} does not name a file inside models/{self.kind}: use a name such as person, "
                "or family/person."
            )
        for part in stem.parts:
            check_name(part, "The filename")
        return stem
