from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.adapters import image_prep
from likeness.adapters.image_prep import Crop, ReferenceNoise
from likeness.errors import LikenessError

sides = st.integers(1, 90)
crops = st.sampled_from(list(Crop))


def picture(height, width, count=1, seed=0):
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return pixels / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50)
@given(sides, sides, st.integers(1, 40))
def test_the_default_square_is_pil_s_resize_with_the_long_side_truncated(height, width, size):
    image = picture(height, width)
    short, long = sorted((height, width))
    if long > 8 * short:
        return
    new_width, new_height = (size, size * long // short) if height >= width else (size * long // short, size)
    resized = Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).resize(
        (new_width, new_height), Image.Resampling.BICUBIC
    )
    left, top = (new_width - size) // 2, (new_height - size) // 2
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    square = image_prep.to_square(image, size)
    assert np.array_equal((square[0] * 255).round().numpy().astype(np.uint8), expected)


@settings(max_examples=60)
@given(sides, sides, st.integers(1, 30), crops)
def test_every_crop_of_every_size_gives_a_square_and_a_mask_that_fits_it(height, width, size, crop):
    assert image_prep.to_square(picture(height, width, 2), size, crop).shape == (2, size, size, 3)
    mask = image_prep.mask_to_square(torch.ones(2, height, width), size, crop)
    assert mask.shape == (2, size, size)
    assert mask.min() >= 0
    if crop is not Crop.PAD:
        torch.testing.assert_close(mask, torch.ones_like(mask))


def test_crops_keep_the_side_they_are_named_after():
    tall = torch.linspace(0, 1, 90).reshape(1, 90, 1, 1).expand(1, 90, 30, 3)
    means = {crop: image_prep.to_square(tall, 30, crop).mean().item() for crop in Crop}
    assert means[Crop.TOP] == pytest.approx(1 / 6, abs=0.01)
    assert means[Crop.BOTTOM] == pytest.approx(5 / 6, abs=0.01)
    for crop in (Crop.CENTRE, Crop.LEFT, Crop.RIGHT, Crop.SQUASH):
        assert means[crop] == pytest.approx(1 / 2, abs=0.01)
    wide = tall.transpose(1, 2)
    assert image_prep.to_square(wide, 30, Crop.LEFT).mean().item() == pytest.approx(1 / 6, abs=0.01)
    assert image_prep.to_square(wide, 30, Crop.RIGHT).mean().item() == pytest.approx(5 / 6, abs=0.01)


def test_padding_is_what_the_encoder_sees_as_zero():
    pixels = image_prep.pixel_values(torch.ones(1, 20, 10, 3), 20, Crop.PAD)
    assert pixels[..., :5].abs().max() < 0.01  # one 8-bit step is 0.0145
    assert pixels[..., 15:].abs().max() < 0.01
    assert pixels[..., 5:15].min() > 1.5


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 4000)])
def test_a_very_long_picture_does_not_fill_the_memory(shape, monkeypatch):
    largest = 0
    resize = image_prep._resize_8bit

    def measured(image, height, width, resampling):
        nonlocal largest
        largest = max(largest, height * width)
        return resize(image, height, width, resampling)

    monkeypatch.setattr(image_prep, "_resize_8bit", measured)
    for crop in Crop:
        assert image_prep.to_square(picture(*shape), 64, crop).shape == (1, 64, 64, 3)
    assert largest <= 8 * 64 * 64


def test_the_far_ends_of_a_long_picture_can_still_be_chosen():
    wide = torch.linspace(0, 1, 2000).reshape(1, 1, 2000, 1).expand(1, 10, 2000, 3)
    means = [image_prep.to_square(wide, 8, crop).mean().item() for crop in (Crop.LEFT, Crop.CENTRE, Crop.RIGHT)]
    assert means == pytest.approx([0.0025, 0.5, 0.9975], abs=0.01)


def test_a_reference_mask_hides_with_clip_s_mean_colour():
    image = picture(40, 60)
    mask = torch.zeros(1, 40, 60)
    mask[:, :, :30] = 1
    pixels = image_prep.pixel_values(image, 20, mask=mask)
    plain = image_prep.pixel_values(image, 20)
    torch.testing.assert_close(pixels[..., :8], plain[..., :8])
    assert not pixels[..., 12:].any()


@pytest.mark.parametrize(
    ("shape", "rgb"),
    [((5, 6), (1, 5, 6, 3)), ((5, 6, 3), (1, 5, 6, 3)), ((2, 5, 6, 1), (2, 5, 6, 3)), ((2, 1, 1, 4), (2, 1, 1, 3))],
)
def test_grey_single_and_alpha_pictures_become_rgb(shape, rgb):
    assert image_prep.to_rgb(torch.rand(shape)).shape == rgb


