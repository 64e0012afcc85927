"""Muon's steps: orthogonal, of AdamW's size, and resumable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from likeness.training.muon import Muon, Together, orthogonalised, split_parameters


@pytest.mark.parametrize("shape", [(8, 8), (24, 6), (6, 24)])
def test_a_matrix_becomes_nearly_orthogonal_and_keeps_its_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape
    assert ((torch.linalg.svdvals(found) - 1).abs() < 0.35).all()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = left @ right
    assert torch.nn.functional.cosine_similarity(found.flatten(), nearest.flatten(), dim=0) > 0.97


def test_a_step_is_as_large_as_the_learning_rate_says():
    weight = nn.Parameter(torch.zeros(32, 16))
    weight.grad = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.01, weight_decay=0.0).step()
    root_mean_square = weight.detach().square().mean().sqrt()
    assert root_mean_square == pytest.approx(0.01 * 0.2, rel=0.25)
    assert (weight * weight.grad).sum() < 0


def test_parameters_without_a_gradient_stay():
    weight = nn.Parameter(torch.ones(4, 4))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_convolutions_are_matrices_and_embeddings_norms_and_ends_are_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Embedding(5, 4), nn.Linear(4, 2))
    matrices, others = split_parameters([net], ends=(net[0], net[4]))
    assert [p.shape for p in matrices] == [net[2].weight.shape]
    assert len(matrices) + len(others) == len(list(net.parameters()))


def test_together_resumes_where_it_was():
    def make():
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        return net, Together(Muon([net.weight], 1e-2), torch.optim.AdamW([net.bias], 1e-2))

    def step(net, optimizer, seed):
        optimizer.zero_grad()
        net(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    whole, whole_optimizer = make()
    for seed in range(4):
        step(whole, whole_optimizer, seed)
    first, first_optimizer = make()
    for seed in range(2):
        step(first, first_optimizer, seed)
    second, second_optimizer = make()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    for seed in range(2, 4):
        step(second, second_optimizer, seed)
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)
