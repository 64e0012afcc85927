"""EVA02-CLIP's image encoder (arXiv 2303.15389), which PuLID reads: a pooled embedding and five layers on the way.

    x = [class token, patches] + positions
    x = x + attention(norm1(x));  x = x + swiglu(norm2(x))        24 times
    embedding = head(norm(x)[0])

Queries and keys of the patches (not of the class token) are turned by their place in the image, rows in the first half
of a head and columns in the second. The official file holds the text encoder as well, which is left out. timm's and
open_clip's files of the same network have other names for its layers: see `_NAMES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LikenessError

TITLE = "EVA02-CLIP-L-14-336"
FILE = "EVA02_CLIP_L_336_psz14_s6B.pt"
HEAD_WIDTH = 64
_EVERY = 4  # layers from one that is read to the next
_READ = 5  # layers that are read
_TRAINED_GRID = 16  # patches on a side that positions were first learnt for: 224 pixels in patches of 14
_EPS = 1e-6

# timm's name of a part -> the official one.
_NAMES = {
    "attn.norm.": "attn.inner_attn_ln.",
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "mlp.norm.": "mlp.ffn_ln.",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.fc2.": "mlp.w3.",
}


@dataclass(frozen=True)
class EvaFeatures:
    """What the encoder says of a batch of images. pooled: (B, embed), not normalised. hidden: five times (B, 1 +
    patches, width), the activations after 4, 8, 12, 16 and 20 layers, class token first, without a norm."""

    pooled: Tensor
    hidden: tuple[Tensor, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EvaFeatures:
        """The same features elsewhere or in another precision."""
        return EvaFeatures(self.pooled.to(device, dtype), tuple(states.to(device, dtype) for states in self.hidden))


class EvaTower(Protocol):
    """The encoder, wherever it runs."""

    @property
    def name(self) -> str:
        """The file's, for messages."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images it reads, in pixels."""
        ...

    @property
    def widths(self) -> tuple[int, int]:
        """(of the hidden states, of the pooled embedding)"""
        ...

    def encode_pixels(self, pixels: Tensor) -> EvaFeatures:
        """Pixels normalised as CLIP's (B, 3, S, S) -> features, float32."""
        ...


class RotaryPositions(nn.Module):
    """Turns queries or keys of the patches by their row and column; the class token stays as it is."""

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: int, head_width: int) -> None:
        super().__init__()
        per_axis = head_width // 2
        frequencies = 10000 ** (-torch.arange(0, per_axis, 2, device="cpu").float() / per_axis)
        places = torch.arange(grid, device="cpu").float() / grid * _TRAINED_GRID
        angles = torch.outer(places, frequencies).repeat_interleave(2, dim=-1)  # (grid, per_axis)
        rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (patches, head_width)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, 1 + patches, head_width), the same shape."""
        patches = x[:, :, 1:]
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([x[:, :, :1], patches * self.cos.to(x) + turned * self.sin.to(x)], dim=2)


class Attention(nn.Module):
    """Self-attention with a norm before its last projection; its keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.inner_attn_ln = nn.LayerNorm(width, _EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: RotaryPositions) -> Tensor:
        """(B, n, width) -> (B, n, width)"""
        projected = self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        out = F.scaled_dot_product_attention(turn(q), turn(k), v)
        return self.proj(self.inner_attn_ln(out.transpose(1, 2).flatten(-2)))


class SwiGlu(nn.Module):
    """w3(norm(SiLU(w1 x) · w2 x))"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, _EPS)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class EvaBlock(nn.Module):
    """One layer."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = SwiGlu(width, inner)

    def forward(self, x: Tensor, turn: RotaryPositions) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return x + self.mlp(self.norm2(x))


class EvaEncoder(nn.Module):
    """The image encoder; its `state_dict` has the official keys without `visual.`."""

    def __init__(
        self, width: int, depth: int, heads: int, inner: int, embed: int, patch: int, grid: int, name: str = FILE
    ) -> None:
        """grid: patches on a side of the image. name: of the file, for messages."""
        super().__init__()
        self.name, self.image_size = name, grid * patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.turn = RotaryPositions(grid, width // heads)
        self.blocks = nn.ModuleList(EvaBlock(width, heads, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _EPS)
        self.head = nn.Linear(width, embed)

    @property
    def widths(self) -> tuple[int, int]:
        """(of the hidden states, of the pooled embedding)"""
        return self.head.in_features, self.head.out_features

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> EvaFeatures:
        """Pixels normalised as CLIP's (B, 3, S, S) -> features, in the weights' precision."""
        patches = self.patch_embed["proj"](pixels.to(self.cls_token)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + self.pos_embed
        hidden = []
        for number, block in enumerate(self.blocks):
            if 0 < number <= _READ * _EVERY and number % _EVERY == 0:
                hidden.append(x)
            x = block(x, self.turn)
        return EvaFeatures(self.head(self.norm(x)[:, 0]), tuple(hidden))


def build_eva(weights: Mapping[str, Tensor], name: str = FILE, head_width: int = HEAD_WIDTH) -> EvaEncoder:
    """The encoder in float32, as PuLID was trained with it, from weights in the official, timm's or open_clip's names.

    name: of the file, for messages. head_width: no shape tells it. Raises LikenessError when they are not this network.
    """
    own = _official_names(weights)
    try:
        width, _, patch, _ = own["patch_embed.proj.weight"].shape
        grid = math.isqrt(own["pos_embed"].shape[1] - 1)
        inner, embed = len(own["blocks.0.mlp.w1.weight"]), len(own["head.weight"])
        depth = len({key.split(".")[1] for key in own if key.startswith("blocks.")})
        with torch.device("meta"):
            network = EvaEncoder(width, depth, width // head_width, inner, embed, patch, grid, name)
        network.turn = RotaryPositions(grid, head_width)
        network.load_state_dict({key: value.float() for key, value in own.items()}, strict=True, assign=True)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise LikenessError(
            f"{name!r} is not a whole image encoder {TITLE} ({_fault(own)}): get it with "
            f"`likeness models get eva02-clip-l-336`, or choose {FILE}."
        ) from error
    return network.requires_grad_(False).eval()


def is_eva(keys: Mapping[str, Tensor]) -> bool:
    """Whether these weights hold this encoder, under any of its names."""
    own = _official_names(keys)
    return {"pos_embed", "head.weight", "blocks.0.attn.inner_attn_ln.weight"} <= own.keys()


def _official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's weights under official names; what follows from the sizes, as angles do, is left out."""
    prefix = next((p for p in ("visual.trunk.", "visual.") if any(key.startswith(p) for key in weights)), "")
    found = {}
    for key, value in weights.items():
        name = key[len(prefix) :]
        if not key.startswith(prefix) or re.search(r"(^|\.)rope\.", name):
            continue
        for theirs, official in _NAMES.items():
            name = name.replace(theirs, official)
        found[name] = value
    return found


def _fault(weights: Mapping[str, Tensor]) -> str:
    """What is the matter with them, in a few words."""
    numbers = sorted({int(key.split(".")[1]) for key in weights if re.match(r"blocks\.\d+\.", key)})
    if not numbers or "patch_embed.proj.weight" not in weights:
        return "it does not contain this network"
    gaps = [number for number, following in pairwise((-1, *numbers)) if following != number + 1]
    return f"layer {gaps[0] + 1} is missing" if gaps else "layers are missing or have other sizes"
