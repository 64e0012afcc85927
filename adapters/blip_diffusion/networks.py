"""The subject encoder: an image and the word for what it shows, to vectors that stand among the words of a prompt.

    h = ln(tower(image))                                    every token of CLIP ViT-L/14 without its last block
    x = LN([queries; words + positions])                    the queries have no position
    in every layer, with one residual and one LN behind each part:
        x = attention(x)                                    padded words are not attended to
        q = cross_attention(q, h)                           the queries alone, in the layers that have it
        q = feed_forward_query(q);   w = feed_forward(w)    queries and words have their own
    vectors = q + W2 quick_gelu(W1 LN(q))                   into the space of the text encoder's token embeddings

Sizes are read off the weights; those of the attention heads are not in them and are stated. The keys are those of the
Hub's file but for the tower, which has transformers' (`files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...weights.checkpoint_layout import below
from ...weights.families import HEAD_WIDTH
from ..clip_tower import ClipTower, TowerSizes

DROPOUT = 0.1  # of the Q-Former and the projection, in training only
_BERT_EPS = 1e-12
_PADDED = -10000.0  # added to the attention to padded words


@dataclass(frozen=True)
class HeadSizes:
    """What no weight tells; the defaults are those of the published files. tower_eps: of the tower's norms."""

    tower: int = HEAD_WIDTH
    queries: int = HEAD_WIDTH
    tower_eps: float = 1e-5


class SubjectEncoder(nn.Module):
    """Images and the words for what they show to vectors (n, queries, dim) among a prompt's."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: HeadSizes | None = None) -> None:
        """weights: under our own names. Raises KeyError, ValueError or IndexError when they are no such encoder."""
        super().__init__()
        sizes = sizes or HeadSizes()
        tower = TowerSizes.of(below(weights, "visual_encoder."), sizes.tower)
        dim = weights["query_tokens"].shape[-1]
        with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
            self.query_tokens = nn.Parameter(torch.empty(weights["query_tokens"].shape))
            self.visual_encoder = ClipTower(tower)
            self.embeddings = Embeddings(weights)
            self.encoder = nn.Module()
            self.encoder.layer = nn.ModuleList(
                QueryLayer(below(weights, f"encoder.layer.{i}."), dim, sizes.queries) for i in range(_layers(weights))
            )
            self.proj_layer = Projection(dim, len(weights["proj_layer.dense1.weight"]))
        for module in self.visual_encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = sizes.tower_eps

    @property
    def image_size(self) -> int:
        """Side of the images it reads, in pixels."""
        return self.visual_encoder.image_size

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.query_tokens.shape[-1]

    @property
    def queries(self) -> int:
        """How many vectors a subject has."""
        return self.query_tokens.shape[1]

    @property
    def longest(self) -> int:
        """How many pieces of words it reads."""
        return self.embeddings.position_embeddings.num_embeddings

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """pixels: (n, 3, S, S), normalised; words, mask: (n, w), ids and 1 where a word is -> (n, queries, dim)"""
        return self.proj_layer(self.features(pixels, words, mask))

    def features(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """What the queries have read, before the projection: (n, queries, dim)"""
        tower = self.visual_encoder
        image = tower.post_layernorm(tower(pixels))
        queries = self.query_tokens.expand(len(pixels), -1, -1)
        x = self.embeddings(queries, words)
        seen = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
        bias = ((1 - seen.to(x.dtype)) * _PADDED)[:, None, None]
        for layer in self.encoder.layer:  # type: ignore[union-attr]
            x = layer(x, image, bias, queries.shape[1])
        return x[:, : queries.shape[1]]


def _layers(weights: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[2] for key in weights if key.startswith("encoder.layer.")})


class Embeddings(nn.Module):
    """[queries; words + positions], normed as one."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        sizes = (weights[f"embeddings.{name}_embeddings.weight"].shape for name in ("word", "position"))
        self.word_embeddings, self.position_embeddings = (nn.Embedding(count, dim) for count, dim in sizes)
        self.LayerNorm = nn.LayerNorm(self.word_embeddings.embedding_dim, eps=_BERT_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, queries: Tensor, words: Tensor) -> Tensor:
        text = self.word_embeddings(words) + self.position_embeddings.weight[: words.shape[1]]
        return self.dropout(self.LayerNorm(torch.cat([queries, text], dim=1)))


class QueryLayer(nn.Module):
    """One layer of the Q-Former."""

    def __init__(self, weights: Mapping[str, Tensor], dim: int, head_width: int) -> None:
        """weights: those below the layer's name."""
        super().__init__()
        inner = len(weights["intermediate.dense.weight"])
        self.attention = Attention(dim, dim, head_width)
        cross = weights.get("crossattention.attention.key.weight")
        self.crossattention = None if cross is None else Attention(dim, cross.shape[1], head_width)
        self.intermediate, self.intermediate_query = Intermediate(dim, inner), Intermediate(dim, inner)
        self.output, self.output_query = Output(inner, dim), Output(inner, dim)

    def forward(self, x: Tensor, image: Tensor, bias: Tensor, queries: int) -> Tensor:
        """x: (n, queries + words, dim); image: (n, tokens, width); bias: (n, 1, 1, queries + words)"""
        x = self.attention(x, x, bias)
        q, words = x[:, :queries], x[:, queries:]
        if self.crossattention is not None:
            q = self.crossattention(q, image)
        q = self.output_query(self.intermediate_query(q), q)
        words = self.output(self.intermediate(words), words)
        return torch.cat([q, words], dim=1)


class Attention(nn.Module):
    """Attention, then the residual and a norm."""

    def __init__(self, dim: int, source: int, head_width: int) -> None:
        super().__init__()
        if dim % head_width:
            raise ValueError(f"attention of width {dim} has no heads of width {head_width}")
        self.heads = dim // head_width
        self.attention = nn.Module()
        self.attention.query = nn.Linear(dim, dim)
        self.attention.key, self.attention.value = nn.Linear(source, dim), nn.Linear(source, dim)
        self.output = Output(dim, dim)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        layers = self.attention
        q, k, v = (
            projection(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[operator]
            for projection, given in ((layers.query, x), (layers.key, source), (layers.value, source))
        )
        dropout = DROPOUT if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.output(found.transpose(1, 2).flatten(-2), x)


class Intermediate(nn.Module):
    """The first half of a feed-forward."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Output(nn.Module):
    """The last layer of a part, then its residual and a norm."""

    def __init__(self, inner: int, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=_BERT_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Projection(nn.Module):
    """x + W2 quick_gelu(W1 LN(x))"""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=_BERT_EPS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dense1(self.LayerNorm(x))
        return x + self.dropout(self.dense2(inner * torch.sigmoid(1.702 * inner)))
