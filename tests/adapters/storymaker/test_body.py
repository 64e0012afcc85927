"""The body on white: the box of its mask, soft edges, and what counts as noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.storymaker.body import NOISE, cut_out_character, smoothed
from likeness.errors import LikenessError


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_inside_is_the_picture_and_outside_is_white():
    photo, mask = picture(40, 30), np.zeros((40, 30), np.uint8)
    mask[5:35, 4:26] = 255
    mask[15:25, 10:20] = 0
    cut = cut_out_character(photo, mask)
    assert cut.shape == (30, 22, 3)
    assert np.array_equal(cut[:8], photo[5:13, 4:26])
    assert (cut[13:17, 9:13] == 255).all()


@given(
    top=st.integers(0, 20), left=st.integers(0, 20), height=st.integers(1, 20), width=st.integers(1, 20),
    value=st.integers(1, 255),
)  # fmt: skip
def test_the_box_is_that_of_every_pixel_that_is_not_black(top, left, height, width, value):
    mask = np.zeros((41, 41), np.uint8)
    mask[top, left] = mask[top + height - 1, left + width - 1] = value
    assert cut_out_character(picture(41, 41), mask).shape == (height, width, 3)


def test_noise_around_the_shape_does_not_enlarge_the_box_unless_it_is_asked_to():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20], mask[0, 39] = 255, NOISE
    assert cut_out_character(picture(40, 40), mask, NOISE).shape == (10, 10, 3)
    assert cut_out_character(picture(40, 40), mask).shape == (20, 30, 3)


def test_soft_edges_stay_soft():
    mask = np.zeros((20, 20), np.uint8)
    mask[4:16, 4:16] = np.linspace(40, 255, 12).astype(np.uint8)
    cut = cut_out_character(np.zeros((20, 20, 3), np.uint8), mask)
    assert len(np.unique(cut[6, :, 0])) > 8 and (np.diff(cut[6, :, 0].astype(int)) <= 0).all()


@pytest.mark.parametrize("mask", [np.zeros((9, 9), np.uint8), np.full((9, 9), NOISE, np.uint8)], ids=["black", "noise"])
def test_an_empty_mask_is_refused(mask):
    with pytest.raises(LikenessError, match="mask is empty"):
        cut_out_character(picture(9, 9), mask, NOISE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (30, 20)])
def test_the_blur_is_opencvs(shape):
    cv2 = pytest.importorskip("cv2")
    mask = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    theirs = cv2.GaussianBlur(mask, (5, 5), 0).reshape(shape)
    assert np.abs(smoothed(mask).astype(int) - theirs).max() <= 1
