"""PhotoVerse files with random weights in the three layouts: narrow adapters, the text as wide as its model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers import official
from helpers.photomaker import blocks

RANK, HIDDEN = 4, 16
Shapes = Sequence[tuple[int, int]]


def attention(shapes: Shapes) -> list[str]:
    """diffusers' paths of the cross-attention layers, in slot order."""
    return [f"{path}.attn2" for path in blocks(shapes)]


def adapter(make: official.Maker, prefix: str, width: int, dim: int, maps: int) -> None:
    for i in range(maps):
        for name in (f"{prefix}mapping_{i}", f"{prefix}mapping_patch_{i}"):
            make.linear(f"{name}.0", HIDDEN, width)
            make.norm(f"{name}.1", HIDDEN)
            make.linear(f"{name}.3", HIDDEN, HIDDEN)
            make.norm(f"{name}.4", HIDDEN)
            make.linear(f"{name}.6", dim, HIDDEN)


def unofficial(
    shapes: Shapes,
    seed: int = 0,
    maps: int = 5,
    width: int = official.VIT_H[0],
    lora: bool = True,
    copies: bool = True,
    paths: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """As idonahum/photoVerse saves it, with flat keys. paths: diffusers' of the transformer blocks."""
    make, dim = official.Maker(seed), shapes[0][1]
    for part in ("text", "image"):
        adapter(make, f"{part}_adapter.", width, dim, maps)
    names = attention(shapes) if paths is None else [f"{path}.attn2" for path in paths]
    for path, (site, text) in zip(names, shapes, strict=True):
        layer = f"cross_attention_adapter.{path}"
        for name in ("to_k", "to_v"):
            make.linear(f"{layer}.processor.{name}_ip.0", site, text, bias=False)
        for name, columns in (("to_q", site), ("to_k", text), ("to_v", text)):
            if lora and name != "to_q":
                make.weights[f"{layer}.{name}.lora_A.default.weight"] = make.tensor(RANK, columns, std=columns**-0.5)
                make.weights[f"{layer}.{name}.lora_B.default.weight"] = make.tensor(site, RANK, std=0.3)
            if copies:
                make.linear(f"{layer}.{name}.base_layer" if lora else f"{layer}.{name}", site, columns, bias=False)
    return make.weights


def nested(flat: dict[str, Tensor], alpha: float | None = 1, optimizer: bool = True) -> dict[str, Any]:
    """The same as its pickle nests it."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, rest = key.partition(".")
        tree.setdefault(group, {})[rest] = value
    if optimizer:
        tree["optimizer"] = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": []}
    if alpha is not None:
        from peft import LoraConfig

        tree["lora_config"] = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["attn2.to_k"]).to_dict()  # type: ignore[arg-type]
    return tree


def ours(shapes: Shapes, seed: int = 0, alpha: float = 1.0, **sizes: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the file that our training writes: layers are counted as they run."""
    flat = unofficial(shapes, seed, **sizes)
    paths = attention(shapes)
    down, up = ([path for path in paths if path.startswith(part)] for part in ("down", "up"))
    order = [*down, *(path for path in paths if path.startswith("mid")), *up]
    tensors = {key: value for key, value in flat.items() if not key.startswith("cross_")}
    for n, path in enumerate(order):
        layer = f"cross_attention_adapter.{path}"
        for name in ("to_k", "to_v"):
            tensors[f"visual.{n}.{name}.weight"] = flat[f"{layer}.processor.{name}_ip.0.weight"]
            for half in "AB":
                tensors[f"lora.{n}.{name}.{half}"] = flat[f"{layer}.{name}.lora_{half}.default.weight"]
    return tensors, {"format": "photoverse/1", "layers": json.dumps(order), "alpha": str(alpha), "rank": str(RANK)}


def elite(shapes: Shapes, seed: int = 0, maps: int = 5, width: int = official.VIT_H[0]) -> dict[str, Tensor]:
    """ELITE's global mapper."""
    make = official.Maker(seed)
    adapter(make, "", width, shapes[0][1], maps)
    for path, (site, text) in zip(attention(shapes), shapes, strict=True):
        for name in ("to_k", "to_v"):
            make.linear(f"{path.replace('.', '_')}_{name}", site, text, bias=False)
    return make.weights
