"""Processes that train one network together, for machines whose cores do better side by side than on one operation.

Each works on its part of every batch; the gradients are averaged, so that all hold the same weights after every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """One process's place among `size`. Alone by default, when nothing is exchanged."""

    rank: int = 0
    size: int = 1

    def part(self, rows: np.ndarray) -> np.ndarray:
        """This process's rows of a batch; parts are of equal size when `size` divides the batch."""
        return rows[self.rank :: self.size]

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in place of each tensor, in one exchange."""
        self._total(tensors, 1 / self.size)

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in place of each tensor, in one exchange."""
        self._total(tensors, 1.0)

    def agreed(self, wish: bool) -> bool:
        """Whether any process wishes it; all get the same answer."""
        wishes = torch.tensor([float(wish)])
        self.total([wishes])
        return bool(wishes > 0)

    @torch.no_grad()
    def _total(self, tensors: Sequence[Tensor], scale: float) -> None:
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat *= scale
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def team_of(rank: int, size: int, meeting: Path) -> Iterator[Team]:
    """This process's place among CPU processes of one machine, who name the same file, which must not exist yet.

    All leave together: a process that ends while another still listens to it would abort that one.
    """
    if size == 1:
        yield Team()
        return
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=size)
    try:
        yield Team(rank, size)
        dist.barrier()
    finally:
        dist.destroy_process_group()
