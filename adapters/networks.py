"""The small networks that turn an encoding of a person into image tokens, under the key names of the official files.

IP-Adapter (arXiv 2308.06721) and its FaceID variants use four of them; the Perceiver resampler is the one of Flamingo
(arXiv 2204.14198). All sizes are read from the weights, so every published file and every small test network fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..weights.families import Family, of_adapter


class ImageProjection(nn.Module):
    """One pooled image embedding to `n_tokens` tokens: Linear, reshape, LayerNorm."""

    def __init__(self, embed_dim: int, n_tokens: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embed_dim, n_tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, embeds: Tensor) -> Tensor:
        """(batch, embed_dim) -> (batch, n_tokens, dim)"""
        return self.norm(self.proj(embeds).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class TokenwiseProjection(nn.Module):
    """Every token of the image encoder through the same MLP ("full face"): as many tokens out as in."""

    def __init__(self, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, sequence, hidden_dim) -> (batch, sequence, dim)"""
        return self.proj(hidden)


class IdProjection(nn.Module):
    """A recogniser's embedding to `n_tokens` tokens: MLP, reshape, LayerNorm (FaceID and Portrait)."""

    def __init__(self, id_dim: int, inner_dim: int, n_tokens: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(id_dim, inner_dim), nn.GELU(), nn.Linear(inner_dim, n_tokens * dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, id_embeds: Tensor) -> Tensor:
        """(batch, id_dim) -> (batch, n_tokens, dim)"""
        return self.norm(self.proj(id_embeds).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class PerceiverAttention(nn.Module):
    """Latents attend to the features and to themselves."""

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """features: (batch, sequence, dim); latents: (batch, queries, dim) -> (batch, queries, dim)"""
        features, latents = self.norm1(features), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([features, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(latents), keys, values))
        # Each side carries half of 1/sqrt(d): the same value, but in fp16 the product does not overflow.
        scale = q.shape[-1] ** -0.25
        weights = ((q * scale) @ (k * scale).transpose(-2, -1)).float().softmax(dim=-1).to(v.dtype)
        return self.to_out((weights @ v).transpose(1, 2).flatten(-2))


def feed_forward(dim: int, inner_dim: int) -> nn.Sequential:
    """LayerNorm and two Linear layers without bias."""
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, inner_dim, bias=False), nn.GELU(), nn.Linear(inner_dim, dim, bias=False)
    )


class PerceiverSizes(NamedTuple):
    """feature_dim and out_dim: of what goes in and comes out; dim: of the latents; inner_dim: of the feed-forward."""

    feature_dim: int
    dim: int
    depth: int
    heads: int
    head_width: int
    inner_dim: int
    out_dim: int

    @classmethod
    def of(cls, weights: dict[str, Tensor], head_width: int, prefix: str = "") -> PerceiverSizes:
        """Read off the shapes of the official weights below `prefix`.

        head_width: no shape tells it, so that the system states it. Raises ValueError when it does not fit them.
        """
        inner = weights[f"{prefix}layers.0.0.to_q.weight"].shape[0]
        if inner % head_width:
            raise ValueError(f"attention of width {inner} has no heads of width {head_width}")
        dim, feature_dim = weights[f"{prefix}proj_in.weight"].shape
        return cls(
            feature_dim,
            dim,
            depth=len({k[len(prefix) :].split(".")[1] for k in weights if k.startswith(f"{prefix}layers.")}),
            heads=inner // head_width,
            head_width=head_width,
            inner_dim=weights[f"{prefix}layers.0.1.1.weight"].shape[0],
            out_dim=weights[f"{prefix}proj_out.weight"].shape[0],
        )


