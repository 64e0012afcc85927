"""Masks of faces: by name, per person, from a parser or from the keypoints, grown and feathered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import Face, FaceParser, Part
from likeness.faces.align import FFHQ_512
from likeness.faces.masks import PARTS, THE_REST, Region, feathered, grown, region_masks, together
from likeness.faces.parsing import BISENET_ORDER, PARSENET_ORDER

SIZE = (300, 400)
LEFT, RIGHT = (FFHQ_512 * 0.25 + np.array([x, 80]) for x in (60, 180))
DRAWN = (Region.EYES, Region.BROWS, Region.NOSE, Region.MOUTH)


def face(points: np.ndarray | None) -> Face:
    box = np.array([0, 0, 10, 10], np.float32)
    return Face(box, 1.0, None if points is None else points.astype(np.float32))


class Painted(torch.nn.Module):
    """Reads the part off the red channel, in steps of ten."""

    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, order):
        super().__init__()
        self.ORDER = order
        self.register_buffer("steps", torch.arange(19.0))
        self.steps: torch.Tensor

    def forward(self, x):
        return (-(x[:, :1] * 25.5 - self.steps.reshape(1, 19, 1, 1)).abs(),)


def painted(order=BISENET_ORDER) -> FaceParser:
    return FaceParser(Painted(order), "painted", "")  # pyright: ignore[reportArgumentType]


def photo_of(part: Part, order=BISENET_ORDER) -> np.ndarray:
    """All of it shows one part."""
    return np.full((*SIZE, 3), 10 * order.index(part), np.uint8)


@pytest.mark.parametrize("order", [BISENET_ORDER, PARSENET_ORDER])
@pytest.mark.parametrize("region", Region)
def test_a_region_shows_its_parts_and_no_other(region, order):
    for part in Part:
        [mask] = region_masks(photo_of(part, order), [face(LEFT)], [region], painted(order))
        seen = mask[int(LEFT[2, 1]), int(LEFT[2, 0])]
        assert seen == ((part in PARTS[region]) ^ (region in THE_REST)), part


def test_the_rest_of_the_picture_is_everywhere_else():
    [rest] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.NON_FACE], painted())
    [shown] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.FACE], painted())
    assert (rest ^ shown).all() and rest[:, -5:].all()


def test_regions_add_up():
    photo = photo_of(Part.HAIR)
    photo[: SIZE[0] // 2] = 10 * Part.SKIN
    masks = [region_masks(photo, [face(LEFT)], regions, painted())[0] for regions in ([Region.SKIN], [Region.HAIR])]
    [both] = region_masks(photo, [face(LEFT)], [Region.HAIR, Region.SKIN], painted())
    assert ((masks[0] | masks[1]) == both).all() and not (masks[0] & masks[1]).any()


def test_where_two_people_touch_each_keeps_what_is_nearer():
    one, other = region_masks(photo_of(Part.SKIN), [face(LEFT), face(RIGHT)], [Region.FACE], painted())
    assert not (one & other).any() or (one & other).sum() < SIZE[0] * 2  # the seam
    alone, _ = region_masks(photo_of(Part.SKIN), [face(LEFT), face(RIGHT + 5000)], [Region.FACE], painted())
    assert alone.sum() > one.sum() and (alone >= one).all()
    [beside] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.FACE], painted(), [face(RIGHT)])
    assert (beside == one).all()
    assert (together(np.stack([one, other]), [Region.FACE]) == (one | other)).all()
    rest = region_masks(photo_of(Part.SKIN), [face(LEFT), face(RIGHT)], [Region.NON_FACE], painted())
    assert (together(rest, [Region.NON_FACE]) == ~(one | other)).all()


def test_keypoints_alone_show_the_face_and_its_main_parts():
    [whole] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.FACE])
    for region in DRAWN:
        [mask] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [region])
        assert mask.any() and (mask & whole).sum() > 0.9 * mask.sum(), region
    x, y = LEFT[0].astype(int)
    assert region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.EYES])[0][y, x]
    [rest] = region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.NON_FACE])
    assert (rest ^ whole).all()


def test_what_keypoints_cannot_show_is_said():
    with pytest.raises(LikenessError, match=r"do not show the region 'hair'.*parsing_bisenet"):
        region_masks(photo_of(Part.SKIN), [face(LEFT)], [Region.HAIR])
    for parser, region in ((painted(), Region.HAIR), (None, Region.EYES)):
        with pytest.raises(LikenessError, match=r"A face has no keypoints"):
            region_masks(photo_of(Part.SKIN), [face(None)], [region], parser)
    assert region_masks(photo_of(Part.SKIN), [face(None)], [Region.FACE])[0].any()  # its box is enough


def test_a_face_that_reaches_beyond_the_photo_and_a_tiny_one_are_masked():
    for points in (LEFT - np.array([120, 100]), FFHQ_512 * 0.01 + 20, LEFT + 5000):
        [mask] = region_masks(photo_of(Part.SKIN), [face(points)], [Region.FACE], painted())
        assert mask.shape == SIZE


@settings(max_examples=40, deadline=None)
@given(st.integers(-12, 12), st.integers(4, 20), st.integers(0, 30))
def test_growing_moves_the_edge_by_so_many_pixels(pixels, radius, feather):
    ys, xs = np.mgrid[:96, :96]
    disc = np.hypot(xs - 48, ys - 48) <= radius
    moved = grown(disc, pixels)
    assert abs(moved[48].sum() - max(disc[48].sum() + 2 * pixels, 0)) <= 2
    soft = feathered(disc, feather)
    assert soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1
    assert abs(float(soft.sum()) - disc.sum()) < 0.02 * disc.sum() + 1e-3 or radius + 2 * feather > 44


def test_feathering_fades_over_that_many_pixels_and_not_at_the_pictures_border():
    half = np.zeros((8, 200), bool)
    half[:, 100:] = True
    soft = feathered(half, 20)[4]
    assert soft[100 - 30] < 0.01 and soft[100 + 30] > 0.99 and 0.1 < soft[92] < 0.4 and soft[-1] == 1
    assert (feathered(half, 0) == half).all()
    assert grown(np.ones((4, 4), bool), -2).all() and not grown(np.zeros((4, 4), bool), 2).any()
