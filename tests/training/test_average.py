"""The moving average of weights: its warm-up, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from likeness.training.loop import Average


def of_one_weight(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize(("step", "decay"), [(0, 1 / 10), (1, 2 / 11), (5, 6 / 15), (80, 0.9), (10_000, 0.9)])
def test_the_average_warms_up(step, decay):
    """Without a warm-up the first weights, which are random, would stay in the average for 1 / (1 - decay) steps."""
    average = Average(of_one_weight(1.0), 0.9)
    average.update(of_one_weight(0.0), step)
    assert average.shadow["weight"].item() == pytest.approx(decay)


def test_integers_are_copied_and_the_networks_own_weights_come_back():
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.9)
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 7
    module.weight.data.fill_(3.0)
    average.update(module, 0)
    assert average.shadow["num_batches_tracked"].item() == 7
    with pytest.raises(KeyboardInterrupt), average.applied(module):
        assert module.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
        raise KeyboardInterrupt
    assert torch.equal(module.weight, torch.tensor([3.0]))
