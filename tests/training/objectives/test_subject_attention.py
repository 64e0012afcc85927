"""The subject-wise attention loss."""

from __future__ import annotations

import pytest
import torch

from likeness.training.objectives.subject_attention import Reduction, attention_difference

POSITIONS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("reduction", Reduction)
def test_equal_keys_cost_nothing(reduction: Reduction) -> None:
    queries, keys = torch.randn(1, 16, 8), torch.randn(1, 9, 8)
    assert attention_difference(queries, keys, keys.clone(), POSITIONS, 2, reduction).item() == 0


def test_the_reference_has_no_gradient() -> None:
    torch.manual_seed(0)
    queries, keys, reference = (torch.randn(1, n, 8, requires_grad=True) for n in (16, 9, 9))
    attention_difference(queries, keys, reference, POSITIONS, 2, Reduction.SUM).backward()
    assert reference.grad is None
    assert keys.grad is not None
    assert queries.grad is not None


def test_sum_is_mean_times_queries_and_tokens() -> None:
    torch.manual_seed(0)
    queries, keys, reference = torch.randn(1, 16, 8), torch.randn(1, 9, 8), torch.randn(1, 9, 8)
    summed = attention_difference(queries, keys, reference, POSITIONS, 2, Reduction.SUM)
    mean = attention_difference(queries, keys, reference, POSITIONS, 2, Reduction.MEAN)
    torch.testing.assert_close(summed, mean * 16 * 3)
