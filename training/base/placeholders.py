"""Trainable placeholder tokens beside a frozen embedding table.

Instead of training the whole table and restoring all other rows after each step, as the reference trainers do, the
placeholders are a parameter of their own: other words cannot move, and gradient and optimiser state are n rows instead
of 49 408.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...errors import LikenessError


class PlaceholderEmbedding(nn.Module):
    """A token embedding whose placeholder ids read `rows` and all other ids the frozen table.

    table: the text encoder's own embedding, (vocabulary, dim). ids: distinct token ids, inside the table or above it.
    rows: (n, dim), their first values. made_by: what makes the vectors out of the rows; None: they are the vectors.
    Both are kept in float32 whatever the precision of the table.
    """

    ids: Tensor

    def __init__(self, table: nn.Embedding, ids: Sequence[int], rows: Tensor, made_by: nn.Module | None = None) -> None:
        super().__init__()
        if len(set(ids)) != len(ids) or rows.shape != (len(ids), table.embedding_dim):
            raise LikenessError(
                f"{len(ids)} placeholder tokens need as many different ids and vectors of width "
                f"{table.embedding_dim}, not {tuple(rows.shape)}: choose an embedding made for this text encoder."
            )
        self.table = table.requires_grad_(False)
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.made_by = made_by or nn.Identity()
        self.register_buffer("ids", torch.tensor(list(ids)), persistent=False)

    @property
    def embedding_dim(self) -> int:
        return self.table.embedding_dim

    def vectors(self) -> Tensor:
        """What stands for the placeholders now: (n, dim), float32."""
        with torch.autocast(self.rows.device.type, enabled=False):
            return self.made_by(self.rows)

    @property
    def weight(self) -> Tensor:
        """The whole table with the placeholders in their places; rows above the frozen table are appended."""
        size = max(self.table.num_embeddings, int(self.ids.max()) + 1)
        table = self.table.weight.new_zeros(size, self.embedding_dim)
        table[: self.table.num_embeddings] = self.table.weight
        return table.index_copy(0, self.ids, self.vectors().to(table))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlaceholderEmbedding:
        learned = {name: value.data for name, value in self.named_parameters() if not name.startswith("table.")}
        super()._apply(fn, recurse)
        for name, value in learned.items():  # wherever the module goes, in whatever precision
            parameter = self.get_parameter(name)
            parameter.data = value.to(parameter.device)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, dim)"""
        matches = input_ids.unsqueeze(-1) == self.ids
        is_placeholder = matches.any(-1)
        words = self.table(torch.where(is_placeholder, 0, input_ids))
        placeholders = self.vectors().to(words)[matches.int().argmax(-1)]
        return torch.where(is_placeholder.unsqueeze(-1), placeholders, words)
