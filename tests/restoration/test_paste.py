"""Cutting out and pasting: nothing moves, nothing changes that was not changed, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import Face
from likeness.faces.align import FFHQ_512, ffhq_template, robust_similarity_transform
from likeness.faces.found import FoundFaces, chosen_heads
from likeness.restoration.crops import CropFraming, paste_crops
from likeness.restoration.paste import Shape, cut_out, for_scaled, put_back, shaped_edge
from likeness.restoration.restore import PasteOptions

SIDE = 128


def smooth(height: int, width: int, seed: int = 0, cell: int = 16) -> torch.Tensor:
    """An image without detail finer than ``cell`` pixels."""
    grid = max(height // cell, 2), max(width // cell, 2)
    small = torch.rand(1, 3, *grid, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)[0].permute(1, 2, 0)


def noisy(height: int, width: int) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1))


def placed(scale: float, angle: float, x: float, y: float) -> np.ndarray:
    """The matrix of a face that lies there."""
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (FFHQ_512 - 256) * scale @ rotation.T + np.array([x, y])
    return robust_similarity_transform(points, ffhq_template(SIDE))


FACES = st.tuples(st.floats(0.05, 1.2), st.floats(-60, 60), st.floats(-40, 340), st.floats(-40, 240))


@settings(max_examples=30, deadline=None)
@given(FACES, st.sampled_from(list(Shape)))
def test_a_crop_that_was_not_changed_changes_nothing(face, shape):
    picture, matrix = noisy(200, 300), placed(*face)
    canvas = picture.clone()
    crop = cut_out(canvas, matrix, SIDE)
    put_back(canvas, crop, crop.clone(), matrix, shaped_edge(shape, SIDE, ffhq_template(SIDE)))
    assert (canvas - picture).abs().max() < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 0.7), st.floats(-60, 60))
def test_a_crop_that_replaces_all_lands_where_it_was_cut(scale, angle):
    """The plain paste, of an image that holds nothing finer than the crop: half a pixel off would show."""
    picture, matrix = smooth(400, 500, cell=20), placed(scale, angle, 250, 200)
    target = smooth(400, 500, seed=2, cell=20)
    canvas = picture.clone()
    mask = shaped_edge(Shape.SQUARE, SIDE)
    put_back(canvas, cut_out(picture, matrix, SIDE), cut_out(target, matrix, SIDE), matrix, mask)
    whole = torch.zeros(400, 500)
    flat = torch.zeros(400, 500, 3)
    put_back(flat, torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE), matrix, mask, covered=whole)
    inside = whole > 0.999
    assert inside.sum() > 100
    assert (canvas - target)[inside].abs().mean() < 1.5 / 255
    assert torch.equal(canvas[whole == 0], picture[whole == 0])
    assert torch.allclose(flat[..., 0], whole, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0, 3.5, 0.5])
def test_at_another_size_it_lands_on_the_same_place(scale):
    """x' = s (x + 1/2) - 1/2, whatever the factor: a gradient through the crop stays on the image's own."""
    height, width = 200, 300
    ys, xs = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    picture = torch.stack([xs / 300, ys / 200, (xs + ys) / 500], -1)
    size = round(height * scale), round(width * scale)
    canvas = F.interpolate(picture.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0].permute(
        1, 2, 0
    )
    enlarged = canvas.clone()
    matrix = placed(0.25, 20, 150, 100)
    crop = cut_out(picture, matrix, SIDE)
    factors = size[1] / width, size[0] / height
    # What comes back is a crop that looks the same and is all changed: pasted plainly, it must not move the gradient.
    put_back(canvas, torch.full_like(crop, 2.0), crop, for_scaled(matrix, factors), shaped_edge(Shape.SQUARE, SIDE))
    assert (canvas - enlarged).abs().max() < 1 / 255


def test_a_face_half_outside_is_pasted_and_one_outside_changes_nothing():
    picture = smooth(100, 100)
    for x, changes in ((0, True), (5000, False)):
        canvas, matrix = picture.clone(), placed(0.2, 0, x, 50)
        crop = cut_out(canvas, matrix, SIDE)
        assert crop.isfinite().all()
        put_back(canvas, crop, 1 - crop, matrix, shaped_edge(Shape.FACE, SIDE, ffhq_template(SIDE)))
        assert bool((canvas != picture).any()) == changes


def test_a_huge_picture_costs_no_more_than_its_face():
    import time

    picture = torch.zeros(1, 1, 3).expand(4320, 7680, 3)
    matrix = placed(0.25, 10, 5000, 3000)
    start = time.perf_counter()
    crop = cut_out(picture, matrix, SIDE)
    assert time.perf_counter() - start < 0.5 and crop.shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("side", [16, 64, 512])
def test_masks_are_soft_whole_in_the_middle_and_nothing_at_the_border(shape, side):
    mask = shaped_edge(shape, side, ffhq_template(side))
    assert mask.dtype == np.float32 and mask.shape == (side, side)
    x, y = ffhq_template(side)[2].astype(int)
    assert mask[y, x] > (0.99 if side > 16 else 0.5)
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) < (0.05 if side > 16 else 0.6)
    if side == 512:
        assert np.abs(np.diff(mask, axis=0)).max() < 0.1


# --- crops of Find Faces and of identities


def found(photo: np.ndarray, *faces: Face | None) -> FoundFaces:
    return FoundFaces([photo] * len(faces), list(faces), [[face] if face else [] for face in faces], "test")


def face_at(x: float, y: float, scale: float = 0.15) -> Face:
    points = ((FFHQ_512 - 256) * scale + np.array([x, y])).astype(np.float32)
    box = np.array([x - 40, y - 50, x + 40, y + 50], np.float32)
    return Face(box, 1.0, points)


PHOTO = (smooth(200, 300).numpy() * 255).round().astype(np.uint8)


def canvas_of(photo: np.ndarray = PHOTO) -> torch.Tensor:
    return torch.from_numpy(photo).float() / 255


@pytest.mark.parametrize("framing", CropFraming)
@pytest.mark.parametrize("shape", Shape)
def test_heads_and_portraits_that_come_back_unchanged_change_nothing(framing, shape):
    from likeness.faces.align import ffhq_crop

    seen = found(PHOTO, face_at(150, 100), face_at(20, 30))
    crops = [crop.permute(2, 0, 1) for crop in chosen_heads(seen)]
    if framing is CropFraming.PORTRAIT:
        crops = [
            torch.from_numpy(ffhq_crop(PHOTO, face.keypoints)).permute(2, 0, 1).float() / 255
            for face in seen.chosen
            if face is not None and face.keypoints is not None
        ]
    pictures, _ = paste_crops([canvas_of(), canvas_of()], seen, crops, framing, PasteOptions(shape=shape))
    for picture in pictures:
        assert (picture - canvas_of()).abs().max() < 1e-5
    changed, covered = paste_crops(
        [canvas_of(), canvas_of()], seen, [1 - crop for crop in crops], framing, PasteOptions(shape=shape)
    )
    assert (changed[0][100, 150] - (1 - canvas_of()[100, 150])).abs().max() < 0.03
    assert covered[0].max() > 0.9 and torch.equal(changed[0][covered[0] == 0], canvas_of()[covered[0] == 0])


def test_a_crop_pasted_into_an_enlarged_picture_lies_where_it_should():
    seen = found(PHOTO, face_at(150, 100))
    [crop] = chosen_heads(seen)
    large = F.interpolate(canvas_of().permute(2, 0, 1)[None], (500, 750), mode="bilinear", align_corners=False)
    canvas = large[0].permute(1, 2, 0).contiguous()
    [picture], _ = paste_crops(
        [canvas.clone()], seen, [crop.permute(2, 0, 1)], CropFraming.HEAD, PasteOptions(shape=Shape.SQUARE)
    )
    assert (picture - canvas).abs().max() < 1e-5
    [darker], [mask] = paste_crops(
        [canvas.clone()], seen, [crop.permute(2, 0, 1) * 0.5], CropFraming.HEAD, PasteOptions(shape=Shape.SQUARE)
    )
    middle = mask > 0.999
    assert (darker - canvas * 0.5)[middle].abs().mean() < 2 / 255


def test_strength_and_region_restrict_the_paste():
    seen = found(PHOTO, face_at(150, 100))
    [crop] = chosen_heads(seen)
    white = [torch.ones_like(crop.permute(2, 0, 1))]
    [half], _ = paste_crops([canvas_of()], seen, white, CropFraming.HEAD, PasteOptions(0.5, shape=Shape.SQUARE))
    assert (half[100, 150] - (canvas_of()[100, 150] + 1) / 2).abs().max() < 0.02
    region = torch.zeros(200, 300)
    region[:, :150] = 1
    [left], _ = paste_crops([canvas_of()], seen, white, CropFraming.HEAD, PasteOptions(shape=Shape.SQUARE), [region])
    assert torch.equal(left[:, 155:], canvas_of()[:, 155:]) and not torch.equal(left[:, :145], canvas_of()[:, :145])


def test_what_does_not_match_is_said():
    seen = found(PHOTO, face_at(150, 100))
    crop = torch.zeros(3, 64, 64)
    with pytest.raises(LikenessError, match=r"1 images and chose 1 faces, but there are 1 images and 2 crops"):
        paste_crops([canvas_of()], seen, [crop, crop], CropFraming.HEAD, PasteOptions())
    with pytest.raises(LikenessError, match=r"64x32 pixels: crops are square"):
        paste_crops([canvas_of()], seen, [crop[:, :32]], CropFraming.HEAD, PasteOptions())
    with pytest.raises(LikenessError, match=r"300x100 pixels, and Find Faces was given 300x200"):
        paste_crops([canvas_of()[:100]], seen, [crop], CropFraming.HEAD, PasteOptions())
    boxes_only = Face(face_at(150, 100).box, 1.0)
    with pytest.raises(LikenessError, match="no aligned portrait"):
        paste_crops([canvas_of()], found(PHOTO, boxes_only), [crop], CropFraming.PORTRAIT, PasteOptions())
    pasted, _ = paste_crops([canvas_of()], found(PHOTO, boxes_only), [crop], CropFraming.HEAD, PasteOptions())
    assert not torch.equal(pasted[0], canvas_of())
