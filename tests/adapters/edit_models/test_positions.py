from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.edit_models import positions

GRID = st.tuples(st.integers(1, 10), st.integers(1, 10)).map(lambda s: (2 * s[0], 2 * s[1]))
ALL = [positions.origin, positions.centred, positions.flux2, positions.qwen, positions.uxo, positions.offset]


@pytest.mark.parametrize("place", ALL, ids=lambda place: place.__name__)
@given(GRID, st.lists(GRID, max_size=3), st.integers(0, 5))
def test_no_two_image_tokens_share_a_place(place, target, references, text):
    ids = place(text, target, references)
    assert len(ids.text) == text and len(torch.unique(ids.image, dim=0)) == len(ids.image)


def test_halves_are_kept():
    ids = positions.centred(0, (14, 10), [(14, 6), (8, 10)]).image
    assert ids[35:].amin(0).tolist() == [1.0, 0.0, 0.0]
    assert torch.unique(ids[35:56, 2]).tolist() == [1.0, 2.0, 3.0]
    assert torch.unique(ids[56:, 1]).tolist() == [1.5, 2.5, 3.5, 4.5]


def test_a_reference_larger_than_the_target_pushes_qwens_text_away():
    small = positions.qwen(1, (10, 12), [(8, 8)]).text[0, 0]
    large = positions.qwen(1, (10, 12), [(8, 40)]).text[0, 0]
    assert (small, large) == (3, 10)
