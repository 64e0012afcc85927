"""PuLID's losses: what they are blind to, and where their gradients go."""

from __future__ import annotations

import pytest
import torch

from likeness.training.objectives.pulid import Alignment, Reduction, Weights, align_layer, identity_loss, response


def states(seed: int, tokens: int = 12) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("merged", [False, True])
def test_without_a_difference_the_losses_are_zero(reduction, merged):
    found = align_layer(states(0), states(0), states(1, 5), reduction, merged)
    assert found == (0, 0)


def test_only_the_path_with_the_person_gets_a_gradient():
    with_person, without, keys = (states(n).requires_grad_() for n in range(3))
    Weights().alignment(align_layer(with_person, without, keys)).backward()
    assert with_person.grad is not None and float(with_person.grad.abs().sum()) > 0
    assert without.grad is None and keys.grad is None


def test_the_response_does_not_see_where_in_the_image_something_is_but_the_layout_does():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    moved = states(0)[:, :, order]
    torch.testing.assert_close(response(moved, states(1, 5)), response(states(0), states(1, 5)))
    found = align_layer(moved, states(0), states(1, 5))
    assert float(found.semantic) < 1e-10 < float(found.layout)


def test_an_image_without_a_face_counts_for_nothing():
    generated, reference = torch.randn(3, 8), torch.randn(3, 8)
    seen = torch.tensor([True, False, True])
    torch.testing.assert_close(
        identity_loss(generated, reference, seen),
        identity_loss(generated[seen], reference[seen], torch.ones(2, dtype=torch.bool)),
    )
    assert float(identity_loss(generated, reference, torch.zeros(3, dtype=torch.bool))) == 0


def test_the_total_has_every_weight():
    one = torch.tensor(1.0)
    assert float(Weights(2, 3, 5).total(one, Alignment(one, one), one)) == 1 + 2 + 3 + 5
