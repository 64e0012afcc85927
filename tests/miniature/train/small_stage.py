"""A stage of a few numbers as `miniature.train` runs it, started by test_stopping.py: argv is folder and steps."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from likeness.miniature.train import stages
from likeness.training.loop import Run


def small(folder: Path, steps: int) -> None:
    net = nn.Linear(2, 2)
    run = Run(folder, {"net": net}, torch.optim.SGD(net.parameters(), 1e-3), steps, save_every=10**9)

    def loss(step: int, random: torch.Generator) -> Tensor:
        (folder / "at-work").touch()
        time.sleep(0.01)
        return net(torch.ones(1, 2)).square().mean()

    folder.mkdir(exist_ok=True)
    stages._go(stages.Stage.JUDGE, run, loss, math.inf, 0)


if __name__ == "__main__":
    stages.at_once([(small, (Path(sys.argv[1]), int(sys.argv[2])))])
