"""Attention by rows against the same weights as one dense matrix, and what each option may change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from likeness.injection.references import Sequences, Sight, Weight, attend, key_weights, target_bias, whole_bias

TEXT, TARGET = slice(0, 3), slice(3, 9)
PARTS = Sequences(3, 6, (4, 5))
SIGHTS = [Sight(i, s) for i in (False, True) for s in (False, True)]


def sdpa(q, k, v, bias):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def qkv(seed: int = 0, parts: Sequences = PARTS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 2, parts.total, 8, generator=generator).unbind(0)


def weights(seed: int = 0) -> list[Weight]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Weight(torch.rand(1, PARTS.target, generator=generator), torch.rand(n, generator=generator) * 4)
        for n in PARTS.references
    ]


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("bias", [None, target_bias(PARTS, weights())])
def test_rows_apart_are_the_dense_matrix(sight, bias):
    q, k, v = qkv()
    dense = sdpa(q, k, v, whole_bias(PARTS, bias, sight))
    torch.testing.assert_close(attend(q, k, v, PARTS, bias, sight, sdpa), dense)


@pytest.mark.parametrize("sight", SIGHTS)
def test_without_queries_of_references_the_others_stay(sight):
    q, k, v = qkv()
    bias = target_bias(PARTS, weights())
    whole = attend(q, k, v, PARTS, bias, sight, sdpa)
    torch.testing.assert_close(attend(q[:, :, :9], k, v, PARTS, bias, sight, sdpa), whole[:, :9])


def test_a_dense_mask_is_never_made():
    q, k, v = qkv()
    seen = []

    def watch(q, k, v, bias):
        seen.append(None if bias is None else tuple(bias.shape))
        return sdpa(q, k, v, bias)

    columns = target_bias(PARTS, [Weight(None, torch.full((4,), 2.0)), Weight()])
    attend(q, k, v, PARTS, columns, Sight(), watch)
    assert seen == [None, (1, 1, 1, 18), None]
    seen.clear()
    attend(q, k, v, PARTS, target_bias(PARTS, weights()), Sight(), watch)
    assert seen == [None, (1, 1, 6, 18), None]
    seen.clear()
    attend(q, k, v, PARTS, None, Sight(), watch)
    assert seen == [None]


@given(st.floats(0.25, 8))
def test_a_factor_is_that_many_copies_of_a_key(factor):
    """Twice the weight is the key twice: what a bias means, and scaled keys or values do not."""
    q, k, v = qkv()
    bias = target_bias(PARTS, [Weight(None, torch.full((4,), factor)), Weight()])
    weight = torch.ones(PARTS.total)
    weight[9:13] = factor
    logits = (q @ k.mT / 8**0.5).exp() * weight
    wanted = (logits / logits.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v, PARTS, bias, Sight(), sdpa)[:, TARGET], wanted[:, TARGET])


def test_text_does_not_get_the_factor():
    q, k, v = qkv()
    strong = target_bias(PARTS, [Weight(None, torch.full((4,), 4.0)), Weight()])
    plain, boosted = (attend(q, k, v, PARTS, bias, Sight(), sdpa) for bias in (None, strong))
    torch.testing.assert_close(boosted[:, TEXT], plain[:, TEXT])
    assert not torch.allclose(boosted[:, TARGET], plain[:, TARGET], atol=1e-3)


def test_outside_of_a_region_a_person_is_not_even_read():
    q, k, v = qkv()
    rows = torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    bias = target_bias(PARTS, [Weight(rows), Weight(1 - rows)])
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 9:13], other_v[:, :, 9:13] = torch.randn(2, 2, 2, 4, 8)
    before, after = (attend(q, *kv, PARTS, bias, Sight(), sdpa) for kv in ((k, v), (other_k, other_v)))
    assert torch.equal(before[:, 6:9], after[:, 6:9])
    assert not torch.equal(before[:, 3:6], after[:, 3:6])


def test_isolated_references_do_not_depend_on_what_they_do_not_see():
    q, k, v = qkv()
    other = [t.clone() for t in (q, k, v)]
    for t in other:
        t[:, :, :9] = torch.randn(2, 2, 9, 8)
    one, two = (attend(*t, PARTS, None, Sight(isolated=True), sdpa)[:, 9:] for t in ((q, k, v), other))
    assert torch.equal(one, two)


def test_a_face_is_what_covers_more_than_half_of_a_token():
    face = torch.zeros(1, 32, 32)
    face[:, :16, :9] = 1.0
    assert key_weights(4.0, (2, 2), face).tolist() == [4.0, 1.0, 1.0, 1.0]
    assert key_weights(4.0, (1, 2)).tolist() == [4.0, 4.0]
    assert key_weights(1.0, (2, 2), face) is None


def test_nothing_to_weigh_is_no_mask():
    assert target_bias(PARTS, [Weight(), Weight()]) is None
    assert whole_bias(PARTS, None, Sight()) is None
