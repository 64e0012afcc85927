"""CodeFormer: a face as a sequence of codes that a transformer predicts.

Zhou et al., "Towards Robust Blind Face Restoration with Codebook Lookup Transformer", NeurIPS 2022 (arXiv 2206.11253),
in the released file's layout:

    z        = E(x)                                        encoder.blocks.N
    logits   = T(feat_emb(z) | position_emb)               ft_layers.N, idx_pred_layer
    z_q      = codebook[argmax logits]                     quantize.embedding
    z_q      = AdaIN(z_q, z)                               optional: colours of the image, not of the codebook
    x_hat    = G(z_q), with F += w (F * a(F_e, F) + b(F_e, F)) at the sizes of fuse_convs_dict

Every block's kind and width stand in the file, so that the network is built from its keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..faces.weights import Weights, block_count, builds

GROUPS, EPS = 32, 1e-6
HEADS = 8  # cannot be read off the weights


def _conv(width_in: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPS)


class CodeFormerBlock(nn.Module):
    """Norm, swish, convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(width_in), _conv(width_in, width)
        self.norm2, self.conv2 = _norm(width), _conv(width, width)
        self.conv_out = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))
        return self.conv_out(x) + self.conv2(F.silu(self.norm2(residual)))


class AttentionBlock(nn.Module):
    """Self-attention of one head over all pixels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT.unsqueeze(1) for layer in (self.q, self.k, self.v))  # (B, 1, H W, C)
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(found.squeeze(1).mT.reshape(x.shape))


class Halve(nn.Module):
    """Stride 2, padded at right and bottom."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Blocks(nn.Module):
    """A row of blocks under the name the layout gives it."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention whose queries and keys know their place, and an MLP."""

    def __init__(self, width: int, inner: int, heads: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """tokens (n, B, width), places (n, 1, width)."""
        value = self.norm1(tokens)
        query = value + places
        tokens = tokens + self.self_attn(query, query, value, need_weights=False)[0]
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))


class Fusion(nn.Module):
    """Controllable feature transformation: the decoder's features, scaled and shifted by what the encoder saw."""

    def __init__(self, width: int):
        super().__init__()
        self.encode_enc = CodeFormerBlock(2 * width, width)
        self.scale, self.shift = (
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(2)
        )

    def forward(self, seen: Tensor, x: Tensor, w: float) -> Tensor:
        both = self.encode_enc(torch.cat([seen, x], 1))
        return x + w * (x * self.scale(both) + self.shift(both))


