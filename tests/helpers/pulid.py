"""Small files of PuLID and of what it needs beside it, random, in the official layouts.

The recogniser's 512 numbers and a head of attention are at their real size, everything else is narrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from helpers import official

Weights = dict[str, Tensor]
Shapes = Sequence[tuple[int, int]]  # (width of the site, width of the text), in slot order

EVA_WIDTH, EVA_EMBED, EVA_PATCH, EVA_GRID = 64, 32, 14, 2
LAYERS, ID_DIM, HIDDEN = 5, 512 + EVA_EMBED, 16


def _mapping(make: official.Maker, name: str, given: int, made: int) -> None:
    make.linear(f"{name}.0", HIDDEN, given)
    make.norm(f"{name}.1", HIDDEN)
    make.linear(f"{name}.3", HIDDEN, HIDDEN)
    make.norm(f"{name}.4", HIDDEN)
    make.linear(f"{name}.6", made, HIDDEN)


def id_encoder(dim: int, seed: int = 0) -> Weights:
    """Version 1's: 5 + 5 tokens."""
    make = official.Maker(seed)
    _mapping(make, "body", ID_DIM, 5 * dim)
    for i in range(LAYERS):
        _mapping(make, f"mapping_{i}", EVA_WIDTH, dim)
        _mapping(make, f"mapping_patch_{i}", EVA_WIDTH, dim)
    return make.weights


def id_former(dim: int, seed: int = 0, queries: int = 32, width: int = 64) -> Weights:
    """Version 1.1's."""
    make = official.Maker(seed)
    make.weights["latents"] = make.tensor(1, queries, width, std=width**-0.5)
    make.weights["proj_out"] = make.tensor(width, dim, std=width**-0.5)
    _mapping(make, "id_embedding_mapping", ID_DIM, 5 * width)
    for i in range(LAYERS):
        _mapping(make, f"mapping_{i}", EVA_WIDTH, width)
    for i in range(2 * LAYERS):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            make.norm(f"layers.{i}.{norm}", width)
        for name, rows, columns in (
            ("0.to_q", 64, width), ("0.to_kv", 128, width), ("0.to_out", width, 64),
            ("1.1", 2 * width, width), ("1.3", width, 2 * width),
        ):  # fmt: skip
            make.linear(f"layers.{i}.{name}", rows, columns, bias=False)
    return make.weights


def adapter(shapes: Shapes, seed: int = 0, version: str = "v1") -> Weights:
    """A whole file for the sites of a model."""
    dim = shapes[0][1]
    encoder = id_encoder(dim, seed) if version == "v1" else id_former(dim, seed)
    weights = {f"id_adapter.{key}": value for key, value in encoder.items()}
    make = official.Maker(seed + 1)
    for number, (width, text) in enumerate(shapes):
        for half in "kv":
            make.linear(f"id_adapter_attn_layers.{2 * number + 1}.id_to_{half}", width, text, bias=False)
    return weights | make.weights


def flux_adapter(width: int, modules: int = 4, seed: int = 0, dim: int = 48) -> Weights:
    """A whole file for a FLUX with image tokens of this width; one head of attention."""
    weights = {f"pulid_encoder.{key}": value for key, value in id_former(dim, seed).items()}
    make = official.Maker(seed + 1)
    for j in range(modules):
        module = f"pulid_ca.{j}"
        make.norm(f"{module}.norm1", dim)
        make.norm(f"{module}.norm2", width)
        for name, rows, columns in (("to_q", 128, width), ("to_kv", 256, dim), ("to_out", width, 128)):
            make.linear(f"{module}.{name}", rows, columns, bias=False)
    return weights | make.weights


def repacked(weights: Weights) -> Weights:
    """The same file under IP-Adapter's names, as published for ComfyUI."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"^id_adapter_attn_layers\.(\d+)\.id_to_([kv])\.", r"ip_adapter.\1.to_\2_ip.", key)
        renamed[re.sub(r"^id_adapter\.", "image_proj.", key)] = value
    return renamed


def eva(seed: int = 0, depth: int = 24) -> Weights:
    """EVA02-CLIP with a stump of its text encoder, in half precision as published."""
    make = official.Maker(seed)
    inner = int(EVA_WIDTH * 2.6667)
    make.weights["visual.cls_token"] = make.tensor(1, 1, EVA_WIDTH)
    make.weights["visual.pos_embed"] = make.tensor(1, 1 + EVA_GRID**2, EVA_WIDTH)
    make.weights["visual.patch_embed.proj.weight"] = make.tensor(EVA_WIDTH, 3, EVA_PATCH, EVA_PATCH, std=0.04)
    make.weights["visual.patch_embed.proj.bias"] = make.tensor(EVA_WIDTH)
    for i in range(depth):
        block = f"visual.blocks.{i}"
        for norm, width in (("norm1", EVA_WIDTH), ("norm2", EVA_WIDTH), ("attn.inner_attn_ln", EVA_WIDTH)):
            make.norm(f"{block}.{norm}", width)
        make.norm(f"{block}.mlp.ffn_ln", inner)
        for name in "qkv":
            make.linear(f"{block}.attn.{name}_proj", EVA_WIDTH, EVA_WIDTH, bias=False)
        for name in "qv":
            make.weights[f"{block}.attn.{name}_bias"] = make.tensor(EVA_WIDTH, std=0.1)
        make.linear(f"{block}.attn.proj", EVA_WIDTH, EVA_WIDTH)
        make.linear(f"{block}.mlp.w1", inner, EVA_WIDTH)
        make.linear(f"{block}.mlp.w2", inner, EVA_WIDTH)
        make.linear(f"{block}.mlp.w3", EVA_WIDTH, inner)
    make.norm("visual.norm", EVA_WIDTH)
    make.linear("visual.head", EVA_EMBED, EVA_WIDTH)
    make.weights["logit_scale"] = torch.tensor(4.6)
    make.weights["text.token_embedding.weight"] = make.tensor(8, 8)
    return {key: value.half() for key, value in make.weights.items()}


def parser(seed: int = 0) -> Weights:
    """A BiSeNet of 19 parts."""
    from likeness.faces.parsing import BiSeNet

    make, weights = official.Maker(seed), {}
    for key, value in BiSeNet(4, 19).state_dict().items():
        if key.endswith("num_batches_tracked"):
            weights[key] = value
        elif key.endswith("running_var"):
            weights[key] = torch.ones_like(value)
        else:
            weights[key] = make.tensor(*value.shape, std=0.3)
    return weights


def companions(models: Path) -> list[Path]:
    """Write what PuLID finds beside its own file, the encoder and the parsing network; returns the paths."""
    encoder = models / "clip_vision" / "EVA02_CLIP_L_336_psz14_s6B.pt"
    network = models / "facexlib" / "parsing_bisenet.pth"
    for path, weights in ((encoder, eva()), (network, parser())):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, path)
    return [encoder, network]
