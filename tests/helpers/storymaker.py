"""StoryMaker files with random weights in the official layout: true widths where they are checked, the rest narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import official


def weights(
    shapes: Any = official.SDXL,
    seed: int = 0,
    features: int = 1280,
    rank: int = 2,
    most: int = 3,
    loud: float = 1.0,
) -> dict[str, Tensor]:
    """A whole `mask.bin`, flat, for a model whose cross-attention layers have these shapes.

    loud: what the values are multiplied with, so that a mean over sixty tokens is heard.
    """
    dim = shapes[0][1]
    make = official.Maker(seed + 300)
    make.linear("proj_out", dim, dim)
    make.norm("norm_out", dim)
    make.weights["pos_embed"] = make.tensor(most, 20, dim, std=0.5)
    make.weights["bg_embed"] = make.tensor(1, 20, dim)
    projection = official.identity_plus(dim, features, depth=1, seed=seed) | make.weights
    body = official.resampler(dim, features, dim=64, depth=1, tokens=16, seed=seed + 1)
    projection |= {f"resample.{key}": value for key, value in body.items()}
    layers = official.key_values(shapes, seed) | official.lora(shapes, rank, seed)
    layers |= {key: loud * value for key, value in layers.items() if key.endswith("to_v_ip.weight")}
    return {f"image_proj_model.{key}": value for key, value in projection.items()} | {
        f"ip_adapter.{key}": value for key, value in layers.items()
    }


def write(path: Path, shapes: Any = official.SDXL, **sizes: Any) -> Path:
    """Write a file in the official form, a pickle of two groups."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in weights(shapes, **sizes).items():
        group, _, rest = key.partition(".")
        groups.setdefault(group, {})[rest] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(groups, path)
    return path