class Perceiver(nn.Module):
    """`depth` rounds of attention and feed-forward over latents that the caller brings."""

    def __init__(self, sizes: PerceiverSizes) -> None:
        super().__init__()
        self.proj_in = nn.Linear(sizes.feature_dim, sizes.dim)
        self.proj_out = nn.Linear(sizes.dim, sizes.out_dim)
        self.norm_out = nn.LayerNorm(sizes.out_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(sizes.dim, sizes.heads, sizes.head_width),
                    feed_forward(sizes.dim, sizes.inner_dim),
                ]
            )
            for _ in range(sizes.depth)
        )

    def resample(self, latents: Tensor, features: Tensor) -> Tensor:
        """latents: (batch, queries, dim); features: (batch, sequence, feature_dim) -> (batch, queries, out_dim)"""
        features = self.proj_in(features)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            latents = attention(features, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class Resampler(Perceiver):
    """A Perceiver with learned latents ("plus" variants, and Portrait-unnorm with one embedding per photo)."""

    def __init__(self, sizes: PerceiverSizes, queries: int) -> None:
        super().__init__(sizes)
        self.latents = nn.Parameter(torch.empty(1, queries, sizes.dim))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, sequence, feature_dim) -> (batch, queries, out_dim)"""
        return self.resample(self.latents.expand(len(features), -1, -1), features)


class FaceIdPlusProjection(IdProjection):
    """Identity tokens refined by the CLIP features of the aligned face (FaceID-Plus).

    The identity tokens x are the Perceiver's latents, the CLIP tokens its features, y its result. Version 1 returns y;
    version 2 (`shortcut`) returns x + structure·y, where `structure` (official name `s_scale`) says how much of the
    photo's facial structure enters.
    """

    def __init__(self, id_dim: int, inner_dim: int, n_tokens: int, dim: int, perceiver: PerceiverSizes) -> None:
        super().__init__(id_dim, inner_dim, n_tokens, dim)
        self.perceiver_resampler = Perceiver(perceiver)

    def forward(self, id_embeds: Tensor, features: Tensor, *, shortcut: bool, structure: float = 1.0) -> Tensor:
        """id_embeds: (batch, id_dim); features: (batch, sequence, feature_dim) -> (batch, n_tokens, dim)"""
        x = super().forward(id_embeds)
        y = self.perceiver_resampler.resample(x, features)
        return x + structure * y if shortcut else y


class KeyValueProjection(nn.Module):
    """`to_k_ip` and `to_v_ip` of one site: the second pair of keys and values of decoupled cross-attention."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(dim, width, bias=False)
        self.to_v_ip = nn.Linear(dim, width, bias=False)


def build_key_values(weights: Mapping[str, Tensor]) -> nn.ModuleDict:
    """One `KeyValueProjection` per slot of the official weights, loaded and in eval mode.

    weights: keys `<slot>.to_{k,v}_ip.weight`. Raises KeyError, RuntimeError, TypeError or ValueError when one of a pair
    is missing, or a key is none of these.
    """
    slots = sorted({int(key.split(".")[0]) for key in weights})
    modules = nn.ModuleDict()
    with torch.device("meta"):
        for slot in slots:
            modules[str(slot)] = KeyValueProjection(*weights[f"{slot}.to_k_ip.weight"].shape)
    modules.load_state_dict(weights, strict=True, assign=True)
    return modules.requires_grad_(False).eval()


class KeyValueSites(nn.Module):
    """The half of a decoupled cross-attention adapter that all of its kind share: keys and values at every site."""

    ip_adapter: nn.ModuleDict  # of `build_key_values`

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text), as the file has them."""
        return {int(slot): tuple(kv.to_k_ip.weight.shape) for slot, kv in self.ip_adapter.items()}  # type: ignore[misc]

    @property
    def base(self) -> Family:
        """The family of base models the file was trained for; one whose model was pruned is of its text's family."""
        return of_adapter(list(self.site_shapes.values()))

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a site: (rows, n_tokens, dim) -> two (rows, n_tokens, width), in the file's precision."""
        site = self.ip_adapter[str(slot)]
        tokens = tokens.to(site.to_k_ip.weight.dtype)  # type: ignore[union-attr]
        return site.to_k_ip(tokens), site.to_v_ip(tokens)  # type: ignore[operator]


