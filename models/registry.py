"""The registry: every published weight file the pack knows, where it is from and where it belongs."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import LikenessError

HUB = "https://huggingface.co/"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".dat"})


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


@dataclass(frozen=True)
class System:
    """Whose files stand under one title. no_weights: why there are none of its own, where that is so."""

    title: str
    no_weights: str = ""


def human_size(size: float) -> str:
    """Bytes in the decimal units of the hub: 44642768 -> '44.6 MB'."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


@functools.cache
def _registry_document() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "model_registry.json").read_text(encoding="utf-8"))


def registry() -> tuple[ModelFile, ...]:
    """Every model file the pack knows, in the order of the documentation."""
    return _known()


@functools.cache
def _known() -> tuple[ModelFile, ...]:
    return tuple(_model_file(record) for record in _registry_document()["models"])


def _model_file(record: dict[str, Any]) -> ModelFile:
    tuples = {key: tuple(record[key]) for key in ("sha256", "aliases") if key in record}
    return ModelFile(**{**record, **tuples})


@functools.cache
def systems() -> dict[str, System]:
    """What `ModelFile.system` can be, in the order of the documentation; a new one is a line of the registry."""
    return {name: System(**record) for name, record in _registry_document()["systems"].items()}


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


def archive_members(model: ModelFile) -> list[ModelFile]:
    """The files that a zip file of the registry unpacks to."""
    unpacked = f"{model.folder}/{PurePosixPath(model.filename).stem}"
    return [member for member in registry() if member.folder == unpacked]


def registered(kind: str, name: str) -> ModelFile | None:
    """The registry entry that `name` stands for among the files of this kind, where only one comes into question."""
    of_kind = [model for model in registry() if model.kind == kind]
    for names in (lambda m: (m.within_kind,), lambda m: (m.filename,), lambda m: m.aliases):
        if matches := [model for model in of_kind if name in names(model)]:
            return matches[0] if len(matches) == 1 else None
    return None
