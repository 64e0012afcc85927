"""Networks that spandrel reads: super-resolution, GFPGAN, RestoreFormer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

from ..errors import LikenessError, logger
from ..faces.weights import Weights

log = logger(__name__)
EXTRA = "spandrel_extra_arches"
EXTRA_LICENCES = "some of its networks are non-commercial, CodeFormer's S-Lab licence among them"


@cache
def spandrel() -> Any:
    """The module; LikenessError says what to install. ComfyUI brings it."""
    try:
        import spandrel as found
    except ImportError as error:
        raise LikenessError(
            f"The package spandrel (MIT licence), which reads restoration networks, cannot be loaded ({error}): pip "
            "install 'spandrel>=0.4', which ComfyUI installs."
        ) from error
    return found


@cache
def architectures() -> dict[str, Any]:
    """name -> architecture of everything that can be read here, with the extra package's where it is installed."""
    found = [support.architecture for support in spandrel().MAIN_REGISTRY.architectures("detection")]
    found += [support.architecture for support in extra_registry()]
    return {architecture.name: architecture for architecture in found}


@cache
def extra_registry() -> Iterable[Any]:
    """What the extra package reads; nothing where it is not installed, or does not fit the spandrel that is."""
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY  # type: ignore[import-not-found]
    except Exception as error:  # whatever an import of another version can run into
        if find_spec(EXTRA) is not None:
            log.warning("[likeness] %s is installed but cannot be loaded (%s): pip install -U %s.", EXTRA, error, EXTRA)
        return ()
    return EXTRA_REGISTRY


def described(weights: Weights, file: str) -> Any:
    """spandrel's description of the network that these weights are of.

    Raises LikenessError for weights of no known architecture, and for those that do not fit the one they look like.
    """
    for architecture in architectures().values():
        if architecture.detect(weights):
            try:
                return architecture.load(dict(weights))
            except (RuntimeError, KeyError, ValueError, AssertionError) as error:
                why = str(error).splitlines()[-1][:200] if str(error) else type(error).__name__
                raise LikenessError(
                    f"The weights of '{file}' do not fit {architecture.name}, which they look like ({why}): download "
                    "the file again, or choose another."
                ) from error
    hint = "" if extra_registry() else f"; pip install {EXTRA} adds others ({EXTRA_LICENCES})"
    raise LikenessError(
        f"The file '{file}' is of no known architecture: known are CodeFormer, {', '.join(sorted(architectures()))}"
        f"{hint}."
    )