def build_projection(weights: dict[str, Tensor], head_width: int) -> nn.Module:
    """The image projection whose official weights (keys without `image_proj.`) these are, loaded and in eval mode.

    head_width: of its attention, see `PerceiverSizes.of`. Raises KeyError when the keys fit none of the five networks.
    """
    with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
        if "latents" in weights:
            network: nn.Module = Resampler(PerceiverSizes.of(weights, head_width), weights["latents"].shape[1])
        elif "proj.3.weight" in weights:
            network = TokenwiseProjection(weights["proj.0.weight"].shape[1], weights["proj.3.weight"].shape[0])
        elif "proj.weight" in weights:
            rows, embed_dim = weights["proj.weight"].shape
            dim = weights["norm.weight"].shape[0]
            network = ImageProjection(embed_dim, rows // dim, dim)
        elif "proj.0.weight" in weights:
            inner_dim, id_dim = weights["proj.0.weight"].shape
            dim = weights["norm.weight"].shape[0]
            n_tokens = weights["proj.2.weight"].shape[0] // dim
            perceiver = "perceiver_resampler."
            if f"{perceiver}proj_in.weight" in weights:
                sizes = PerceiverSizes.of(weights, head_width, perceiver)
                network = FaceIdPlusProjection(id_dim, inner_dim, n_tokens, dim, sizes)
            else:
                network = IdProjection(id_dim, inner_dim, n_tokens, dim)
        else:
            raise KeyError("no known image projection")
    network.load_state_dict(weights, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def mapping(widths: Sequence[int]) -> nn.Sequential:
    """Linear, LayerNorm and LeakyReLU, twice, and a Linear where a fourth width says so (ELITE, PuLID, PhotoVerse).

    The layers have the numbers of the official keys: 0, 1, 3, 4 and 6.
    """
    first, second, third, *last = widths
    layers: list[nn.Module] = []
    for before, after in ((first, second), (second, third)):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.LeakyReLU()]
    return nn.Sequential(*layers, *(nn.Linear(third, width) for width in last))


def mapping_widths(weights: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    """The widths of the `mapping` whose official keys start like this."""
    layers = [weights[f"{prefix}{i}.weight"] for i in (0, 3, 6) if i < 6 or f"{prefix}6.weight" in weights]
    return (layers[0].shape[1], *(layer.shape[0] for layer in layers))


def count_mappings(weights: Mapping[str, Tensor], prefix: str = "mapping_") -> int:
    """How many hidden states have a mapping of this name: mapping_0, mapping_1, ..."""
    return len({key.split(".")[0] for key in weights if key.startswith(prefix) and key[len(prefix)].isdigit()})


class FuseMlp(nn.Module):
    """LayerNorm, Linear, GELU, Linear; plus its input where `residual`."""

    def __init__(self, in_dim: int, inner_dim: int, out_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, inner_dim)
        self.fc2 = nn.Linear(inner_dim, out_dim)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))
        return out + x if self.residual else out


class FuseModule(nn.Module):
    """A word of the text and an image of it become one state (FastComposer, arXiv 2305.10431; PhotoMaker).

    h = mlp1([c; e]) + c;   h = mlp2(h) + h;   LayerNorm(h)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp1 = FuseMlp(2 * dim, dim, dim, residual=False)
        self.mlp2 = FuseMlp(dim, dim, dim, residual=True)
        self.layer_norm = nn.LayerNorm(dim)

    @property
    def dim(self) -> int:
        """Width of the text's states."""
        return self.layer_norm.normalized_shape[0]

    def forward(self, words: Tensor, pictures: Tensor) -> Tensor:
        """words c and images e, each (..., dim) -> (..., dim)"""
        h = self.mlp1(torch.cat([words, pictures], dim=-1)) + words
        return self.layer_norm(self.mlp2(h))

    def into(self, states: Tensor, positions: Tensor, pictures: Tensor, weights: Tensor | None = None) -> Tensor:
        """Fuse images into the states of a text, which is left as it is.

        states: (batch, n, dim); positions: (count,) into n; pictures: (batch | 1, count, dim). weights: (count,), how
        far each word goes from itself towards the fused one; None for all the way.
        """
        words = states[:, positions]
        fused = self(words, pictures.expand(len(words), -1, -1))
        if weights is not None:
            fused = torch.lerp(words, fused, weights.to(fused).unsqueeze(-1))
        changed = states.clone()
        changed[:, positions] = fused
        return changed
