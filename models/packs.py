"""InsightFace packs: folders of ONNX files, often nested once too deep."""

from __future__ import annotations

from pathlib import Path

from ..errors import LikenessError
from .advice import missing, must_be_readable
from .paths import relative
from .places import folders, other_folders
from .registry import registry
from .scan import folder_entries, is_folder, onnx_files


def pack_candidates(name: str) -> list[Path]:
    """Where a pack of this name may lie, nested or not."""
    bases = [
        base
        for folder in [*folders("insightface"), *other_folders("insightface")]
        for base in (folder / "models", folder)
    ]
    return [candidate for base in bases for candidate in (base / name, base / name / name)]


def find_insightface_pack(name: str) -> Path:
    """The folder that holds the ONNX files of a pack ('buffalo_l', 'antelopev2'), nested or not.

    Where several folders of that name exist, the one with most files. Raises LikenessError when there is none.
    """
    if len(relative(name).parts) != 1:
        raise LikenessError(f"An InsightFace pack is named by one word such as buffalo_l, not {name!r}.")
    candidates = pack_candidates(name)
    best = max(candidates, key=lambda folder: len(onnx_files(folder)))  # max keeps the first among equals
    if not onnx_files(best):
        models = [model for model in registry() if model.kind == "insightface" and model.name.startswith(f"{name}/")]
        raise LikenessError(missing(f"No ONNX files of the face pack {name!r}", candidates, models, group=name))
    for path in onnx_files(best):
        must_be_readable(path)
    return best


def list_insightface_packs() -> list[str]:
    """Names of the packs found on this machine, the two that the published adapters need first."""
    bases = [
        base
        for folder in [*folders("insightface"), *other_folders("insightface")]
        for base in (folder / "models", folder)
        if is_folder(base)
    ]
    names = {
        entry.name
        for base in bases
        for entry in folder_entries(base)
        if onnx_files(entry) or onnx_files(entry / entry.name)
    }
    first = [name for name in ("buffalo_l", "antelopev2") if name in names]
    return first + sorted(names.difference(first))
