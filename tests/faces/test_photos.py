from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import to_photos


@given(batch=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([1, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_every_batch_becomes_rgb_photos_and_stays_as_it_is(batch, height, width, channels):
    images = torch.rand(batch, height, width, channels)
    before = images.clone()
    photos = to_photos(images)
    assert [photo.shape for photo in photos] == [(height, width, 3)] * batch
    assert all(photo.dtype == np.uint8 for photo in photos)
    assert torch.equal(images, before)


def test_all_byte_values_survive_the_way_through_float():
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    images = torch.from_numpy(bytes_).float()[None] / 255
    assert np.array_equal(to_photos(images)[0], bytes_)
    assert np.array_equal(to_photos(images[..., :1])[0], bytes_)


def test_channels_keep_their_order():
    assert to_photos(torch.tensor([[[[1.0, 0.5, 0.0]]]]))[0].tolist() == [[[255, 127, 0]]]


def test_transparent_pixels_become_grey_whatever_colour_they_hide():
    images = torch.tensor([[[[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]]])
    assert to_photos(images)[0].tolist() == [[[127, 127, 127], [255, 0, 0]]]


def test_values_outside_are_clamped_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        photos = to_photos(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 1, 1, 3).expand(3, 1, 1, 3))
    assert photos[0].tolist() == [[[0, 127, 255]]]
    assert len([r for r in caplog.records if "clamped" in r.message]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused_with_the_photo_named(bad):
    images = torch.zeros(2, 4, 4, 3)
    images[1, 2, 2, 0] = bad
    with pytest.raises(LikenessError, match="Photo 2"):
        to_photos(images)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (1, 0, 4, 3), (1, 4, 0, 3)])
def test_an_empty_batch_is_refused(shape):
    with pytest.raises(LikenessError, match="empty"):
        to_photos(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4, 2), (1, 1, 4, 4, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(LikenessError, match="shape"):
        to_photos(torch.zeros(shape))
