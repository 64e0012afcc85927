"""Fetching a model file on request, into the folder that ComfyUI reads it from."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from ..errors import LikenessError
from ..storage import keep_new
from .archive import unpack
from .places import download_root, expanded
from .progress import Progress
from .registry import ModelFile, archive_members
from .scan import is_file
from .transfer import fetch
from .verify import check_file


class DownloadOutcome(Enum):
    PRESENT = "already there"
    WOULD_DOWNLOAD = "would be downloaded"
    DOWNLOADED = "downloaded"
    UNPACKED = "unpacked"


def download(
    model: ModelFile,
    root: Path | None = None,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    confirm_licence: Callable[[ModelFile], bool] | None = None,
) -> tuple[DownloadOutcome, Path]:
    """Fetch one file into `root` (a `models` directory; by default `download_root()`); returns what was done and where.

    The bytes go to `<target>.part`, are resumed from there after an interruption, hashed on the way and moved into
    place only when the hash is right. Archives are unpacked. `confirm_licence` is asked before a file whose licence
    excludes commercial use; without it, or when it says no, nothing is fetched. `dry_run` writes and fetches nothing.

    Raises LikenessError: no licence consent, another file in the way, no network, refused or missing on the server,
    disk full, wrong content (kept as `<target>.mismatch`).
    """
    root = expanded(str(root or download_root()))
    target = root / model.target
    is_archive = model.filename.endswith(".zip")
    unpacked = target.with_suffix("")
    if is_archive and (members := archive_members(model)) and all(is_file(root / m.target) for m in members):
        return DownloadOutcome.PRESENT, unpacked
    if os.path.lexists(target):
        _must_be_the_same(target, model)
        if not is_archive:
            return DownloadOutcome.PRESENT, target
    elif not model.url:
        raise LikenessError(
            f"{model.name} cannot be downloaded automatically: get it from "
            f"{model.source or 'its publisher'} and put it at {target} ({model.notes})."
        )
    if dry_run:
        return DownloadOutcome.WOULD_DOWNLOAD, target
    if model.commercial is False and not (confirm_licence and confirm_licence(model)):
        raise LikenessError(
            f"{model.name} may not be used commercially ({model.licence}): accept that licence first, "
            f"e.g. with `likeness models get {model.name} --accept-licence`."
        )
    try:
        if os.path.lexists(target):  # an archive that was downloaded by hand stays where it is
            _unpack(target, unpacked, model, root)
            return DownloadOutcome.UNPACKED, unpacked
        part = target.with_name(target.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        fetch(model, part, progress)
        if is_archive:
            _unpack(part, unpacked, model, root)
            part.unlink()
            return DownloadOutcome.UNPACKED, unpacked
        try:
            keep_new(part, target)
        except FileExistsError as error:
            raise LikenessError(f"{target} appeared during the download: the new copy is {part}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LikenessError(
                f"The disk is full: free some space on {root} and run the same again, {model.filename} resumes where "
                "it stopped."
            ) from error
        raise LikenessError(
            f"{target.parent} cannot be written to ({error.strerror}): choose another folder with --models-dir."
        ) from error
    return DownloadOutcome.DOWNLOADED, target


def _unpack(archive: Path, folder: Path, model: ModelFile, root: Path) -> None:
    unpack(archive, folder)
    if missing := [member.filename for member in archive_members(model) if not is_file(root / member.target)]:
        raise LikenessError(f"{archive} lacks {', '.join(missing)}: get {model.name} at {model.source}.")


def _must_be_the_same(target: Path, model: ModelFile) -> None:
    result = check_file(target, model)
    if result.health.is_problem:
        raise LikenessError(f"{target} {result.in_words}: it was left as it is; move it away to download {model.name}.")
