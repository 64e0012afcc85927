"""The attention mathematics against its own definition, written out image by image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from likeness.adapters.effects import AttentionTerm
from likeness.adapters.pulid.merge import ortho, ortho_v2
from likeness.adapters.types import IdentityTokens
from likeness.injection.attention import SiteTerm, add_identity, attend, attend_by_head, split_heads
from likeness.injection.plan import Role, fit_rows, project, repeat_tokens, uniform
from likeness.injection.sites import AttentionSite

sizes = st.integers(1, 6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q Kᵀ/√d) V for each image and each head on its own."""
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
        found.append(SiteTerm(split_heads(k, heads), split_heads(v, heads), mask))
        expected += naive(q, k, v, heads) * (1 if mask is None else mask)
    torch.testing.assert_close(add_identity(out, q, found), expected)


@given(groups=sizes, pictures=sizes, gamma=st.floats(0, 2), masked=st.booleans())
def test_a_merge_makes_of_both_attentions_what_is_added(groups, pictures, gamma, masked):
    """PhotoVerse's weighted sum: out = gamma · text + sigma · identity, here within a mask."""
    batch, heads, width = groups * pictures, 2, 8
    q, out = numbers(batch, 5, width, seed=1), numbers(batch, 5, width, seed=2)
    k, v = numbers(groups, 3, width, seed=3), numbers(groups, 3, width, seed=4)
    mask = numbers(1, 5, 1, seed=5) if masked else None

    def weighted(text: Tensor, identity: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        assert queries is q and keys.shape == (groups, heads, 3, width // heads)
        return (gamma - 1) * text + identity

    found = add_identity(out, q, [SiteTerm(split_heads(k, heads), split_heads(v, heads), mask, weighted)])
    whole = gamma * out + naive(q, k, v, heads)
    torch.testing.assert_close(found, whole if mask is None else out + mask * (whole - out))


def test_everybody_is_merged_with_the_text_and_not_with_the_person_before():
    """So the order in which people are applied does not matter."""
    q, out = numbers(1, 5, 8, seed=1), numbers(1, 5, 8, seed=2)

    def term(seed: int, merge: Any = None) -> SiteTerm:
        return SiteTerm(*(split_heads(numbers(1, 3, 8, seed=seed + i), 2) for i in range(2)), merge=merge)

    people = [term(10, ortho), term(20, ortho_v2), term(30)]
    torch.testing.assert_close(add_identity(out, q, people), add_identity(out, q, people[::-1]))


def test_tokens_that_a_merge_counts_are_never_repeated():
    """Few tokens are repeated to a whole vector register elsewhere; the first five would be another five then."""
    site = AttentionSite(1, ("input", 1), 0, 0, "", "", width=8, context_dim=8, heads=2)

    class Same:
        name, site_shapes = "same", {}

        def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
            return tokens, tokens

    given = IdentityTokens(numbers(1, 8, 8, seed=1), numbers(1, 8, 8, seed=2))
    plain = AttentionTerm(Same(), given, uniform(1.0, [site]))
    for term, count in ((plain, 16), (replace(plain, merge=ortho_v2), 8)):
        (found,) = project(term, [site], given)
        assert found.packed.shape[-2] == count


def test_the_layer_s_own_output_is_not_changed_in_place():
    out, q = numbers(1, 4, 8), numbers(1, 4, 8, seed=1)
    before = out.clone()
    add_identity(out, q, [SiteTerm(numbers(1, 2, 2, 4), numbers(1, 2, 2, 4))])
    assert torch.equal(out, before)


def test_without_anyone_the_output_is_the_very_same():
    out = numbers(1, 4, 8)
    assert add_identity(out, out, []) is out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_precision_stays(dtype):
    q, k = numbers(2, 5, 8).to(dtype), numbers(1, 2, 3, 4).to(dtype)
    assert add_identity(q, q, [SiteTerm(k, k, torch.ones(1, 5, 1, dtype=dtype))]).dtype == dtype


# Rows and halves ------------------------------------------------------------------------------------------------------

roles = st.lists(st.sampled_from(list(Role)), min_size=1, max_size=4)


class AsGiven:
    """Projects tokens (rows, n, 2 · width) that hold keys and values already."""

    name = "as given"
    site_shapes: dict[int, tuple[int, int]] = {}

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = tokens.chunk(2, dim=-1)
        return keys, values


def of_batch(tokens: IdentityTokens, heads: int, roles: list[Role], pictures: int, rows: list[int] | None = None):
    """Keys and values of one site for a batch."""
    width = tokens.cond.shape[-1] // 2
    site = AttentionSite(1, ("input", 1), 0, 0, "", "", width, 2 * width, heads)
    (part,) = project(AttentionTerm(AsGiven(), tokens, uniform(1.0, [site])), [site], tokens)
    return part.of_batch(roles, pictures, rows)[1]


@given(
    roles=roles, pictures=sizes, cond=st.integers(1, 9), uncond=st.integers(1, 9),
    rows=st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([1, 3])), window=st.booleans(), data=st.data(),
)  # fmt: skip
def test_halves_of_different_length_share_a_batch_exactly(roles, pictures, cond, uncond, rows, window, data):
    """Several photos, but one empty encoding: both are repeated to a common length, and the softmax is the same."""
    width, heads = 8, 2
    tokens = IdentityTokens(numbers(rows[0], cond, 2 * width, seed=1), numbers(rows[1], uncond, 2 * width, seed=3))
    wanted = data.draw(st.lists(st.integers(0, 7), min_size=pictures, max_size=pictures)) if window else None
    q = numbers(len(roles) * pictures, 5, width, seed=5)
    found = attend_by_head(q, *of_batch(tokens, heads, roles, pictures, wanted)).unflatten(0, (len(roles), pictures))
    for chunk, role in enumerate(roles):
        k, v = (tokens.cond if role is Role.COND else tokens.uncond).chunk(2, dim=-1)
        for picture in range(pictures):
            row = min(wanted[picture] if wanted else picture, len(k) - 1)
            queries = q.unflatten(0, (len(roles), pictures))[chunk, picture : picture + 1]
            right = naive(queries, k[row : row + 1], v[row : row + 1], heads)
            torch.testing.assert_close(found[chunk, picture : picture + 1], right)


def test_one_row_is_not_repeated_for_a_batch():
    keys, _ = of_batch(IdentityTokens(numbers(1, 16, 16), numbers(1, 16, 16)), 2, [Role.UNCOND, Role.COND], pictures=7)
    assert keys.shape == (2, 2, 16, 4)


def test_the_usual_batch_reads_keys_and_values_as_they_lie():
    """Guidance with the unconditioned half first: no copy per run, and each site's block lies in one piece."""
    tokens = IdentityTokens(numbers(1, 16, 16), numbers(1, 16, 16))
    site = AttentionSite(1, ("input", 1), 0, 0, "", "", 8, 16, 2)
    (part,) = project(AttentionTerm(AsGiven(), tokens, uniform(1.0, [site])), [site], tokens)
    keys, values = part.of_batch((Role.UNCOND, Role.COND), pictures=3)[1]
    assert keys.data_ptr() == part.packed.data_ptr()
    assert keys.is_contiguous() and values.is_contiguous()


@given(rows=sizes, pictures=sizes)
def test_rows_fit_any_batch(rows, pictures):
    """A shorter list holds its last row, a longer one is cut."""
    fitted = fit_rows(torch.arange(rows).view(-1, 1, 1), pictures).flatten().tolist()
    assert fitted == [min(i, rows - 1) for i in range(pictures)]


def test_repeating_tokens_changes_no_softmax():
    q, k, v = numbers(1, 4, 8), numbers(1, 3, 8, seed=1), numbers(1, 3, 8, seed=2)
    torch.testing.assert_close(attend(q, repeat_tokens(k, 12), repeat_tokens(v, 12), 2), attend(q, k, v, 2))
    assert repeat_tokens(k, 3) is k
