"""Where nodes write: a free name inside one of our folders, never over what is there, never outside."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ..errors import LikenessError


def save_folder(kind: str) -> Path:
    """The first folder of this kind that can be written to, else `output/<kind>` of the host."""
    import folder_paths

    from ..models_download import folders

    for folder in folders(kind):
        existing = next((parent for parent in [folder, *folder.parents] if parent.exists()), None)
        if existing is not None and os.access(existing, os.W_OK):
            return folder
    return Path(folder_paths.get_output_directory()) / kind


def free_path(folder: Path, name: str, suffix: str) -> Path:
    """A path below `folder` that nobody uses: `name` with the suffix, and with a number when it is taken.

    Sub-folders in the name are fine. Raises LikenessError for names that are empty or lead out of the folder.
    """
    relative = PurePosixPath(name.strip().replace("\\", "/").removesuffix(suffix))
    if not relative.name or relative.is_absolute() or ".." in relative.parts or ":" in name or "\0" in name:
        raise LikenessError(f"'{name}' is no name for a file inside {folder.name}: use letters, digits and slashes.")
    target = folder / relative
    candidate, number = target.with_name(f"{target.name}{suffix}"), 1
    while candidate.exists():
        number += 1
        candidate = target.with_name(f"{target.name}_{number:03d}{suffix}")
    candidate.parent.mkdir(parents=True, exist_ok=True)
    return candidate
