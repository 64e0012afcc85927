"""The localisation loss on maps and masks of every kind."""

from __future__ import annotations

import pytest
import torch

from likeness.training.objectives.localisation import localisation, site_localisation, subject_error


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    mask = torch.zeros(size)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = 1
    return mask


ONE = torch.ones(1, 1)


def test_it_is_minus_1_on_the_subject_and_1_beside_it():
    mask = mask_of((0, 0, 32, 64))
    inside, outside = mask[::8, ::8].reshape(1, 1, 1, 64), 1 - mask[::8, ::8].reshape(1, 1, 1, 64)
    for attention, expected in ((inside, -1.0), (outside, 1.0), (torch.full((1, 1, 1, 64), 0.3), 0.0)):
        found = site_localisation(attention, mask[None, None], ONE, (8, 8))
        assert abs(float(found) - expected) < 0.1


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (5, 7), (300, 200)])
def test_masks_of_any_size_and_maps_that_are_not_square(size):
    mask, grid = mask_of((0, 0, size[0] // 2, size[1]), size), (6, 4)
    attention = torch.rand(2, 3, 1, 24, requires_grad=True)
    found = localisation([attention], mask.expand(2, 1, -1, -1), ONE.expand(2, 1), [grid])
    assert found.shape == (2,) and bool(found.isfinite().all())
    found.sum().backward()
    assert attention.grad is not None and bool(attention.grad.isfinite().all())


def test_samples_of_a_batch_have_their_own_numbers_of_subjects():
    torch.manual_seed(0)
    attention, masks = torch.rand(3, 2, 4, 64), (torch.rand(3, 4, 32, 32) > 0.5).float()
    valid = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    found = site_localisation(attention, masks, valid, (8, 8))
    alone = site_localisation(attention[:1, :, :2], masks[:1, :2], torch.ones(1, 2), (8, 8))
    torch.testing.assert_close(found[:1], alone, rtol=1e-4, atol=1e-6)
    assert found[1] == 0


@pytest.mark.parametrize("mask", [torch.zeros(32, 32), torch.ones(32, 32)])
def test_empty_and_full_masks_and_ones_that_overlap_have_gradients(mask):
    attention = torch.rand(1, 2, 2, 64, requires_grad=True)
    masks = torch.stack([mask, mask_of((0, 0, 20, 20), (32, 32))]).unsqueeze(0)
    for normalised in (False, True):
        found = site_localisation(attention, masks, torch.ones(1, 2), (8, 8), normalised)
        (grad,) = torch.autograd.grad(found.sum(), attention)
        assert bool(grad.isfinite().all()) and abs(float(found.detach())) < 1e3


def test_nobody_s_loss_is_0_with_gradient_0():
    attention = torch.rand(1, 2, 1, 64, requires_grad=True)
    found = site_localisation(attention, torch.zeros(1, 1, 8, 8), torch.zeros(1, 1), (8, 8))
    (grad,) = torch.autograd.grad(found.sum(), attention)
    assert float(found) == 0 and not bool(grad.any())


def test_the_subject_s_error_counts_where_anybody_is_and_divides_by_everything():
    prediction, target = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    masks = torch.stack([mask_of((0, 0, 32, 64)), mask_of((0, 0, 16, 16))]).unsqueeze(0)
    assert float(subject_error(prediction, target, masks)) == pytest.approx(0.5)
    assert float(subject_error(prediction, target, 0 * masks)) == 0
