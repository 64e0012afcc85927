"""A system for FLUX in a page: cross-attention to a person's tokens behind every second double and fourth single block.

images + strength · to_out(softmax(q Kᵀ/√d) V),   q = to_q(norm2(images)),  K, V = to_kv(norm1(tokens))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likeness.adapters.effects import BlockTerm, Effect, Prepared
from likeness.adapters.system import Kind, Needs, Request, Sureness, WeightFile
from likeness.adapters.types import IdentityTokens
from likeness.weights import families

DOUBLE, SINGLE = 2, 4  # every so-manieth block has a module behind it


class _Module(nn.Module):
    def __init__(self, weights: Mapping[str, Tensor], heads: int) -> None:
        super().__init__()
        (inner, width), dim = weights["to_q.weight"].shape, len(weights["norm1.weight"])
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.load_state_dict(dict(weights))


class ToyDit(nn.Module):
    """An adapter of the toy system. Keys: `toy_ca.<number>.{norm1,norm2,to_q,to_kv,to_out}.*`."""

    title = "Toy for FLUX"

    def __init__(self, file: WeightFile, heads: int = 2) -> None:
        super().__init__()
        self.name, self.calls = file.name, Counter()
        numbers = sorted({int(key.split(".")[1]) for key in file.weights})
        self.toy_ca = nn.ModuleList(_Module(_below(file.weights, f"toy_ca.{number}."), heads) for number in numbers)
        self.requires_grad_(False).eval()

    @property
    def needs(self) -> Needs:
        return Needs(families.FLUX, "buffalo_l")

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        return {}

    @property
    def width(self) -> int:
        return self._module(0).to_q.in_features

    at_every_step = True

    def prepare(self, number: int, tokens: Tensor) -> Prepared:
        self.calls["prepare", number] += 1
        module = self._module(number)
        return (module.to_kv(module.norm1(tokens)),)

    def residual(self, number: int, images: Tensor, prepared: Prepared) -> Tensor:
        self.calls["residual", number] += 1
        module = self._module(number)
        q, k, v = (
            t.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for t in (module.to_q(module.norm2(images)), *prepared[0].expand(len(images), -1, -1).chunk(2, dim=-1))
        )
        return module.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def effects(self, request: Request) -> tuple[Effect, ...]:
        person = request.person(self, 512).mean_embedding()
        dim = self._module(0).norm1.normalized_shape[0]
        tokens = IdentityTokens(person[: 3 * dim].reshape(1, 3, dim) * 10, torch.zeros(1, 3, dim))
        assert request.dit is not None
        return (BlockTerm(self, request.dit.every(DOUBLE, SINGLE), tokens, request.strength, request.scope),)

    def notes(self, request: Request) -> list[str]:
        return []

    def _module(self, number: int) -> Any:
        return self.toy_ca[number]


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def recognise(file: WeightFile) -> Sureness:
    return Sureness.YES if file.has("toy_ca.") else Sureness.NO


SYSTEM = Kind("Toy for FLUX", recognise, ("toys",), ToyDit)


def weights(width: int, modules: int, dim: int = 24, inner: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """A file's content for a model with tokens of this width."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"norm1": (dim,), "norm2": (width,), "to_q": (inner, width), "to_kv": (2 * inner, dim)}
    made = {}
    for number in range(modules):
        for name, shape in {**shapes, "to_out": (width, inner)}.items():
            noise = torch.randn(*shape, generator=random)
            key = f"toy_ca.{number}.{name}"
            made[f"{key}.weight"] = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
            if len(shape) == 1:
                made[f"{key}.bias"] = 0.1 * torch.randn(*shape, generator=random)
    return made


def network() -> Any:
    """A diffusers FLUX that such a file fits: 3 + 6 blocks, 32 wide."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16, num_layers=3, num_single_layers=6, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=12, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    ).eval()  # fmt: skip
