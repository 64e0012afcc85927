"""LoRA files in every spelling in use: kohya, diffusers (peft and older), raw peft and LyCORIS.

Underscored names cannot be taken apart ("to_out_0"), so every spelling of every module of a model is built and looked
up. What is written is kohya's, the one that ComfyUI, A1111 and diffusers all read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LikenessError
from .checkpoint_layout import unet_names, with_text_model
from .lora import LoraPair

# Endings of keys, and which part of a `LoraPair` each holds.
_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
_PEFT_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Component:
    """A part of a pipeline, as LoRA files call it. kohya: prefixes without the last underscore, our own first."""

    kohya: tuple[str, ...]
    diffusers: str


UNET = Component(("lora_unet",), "unet")
TEXT = Component(("lora_te", "lora_te1"), "text_encoder")
SDXL_TEXT_1 = Component(("lora_te1", "lora_te"), "text_encoder")
SDXL_TEXT_2 = Component(("lora_te2",), "text_encoder_2")


# Reading --------------------------------------------------------------------------------------------------------------


def unet_spellings(unet: nn.Module) -> dict[str, str]:
    """Every name of every weighted module of a diffusers UNet in a LoRA file -> its path in the model."""
    paths = weighted_layers(unet)
    original = unet_names(paths)
    spellings: dict[str, str] = {}
    for path in paths:
        o = original.get(path, path)
        flat = _flat(path)
        processor = path.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
        older = processor.replace("to_out.0", "to_out")
        for name in (
            f"lora_unet_{flat}",
            f"lora_unet_{_flat(o)}",
            f"lycoris_{flat}",
            f"diffusion_model.{o}",
            f"unet.{path}",
            path,
            f"base_model.model.{path}",
            f"unet.{older}",
            older,
        ):
            spellings[name] = path
    return spellings


def text_spellings(encoder: nn.Module, component: Component) -> dict[str, str]:
    """The same for a transformers CLIP text encoder."""
    spellings: dict[str, str] = {}
    for path in weighted_layers(encoder):
        name = with_text_model(path)
        for prefix in component.kohya:
            spellings[f"{prefix}_{_flat(name)}"] = path
        spellings[f"{component.diffusers}.{name}"] = path
        spellings[f"{component.diffusers}.{path}"] = path
    return spellings


def weighted_layers(model: nn.Module) -> list[str]:
    """Paths of the layers with weights, without what peft puts around and beside them."""
    layers = [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [path.removesuffix(".base_layer") for path in layers if ".lora_" not in path]


def _flat(path: str) -> str:
    return path.replace(".", "_")


@dataclass(frozen=True)
class LoraFile:
    """What a file says of one model: pairs by module path, and the keys that name none of its modules."""

    pairs: dict[str, LoraPair]
    others: tuple[str, ...]


def read_lora(
    weights: Mapping[str, Tensor],
    spellings: Mapping[str, str],
    component: Component = UNET,
    metadata: Mapping[str, str] | None = None,
) -> LoraFile:
    """The LoRA of one model, whatever its spelling. metadata: the file's header, for the strength of peft files.

    Raises LikenessError when a layer is incomplete or its halves do not fit each other. A module that the file spells
    twice is read once.
    """
    found: dict[str, dict[str, Tensor]] = {}
    owners: dict[str, str] = {}
    others = []
    for key, value in weights.items():
        name, part = _part_of(key)
        path = spellings.get(name)
        if path is None or part is None:
            others.append(key)
        elif owners.setdefault(path, name) == name:
            found.setdefault(path, {})[part] = value
    strengths = _PeftStrengths.of(metadata or {}, component)
    return LoraFile({path: _pair(path, parts, strengths) for path, parts in found.items()}, tuple(others))


def _part_of(key: str) -> tuple[str, str | None]:
    for ending, part in _ENDINGS.items():
        if key.endswith(ending):
            return key[: -len(ending)], part
    return key, None


@dataclass(frozen=True)
class _PeftStrengths:
    """peft keeps α out of the tensors; diffusers writes it into the header."""

    alpha: float | None
    by_path: Mapping[str, float | None]

    @classmethod
    def of(cls, metadata: Mapping[str, str], component: Component) -> _PeftStrengths:
        try:
            settings = json.loads(metadata.get(_PEFT_METADATA, "{}"))
        except (ValueError, RecursionError):
            settings = {}
        prefix = f"{component.diffusers}."
        found = settings if isinstance(settings, dict) else {}
        by_path = found.get(f"{prefix}alpha_pattern")
        by_path = by_path if isinstance(by_path, dict) else {}
        return cls(_number(found.get(f"{prefix}lora_alpha")), {path: _number(alpha) for path, alpha in by_path.items()})


def _number(value: Any) -> float | None:
    """A number of a header, which anybody may have written."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _pair(path: str, parts: Mapping[str, Tensor], strengths: _PeftStrengths) -> LoraPair:
    if "down" not in parts or "up" not in parts:
        raise LikenessError(f"This LoRA file is not complete (one half of {path} is missing): download it again.")
    down, up = parts["down"], parts["up"]
    if {down.ndim, up.ndim} - {2, 4} or down.shape[0] == 0 or down.shape[0] != up.shape[1]:
        raise LikenessError(
            f"This LoRA file is damaged (shapes {tuple(down.shape)} and {tuple(up.shape)} of {path} do not fit each "
            "other): download it again."
        )
    alpha = strengths.by_path.get(path, strengths.alpha)
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise LikenessError(
                f"This LoRA file is damaged (the strength of {path} is not a number): download it again."
            )
        alpha = float(parts["alpha"])
    return LoraPair(down, up, alpha, parts.get("mid"))


