"""The files that Load Identity Adapter offers: those of models/ipadapter, and of every other system's own folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import LikenessError

KIND = "ipadapter"  # its files are called by their own names, those of other folders by `<folder>/<name>`
NO_FILES = "(no file in models/ipadapter)"
MINIATURE = "miniature FaceID (in this pack)"


def _other_kinds() -> list[str]:
    from ..adapters import SYSTEMS

    return list(dict.fromkeys(folder for kind in SYSTEMS for folder in kind.folders if folder != KIND))


def adapter_choices() -> list[str]:
    """What there is to choose: files, and the miniature after them, which new nodes begin with where there is none."""
    from ..models_download import list_files

    others = [f"{kind}/{name}" for kind in _other_kinds() for name in list_files(kind)]
    files = [*list_files(KIND), *others]
    return [*files, MINIATURE] if files else [MINIATURE, NO_FILES]


def find_adapter(choice: str) -> Path:
    """The file of this choice; LikenessError that says how to get it when it is not there."""
    if choice == NO_FILES:
        raise LikenessError(
            "There is no adapter in models/ipadapter: get one with `likeness models get "
            "ip-adapter-faceid_sd15.bin`, or put one there and reload the page."
        )
    if choice == MINIATURE:
        return _miniature()
    from ..models_download import find_file

    kind = folder_of(choice)
    return find_file(KIND, choice) if kind is None else find_file(kind, choice.partition("/")[2])


def _miniature() -> Path:
    from ..miniature.models.weights import ADAPTER_FILE

    if not ADAPTER_FILE.is_file():
        raise LikenessError(
            "The adapter of the miniature world is missing: restore the folder miniature/weights from the "
            "repository, or retrain it with `python -m likeness.miniature.train`."
        )
    return ADAPTER_FILE


def folder_of(choice: str) -> str | None:
    """The system's own folder that a choice names; None for one of models/ipadapter, whose path says it."""
    from ..models_download import resolve

    kind, _, name = choice.partition("/")
    return kind if name and kind in _other_kinds() and resolve(KIND, choice) is None else None
