"""The orthogonal modes: geometry, and nothing that is not a number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from likeness.adapters.pulid.merge import along_text, face_share, ortho, ortho_v2

sizes = st.integers(1, 5)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(batch=sizes, places=st.integers(1, 20), width=sizes)
def test_what_ortho_adds_is_orthogonal_to_the_text_in_every_channel(batch, places, width):
    text, identity = numbers(batch, places, width, seed=1), numbers(batch, places, width, seed=2)
    added = ortho(text, identity, text, text)
    assert (text * added).sum(dim=1).abs().max() < 1e-4
    torch.testing.assert_close(added + along_text(text, identity), identity)


@given(groups=sizes, pictures=st.integers(1, 3), places=st.integers(1, 9), heads=sizes, n=st.integers(1, 12))
def test_the_share_of_the_face_is_that_of_the_first_five_tokens(groups, pictures, places, heads, n):
    q, keys = numbers(groups * pictures, places, heads * 4, seed=1), numbers(groups, heads, n, 4, seed=2)
    share = face_share(q, keys)
    assert share.shape == (groups * pictures, places, 1)
    for row in range(groups * pictures):
        by_head = q[row].unflatten(-1, (heads, 4)).transpose(0, 1)
        wanted = (by_head @ keys[row // pictures].transpose(-2, -1)).softmax(-1)[..., :5].sum(-1).mean(0)
        torch.testing.assert_close(share[row, :, 0], wanted)


def test_the_second_version_is_the_first_where_nothing_attends_to_the_face_and_a_sum_where_all_does():
    text, identity = numbers(1, 4, 8, seed=1), numbers(1, 4, 8, seed=2)
    q = torch.ones(1, 4, 8)
    towards, away = torch.full((1, 1, 6, 8), -9.0), torch.full((1, 1, 6, 8), 9.0)
    towards[:, :, 5], away[:, :, 5] = -99.0, 99.0
    torch.testing.assert_close(ortho_v2(text, identity, q, towards), identity)
    torch.testing.assert_close(ortho_v2(text, identity, q, away), ortho(text, identity, q, away))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("merge", [ortho, ortho_v2])
def test_a_silent_channel_gives_numbers_in_every_precision(merge, dtype):
    text, identity = numbers(2, 64, 8, seed=1) * 100, numbers(2, 64, 8, seed=2) * 100
    text[..., 3] = 0
    added = merge(text.to(dtype), identity.to(dtype), text.to(dtype), numbers(1, 2, 9, 4).to(dtype))
    assert added.dtype is dtype and torch.isfinite(added).all()
    torch.testing.assert_close(added[..., 3], identity[..., 3].to(dtype))


@given(strength=st.floats(-2, 5, allow_nan=False))
def test_a_merge_is_linear_in_the_identity_so_that_strength_stays_one_factor(strength):
    text, identity = numbers(1, 6, 8, seed=1).double(), numbers(1, 6, 8, seed=2).double()
    keys = numbers(1, 2, 9, 4, seed=3).double()
    for merge in (ortho, ortho_v2):
        scaled = merge(text, strength * identity, text, keys)
        torch.testing.assert_close(scaled, strength * merge(text, identity, text, keys), atol=1e-5, rtol=1e-4)
