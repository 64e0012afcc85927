from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.edit_models import sizes
from likeness.errors import LikenessError

SIDES = st.integers(64, 4096)
SIZES = st.tuples(SIDES, SIDES)
TARGETS = st.tuples(st.integers(4, 256), st.integers(4, 256)).map(lambda s: (8 * s[0], 8 * s[1]))


@given(SIZES, TARGETS)
def test_fit_never_leaves_the_photo_or_the_target(photo, target):
    fitted = sizes.fit(photo, target)
    top, left, height, width = fitted.crop
    assert 0 <= top <= photo[0] - height and 0 <= left <= photo[1] - width and height > 0 and width > 0
    assert fitted.size == target or all(
        side % 16 == 0 and side <= max(16, whole) for side, whole in zip(fitted.size, target, strict=True)
    )


@given(SIZES)
def test_native_references_are_never_enlarged_beyond_rounding(photo):
    h, w = sizes.native(photo).size
    assert h % 16 == w % 16 == 0 and h <= photo[0] + 8 and w <= photo[1] + 8 and h * w <= (1024 + 16) ** 2 * 2


def test_fit_enlarges_a_head_and_native_does_not():
    assert sizes.fit((512, 512), (1216, 832)).size == (832, 832)
    assert sizes.native((512, 512)).size == (512, 512)


def test_crop_takes_the_targets_proportions_from_the_middle():
    fitted = sizes.crop((1000, 1000), (1024, 512))
    assert fitted.crop == (0, 250, 1000, 500) and fitted.size == (1024, 512)


def test_several_references_of_flux2_are_smaller_than_one():
    assert sizes.flux2((2000, 2000), None, 1).size == (2000, 2000)
    assert sizes.flux2((2000, 2000), None, 2).size == (1024, 1024)


@pytest.mark.parametrize("photo", [(63, 512), (100, 801)])
def test_flux2_refuses_what_it_was_not_trained_on(photo):
    with pytest.raises(LikenessError, match=f"{photo[1]} x {photo[0]} pixels, and FLUX.2 reads none"):
        sizes.flux2(photo)


def test_a_mask_goes_the_way_of_its_photo():
    photo = torch.zeros(1, 200, 100, 3)
    photo[:, 100:, :, 0] = 1.0
    fitted = sizes.crop((200, 100), (64, 64))
    assert fitted.crop == (50, 0, 100, 100)
    torch.testing.assert_close(fitted.apply(photo)[..., 0], fitted.apply(photo[..., :1])[..., 0])
    made = fitted.apply(photo)[0, :, 10, 0]
    assert float(made[10]) == pytest.approx(0, abs=1e-5) and float(made[50]) == pytest.approx(1, abs=1e-5)


def test_flux2_shrinks_as_pillow_does():
    import numpy as np
    from PIL import Image

    few = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(few, (1100, 1100), mode="bilinear").movedim(1, -1)
    made = sizes.flux2((1100, 1100), None, 2).apply(image)
    eight_bit = Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8))
    wanted = np.asarray(eight_bit.resize((1024, 1024), Image.Resampling.LANCZOS)) / 255
    assert made.shape == (1, 1024, 1024, 3)
    assert np.abs(made[0].numpy() - wanted).max() < 0.01
