"""Break-A-Scene's losses: what they count, and mistakes in prompts."""

from __future__ import annotations

import pytest
import torch

from likeness.errors import LikenessError
from likeness.training.objectives.break_a_scene import (
    average_attention,
    concept_attention,
    concept_positions,
    union_error,
)

MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 2:6, 2:6] = 1


def test_attention_that_is_the_mask_costs_nothing_however_much_there_is():
    coarse = torch.nn.functional.interpolate(MASK, (4, 4))
    assert float(concept_attention(0.01 * coarse, MASK)) == 0
    assert float(concept_attention(1 - coarse, MASK)) > 0.4


def test_the_maximum_has_a_gradient_and_a_map_of_nothing_is_no_division_by_zero():
    attention = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    highest = int(attention.argmax())
    concept_attention(attention, MASK).backward()
    assert attention.grad is not None and float(attention.grad.flatten()[highest].abs()) > 0
    assert torch.isfinite(concept_attention(torch.zeros(1, 1, 4, 4), MASK)).all()


def test_every_head_counts_alike_whatever_its_layer():
    few, many = torch.zeros(1, 1, 2, 16), torch.ones(1, 3, 2, 16)
    assert float(average_attention([few, many], (4, 4)).mean()) == 0.75


def test_the_error_is_that_of_the_union_over_the_whole_image():
    prediction, target = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    two = torch.cat([MASK, MASK.roll(4, -1)], 1)
    torch.testing.assert_close(union_error(prediction, target, two), two.amax(1).flatten(1).mean(1))


@pytest.mark.parametrize(("second", "said"), [((1, 8, 3), "does not name concept 1"), ((7, 7, 8), "1 2 times")])
def test_a_concept_is_named_exactly_once(second, said):
    ids, concepts = torch.tensor([[7, 8, 9], list(second)]), torch.tensor([[7], [7]])
    with pytest.raises(LikenessError, match=f"image 2.*{said}"):
        concept_positions(ids, concepts)
    assert concept_positions(ids[:1], torch.tensor([[9, 7]])).tolist() == [[2, 0]]
