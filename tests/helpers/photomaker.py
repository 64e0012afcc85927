"""PhotoMaker files with random weights, in the official layout: every part narrow, the text as wide as its model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers import official

ID_DIM = 512
TOWER = {"width": 64, "inner": 96, "layers": 2, "patch": 14, "side": 28}
# Where diffusers has transformer blocks: (path of the spatial transformer, blocks), by number of sites.
_LAYOUTS = {
    7: [
        *((f"down_blocks.{level}.attentions.0", 1) for level in (0, 1)),
        *((f"up_blocks.{level}.attentions.{i}", 1) for level in (0, 1) for i in (0, 1)),
        ("mid_block.attentions.0", 1),
    ],
    70: [
        *((f"down_blocks.1.attentions.{i}", 2) for i in range(2)),
        *((f"down_blocks.2.attentions.{i}", 10) for i in range(2)),
        *((f"up_blocks.0.attentions.{i}", 10) for i in range(3)),
        *((f"up_blocks.1.attentions.{i}", 2) for i in range(3)),
        ("mid_block.attentions.0", 10),
    ],
}


def blocks(shapes: Sequence[tuple[int, int]]) -> list[str]:
    """diffusers' paths of the transformer blocks of a model with these sites, in slot order."""
    return [f"{path}.transformer_blocks.{i}" for path, count in _LAYOUTS[len(shapes)] for i in range(count)]


def tower(make: Any, sizes: dict[str, int]) -> None:
    width, prefix = sizes["width"], "vision_model"
    make.weights[f"{prefix}.embeddings.class_embedding"] = make.tensor(width)
    patches = (width, 3, sizes["patch"], sizes["patch"])
    make.weights[f"{prefix}.embeddings.patch_embedding.weight"] = make.tensor(*patches, std=0.05)
    positions = (sizes["side"] // sizes["patch"]) ** 2 + 1
    make.weights[f"{prefix}.embeddings.position_embedding.weight"] = make.tensor(positions, width, std=0.3)
    make.norm(f"{prefix}.pre_layrnorm", width)
    make.norm(f"{prefix}.post_layernorm", width)
    for i in range(sizes["layers"]):
        layer = f"{prefix}.encoder.layers.{i}"
        for name in ("q", "k", "v", "out"):
            make.linear(f"{layer}.self_attn.{name}_proj", width, width)
        for name in ("layer_norm1", "layer_norm2"):
            make.norm(f"{layer}.{name}", width)
        make.linear(f"{layer}.mlp.fc1", sizes["inner"], width)
        make.linear(f"{layer}.mlp.fc2", width, sizes["inner"])


def fuse_module(make: Any, dim: int) -> None:
    for name, wide in (("mlp1", 2 * dim), ("mlp2", dim)):
        make.norm(f"fuse_module.{name}.layernorm", wide)
        make.linear(f"fuse_module.{name}.fc1", dim, wide)
        make.linear(f"fuse_module.{name}.fc2", dim, dim)
    make.norm("fuse_module.layer_norm", dim)


def qformer(make: Any, dim: int, features: int, tokens: int = 2) -> None:
    prefix = "qformer_perceiver"
    make.linear(f"{prefix}.token_proj.0", 32, ID_DIM)
    make.linear(f"{prefix}.token_proj.2", tokens * dim, 32)
    make.norm(f"{prefix}.token_norm", dim)
    resampler = f"{prefix}.perceiver_resampler"
    make.linear(f"{resampler}.proj_in", dim, features)
    make.linear(f"{resampler}.proj_out", dim, dim)
    make.norm(f"{resampler}.norm_out", dim)
    for name in ("norm1", "norm2"):
        make.norm(f"{resampler}.layers.0.0.{name}", dim)
    for name, rows in (("to_q", dim), ("to_kv", 2 * dim), ("to_out", dim)):
        make.linear(f"{resampler}.layers.0.0.{name}", rows, dim, bias=False)
    make.norm(f"{resampler}.layers.0.1.0", dim)
    make.linear(f"{resampler}.layers.0.1.1", 2 * dim, dim, bias=False)
    make.linear(f"{resampler}.layers.0.1.3", dim, 2 * dim, bias=False)


def lora(
    make: Any,
    shapes: Sequence[tuple[int, int]],
    rank: int = 2,
    spelling: str = "processor",
    paths: Sequence[str] | None = None,
) -> None:
    """spelling: processor, lora or peft, as diffusers has written them over the years. paths: of the transformer blocks
    in slot order, where the model is none of those that `blocks` knows."""
    for block, (width, text) in zip(paths or blocks(shapes), shapes, strict=True):
        for attention, source in (("attn1", width), ("attn2", text)):
            for part in ("to_q", "to_k", "to_v", "to_out"):
                wide = source if part in ("to_k", "to_v") else width
                layer = f"unet.{block}.{attention}"
                names = {
                    "processor": (f"{layer}.processor.{part}_lora", "down", "up"),
                    "lora": (f"{layer}.{part}.lora" if part != "to_out" else f"{layer}.to_out.0.lora", "down", "up"),
                    "peft": (f"{layer}.{part}" if part != "to_out" else f"{layer}.to_out.0", "lora_A", "lora_B"),
                }
                name, down, up = names[spelling]
                make.weights[f"{name}.{down}.weight"] = make.tensor(rank, wide, std=wide**-0.5)
                make.weights[f"{name}.{up}.weight"] = make.tensor(width, rank, std=0.2)


def groups(
    shapes: Sequence[tuple[int, int]],
    version: int = 1,
    seed: int = 0,
    spelling: str = "processor",
    paths: Sequence[str] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """What torch.save wrote: id_encoder and lora_weights."""
    dim = shapes[0][1]
    encoder, changes = official.Maker(seed), official.Maker(seed + 1)
    tower(encoder, TOWER)
    half = dim * 3 // 8  # of the two projections, as 768 of 2048
    encoder.linear("visual_projection", half, TOWER["width"], bias=False)
    encoder.linear("visual_projection_2", dim - half, TOWER["width"], bias=False)
    fuse_module(encoder, dim)
    if version == 2:
        qformer(encoder, dim, TOWER["width"])
    lora(changes, shapes, spelling=spelling, paths=paths)
    return {"id_encoder": encoder.weights, "lora_weights": changes.weights}


def weights(
    shapes: Sequence[tuple[int, int]], seed: int = 0, version: int = 1, paths: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The same with flat keys, as a .safetensors file has them."""
    made = groups(shapes, version, seed, paths=paths)
    return {f"{group}.{key}": value for group, part in made.items() for key, value in part.items()}


def write(path: Any, content: dict[str, Any]) -> Any:
    """As the official files: a pickle of two dictionaries."""
    torch.save(content, path)
    return path