_SLOT = re.compile(r"(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")


def read_slots(weights: Mapping[str, Tensor]) -> dict[tuple[int, str], LoraPair]:
    """The LoRA in IP-Adapter's numbering, `<slot>.to_{q,k,v,out}_lora.{down,up}.weight`, without alpha.

    Keys of the result are (slot, layer), where layer is `to_q`, `to_k`, `to_v` or `to_out.0` as in diffusers. Both
    halves of every layer must be there.
    """
    pairs = {}
    for key, down in weights.items():
        match = _SLOT.fullmatch(key)
        if match and match[3] == "down":
            layer = "to_out.0" if match[2] == "to_out" else match[2]
            pairs[int(match[1]), layer] = LoraPair(down, weights[key.replace(".down.", ".up.")])
    return pairs


def slot_name(slot: int, layer: str) -> str:
    """What stands before `.down.weight` and `.up.weight` of a layer in IP-Adapter's numbering."""
    return f"{slot}.{layer.removesuffix('.0')}_lora"


# Writing --------------------------------------------------------------------------------------------------------------


def kohya_unet_names(unet: nn.Module) -> dict[str, str]:
    """Module path -> the name kohya's trainer writes: diffusers' names for SD1.x and 2.x, original ones for SDXL."""
    paths = weighted_layers(unet)
    is_sdxl = getattr(unet.config, "addition_embed_type", None) == "text_time"
    names = unet_names(paths) if is_sdxl else {path: path for path in paths}
    return {path: f"{UNET.kohya[0]}_{_flat(name)}" for path, name in names.items()}


def kohya_text_names(encoder: nn.Module, component: Component) -> dict[str, str]:
    """Module path -> the name kohya's trainer writes."""
    return {path: f"{component.kohya[0]}_{_flat(with_text_model(path))}" for path in weighted_layers(encoder)}


def kohya_weights(pairs: Mapping[str, LoraPair], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a kohya LoRA file. alpha is always written, so that no reader has to guess."""
    weights = {}
    for path, pair in pairs.items():
        name = names[path]
        weights[f"{name}.lora_down.weight"] = pair.down
        weights[f"{name}.lora_up.weight"] = pair.up
        weights[f"{name}.alpha"] = torch.tensor(pair.scale * pair.rank)
        if pair.mid is not None:
            weights[f"{name}.lora_mid.weight"] = pair.mid
    return weights
