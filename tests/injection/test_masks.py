from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.effects import MaskResize
from likeness.injection import masks

sides = st.integers(1, 12)
latents = st.integers(16, 256)


def random_mask(count, height, width, seed=0):
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed))


@given(sides, sides, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_area_keeps_the_mean_where_the_sizes_divide(h, w, by_rows, by_columns, count):
    mask = random_mask(count, h * by_rows, w * by_columns)
    resized = masks.resize_mask(mask, (h, w))
    assert resized.shape == (count, h, w)
    torch.testing.assert_close(resized.mean(dim=(1, 2)), mask.mean(dim=(1, 2)), atol=1e-5, rtol=1e-5)


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(list(MaskResize))
)
def test_a_constant_mask_stays_constant_at_every_size(height, width, h, w, how):
    resized = masks.resize_mask(torch.full((2, height, width), 0.75), (h, w), how)
    torch.testing.assert_close(resized, torch.full((2, h, w), 0.75))


@given(st.integers(1, 60), st.integers(1, 60), sides, sides)
def test_area_and_bilinear_stay_between_zero_and_one(height, width, h, w):
    for how in (MaskResize.AREA, MaskResize.BILINEAR):
        resized = masks.resize_mask(random_mask(1, height, width), (h, w), how)
        assert resized.min() >= 0
        assert resized.max() <= 1


def test_area_keeps_a_thin_line_that_bilinear_loses():
    mask = torch.zeros(1, 512, 512)
    mask[:, :, 100] = 1
    assert not masks.resize_mask(mask, (8, 8), MaskResize.BILINEAR).any()
    assert masks.resize_mask(mask, (8, 8)).sum() == pytest.approx(8 / 64, rel=1e-5)


def test_resizing_keeps_the_precision_of_the_mask():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert masks.resize_mask(torch.ones(1, 9, 9, dtype=dtype), (3, 3)).dtype == dtype


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.data())
def test_an_area_sees_its_own_part_of_the_mask(height, width, per_latent, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    y, x = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    latent_mask = random_mask(1, height, width)
    mask = latent_mask.repeat_interleave(per_latent, 1).repeat_interleave(per_latent, 2)
    cropped = masks.crop_to_area(mask, (h, w, y, x), (height, width))
    assert cropped.shape == (1, h * per_latent, w * per_latent)
    torch.testing.assert_close(masks.resize_mask(cropped, (h, w)), latent_mask[:, y : y + h, x : x + w])


def test_an_area_of_a_mask_of_any_size_has_the_area_s_size():
    for size in ((5, 7), (100, 33), (64, 65)):
        assert masks.crop_to_area(random_mask(2, *size), (10, 20, 3, 4), (57, 91)).shape == (2, 10, 20)


@pytest.mark.parametrize(("mask_size", "warned"), [((512, 512), 0), ((505, 512), 0), ((500, 512), 1), ((512, 768), 1)])
def test_a_stretched_mask_is_warned_about_once(caplog, mask_size, warned):
    masks._warn_once.cache_clear()
    for _ in range(3):
        masks.warn_aspect(mask_size, (64, 64))
    assert len(caplog.records) == warned


@given(latents, latents, latents, latents)
def test_the_aspect_mismatch_is_symmetric(a, b, c, d):
    assert masks.aspect_mismatch((a, b), (c, d)) == pytest.approx(masks.aspect_mismatch((c, d), (a, b)))
    assert masks.aspect_mismatch((a, b), (3 * a, 3 * b)) == pytest.approx(0.0, abs=1e-9)


@given(sides, sides, st.integers(0, 1), st.integers(1, 4), st.data())
def test_lines_of_a_mask_are_cut_out_in_any_order(h, w, axis, per_latent, data):
    """Each line of latents keeps its own part: a mask that holds the number of the line shows it."""
    lines = data.draw(st.lists(st.integers(0, (h, w)[axis] - 1), min_size=1))
    numbers = torch.arange(float((h, w)[axis])).repeat_interleave(per_latent)
    mask = (numbers[:, None] if axis == 0 else numbers).expand(2, h * per_latent, w * per_latent)
    cut = masks.crop_to_lines(mask, axis, lines, (h, w))
    expected = torch.tensor(lines, dtype=torch.float32).repeat_interleave(per_latent)
    assert torch.equal(cut, (expected[:, None] if axis == 0 else expected).expand(cut.shape))
    assert cut.shape[1 + axis] == len(lines) * per_latent and cut.shape[2 - axis] == mask.shape[2 - axis]


def test_a_mask_larger_than_the_picture_is_said_once_because_it_may_be_meant_for_tiles(caplog):
    masks._warned_larger.clear()
    with caplog.at_level(logging.WARNING, "likeness"):
        masks.warn_larger((256, 256), (32, 32))
        masks.warn_larger((128, 128), (32, 32))
        masks.warn_larger((256, 512), (32, 32))
        assert not caplog.records
        for side in (16, 24, 16):
            masks.warn_larger((256, 256), (side, side))
    assert [record.message.split(". ")[0] for record in caplog.records] == [
        "The mask is 256 x 256 but the image only 128 x 128 (width x height)"
    ]
    assert "docs/troubleshooting.md" in caplog.text
