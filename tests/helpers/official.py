"""IP-Adapter files with random weights, written in the official layouts by the tests' own hands.

What tells the variants apart is at its real size: the text width, the tokens, the encoder's width, the number of
sites. Everything else is narrow, so that a file is a few megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
Groups = dict[str, Weights]  # {"image_proj": ..., "ip_adapter": ...}
Shapes = Sequence[tuple[int, int]]  # (width of the site, width of the text), in slot order

SD15_TEXT, SDXL_TEXT = 768, 2048
# The real nets, eighty times narrower: down, up, mid.
SD15: Shapes = [(w // 80, SD15_TEXT) for w in (320, 320, 640, 640, *[1280] * 5, *[640] * 3, *[320] * 3, 1280)]
SDXL: Shapes = [(w // 80, SDXL_TEXT) for w in (*[640] * 4, *[1280] * 50, *[640] * 6, *[1280] * 10)]

VIT_H, VIT_G = (1280, 1024), (1664, 1280)  # (hidden, pooled)


_NOISE = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))  # cut into tensors: faster than drawing them


class Maker:
    """Linear layers and norms under official names, from one seed."""

    def __init__(self, seed: int) -> None:
        self.place = 999_983 * seed
        self.weights: Weights = {}

    def tensor(self, *shape: int, std: float = 1.0) -> Tensor:
        length = math.prod(shape)
        start = self.place % _NOISE.numel()
        self.place += length + 7919
        noise = _NOISE[start : start + length]
        while noise.numel() < length:
            noise = torch.cat([noise, _NOISE[: length - noise.numel()]])
        return (noise * std).reshape(shape)

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> None:
        self.weights[f"{name}.weight"] = self.tensor(rows, columns, std=columns**-0.5)
        if bias:
            self.weights[f"{name}.bias"] = self.tensor(rows, std=0.1)

    def norm(self, name: str, width: int) -> None:
        self.weights[f"{name}.weight"] = 1 + self.tensor(width, std=0.1)
        self.weights[f"{name}.bias"] = self.tensor(width, std=0.1)


def pooled(dim: int, encoder: tuple[int, int] = VIT_H, tokens: int = 4, seed: int = 0) -> Weights:
    """ImageProjModel: base, light, ViT-G."""
    make = Maker(seed)
    make.linear("proj", tokens * dim, encoder[1])
    make.norm("norm", dim)
    return make.weights


def full_face(dim: int, encoder: tuple[int, int] = VIT_H, seed: int = 0) -> Weights:
    """MLPProjModel over every CLIP token."""
    make = Maker(seed)
    make.linear("proj.0", encoder[0], encoder[0])
    make.linear("proj.2", dim, encoder[0])
    make.norm("proj.3", dim)
    return make.weights


def identity(dim: int, tokens: int = 4, id_dim: int = 512, inner: int = 64, seed: int = 0) -> Weights:
    """MLPProjModel over an embedding: FaceID (4 tokens), Portrait (16)."""
    make = Maker(seed)
    make.linear("proj.0", inner, id_dim)
    make.linear("proj.2", tokens * dim, inner)
    make.norm("norm", dim)
    return make.weights


def resampler(
    out: int, features: int = VIT_H[0], dim: int = 128, depth: int = 2, tokens: int = 16, seed: int = 0
) -> Weights:
    """Resampler: plus, plus-face, and Portrait-unnorm with an input of 512."""
    make = Maker(seed)
    make.weights["latents"] = make.tensor(1, tokens, dim, std=dim**-0.5)
    _perceiver(make, "", features, dim, depth, out)
    return make.weights


def identity_plus(dim: int, features: int = VIT_H[0], depth: int = 2, seed: int = 0, id_dim: int = 512) -> Weights:
    """ProjPlusModel: FaceID-Plus of both versions. The perceiver is as wide as the text."""
    make = Maker(seed)
    make.weights |= identity(dim, seed=seed, id_dim=id_dim)
    _perceiver(make, "perceiver_resampler.", features, dim, depth, dim, inner=64)
    return make.weights


def _perceiver(
    make: Maker, prefix: str, features: int, dim: int, depth: int, out: int, inner: int | None = None
) -> None:
    inner = inner or dim
    make.linear(f"{prefix}proj_in", dim, features)
    make.linear(f"{prefix}proj_out", out, dim)
    make.norm(f"{prefix}norm_out", out)
    for i in range(depth):
        attention, forward = f"{prefix}layers.{i}.0", f"{prefix}layers.{i}.1"
        make.norm(f"{attention}.norm1", dim)
        make.norm(f"{attention}.norm2", dim)
        make.linear(f"{attention}.to_q", inner, dim, bias=False)
        make.linear(f"{attention}.to_kv", 2 * inner, dim, bias=False)
        make.linear(f"{attention}.to_out", dim, inner, bias=False)
        make.norm(f"{forward}.0", dim)
        make.linear(f"{forward}.1", 2 * inner, dim, bias=False)
        make.linear(f"{forward}.3", dim, 2 * inner, bias=False)


def key_values(shapes: Shapes, seed: int = 0) -> Weights:
    """`<slot>.to_{k,v}_ip.weight`, slots 1, 3, 5, ..."""
    make = Maker(seed + 100)
    for layer, (width, text) in enumerate(shapes):
        for name in ("to_k_ip", "to_v_ip"):
            make.linear(f"{2 * layer + 1}.{name}", width, text, bias=False)
    return make.weights


def lora(shapes: Shapes, rank: int = 4, seed: int = 0) -> Weights:
    """`<slot>.to_{q,k,v,out}_lora.{down,up}.weight` on every slot, no alpha."""
    make = Maker(seed + 200)
    for layer, (width, text) in enumerate(shapes):
        for slot, context in ((2 * layer, width), (2 * layer + 1, text)):
            for name, columns in (("q", width), ("k", context), ("v", context), ("out", width)):
                make.weights[f"{slot}.to_{name}_lora.down.weight"] = make.tensor(rank, columns, std=columns**-0.5)
                make.weights[f"{slot}.to_{name}_lora.up.weight"] = make.tensor(width, rank, std=0.2)
    return make.weights


def groups(image_proj: Weights, shapes: Shapes, *, with_lora: bool = False, seed: int = 0) -> Groups:
    """A whole file as the official `.bin` nests it."""
    layers = key_values(shapes, seed)
    return {"image_proj": image_proj, "ip_adapter": {**layers, **(lora(shapes, seed=seed) if with_lora else {})}}


def flat(content: Groups) -> Weights:
    """The official `.safetensors` layout."""
    return {f"{group}.{key}": value for group, weights in content.items() for key, value in weights.items()}


def renamed(content: Groups, layers: str = "adapter_modules", projection: str = "image_proj") -> Weights:
    """As third parties and the official trainer's checkpoints call the two groups."""
    names = {"image_proj": projection, "ip_adapter": layers}
    return flat({names[group]: weights for group, weights in content.items()})


def write(path: Path, content: Groups | Weights, metadata: Mapping[str, str] | None = None) -> Path:
    """`.bin`: torch.save, nested as given. `.safetensors`: flat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        nested = any(isinstance(value, dict) for value in content.values())
        tensors = flat(content) if nested else content  # type: ignore[arg-type]
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, dict(metadata or {}))  # type: ignore[union-attr]
    else:
        torch.save(content, path)
    return path
