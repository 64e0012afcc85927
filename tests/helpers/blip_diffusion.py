"""Small files of BLIP-Diffusion, random, in the Hub's layout and in LAVIS's, and a vocabulary that goes with them.

A head of attention is at its real size, everything else is narrow; the vectors are as wide as their model's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import official

from .photomaker import blocks

Weights = dict[str, Tensor]

WIDTH, INNER, PATCH, SIDE, LAYERS, QUERIES, POSITIONS = 64, 96, 14, 28, 2, 4, 16
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "person", "woman", "man", "tea", "##pot", "##s", "of")


def vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", "utf-8")
    return path


def encoder(dim: int, seed: int = 0, queries: int = QUERIES, words: int = len(PIECES) + 1) -> Weights:
    """`qformer/pytorch_model.bin` of the Hub."""
    make = official.Maker(seed)
    tower = "visual_encoder"
    make.weights[f"{tower}.embeddings.class_embedding"] = make.tensor(1, 1, WIDTH)
    make.weights[f"{tower}.embeddings.position_embedding"] = make.tensor(1, (SIDE // PATCH) ** 2 + 1, WIDTH, std=0.3)
    make.weights[f"{tower}.embeddings.patch_embedding.weight"] = make.tensor(WIDTH, 3, PATCH, PATCH, std=0.05)
    for name in ("pre_layernorm", "post_layernorm"):
        make.norm(f"{tower}.{name}", WIDTH)
    for i in range(LAYERS):
        layer = f"{tower}.encoder.layers.{i}"
        make.linear(f"{layer}.self_attn.qkv", 3 * WIDTH, WIDTH)
        make.linear(f"{layer}.self_attn.projection", WIDTH, WIDTH)
        for name in ("layer_norm1", "layer_norm2"):
            make.norm(f"{layer}.{name}", WIDTH)
        make.linear(f"{layer}.mlp.fc1", INNER, WIDTH)
        make.linear(f"{layer}.mlp.fc2", WIDTH, INNER)
    make.weights["query_tokens"] = make.tensor(1, queries, dim)
    make.weights["embeddings.word_embeddings.weight"] = make.tensor(words, dim)
    make.weights["embeddings.position_embeddings.weight"] = make.tensor(POSITIONS, dim, std=0.3)
    make.norm("embeddings.LayerNorm", dim)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name, source in (("attention", dim), ("crossattention", WIDTH)):
            make.linear(f"{layer}.{name}.attention.query", dim, dim)
            for part in ("key", "value"):
                make.linear(f"{layer}.{name}.attention.{part}", dim, source)
            make.linear(f"{layer}.{name}.output.dense", dim, dim)
            make.norm(f"{layer}.{name}.output.LayerNorm", dim)
        for name in ("", "_query"):
            make.linear(f"{layer}.intermediate{name}.dense", INNER, dim)
            make.linear(f"{layer}.output{name}.dense", dim, INNER)
            make.norm(f"{layer}.output{name}.LayerNorm", dim)
    make.linear("proj_layer.dense1", INNER, dim)
    make.linear("proj_layer.dense2", dim, INNER)
    make.norm("proj_layer.LayerNorm", dim)
    return make.weights


_LAVIS = (
    ("visual_encoder.embeddings.class_embedding", "visual_encoder.class_embedding"),
    ("visual_encoder.embeddings.position_embedding", "visual_encoder.positional_embedding"),
    ("visual_encoder.embeddings.patch_embedding", "visual_encoder.conv1"),
    ("visual_encoder.pre_layernorm", "visual_encoder.ln_pre"),
    ("visual_encoder.post_layernorm", "ln_vision"),
    ("visual_encoder.encoder.layers", "visual_encoder.transformer.resblocks"),
    (".self_attn.qkv.", ".attn.in_proj_"),
    (".self_attn.projection", ".attn.out_proj"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    (".attention.attention.", ".attention.self."),
    (".crossattention.attention.", ".crossattention.self."),
)


def as_lavis(hub: Mapping[str, Tensor]) -> Weights:
    """The same encoder as LAVIS names it, with its own heads, which nobody reads."""
    renamed = {}
    for key, value in hub.items():
        if key.startswith(("embeddings.", "encoder.")):
            key = f"Qformer.bert.{key}"
        for theirs, lavis in _LAVIS:
            key = key.replace(theirs, lavis)
        if key in ("visual_encoder.class_embedding", "visual_encoder.positional_embedding"):
            value = value.flatten(0, -2).squeeze(0) if key.endswith("class_embedding") else value[0]
        renamed[key] = value
    unused = {"temp": torch.ones(()), "itm_head.weight": torch.zeros(2, 2), "Qformer.cls.bias": torch.zeros(3)}
    return {**renamed, **unused}


def write_pair(folder: Path, hub: Mapping[str, Tensor]) -> tuple[Path, Path]:
    """LAVIS's archive: two files in folders of their own."""
    lavis = as_lavis(hub)
    projection = {key.removeprefix("proj_layer."): v for key, v in lavis.items() if key.startswith("proj_layer.")}
    rest = {key: value for key, value in lavis.items() if not key.startswith("proj_layer.")}
    paths = folder / "blip_model" / "blip_weight.pt", folder / "proj_layer" / "proj_weight.pt"
    for path, content in zip(paths, (rest, projection), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    return paths


def checkpoint(hub: Mapping[str, Tensor], vectors: Tensor, unet: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """`checkpoint_40.pth` of a few-shot training: everything, and an optimiser beside it."""
    lavis = as_lavis(hub)
    model = {key if key.startswith("proj_layer.") else f"blip.{key}": value for key, value in lavis.items()}
    model |= {f"unet.{key}": value for key, value in (unet or {}).items()}
    model |= {"ctx_embeddings_cache": vectors, "text_encoder.text_model.final_layer_norm.bias": torch.zeros(2)}
    return {"model": model, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]}}


def attention(shapes: Sequence[tuple[int, int]], seed: int = 0) -> Weights:
    """The attention layers of a UNet with these sites, as whole weights."""
    make = official.Maker(seed)
    for block, (width, text) in zip(blocks(shapes), shapes, strict=True):
        make.linear(f"{block}.attn2.to_q", width, width, bias=False)
        for part in ("to_k", "to_v"):
            make.linear(f"{block}.attn2.{part}", width, text, bias=False)
    return make.weights
