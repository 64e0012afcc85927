"""StoryMaker's losses: nothing is lost where each character's tokens look at their own region alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from likeness.errors import LikenessError
from likeness.training.objectives.storymaker import attention_loss, masked_error

TOKENS = 20


def stripes(people: int, height: int, width: int) -> Tensor:
    """Masks (1, people, H, W): a stripe each, the background below all of them."""
    masks = torch.zeros(1, people, height, width)
    each = width // people
    for number in range(people):
        masks[:, number, : height // 2, number * each : (number + 1) * each] = 1
    return masks


def maps_of(targets: Tensor) -> Tensor:
    """A layer's map, (1, (1 + P)·20, pixels), in which every owner's tokens share what the owner looks at."""
    return (targets / TOKENS).repeat_interleave(TOKENS, dim=1).flatten(2)


def coarse_targets(masks: Tensor) -> Tensor:
    """Where background and characters belong on the coarse grid, when their edges lie on its lines."""
    height, width = masks.shape[-2] // 2, masks.shape[-1] // 2
    grid = -(-height // 2), -(-width // 2)
    coarse = torch.nn.functional.interpolate(masks, grid, mode="area")
    return torch.cat([1 - coarse.sum(1, keepdim=True).clamp(0, 1), coarse], dim=1)


@pytest.mark.parametrize("people", [1, 2, 3])
@pytest.mark.parametrize("size", [(32, 24), (46, 30), (16, 26)])
def test_looking_at_the_right_place_costs_less_than_at_another(people, size):
    masks = stripes(people, *size)
    right = attention_loss([maps_of(coarse_targets(masks))], masks)
    wrong = attention_loss([maps_of(coarse_targets(masks).flip(1))], masks)
    nowhere = attention_loss([maps_of(torch.full_like(coarse_targets(masks), 1 / (1 + people)))], masks)
    assert right.shape == (1,) and right < 0.25 * nowhere and right < 0.25 * wrong


def test_where_masks_are_flat_the_right_map_costs_nothing():
    masks = torch.full((1, 2, 16, 24), 0.3)
    targets = coarse_targets(masks)
    torch.testing.assert_close(attention_loss([maps_of(targets)] * 3, masks), torch.zeros(1), atol=1e-10, rtol=0)


def test_fine_layers_are_left_out_and_the_divisor_is_the_number_of_the_others():
    masks = stripes(2, 32, 24)
    coarse, fine = maps_of(coarse_targets(masks)), torch.rand(1, 60, 16 * 12)
    alone = attention_loss([coarse, coarse], masks)
    torch.testing.assert_close(attention_loss([fine, coarse, coarse, fine], masks), alone)
    torch.testing.assert_close(attention_loss([coarse, coarse], masks, divisor=2), alone)
    assert not torch.allclose(attention_loss([coarse, coarse], masks, divisor=60), alone)


def test_a_network_without_coarse_layers_is_explained():
    with pytest.raises(LikenessError, match="no layer coarser"):
        attention_loss([torch.rand(1, 60, 16 * 12)], stripes(2, 32, 24))


def test_every_sample_of_a_batch_has_its_own_loss():
    masks = torch.cat([stripes(2, 32, 24), stripes(2, 32, 24).flip(3)])
    maps = torch.cat([maps_of(coarse_targets(masks[:1])), maps_of(coarse_targets(masks[:1]))])
    both = attention_loss([maps], masks)
    torch.testing.assert_close(both[:1], attention_loss([maps[:1]], masks[:1]))
    assert both[1] > both[0]


def test_gradients_reach_the_maps():
    maps = torch.full((1, 60, 8 * 6), 1 / 60, requires_grad=True)
    attention_loss([maps], stripes(2, 32, 24)).sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all() and maps.grad.any()


def test_errors_count_six_times_where_a_character_is_and_overlaps_no_more():
    target = torch.zeros(1, 4, 8, 8)
    masks = torch.zeros(1, 2, 8, 8)
    masks[:, :, :4] = 1
    inside, outside = target.clone(), target.clone()
    inside[:, :, :4], outside[:, :, 4:] = 1, 1
    torch.testing.assert_close(masked_error(inside, target, masks), 6 * masked_error(outside, target, masks))
    torch.testing.assert_close(masked_error(inside, target, masks[:, :0]), torch.full((1,), 0.5))
