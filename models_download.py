"""The model files this pack works with: which exist, where they lie on this machine, and how to fetch one on request.

Nothing here touches the network unless `download` is called, and nothing needs torch or ComfyUI: inside ComfyUI the
folders come from its `folder_paths` module (so `extra_model_paths.yaml` is honoured), elsewhere from `LIKENESS_MODELS`,
`COMFYUI_PATH` or the usual places. Files are only ever added; one that is already there is never changed.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import fnmatch
import functools
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import LikenessError

HUB = "https://huggingface.co/"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".dat"})

# ---------------------------------------------------------------------------------------------------------------------
# The registry


@dataclass(frozen=True)
class ModelFile:
    """One published weight file.

    `folder` is relative to a `models` directory and its first part is the kind, i.e. ComfyUI's folder name. `sha256`
    holds every hash known for the file (none: not known); `size_about` is a rounded size in bytes where the exact one
    is not known. `commercial` is True, False or None (code, weights and training data disagree). `aliases` are other
    names, relative to the kind's folder, under which people have the same bytes.
    """

    name: str
    system: str
    variant: str
    url: str
    filename: str
    folder: str
    size_bytes: int | None
    sha256: tuple[str, ...]
    licence: str
    commercial: bool | None
    needed_by: str
    notes: str
    page: str = ""
    size_about: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.folder.split("/")[0]

    @property
    def target(self) -> str:
        """Where the file belongs, relative to a `models` directory."""
        return f"{self.folder}/{self.filename}"

    @property
    def within_kind(self) -> str:
        """The target relative to the kind's folder: what a file list of that folder shows."""
        return self.target.split("/", 1)[1]

    @property
    def size(self) -> str:
        if self.size_bytes is not None:
            return human_size(self.size_bytes)
        return "size unknown" if self.size_about is None else f"about {human_size(self.size_about)}"

    @property
    def source(self) -> str:
        """The page a person can open: the hub repository, the GitHub release, or the address itself."""
        release = re.fullmatch(r"(.+)/releases/download/([^/]+)/.+", self.url)
        return self.page or (
            f"{release[1]}/releases/tag/{release[2]}" if release else re.split("/resolve/|/raw/", self.url)[0]
        )

    @property
    def commercial_use(self) -> str:
        return {True: "yes", False: "no", None: "unclear"}[self.commercial]


def human_size(size: float) -> str:
    """Bytes in the decimal units of the hub: 44642768 -> '44.6 MB'."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


@functools.cache
def _registry_document() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("model_registry.json").read_text(encoding="utf-8"))


@functools.cache
def registry() -> tuple[ModelFile, ...]:
    """Every model file the pack knows, in the order of the documentation."""
    return tuple(_model_file(record) for record in _registry_document()["models"])


def _model_file(record: dict[str, Any]) -> ModelFile:
    tuples = {key: tuple(record[key]) for key in ("sha256", "aliases") if key in record}
    return ModelFile(**{**record, **tuples})


def no_published_weights() -> dict[str, str]:
    """Systems that come without weight files -> why."""
    return dict(_registry_document()["no_published_weights"])


def select(pattern: str) -> list[ModelFile]:
    """The registry entries that `pattern` means: a name, a file name, a group ('buffalo_l', 'instantid') or a wildcard.

    Raises LikenessError, with the nearest names, when there is none.
    """
    for matches in (
        lambda model: model.name == pattern,
        lambda model: model.filename == pattern,
        lambda model: model.name.startswith(f"{pattern}/"),
        lambda model: fnmatch.fnmatchcase(model.name, pattern),
    ):
        if found := [model for model in registry() if matches(model)]:
            return found
    near = difflib.get_close_matches(pattern.lower(), [model.name for model in registry()], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `likeness models list`."
    raise LikenessError(f"No model is called {pattern!r}: {hint}")


# ---------------------------------------------------------------------------------------------------------------------
# Folders

# Folder names that ComfyUI itself does not know (`photomaker` is missing on older hosts only).
OUR_KINDS = (
    "ipadapter",
    "instantid",
    "pulid",
    "photomaker",
    "storymaker",
    "fastcomposer",
    "blip_diffusion",
    "custom_diffusion",
    "insightface",
    "facexlib",
    "facedetection",
    "facerecognition",
    "facerestore_models",
    "opencv_zoo",
    "dlib",
    "rmbg",
    "likeness_identities",
    "likeness_embeds",
)
_ONNX_KINDS = frozenset({"insightface", "opencv_zoo"})

# Kinds that ComfyUI keeps in several directories.
_DIRECTORIES = {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "controlnet": ("controlnet", "t2i_adapter"),
}

# Where other packs keep files of a kind. Searched for files asked for by name, never listed, never written to.
_ALSO_IN = {
    "facexlib": ("facedetection", "facerestore_models"),
    "facedetection": ("facexlib", "facerestore_models"),
    "clip_vision": ("text_encoders", "eva_clip"),
    "storymaker": ("photomaker",),
}


def _host() -> Any | None:
    """ComfyUI's `folder_paths` when we run inside ComfyUI. Never imported: only a running host has it loaded."""
    return sys.modules.get("folder_paths")


