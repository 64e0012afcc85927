"""What runs at one attention site of a UNet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Protocol

from torch import Tensor

from ..attention import SiteTerm, add_identity
from ..sites import AttentionSite

KEY = "likeness"  # of our wrappers, and of our entry in transformer_options


class Terms(Protocol):
    """What a batch adds at each site, under `KEY` in its transformer options."""

    def terms(self, site: AttentionSite, q: Tensor, grid: tuple[int, int]) -> tuple[SiteTerm, ...]:
        """The terms of a site, for queries (batch, L, width) on a grid of L = h·w places."""
        ...


class SitePatch:
    """What runs at one attention site: the function that was there, plus our terms. Called after to_q, to_k, to_v."""

    def __init__(self, site: AttentionSite, base: Callable[..., Tensor] | None) -> None:
        self.site = site
        self.found = base
        self.base = base or plain_attention()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out = self.base(q, k, v, extra_options)
        call: Terms = extra_options[KEY]
        grid = tuple(extra_options["activations_shape"][-2:])
        return add_identity(out, q, call.terms(self.site, q, grid))


@cache
def plain_attention() -> Callable[..., Tensor]:
    """The host's own attention, called the way its blocks call it."""
    from comfy.ldm.modules.attention import optimized_attention

    parameters = inspect.signature(optimized_attention).parameters.values()
    passes_options = any(p.name == "transformer_options" or p.kind is p.VAR_KEYWORD for p in parameters)

    def attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        extra = {"transformer_options": extra_options} if passes_options else {}
        return optimized_attention(
            q, k, v, extra_options["n_heads"], attn_precision=extra_options.get("attn_precision"), **extra
        )

    return attention
