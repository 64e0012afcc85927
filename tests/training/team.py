"""Two processes of `training.team` on one small network, started by test_team.py: argv is rank, size, meeting, out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from likeness.training.loop import Run
from likeness.training.muon import Muon, Together, split_parameters
from likeness.training.team import Team, team_of


def train(team: Team, folder: Path) -> Run:
    """Twelve steps of regression on fixed numbers, every process on its part of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 12), nn.SiLU(), nn.Linear(12, 3))
    x, y = torch.randn(64, 6), torch.randn(64, 3)
    matrices, others = split_parameters([net], ends=(net[0], net[-1]))
    optimizer = Together(Muon(matrices, 1e-2, team=team), torch.optim.AdamW(others, 1e-2))
    run = Run(folder, {"net": net}, optimizer, steps=12, team=team)

    def loss(step: int, random: torch.Generator) -> torch.Tensor:
        rows = team.part(np.random.default_rng(step).permutation(64)[:16])
        return (net(x[rows]) - y[rows]).square().mean()

    run.go(loss)
    return run


if __name__ == "__main__":
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    with team_of(rank, size, Path(sys.argv[3])) as team:
        run = train(team, Path(sys.argv[4]))
        torch.save(run.modules["net"].state_dict(), Path(sys.argv[4]) / f"weights-{rank}.pt")
