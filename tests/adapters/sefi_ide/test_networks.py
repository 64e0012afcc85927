"""Stages and tokens of SeFi-IDE."""

from __future__ import annotations

import pytest
import torch

from likeness.adapters.sefi_ide.networks import TokenGenerator, stage_of


@pytest.mark.parametrize(("t", "stage"), [(0, 0), (199, 0), (199.9, 0), (200, 1), (999, 4), (1000, 4), (-0.5, 0)])
def test_stage_of_a_timestep(t: float, stage: int) -> None:
    assert stage_of(torch.tensor(t)).item() == stage


def test_rows_of_a_batch_have_their_own_stages() -> None:
    assert stage_of(torch.tensor([999.0, 450.0, 3.2])).tolist() == [4, 2, 0]


def test_training_starts_near_the_word() -> None:
    torch.manual_seed(0)
    row = torch.randn(24)
    generator = TokenGenerator(24, heads=2, dim_head=8).eval()
    before = (generator(row.view(1, 1, -1)) - row).abs().mean()
    generator.start_near(row)
    tokens = generator(row.view(1, 1, -1))
    assert tokens.shape == (5, 2, 24)
    assert (tokens - row).abs().mean() < 0.1 * before


def test_queries_and_keys_have_no_gradient_for_a_word_of_one_token() -> None:
    generator = TokenGenerator(24, heads=2, dim_head=8)
    generator(torch.randn(1, 1, 24)).square().sum().backward()
    assert generator.attn1.to_q.weight.grad is not None
    assert generator.attn1.to_q.weight.grad.abs().max() < 1e-6
    assert generator.attn1.to_v.weight.grad is not None
    assert generator.attn1.to_v.weight.grad.abs().max() > 1e-4
