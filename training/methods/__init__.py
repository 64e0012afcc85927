"""The trained methods: command line, nodes, miniature and contract test are made of this registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import blip_diffusion, custom_diffusion, dreambooth, magicapture, sefi_ide, textual_inversion
from .adapters import ADAPTERS, GROUPS, AdapterMethod, adapter_method_of
from .method import Method

if TYPE_CHECKING:
    from ..config import MethodSettings

__all__ = ["ADAPTERS", "GROUPS", "METHODS", "AdapterMethod", "adapter_method_of", "method_of"]

METHODS: list[Method] = [
    textual_inversion.METHOD,
    dreambooth.METHOD,
    magicapture.METHOD,
    custom_diffusion.METHOD,
    sefi_ide.METHOD,
    blip_diffusion.METHOD,
]


def method_of(settings: MethodSettings) -> Method:
    """The method whose settings these are."""
    return next(method for method in METHODS if isinstance(settings, method.trainable.settings))
