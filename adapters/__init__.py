"""Tuning-free systems: their networks, their official weight layouts, and how an identity becomes tokens.

`load` finds out which system a file belongs to (`system.kind_of`). A new one is one module and one line in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checks import first_not_finite
from ..errors import LikenessError
from ..weights.files import read_weights
from . import others
from .blip_diffusion import SYSTEM as BLIP_DIFFUSION
from .fastcomposer import SYSTEM as FASTCOMPOSER
from .instantid import SYSTEM as INSTANTID
from .ip_adapter import SYSTEM as IP_ADAPTER
from .ip_adapter import Evidence, IPAdapter, Variant
from .photomaker import SYSTEM as PHOTOMAKER
from .photoverse import SYSTEM as PHOTOVERSE
from .pulid import FLUX_SYSTEM as PULID_FLUX
from .pulid import SYSTEM as PULID
from .storymaker import SYSTEM as STORYMAKER
from .system import Adapter, Kind, Sureness, WeightFile, kind_of
from .types import IdentityTokens, SiteWeight, SiteWeights

__all__ = [
    "SYSTEMS",
    "Evidence",
    "IPAdapter",
    "IdentityTokens",
    "SiteWeight",
    "SiteWeights",
    "Variant",
    "build",
    "load",
]

SYSTEMS: tuple[Kind, ...] = (
    IP_ADAPTER,
    INSTANTID,
    PHOTOMAKER,
    PHOTOVERSE,
    PULID,
    PULID_FLUX,
    STORYMAKER,
    BLIP_DIFFUSION,
    FASTCOMPOSER,
)


def load(path: Path, plus_version: int | None = None, system: str | None = None, folder: str | None = None) -> Adapter:
    """The adapter in a weight file, whatever its name.

    plus_version: 1 or 2 settles FaceID-Plus, None tells by name. system: the title of one of `SYSTEMS`, where the
    content alone cannot tell; None finds out. folder: below `models/`, as whose file it was found, where its own path
    does not say.

    Raises LikenessError for files that are damaged, that hold code, that are something else than an adapter, or that
    can belong to several systems.
    """
    weights, metadata = read_weights(path)
    if plus_version is not None:
        metadata = {**metadata, "faceid_plus_version": str(plus_version)}
    parents = (*([folder] if folder else []), *(parent.name for parent in path.absolute().parents))
    return _load(WeightFile(path.name, weights, metadata, parents, path), system)


def build(weights: Mapping[str, Tensor], name: str, plus_version: int | None = None) -> IPAdapter:
    """The IP-Adapter that weights in any published layout make up; `name` is used in messages and to tell versions."""
    metadata = {} if plus_version is None else {"faceid_plus_version": str(plus_version)}
    adapter = _load(WeightFile(name, weights, metadata), IP_ADAPTER.title)
    assert isinstance(adapter, IPAdapter)
    return adapter


def _load(file: WeightFile, system: str | None) -> Adapter:
    if system is not None:
        return _load_as(file, system)
    kind = kind_of(file, SYSTEMS)
    if kind is None or kind.load is None:
        raise others.explain(file)
    return kind.load(_finite(file))


def _load_as(file: WeightFile, title: str) -> Adapter:
    """The adapter of a file whose system the user has chosen."""
    load_file = next((kind.load for kind in SYSTEMS if kind.title == title), None)
    if load_file is None:
        titles = ", ".join(kind.title for kind in SYSTEMS)
        raise LikenessError(f"The system {title!r} does not exist: choose {titles}.")
    try:
        return load_file(_finite(file))
    except LikenessError as error:  # it is none of these: say what it is, where that is known
        sure = next((k for k in SYSTEMS if k.recognise(file) is Sureness.YES), None)
        if sure is None:
            said = None if others.is_part_of_adapter(file) else others.stranger(file)
            raise said or error from error
        if sure.title == title:
            raise
        raise LikenessError(
            f"{file.name!r} is an adapter of {sure.title}, not of {title}: choose that system, or 'by content'."
        ) from error


def _finite(file: WeightFile) -> WeightFile:
    """The file; LikenessError when it holds NaN or infinity, which would make every image invalid."""
    if broken := first_not_finite(file.weights):
        raise LikenessError(
            f"{file.name!r} holds values that are NaN or infinite (in {broken[:80]!r}): download it again, or train it "
            "again."
        )
    return file