def test_what_is_opaque_keeps_its_colour_and_hidden_colours_are_mid_grey():
    assert image_prep.to_rgb(torch.tensor([0.25, 1.0]).expand(1, 2, 2, 2)).unique().tolist() == [0.25]
    pixels = torch.tensor([[1.0, 0.0, 0.25, 1.0], [1.0, 0.0, 0.25, 0.0]]).reshape(1, 1, 2, 4)
    assert image_prep.to_rgb(pixels).flatten().tolist() == [1.0, 0.0, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("bad", [torch.empty(0, 4, 4, 3), torch.ones(1, 4, 4, 5), torch.ones(1, 1, 4, 4, 3)])
def test_pictures_that_make_no_sense_are_refused(bad):
    with pytest.raises(LikenessError, match="reference"):
        image_prep.to_rgb(bad, "reference")


def test_nan_pictures_are_named_by_number():
    images = picture(4, 4, 3)
    images[1, 2, 2, 0] = math.nan
    with pytest.raises(LikenessError, match="image 2 of the reference"):
        image_prep.to_rgb(images, "reference")


@settings(max_examples=30)
@given(sides, sides, st.floats(0, 1))
def test_sharpening_stays_in_range_and_leaves_flat_colour_alone(height, width, amount):
    sharpened = image_prep.sharpen(picture(height, width), amount)
    assert sharpened.shape == (1, height, width, 3)
    assert sharpened.min() >= 0
    assert sharpened.max() <= 1
    flat = image_prep.sharpen(torch.full((1, height, width, 3), 0.5), amount)
    torch.testing.assert_close(flat[:, 1:-1, 1:-1], torch.full_like(flat[:, 1:-1, 1:-1], 0.5))
    assert image_prep.sharpen(torch.zeros(1, height, width, 3), amount).isfinite().all()


def test_sharpening_adds_contrast_the_more_the_larger_the_amount():
    image = 0.4 + 0.2 * picture(20, 20)
    spreads = [image_prep.sharpen(image, amount).std() for amount in (0.0, 0.5, 1.0)]
    assert image.std() < spreads[0] < spreads[1] < spreads[2]


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(1, 2))
def test_tiles_put_side_by_side_are_the_picture(tiles, tile_height, tile_width, rest, count):
    height, width = tiles * tile_height + min(rest, tiles - 1), tiles * tile_width
    image = picture(height, width, count)
    cut = image_prep.split_tiles(image, tiles)
    assert cut.shape == (count, tiles * tiles, tile_height, tile_width, 3)
    rows = [torch.cat(list(cut[0, r * tiles : (r + 1) * tiles]), dim=1) for r in range(tiles)]
    assert torch.equal(torch.cat(rows), image[0, : tiles * tile_height])


def test_a_one_pixel_picture_cannot_be_tiled():
    with pytest.raises(LikenessError, match="1 x 1 pixels cannot be cut into 2 x 2"):
        image_prep.split_tiles(picture(1, 1), 2)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2))
def test_equal_tiles_merge_to_themselves(tiles, g, count):
    hidden = torch.rand(count, 1 + g * g, 3, generator=generator())
    constant = hidden.mean(1, keepdim=True).expand(-1, 1 + g * g, -1)
    repeated = constant.repeat_interleave(tiles * tiles, 0)
    torch.testing.assert_close(image_prep.merge_tile_hidden(repeated, tiles), constant)
    pooled = torch.rand(count, 7, generator=generator())
    merged = image_prep.mean_tile_embeds(pooled.repeat_interleave(tiles * tiles, 0), tiles)
    torch.testing.assert_close(merged, pooled)


def test_pooled_widths_that_are_no_square_take_the_mean():
    embeds = torch.rand(8, 1280, generator=generator())
    torch.testing.assert_close(image_prep.merge_tile_embeds(embeds, 2), image_prep.mean_tile_embeds(embeds, 2))


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(300, 300, 4), (300, 280, 4), (100, 200, 2), (200, 100, 2), (100, 290, 3), (50, 300, 4), (1, 1, 4), (1, 50, 4)],
)
def test_overlapping_tiles_cover_the_reference(height, width, count):
    tiles = image_prep.overlapping_tiles(picture(height, width))
    assert tiles.images.shape == (count, 256, 256, 3)
    masks = tiles.masks(97, 131)
    assert masks.shape == (count, 97, 131)
    assert masks.sum(0).min() >= 1
    shared = image_prep.share_overlaps(masks)
    torch.testing.assert_close(shared.sum(0), torch.ones(97, 131))


def test_tiles_show_what_their_mask_covers():
    wide = torch.linspace(0, 1, 512).reshape(1, 1, 512, 1).expand(1, 256, 512, 3)
    left, right = image_prep.overlapping_tiles(wide).images
    assert left.mean().item() == pytest.approx(0.25, abs=0.01)
    assert right.mean().item() == pytest.approx(0.75, abs=0.01)


def test_a_limit_restricts_every_tile():
    limit = torch.zeros(1, 8, 8)
    limit[:, :2] = 0.5
    masks = image_prep.overlapping_tiles(picture(64, 64)).masks(8, 8, limit)
    assert masks.max() == 0.5
    assert not masks[:, 2:].any()


noises = st.sampled_from(list(ReferenceNoise))


@settings(max_examples=40)
@given(noises, sides, sides, st.floats(0, 1), st.integers(0, 8))
def test_noise_stays_in_range_and_follows_its_generator_alone(kind, height, width, strength, blur):
    images = picture(height, width, 2)
    state = torch.get_rng_state()
    noisy = image_prep.add_noise(images, kind, strength, generator(7), blur)
    assert noisy.shape == images.shape
    assert noisy.min() >= -1e-6
    assert noisy.max() <= 1 + 1e-6
    assert torch.equal(noisy, image_prep.add_noise(images, kind, strength, generator(7), blur))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", list(ReferenceNoise))
def test_noise_of_strength_zero_changes_nothing_and_more_changes_more(kind):
    images = picture(70, 70)
    change = [
        (image_prep.add_noise(images, kind, strength, generator()) - images).abs().mean() for strength in (0, 0.3, 1)
    ]
    assert change[0] == 0
    assert change[0] < change[1] < change[2]


def test_shuffling_keeps_every_colour():
    images = picture(64, 96)
    shuffled = image_prep.add_noise(images, ReferenceNoise.SHUFFLE, 1.0, generator())
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten().sort().values, images.flatten().sort().values)


def test_blur_keeps_the_mean_and_smooths():
    images = picture(50, 50)
    blurred = image_prep.add_noise(images, ReferenceNoise.FADE, 0.0, generator(), blur=4)
    assert blurred.std() < images.std() / 2
    assert blurred.mean() == pytest.approx(images.mean().item(), abs=0.02)
