"""The two branches of cross-attention: what gamma and sigma do, whom they do nothing to, and how training draws."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from likeness.adapters.photoverse.fusion import R1, R2, Branches, Fusion, drawn
from likeness.injection.attention import SiteTerm, add_identity, attend_by_head, split_heads


def site(batch: int = 2, heads: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    text, q = (torch.randn(batch, 7, 8, generator=random) for _ in range(2))
    keys, values = (split_heads(torch.randn(batch, 3, 8, generator=random), heads) for _ in range(2))
    return text, q, keys, values


@pytest.mark.parametrize(("gamma", "sigma"), [(1, 1), (0.8, 1.5), (2, 0), (0, 2), (0, 0)])
def test_both_attentions_are_weighed(gamma, sigma):
    text, q, keys, values = site()
    found = add_identity(text, q, [SiteTerm(keys, values, merge=Fusion(gamma, sigma))])
    assert torch.allclose(found, gamma * text + sigma * attend_by_head(q, keys, values), atol=1e-6)


def test_a_half_without_a_face_keeps_its_text_bit_by_bit():
    text, q, keys, values = site()
    keys[0], values[0] = 0, 0
    found = add_identity(text, q, [SiteTerm(keys, values, merge=Fusion(0.5, 1.0))])
    assert torch.equal(found[0], text[0]) and not torch.allclose(found[1], text[1])


def test_every_sample_of_a_training_batch_has_factors_of_its_own():
    text, q, keys, values = site(batch=3)
    gamma, sigma = torch.tensor([2.0, 0.0, 1.0]).view(-1, 1, 1), torch.tensor([0.0, 2.0, 1.0]).view(-1, 1, 1)
    found = add_identity(text, q, [SiteTerm(keys, values, merge=Fusion(gamma, sigma))])
    image = attend_by_head(q, keys, values)
    for row, expected in enumerate((2 * text[0], 2 * image[1], text[2] + image[2])):
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_inference_is_the_same_with_gradients_enabled():
    """The unofficial code draws whenever gradients are."""
    text, q, keys, values = site()
    terms = [SiteTerm(keys, values, merge=Fusion(0.8, 1.5))]
    with torch.no_grad():
        without = add_identity(text, q, terms)
    assert torch.equal(without, add_identity(text, q, terms))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_close(dtype):
    text, q, keys, values = site()
    exact = add_identity(text, q, [SiteTerm(keys, values, merge=Fusion(0.8, 1.5))])
    half = add_identity(
        text.to(dtype), q.to(dtype), [SiteTerm(keys.to(dtype), values.to(dtype), merge=Fusion(0.8, 1.5))]
    )
    assert half.dtype is dtype and half.isfinite().all() and torch.allclose(half.float(), exact, atol=0.05)


@pytest.mark.parametrize(
    ("u", "branches"),
    [(0.0, Branches.TEXT), (R1, Branches.BOTH), (0.5, Branches.BOTH), (R2, Branches.BOTH), (0.999, Branches.IMAGE)],
)
def test_a_border_is_both(u, branches):
    assert drawn(u) is branches


def test_a_third_of_the_samples_sees_each():
    found = Counter(drawn(u) for u in torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist())
    assert all(900 < count < 1100 for count in found.values()) and len(found) == 3
