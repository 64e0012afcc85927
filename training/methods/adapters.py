"""The adapters that can be trained, as the command line offers them.

They learn to see people instead of one person: from folders of thousands, in days. So they have no node; the command
line and several processes (`accelerate launch`) are where that happens.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..materials import AdapterTrainable
    from ..recipes.adapter_training import AdapterSettings


@dataclass(frozen=True, eq=False)
class AdapterMethod:
    """An adapter's training. kind: its name in configurations, run folders and `recipes`."""

    kind: str
    title: str

    @property
    def trainable(self) -> AdapterTrainable:
        """What its recipe's module offers, imported now."""
        return importlib.import_module(f"..recipes.{self.kind}", __package__).TRAINABLE


ADAPTERS: list[AdapterMethod] = [
    AdapterMethod("ip_adapter", "IP-Adapter"),
    AdapterMethod("pulid", "PuLID"),
    AdapterMethod("instantid", "InstantID"),
    AdapterMethod("storymaker", "StoryMaker"),
    AdapterMethod("photomaker", "PhotoMaker"),
    AdapterMethod("photoverse", "PhotoVerse"),
    AdapterMethod("blip_diffusion_encoder", "BLIP-Diffusion"),
]

# Those that are trained on photos of several people with a mask for each, see `data.subjects`.
GROUPS: list[AdapterMethod] = [AdapterMethod("fastcomposer", "FastComposer")]


def adapter_method_of(settings: AdapterSettings) -> AdapterMethod:
    """The adapter whose settings these are."""
    return next(method for method in ADAPTERS if isinstance(settings, method.trainable.settings))
