"""The tokens of a subject per stage of denoising, and the block that makes them (ProSpect's, with 2S outputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = 5
TIMESTEPS = 1000


def stage_of(timesteps: Tensor, stages: int = STAGES, total: int = TIMESTEPS) -> Tensor:
    """The stage of each timestep, 0 at the end of low noise; a sampler's timesteps may be fractions."""
    return (timesteps * stages / total).floor().clamp(0, stages - 1).long()


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Geglu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(_Geglu(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TokenBlock(nn.Module):
    """ProSpect's transformer block: the embedding row of a word in, `tokens` rows of the same width out.

    With a word of one token both softmaxes are over one key, so queries and keys have no effect; they are kept so
    that the keys of the state dict stay ProSpect's.
    """

    def __init__(self, width: int, tokens: int, heads: int = 8, dim_head: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.attn1 = _Attention(width, heads, dim_head, dropout)
        self.attn2 = _Attention(width, heads, dim_head, dropout)
        self.ff = _FeedForward(width, tokens * width, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, word: Tensor) -> Tensor:
        """word: (1, n, width), without position embedding; the result: (tokens, width)."""
        x = self.norm1(word)
        h = word + self.attn1(x, x)
        h = h + self.attn2(self.norm2(h), word)
        return self.ff(self.norm3(h))[0, -1].unflatten(0, (-1, word.shape[-1]))


class TokenGenerator(TokenBlock):
    """The block with one token for keys and one for values per stage: (stages, 2, width)."""

    def __init__(self, width: int, stages: int = STAGES, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__(width, 2 * stages, heads, dim_head)

    def forward(self, word: Tensor) -> Tensor:
        return super().forward(word).unflatten(0, (-1, 2))

    @torch.no_grad()
    def start_near(self, row: Tensor) -> None:
        """Make training start at the word whose embedding row this is, (width,), rather than at random tokens."""
        out = self.ff.net[-1]
        assert isinstance(out, nn.Linear)
        out.weight.mul_(0.1)
        out.bias.copy_(row.repeat(out.out_features // row.shape[0]))