def register_folders() -> None:
    """Tell ComfyUI about our folders, so that its own lists and `extra_model_paths.yaml` know them.

    Folders that other packs or the user have registered keep their paths and their extension sets; ours is appended.
    No directory is created. Outside ComfyUI nothing happens.
    """
    host = _host()
    if host is None:
        return
    for kind in OUR_KINDS:
        path = os.path.join(host.models_dir, kind)
        if kind not in host.folder_names_and_paths:
            # A copy: the default set is one object, shared by all folders of the host.
            suffixes = {*host.supported_pt_extensions, *({".onnx"} if kind in _ONNX_KINDS else ())}
            host.folder_names_and_paths[kind] = ([path], suffixes)
        elif not any(os.path.normpath(path) == os.path.normpath(known) for known in host.get_folder_paths(kind)):
            host.add_model_folder_path(kind, path)


def model_roots() -> list[Path]:
    """The `models` directories to look in, best first; some may not exist."""
    host = _host()
    if host is not None:
        return [Path(host.models_dir)]
    roots = [Path(part).expanduser() for part in os.environ.get("LIKENESS_MODELS", "").split(os.pathsep) if part]
    if comfyui := os.environ.get("COMFYUI_PATH"):
        roots.append(Path(comfyui).expanduser() / "models")
    package = Path(__file__).parent
    if package.parent.name == "custom_nodes":
        roots.append(package.parent.parent / "models")
    roots.append(Path.home() / "comfy" / "ComfyUI" / "models")
    return list(dict.fromkeys(roots))


def download_root() -> Path:
    """The `models` directory that downloads go to: the first that was asked for, or that exists."""
    roots = model_roots()
    asked_for = _host() is not None or os.environ.get("LIKENESS_MODELS") or os.environ.get("COMFYUI_PATH")
    for root in roots:
        if asked_for or root.is_dir():
            return root
    raise LikenessError(
        "No ComfyUI models folder was found: name one with --models-dir or in the environment variable LIKENESS_MODELS."
    )


def folders(kind: str) -> list[Path]:
    """The folders of one kind ('ipadapter', 'insightface', 'loras' …), best first; some may not exist."""
    host = _host()
    registered: list[Path] = []
    if host is not None:
        with contextlib.suppress(KeyError):
            registered = [Path(path) for path in host.get_folder_paths(kind)]
    usual = [root / directory for root in model_roots() for directory in _DIRECTORIES.get(kind, (kind,))]
    return list(dict.fromkeys(registered + usual))


def _other_folders(kind: str) -> list[Path]:
    """Read-only places where people already have files of this kind."""
    found = [folder for other in _ALSO_IN.get(kind, ()) for folder in folders(other)]
    if kind == "insightface":
        found.append(Path.home() / ".insightface")
    if kind == "facexlib" and (package := importlib.util.find_spec("facexlib")) and package.origin:
        found.append(Path(package.origin).parent / "weights")
    return found


