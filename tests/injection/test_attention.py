"""The attention mathematics against its own definition, written out picture by picture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from likeness.injection.attention import SiteTerm, add_identity, attend
from likeness.injection.plan import Role, RolePair, fit_rows, repeat_tokens, stack_roles

sizes = st.integers(1, 6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q Kᵀ/√d) V for each picture and each head on its own."""
    batch, _, width = q.shape
    d = width // heads
    out = torch.empty_like(q)
    for picture in range(batch):
        group = picture * len(keys) // batch
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = q[picture, :, part] @ keys[group, :, part].T / math.sqrt(d)
            out[picture, :, part] = scores.softmax(-1) @ values[group, :, part]
    return out


@given(groups=sizes, pictures=sizes, length=st.integers(1, 30), n=sizes, heads=st.integers(1, 4), d=sizes)
def test_attention_is_a_softmax_per_picture_and_head(groups, pictures, length, n, heads, d):
    q = numbers(groups * pictures, length, heads * d, seed=1)
    keys, values = numbers(groups, n, heads * d, seed=2), numbers(groups, n, heads * d, seed=3)
    torch.testing.assert_close(attend(q, keys, values, heads), naive(q, keys, values, heads))


@given(groups=sizes, pictures=sizes, terms=st.integers(0, 3), masked=st.booleans(), per_picture=st.booleans())
def test_identities_are_added_each_with_its_mask(groups, pictures, terms, masked, per_picture):
    batch, length, heads, width = groups * pictures, 6, 2, 8
    q, out = numbers(batch, length, width, seed=1), numbers(batch, length, width, seed=2)
    expected, found = out.clone(), []
    for i in range(terms):
        k, v = numbers(groups, 3, width, seed=10 + i), numbers(groups, 3, width, seed=20 + i)
        mask = numbers(batch if per_picture else 1, length, 1, seed=30 + i) if masked else None
        found.append(SiteTerm(k, v, mask))
        expected += naive(q, k, v, heads) * (1 if mask is None else mask)
    torch.testing.assert_close(add_identity(out, q, found, heads), expected)


def test_the_layer_s_own_output_is_not_changed_in_place():
    out, q = numbers(1, 4, 8), numbers(1, 4, 8, seed=1)
    before = out.clone()
    add_identity(out, q, [SiteTerm(numbers(1, 2, 8), numbers(1, 2, 8))], heads=2)
    assert torch.equal(out, before)


def test_without_anyone_the_output_is_the_very_same():
    out = numbers(1, 4, 8)
    assert add_identity(out, out, [], heads=2) is out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_precision_stays(dtype):
    q, k = numbers(2, 5, 8).to(dtype), numbers(1, 3, 8).to(dtype)
    assert add_identity(q, q, [SiteTerm(k, k, torch.ones(1, 5, 1, dtype=dtype))], heads=2).dtype == dtype


# Rows and halves ------------------------------------------------------------------------------------------------------

roles = st.lists(st.sampled_from(list(Role)), min_size=1, max_size=4)


@given(roles=roles, pictures=sizes, cond=st.integers(1, 9), uncond=st.integers(1, 9), rows=st.sampled_from([1, 2, 5]))
def test_halves_of_different_length_share_a_batch_exactly(roles, pictures, cond, uncond, rows):
    """Several photos, but one empty encoding: both are repeated to a common length, and the softmax is the same."""
    width, heads = 8, 2
    pair = RolePair(
        (numbers(rows, cond, width, seed=1), numbers(rows, cond, width, seed=2)),
        (numbers(1, uncond, width, seed=3), numbers(1, uncond, width, seed=4)),
    )
    q = numbers(len(roles) * pictures, 5, width, seed=5)
    keys, values = stack_roles(pair, roles, pictures)
    found = attend(q, keys, values, heads).unflatten(0, (len(roles), pictures))
    for chunk, role in enumerate(roles):
        k, v = pair[role]
        for picture in range(pictures):
            row = slice(min(picture, len(k) - 1), min(picture, len(k) - 1) + 1)
            queries = q.unflatten(0, (len(roles), pictures))[chunk, picture : picture + 1]
            torch.testing.assert_close(found[chunk, picture : picture + 1], naive(queries, k[row], v[row], heads))


def test_one_row_is_not_repeated_for_a_batch():
    pair = RolePair(*[(numbers(1, 16, 8), numbers(1, 16, 8))] * 2)
    keys, _ = stack_roles(pair, [Role.UNCOND, Role.COND], pictures=7)
    assert keys.shape == (2, 16, 8)


@given(rows=sizes, pictures=sizes)
def test_rows_fit_any_batch(rows, pictures):
    """A shorter list holds its last row, a longer one is cut."""
    fitted = fit_rows(torch.arange(rows).view(-1, 1, 1), pictures).flatten().tolist()
    assert fitted == [min(i, rows - 1) for i in range(pictures)]


def test_repeating_tokens_changes_no_softmax():
    q, k, v = numbers(1, 4, 8), numbers(1, 3, 8, seed=1), numbers(1, 3, 8, seed=2)
    torch.testing.assert_close(attend(q, repeat_tokens(k, 12), repeat_tokens(v, 12), 2), attend(q, k, v, 2))
    assert repeat_tokens(k, 3) is k
