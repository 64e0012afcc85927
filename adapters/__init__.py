"""Tuning-free systems: their networks, their official weight layouts, and how an identity becomes tokens.

`load` detects which system a file belongs to from its keys. A new system is one module and one line in `_SYSTEMS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import LikenessError
from .files import read_weights
from .ip_adapter import Evidence, IPAdapter, Variant, is_ip_adapter, official_layout
from .types import BaseModel, IdentityTokens, SiteWeight, SiteWeights

__all__ = [
    "BaseModel",
    "Evidence",
    "IPAdapter",
    "IdentityTokens",
    "SiteWeight",
    "SiteWeights",
    "Variant",
    "build",
    "load",
]


class _System(NamedTuple):
    matches: Callable[[Mapping[str, Tensor]], bool]
    build: Callable[[Mapping[str, Tensor], str, int | None], IPAdapter]


_SYSTEMS = [_System(is_ip_adapter, IPAdapter)]

# What else people put into the folder, told by a key, and where it belongs.
_STRANGERS = [
    (("vision_model.", "visual."), "a CLIP vision model: load it with Load CLIP Vision"),
    (("model.diffusion_model.", "first_stage_model."), "a checkpoint: load it with Load Checkpoint"),
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet: load it with Load ControlNet Model"),
    (("down_blocks.", "input_blocks.", "double_blocks."), "a denoiser: load it with Load Diffusion Model"),
]
_LORA = re.compile(r"^lora_|\.lora_(down|up|A|B)\.|\.lora\.(down|up)\.")  # of kohya, peft and diffusers


def load(path: Path, plus_version: int | None = None) -> IPAdapter:
    """The adapter in a weight file, whatever its name. plus_version: 1 or 2 settles FaceID-Plus, None tells by name.

    Raises LikenessError for files that are damaged, that hold code, or that are something else than an adapter.
    """
    weights, metadata = read_weights(path)
    if plus_version is None and metadata.get("faceid_plus_version") in ("1", "2"):
        plus_version = int(metadata["faceid_plus_version"])
    return build(weights, path.name, plus_version)


def build(weights: Mapping[str, Tensor], name: str, plus_version: int | None = None) -> IPAdapter:
    """The adapter these weights (in any published layout) make up; `name` is used in messages and to tell versions."""
    for system in _SYSTEMS:
        if system.matches(weights):
            return system.build(weights, name, plus_version)
    if any(key.startswith(("image_proj.", "ip_adapter.")) for key in official_layout(weights)):
        raise LikenessError(
            f"'{name}' is not a complete IP-Adapter file (half of it is missing): download it again, or choose another."
        )
    if any(_LORA.search(key) for key in weights):
        raise LikenessError(
            f"'{name}' is a LoRA, not an identity adapter: choose the adapter itself (FaceID files bring their LoRA), "
            "or load this file with Load LoRA."
        )
    for prefixes, what in _STRANGERS:
        if any(key.startswith(prefixes) for key in weights):
            raise LikenessError(f"'{name}' is {what}; this node wants an identity adapter such as IP-Adapter FaceID.")
    raise LikenessError(f"'{name}' is not an identity adapter this pack knows: choose an IP-Adapter file.")