def _relative(name: str) -> PurePosixPath:
    """`name` as a path that stays inside a folder. Workflows come from strangers, so anything else is refused."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise LikenessError(f"The file name {name!r} leaves the models folder: choose a file from the list instead.")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, links followed as ComfyUI does, hidden directories left out, in a stable order."""
    for directory, subdirectories, names in os.walk(folder, followlinks=True):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names))


def list_files(kind: str, suffixes: Collection[str] = WEIGHT_SUFFIXES) -> list[str]:
    """Names for a combo, relative to the kind's folders and sorted; known files that lie elsewhere follow.

    Unfinished downloads are never among them. `suffixes` are lower case with the dot, e.g. {".safetensors"}.
    """
    names = {
        path.relative_to(folder).as_posix()
        for folder in folders(kind)
        for path in _walk(folder)
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
    return _first_file(folders(kind), _relative(name))


def _first_file(places: Iterable[Path], name: PurePosixPath) -> Path | None:
    return next((folder / name for folder in places if (folder / name).is_file()), None)


def _nested(kind: str, name: str) -> list[Path]:
    """Files of this bare name in sub-folders of the kind's folders, e.g. loras/ipadapter/<name>."""
    return [path for folder in folders(kind) for path in _walk(folder) if path.name == name]


def _in_hub_cache(model: ModelFile) -> Path | None:
    """The file in the Hugging Face cache, where diffusers, timm and others have put it."""
    match = re.fullmatch(re.escape(HUB) + r"([^/]+)/([^/]+)/resolve/[^/]+/(.+)", model.url)
    if match is None:
        return None
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    owner, repository, path = match.groups()
    snapshots = sorted(cache.glob(f"models--{owner}--{repository}/snapshots/*"))
    return _first_file(snapshots, PurePosixPath(path))


def locate(model: ModelFile) -> Path | None:
    """Where this file is on this machine, under any of its names and places, or None."""
    if not PurePosixPath(model.filename).suffix:  # a folder in the diffusers layout
        index = _first_file(folders(model.kind), PurePosixPath(model.within_kind, "model_index.json"))
        return index.parent if index else None
    if model.filename.endswith(".zip"):
        members = [locate(member) for member in _archive_members(model)]
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
        return _first_file(_pack_candidates(pack), PurePosixPath(model.filename))
    places = _other_folders(model.kind)
    for name in (model.within_kind, *model.aliases):
        if path := _first_file(places, _relative(name)):
            return path
    return _in_hub_cache(model)


def _archive_members(model: ModelFile) -> list[ModelFile]:
    unpacked = f"{model.folder}/{PurePosixPath(model.filename).stem}"
    return [member for member in registry() if member.folder == unpacked]


def _registered(kind: str, name: str) -> ModelFile | None:
    """The registry entry that `name` stands for among the files of this kind, where only one comes into question."""
    of_kind = [model for model in registry() if model.kind == kind]
    for names in (lambda m: (m.within_kind,), lambda m: (m.filename,), lambda m: m.aliases):
        if matches := [model for model in of_kind if name in names(model)]:
            return matches[0] if len(matches) == 1 else None
    return None


def find_file(kind: str, name: str) -> Path:
    """The file `name` of one kind, wherever it lies.

    Raises LikenessError that says where was looked and how to get the file; also for a Git LFS pointer in its place.
    """
    wanted = _relative(name).as_posix()
    model = _registered(kind, wanted)
    path = resolve(kind, name)
    if path is None and model is not None:
        path = locate(model)
    if path is None and "/" not in wanted:
        nested = _nested(kind, wanted)
        if len(nested) > 1:
            raise LikenessError(f"Several files are called {name!r}: choose one of {', '.join(map(str, nested))}.")
        path = nested[0] if nested else _first_file(_other_folders(kind), PurePosixPath(wanted))
    if path is None:
        raise LikenessError(_missing(f"{name!r} was not found", folders(kind), [model] if model else []))
    if is_lfs_pointer(path):
        raise LikenessError(_pointer(path))
    return path


def _missing(what: str, searched: Iterable[Path], models: Iterable[ModelFile], group: str = "") -> str:
    places = ", ".join(str(folder) for folder in searched)
    models = list(models)
    if not models:
        return f"{what}: looked in {places}; put the file there, or see `likeness models list` for known files."
    files = "; ".join(f"{model.filename} ({model.size})" for model in models)
    model = models[0]
    command = f"run `likeness models get {group or model.name}`, or take" if model.url else "take"
    return (
        f"{what} in {places}: {command} {files} from {model.source or 'its publisher'} and put it in "
        f"models/{model.folder} (licence: {model.licence}; commercial use: {model.commercial_use})."
    )


# ---------------------------------------------------------------------------------------------------------------------
# InsightFace packs: folders of ONNX files, often nested once too deep


def _pack_candidates(name: str) -> list[Path]:
    bases = [
        base
        for folder in [*folders("insightface"), *_other_folders("insightface")]
        for base in (folder / "models", folder)
    ]
    return [candidate for base in bases for candidate in (base / name, base / name / name)]


def _onnx_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx")) if folder.is_dir() else []


def find_insightface_pack(name: str) -> Path:
    """The folder that holds the ONNX files of a pack ('buffalo_l', 'antelopev2'), nested or not.

    Where several folders of that name exist, the one with most files. Raises LikenessError when there is none.
    """
    if len(_relative(name).parts) != 1:
        raise LikenessError(f"An InsightFace pack is named by one word such as buffalo_l, not {name!r}.")
    candidates = _pack_candidates(name)
    best = max(candidates, key=lambda folder: len(_onnx_files(folder)))  # max keeps the first among equals
    if not _onnx_files(best):
        models = [model for model in registry() if model.kind == "insightface" and model.name.startswith(f"{name}/")]
        raise LikenessError(_missing(f"No ONNX files of the face pack {name!r}", candidates, models, group=name))
    for path in _onnx_files(best):
        if is_lfs_pointer(path):
            raise LikenessError(_pointer(path))
    return best


def list_insightface_packs() -> list[str]:
    """Names of the packs found on this machine, the two that the published adapters need first."""
    places = [
        base
        for folder in [*folders("insightface"), *_other_folders("insightface")]
        for base in (folder / "models", folder)
        if base.is_dir()
    ]
    names = {
        entry.name
        for place in places
        for entry in place.iterdir()
        if entry.is_dir() and (_onnx_files(entry) or _onnx_files(entry / entry.name))
    }
    first = [name for name in ("buffalo_l", "antelopev2") if name in names]
    return first + sorted(names.difference(first))


# ---------------------------------------------------------------------------------------------------------------------
# What a file is

_POINTER = b"version https://git-lfs.github.com/spec/v1"


def is_lfs_pointer(path: Path) -> bool:
    """Whether `path` is the few lines that Git LFS leaves in place of a large file."""
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _pointer(path: Path) -> str:
    return (
        f"{path} is a Git LFS pointer, not the model itself: delete it and download the file (or run `git lfs pull`)."
    )


def sha256(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file in hexadecimal."""
    hasher, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, size)
    return hasher.hexdigest()


class Health(Enum):
    """What a check of one file says; the value is the sentence for the user."""

    OK = "matches its published checksum"
    UNPROVEN = "no checksum is published: the size is all that can be checked"
    RENAMED = "is a known file under another name"
    DIFFERENT = "has other content than the published file of this name"
    POINTER = "is a Git LFS pointer, not the model itself"
    UNKNOWN = "is not in the registry"

    @property
    def is_problem(self) -> bool:
        return self in (Health.DIFFERENT, Health.POINTER)


@dataclass(frozen=True)
class Check:
    """One checked file: `expected` by its name, `recognised` by its hash."""

    path: Path
    health: Health
    digest: str
    expected: ModelFile | None
    recognised: tuple[ModelFile, ...]


def check(path: Path, expected: ModelFile | None = None, progress: Progress | None = None) -> Check:
    """Hash one file and say what it is."""
    if is_lfs_pointer(path):
        return Check(path, Health.POINTER, "", expected, ())
    digest = sha256(path, progress)
    recognised = tuple(model for model in registry() if digest in model.sha256)
    if expected is None:
        health = Health.RENAMED if recognised else Health.UNKNOWN
    elif expected.sha256:
        health = Health.OK if digest in expected.sha256 else Health.DIFFERENT
    elif expected.size_bytes not in (None, path.stat().st_size):
        health = Health.DIFFERENT
    else:
        health = Health.UNPROVEN
    return Check(path, health, digest, expected, recognised)


def installed(everything: bool = False) -> dict[Path, ModelFile | None]:
    """Model files on this machine -> the registry entry their name or place stands for.

    With `everything`, also files of our kinds that no entry stands for (None).
    """
    found: dict[Path, ModelFile | None] = {}
    for model in registry():
        path = locate(model)
        if path is not None and path.is_file():
            found.setdefault(path, model)
    if everything:
        for kind in dict.fromkeys([*OUR_KINDS, *(model.kind for model in registry())]):
            for path in (path for folder in folders(kind) for path in _walk(folder)):
                if path.suffix.lower() in WEIGHT_SUFFIXES:
                    found.setdefault(path, None)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Download

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes done and the total (None: not known). What it raises ends the download, to be resumed."""

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_TRIES = 5
_RETRY_SECONDS = 1.0
_MAY_RECOVER = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Outcome(Enum):
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
) -> tuple[Outcome, Path]:
    """Fetch one file into `root` (a `models` directory; by default `download_root()`); returns what was done and where.

    The bytes go to `<target>.part`, are resumed from there after an interruption, hashed on the way and moved into
    place only when the hash is right. Archives are unpacked. `confirm_licence` is asked before a file whose licence
    excludes commercial use; without it, or when it says no, nothing is fetched. `dry_run` writes and fetches nothing.

    Raises LikenessError: no licence consent, another file in the way, no network, refused or missing on the server,
    disk full, wrong content (kept as `<target>.mismatch`).
    """
    root = (root or download_root()).expanduser()
    target = root / model.target
    is_archive = model.filename.endswith(".zip")
    unpacked = target.with_suffix("")
    if is_archive and (members := _archive_members(model)) and all((root / m.target).is_file() for m in members):
        return Outcome.PRESENT, unpacked
    if target.exists():
        _must_be_the_same(target, model)
        if not is_archive:
            return Outcome.PRESENT, target
    elif not model.url:
        raise LikenessError(
            f"{model.name} cannot be downloaded automatically: get it from "
            f"{model.source or 'its publisher'} and put it at {target} ({model.notes})."
        )
    if dry_run:
        return Outcome.WOULD_DOWNLOAD, target
    if model.commercial is False and not (confirm_licence and confirm_licence(model)):
        raise LikenessError(
            f"{model.name} may not be used commercially ({model.licence}): accept that licence first, "
            f"e.g. with `likeness models get {model.name} --accept-licence`."
        )
    if target.exists():  # an archive that somebody fetched by hand stays where it is
        _unpack(target, unpacked)
        return Outcome.UNPACKED, unpacked

    part = target.with_name(target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(model, part, progress)
        if is_archive:
            _unpack(part, unpacked)
            part.unlink()
            return Outcome.UNPACKED, unpacked
        if target.exists():
            raise LikenessError(f"{target} appeared while it was downloaded: the new copy is {part}.")
        part.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LikenessError(
                f"The disk is full: free some space on {root} and run the same again, {model.filename} "
                "goes on where it stopped."
            ) from error
        if isinstance(error, PermissionError):
            raise LikenessError(
                f"{target.parent} cannot be written to: choose another folder with --models-dir."
            ) from error
        raise
    return Outcome.DOWNLOADED, target


def _must_be_the_same(target: Path, model: ModelFile) -> None:
    health = check(target, model).health
    if health.is_problem:
        raise LikenessError(f"{target} {health.value}: it was left as it is; move it away to download {model.name}.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and remembers the hash that the hub states for a large file."""

    linked_sha256 = ""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        _must_be_safe(newurl, loopback=_is_loopback(req.full_url))
        etag = headers.get("X-Linked-Etag", "").strip('"')
        if _is_loopback(req.full_url) or req.full_url.startswith(HUB):
            self.linked_sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else self.linked_sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in _LOOPBACK


def _must_be_safe(url: str, *, loopback: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (loopback and parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise LikenessError(f"The address {url} is not https: nothing was fetched from it.")


class _Part:
    """The unfinished file: how much is there, and the hash of it so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hasher = hashlib.sha256()
        self.done = 0
        self.etag = ""
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        self.done += len(chunk)

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.hasher, self.done, self.etag = hashlib.sha256(), 0, ""

    def extend(self, reply: Any, total: int | None, progress: Progress | None) -> None:
        with self.path.open("ab") as file:
            while chunk := reply.read(_CHUNK):
                file.write(chunk)
                self._count(chunk)
                if progress:
                    progress(self.done, total)

    def starts_with(self, *signatures: bytes) -> bool:
        with self.path.open("rb") as file:
            return file.read(128).lstrip().lower().startswith(signatures)


def _fetch(model: ModelFile, part_path: Path, progress: Progress | None) -> None:
    """Stream `model.url` into the part file until it is complete and proved."""
    _must_be_safe(model.url, loopback=True)
    part, stated = _Part(part_path), ""
    failures = 0
    while True:
        before = part.done
        try:
            stated = _stream(model, part, progress) or stated
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.done:  # nothing follows what is there: complete, or of another file
                if model.sha256 and part.hasher.hexdigest() in model.sha256:
                    break
                part.restart()
            elif error.code not in _MAY_RECOVER or failures + 1 >= _TRIES:
                raise LikenessError(_refused(model, error)) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failures = 0 if part.done > before else failures  # a bad line that still delivers is worth going on
            if failures + 1 >= _TRIES:
                reason = getattr(error, "reason", None) or error
                raise LikenessError(
                    f"{urllib.parse.urlsplit(model.url).hostname} cannot be reached or stops answering ({reason}): "
                    f"check the network and run the same again, or fetch {model.source} elsewhere and put "
                    f"{model.filename} in models/{model.folder}."
                ) from error
        failures += 1
        time.sleep(_RETRY_SECONDS * failures)
    _must_be_right(model, part, stated)


def _stream(model: ModelFile, part: _Part, progress: Progress | None) -> str:
    """One request: append what the server sends. Returns the SHA-256 that the hub states for the file, or ''."""
    redirects = _Redirects()
    request = urllib.request.Request(model.url, headers={"User-Agent": "likeness", "Accept-Encoding": "identity"})
    if part.done:
        request.add_header("Range", f"bytes={part.done}-")
        if part.etag:
            request.add_header("If-Range", part.etag)
    if model.url.startswith(HUB) and (token := os.environ.get("HF_TOKEN")):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # never sent on to another host
    with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_SECONDS) as reply:
        resumed = reply.status == 206
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
        # A continuation can be trusted when the server ties it to what we have, or when a hash will prove the whole.
        proved = bool(model.sha256 or redirects.linked_sha256 or part.etag)
        if resumed and not (span and int(span[1]) == part.done and proved):
            part.restart()
            return _stream(model, part, progress)
        if not resumed and part.done:
            part.restart()
        etag = reply.headers.get("ETag", "")
        part.etag = "" if etag.startswith("W/") else etag
        remaining = reply.headers.get("Content-Length")
        total = None if remaining is None else part.done + int(remaining)
        if total is not None and shutil.disk_usage(part.path.parent).free < total - part.done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part.extend(reply, total, progress)
        if total is not None and part.done < total:
            raise ConnectionError("the connection broke off")
    return redirects.linked_sha256


def _refused(model: ModelFile, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return (
            f"{model.source} lets nobody fetch {model.name} without an account: accept its licence there, set the "
            "environment variable HF_TOKEN to your access token and run the same again."
        )
    if error.code in (404, 410):
        return (
            f"{model.filename} is no longer at {model.url} (error {error.code}): look for it at {model.source} and "
            f"put it in models/{model.folder}."
        )
    return f"The server answered {model.url} with error {error.code} ({error.reason}): try again later."


def _must_be_right(model: ModelFile, part: _Part, stated: str) -> None:
    """Raise LikenessError unless the finished part is the file we meant; a wrong one is put aside."""
    digest = part.hasher.hexdigest()
    if part.done <= 1024 and part.starts_with(_POINTER):
        part.restart()
        raise LikenessError(
            f"{model.url} answered with a Git LFS pointer, not the model itself: get it at {model.source}."
        )
    if not model.sha256 and part.starts_with(b"<!doctype html", b"<html"):
        part.restart()
        raise LikenessError(f"{model.url} answered with a web page, not a model: get the file at {model.source}.")
    expected = model.sha256 or ((stated,) if stated else ())
    wrong_size = not expected and model.size_bytes not in (None, part.done)
    if wrong_size or (expected and digest not in expected):
        aside = part.path.with_suffix(".mismatch")
        part.path.replace(aside)
        wanted = f"{model.size_bytes} bytes" if wrong_size else f"SHA-256 {' or '.join(expected)}"
        raise LikenessError(
            f"What {model.url} delivered ({part.done} bytes, SHA-256 {digest}) is not the published file ({wanted}): "
            f"it was put aside as {aside} and is not used; delete it and try again, or compare with {model.source}."
        )


def _unpack(archive: Path, folder: Path) -> None:
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
                    shutil.copyfileobj(source, sink, _CHUNK)
        for path in list(_walk(staging)):
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


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A tqdm bar on standard error, as a `Progress`; nothing is shown before the first call."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []

        def show(done: int, total: int | None) -> None:
            if not bars:
                bars.append(stack.enter_context(tqdm(desc=label, unit="B", unit_scale=True, leave=False)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield show


# ---------------------------------------------------------------------------------------------------------------------
# The page for people

SYSTEMS = {
    "faces": "Face analysis, parsing, recognition",
    "shared": "Image encoders shared by several systems",
    "ip_adapter": "IP-Adapter",
    "photomaker": "PhotoMaker",
    "instantid": "InstantID",
    "pulid": "PuLID",
    "storymaker": "StoryMaker",
    "fastcomposer": "FastComposer",
    "blip_diffusion": "BLIP-Diffusion",
    "custom_diffusion": "Custom Diffusion",
    "textual_inversion": "Textual Inversion",
    "dreambooth": "DreamBooth",
    "magicapture": "MagiCapture",
    "sefi_ide": "SeFi-IDE",
    "photoverse": "PhotoVerse",
    "restoration": "Super-resolution and face restoration",
    "base": "Base models and helpers",
}
_BEGIN, _END = "<!-- models: begin -->", "<!-- models: end -->"


def markdown() -> str:
    """The tables of docs/models.md: one per system."""
    lines: list[str] = []
    reasons = no_published_weights()
    for system, title in SYSTEMS.items():
        lines += [f"### {title}", ""]
        if models := [model for model in registry() if model.system == system]:
            lines += [
                "| name | variant | put in `models/` | size | licence | commercial use | needed by | notes |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [
                f"| {f'[{model.name}]({model.source})' if model.source else model.name} | {model.variant} | "
                f"`{model.target}` | {model.size} | {model.licence} | {model.commercial_use} | {model.needed_by} | "
                f"{model.notes} |"
                for model in models
            ] + [""]
        if system in reasons:
            lines += [f"No weight files of its own: {reasons[system]}.", ""]
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """`page` with everything between its two marker lines replaced by the current tables."""
    before, rest = page.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{markdown()}\n{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the tables of model files, or renew them in a page.")
    parser.add_argument("--markdown", nargs="?", const="-", required=True, metavar="PAGE", help="a page with markers")
    page_path = parser.parse_args().markdown
    if page_path == "-":
        print(markdown())
    else:
        Path(page_path).write_text(with_tables(Path(page_path).read_text(encoding="utf-8")), encoding="utf-8")
