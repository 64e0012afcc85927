"""Which model files are here, under whatever name and in whatever folder people have them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ..errors import LikenessError
from .advice import missing, must_be_readable
from .packs import pack_candidates
from .paths import relative
from .places import folders, hub_caches, other_folders
from .registry import HUB, WEIGHT_SUFFIXES, ModelFile, archive_members, registered, registry
from .scan import first_file, folder_entries, is_folder, walk


def list_files(kind: str, suffixes: Collection[str] = WEIGHT_SUFFIXES) -> list[str]:
    """Names for a combo, relative to the kind's folders and sorted; known files that lie elsewhere follow.

    Unfinished downloads are never among them. `suffixes` are lower case with the dot, e.g. {".safetensors"}.
    """
    names = {
        path.relative_to(folder).as_posix()
        for folder in folders(kind)
        for path in walk(folder)
        if path.suffix.lower() in suffixes
    }
    present = {PurePosixPath(name).name for name in names}
    elsewhere = [
        model.within_kind
        for model in registry()
        if model.kind == kind
        and PurePosixPath(model.filename).suffix in suffixes
        and model.filename not in present
        and not {PurePosixPath(alias).name for alias in model.aliases} & present
        and _elsewhere(model)
    ]
    return sorted(names, key=str.lower) + elsewhere


def resolve(kind: str, name: str) -> Path | None:
    """The file `name` (relative) in one of the kind's folders, or None. Raises LikenessError for names that lead out.

    Links that the user has put into the folders are followed.
    """
    return first_file(folders(kind), relative(name))


def _nested(kind: str, name: str) -> list[Path]:
    """Files of this bare name in sub-folders of the kind's folders, e.g. loras/ipadapter/<name>."""
    return [path for folder in folders(kind) for path in walk(folder) if path.name == name]


def _in_hub_cache(model: ModelFile) -> Path | None:
    """The file in the Hugging Face cache, where diffusers, timm and others have put it."""
    match = re.fullmatch(re.escape(HUB) + r"([^/]+)/([^/]+)/resolve/[^/]+/(.+)", model.url)
    if match is None:
        return None
    owner, repository, path = match.groups()
    snapshots = [
        snapshot
        for cache in hub_caches()
        if is_folder(folder := cache / f"models--{owner}--{repository}" / "snapshots")
        for snapshot in folder_entries(folder)
    ]
    return first_file(snapshots, PurePosixPath(path))


def locate(model: ModelFile) -> Path | None:
    """Where this file is on this machine, under any of its names and places, or None."""
    if not PurePosixPath(model.filename).suffix:  # a folder in the diffusers layout
        index = first_file(folders(model.kind), PurePosixPath(model.within_kind, "model_index.json"))
        return index.parent if index else None
    if model.filename.endswith(".zip"):
        members = [locate(member) for member in archive_members(model)]
        return members[0].parent if members and members[0] and all(members) else None
    for name in (model.within_kind, *model.aliases):
        if path := resolve(model.kind, name):
            return path
    for name in (name for name in (model.within_kind, *model.aliases) if "/" not in name):
        if nested := _nested(model.kind, name):
            return nested[0]
    return _elsewhere(model)


def _elsewhere(model: ModelFile) -> Path | None:
    """The file in a place that is not of its kind: a nested face pack, another pack's folder, the hub's cache."""
    if model.kind == "insightface":
        pack = PurePosixPath(model.folder).name
        return first_file(pack_candidates(pack), PurePosixPath(model.filename))
    places = other_folders(model.kind)
    for name in (model.within_kind, *model.aliases):
        if path := first_file(places, relative(name)):
            return path
    return _in_hub_cache(model)


def find_file(kind: str, name: str) -> Path:
    """The file `name` of one kind, wherever it lies.

    Raises LikenessError that says where was looked and how to get the file; also for a Git LFS pointer in its place.
    """
    wanted = relative(name).as_posix()
    model = registered(kind, wanted)
    path = resolve(kind, name)
    if path is None and model is not None:
        path = locate(model)
    if path is None and "/" not in wanted:
        nested = _nested(kind, wanted)
        if len(nested) > 1:
            raise LikenessError(f"Several files are called {name!r}: choose one of {', '.join(map(str, nested))}.")
        path = nested[0] if nested else first_file(other_folders(kind), PurePosixPath(wanted))
    if path is None:
        raise LikenessError(missing(f"{name!r} was not found", folders(kind), [model] if model else []))
    must_be_readable(path)
    return path