class Codes(nn.Module):
    """The codebook under the name the layout gives it."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(count, width)


class CodeFormerFace(NamedTuple):
    """What CodeFormer makes of a face, and of what."""

    image: Tensor  # (B, 3, S, S), about -1..1, not clamped
    logits: Tensor  # (B, n, codes)
    encoded: Tensor  # (B, C, h, w): the encoder's features


class CodeFormer(nn.Module):
    """Faces (B, 3, S, S), RGB -1..1, to restored ones; S is 512 in the released network.

    encoder_taps, generator_taps: after which block of a size the encoder's features are kept, and where they are fused.
    """

    def __init__(
        self,
        weights: Weights,
        heads: int = HEADS,
        encoder_taps: Mapping[int, int] | None = None,
        generator_taps: Mapping[int, int] | None = None,
    ):
        super().__init__()
        positions, width = weights["position_emb"].shape
        self.latent_side = math.isqrt(positions)
        self.encoder = Blocks(_blocks(weights, "encoder.blocks.", Halve))
        self.generator = Blocks(_blocks(weights, "generator.blocks.", Double))
        self.side = self.latent_side * 2 ** sum(isinstance(block, Halve) for block in self.encoder.blocks)
        self.quantize = Codes(*weights["quantize.embedding.weight"].shape)
        self.position_emb = nn.Parameter(torch.zeros(positions, width))
        self.feat_emb = nn.Linear(weights["feat_emb.weight"].shape[1], width)
        inner = weights["ft_layers.0.linear1.weight"].shape[0]
        self.ft_layers = nn.ModuleList(
            TransformerLayer(width, inner, heads) for _ in range(block_count(weights, "ft_layers."))
        )
        codes = weights["idx_pred_layer.1.weight"].shape[0]
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codes, bias=False))
        sizes = {key.split(".")[1] for key in weights if key.startswith("fuse_convs_dict.")}
        self.fuse_convs_dict = nn.ModuleDict(
            {size: Fusion(weights[f"fuse_convs_dict.{size}.scale.0.weight"].shape[0]) for size in sizes}
        )
        encoder_taps = encoder_taps or _before_each(Halve, self.encoder.blocks, self.side)
        generator_taps = generator_taps or _after_each(Double, self.generator.blocks, self.latent_side)
        self.kept = {encoder_taps[int(size)]: size for size in sizes}
        self.fused = {generator_taps[int(size)]: size for size in sizes}

    def forward(self, x: Tensor, w: float = 0.0, adain: bool = True) -> CodeFormerFace:
        """w: 0 = most beautiful, 1 = closest to the input. adain: with the statistics of the input's features, and so
        its colours, as the official restoration does it; inpainting and colourising are without."""
        seen = {}
        for number, block in enumerate(self.encoder.blocks):
            x = block(x)
            if size := self.kept.get(number):
                seen[size] = x.detach()
        encoded = x
        logits = self.codes_of(encoded)
        x = self.quantize.embedding(logits.argmax(2)).mT.reshape(-1, *encoded.shape[1:])
        if adain:
            x = adaptive_instance_norm(x, encoded)
        for number, block in enumerate(self.generator.blocks):
            x = block(x)
            if (size := self.fused.get(number)) and w > 0:
                x = self.fuse_convs_dict[size](seen[size], x, w)
        return CodeFormerFace(x, logits, encoded)

    def codes_of(self, encoded: Tensor) -> Tensor:
        """Encoder features (B, C, h, w) -> logits (B, h w, codes)."""
        tokens = self.feat_emb(encoded.flatten(2).permute(2, 0, 1))
        places = self.position_emb.unsqueeze(1)
        for layer in self.ft_layers:
            tokens = layer(tokens, places)
        return self.idx_pred_layer(tokens).permute(1, 0, 2)


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """Features (B, C, h, w) with each channel's mean and deviation taken from `style`."""

    def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(features, (2, 3), keepdim=True)
        return mean, (variance + 1e-5).sqrt()

    mean, deviation = statistics(content)
    style_mean, style_deviation = statistics(style)
    return (content - mean) / deviation * style_deviation + style_mean


def _blocks(weights: Weights, prefix: str, resized: type[Halve] | type[Double]) -> list[nn.Module]:
    """The row of blocks that the keys below `prefix` describe."""

    def block(number: int) -> nn.Module:
        def shape(key: str) -> torch.Size | None:
            return weights[name].shape if (name := f"{prefix}{number}.{key}") in weights else None

        if (found := shape("conv1.weight")) is not None:
            return CodeFormerBlock(found[1], found[0])
        if (found := shape("q.weight")) is not None:
            return AttentionBlock(found[0])
        if (found := shape("conv.weight")) is not None:
            return resized(found[0])
        found = weights[f"{prefix}{number}.weight"].shape
        return _norm(found[0]) if len(found) == 1 else _conv(found[1], found[0])

    return [block(number) for number in range(block_count(weights, prefix))]


def _before_each(kind: type[nn.Module], blocks: nn.ModuleList, side: int) -> dict[int, int]:
    """size -> the block before the image is halved from it."""
    places = [number - 1 for number, block in enumerate(blocks) if isinstance(block, kind)]
    return {side // 2**level: place for level, place in enumerate(places)}


def _after_each(kind: type[nn.Module], blocks: nn.ModuleList, side: int) -> dict[int, int]:
    """size -> the block after the image has been doubled to it."""
    places = [number + 1 for number, block in enumerate(blocks) if isinstance(block, kind)]
    return {side * 2 ** (level + 1): place for level, place in enumerate(places)}


@builds("a CodeFormer")
def codeformer(weights: Weights) -> CodeFormer:
    """The CodeFormer (any width) that fits the weights, frozen, in evaluation mode, float32."""
    return CodeFormer(weights)
