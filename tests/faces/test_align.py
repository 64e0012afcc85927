from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import align
from likeness.faces.align import Border

KEYPOINTS = np.array([(60.0, 70.0), (95.0, 66.0), (78.0, 90.0), (64.0, 108.0), (96.0, 105.0)])


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.05, 20),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_a_similarity_is_recovered_from_the_points_it_moved(angle, scale, shift):
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth = np.column_stack([linear, shift])
    found = align.similarity_transform(KEYPOINTS, align.transform_points(truth, KEYPOINTS))
    np.testing.assert_allclose(found, truth, atol=1e-6 * max(1, scale))


def test_mirrored_points_are_not_matched_by_a_reflection():
    mirrored = KEYPOINTS * [-1, 1]
    assert np.linalg.det(align.similarity_transform(KEYPOINTS, mirrored)[:, :2]) > 0


def test_points_that_coincide_are_refused():
    with pytest.raises(LikenessError, match="one point"):
        align.similarity_transform(np.ones((5, 2)), align.ARCFACE_112)


def test_an_outlier_moves_the_least_squares_fit_but_not_the_robust_one():
    target = align.ffhq_template(256)
    source = align.transform_points(np.array([[0.5, 0.1, 3.0], [-0.1, 0.5, 7.0]]), target)
    clean = align.similarity_transform(source, target)
    spoiled = source.copy()
    spoiled[3] += (14, -6)
    assert np.abs(align.robust_similarity_transform(spoiled, target) - clean).max() < 1e-3
    assert np.abs(align.similarity_transform(spoiled, target) - clean).max() > 1


@pytest.mark.parametrize(("size", "scale", "shift"), [(112, 1, 0), (448, 4, 0), (128, 1, 8), (512, 4, 32), (896, 8, 0)])
def test_arcface_template_sizes(size, scale, shift):
    np.testing.assert_allclose(align.arcface_template(size), align.ARCFACE_112 * scale + [shift, 0])


@pytest.mark.parametrize("size", [0, -112, 100, 113])
def test_other_sizes_are_refused(size):
    with pytest.raises(LikenessError, match="multiple of 112 or 128"):
        align.arcface_template(size)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_identity_matrix_copies_a_photo_of_any_size(height, width, seed):
    image = photo(height, width, seed)
    for border in Border:
        assert np.array_equal(align.warp(image, np.eye(2, 3), (width, height), border), image)


def reference_warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, written out pixel by pixel; outside is 10, 20, 30."""
    back = align.invert(matrix)
    out = np.zeros((size[1], size[0], 3))

    def pixel(x: int, y: int) -> np.ndarray:
        inside = 0 <= x < image.shape[1] and 0 <= y < image.shape[0]
        return image[y, x].astype(float) if inside else np.array([10.0, 20.0, 30.0])

    for v in range(size[1]):
        for u in range(size[0]):
            x, y = align.transform_points(back, np.array([u, v], float))
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            a, b = x - x0, y - y0
            top = (1 - a) * pixel(x0, y0) + a * pixel(x0 + 1, y0)
            out[v, u] = (1 - b) * top + b * ((1 - a) * pixel(x0, y0 + 1) + a * pixel(x0 + 1, y0 + 1))
    return out


@given(
    angle=st.floats(-3, 3),
    scale=st.floats(0.3, 3),
    x=st.floats(-15, 25),
    y=st.floats(-15, 25),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
)
@settings(max_examples=40, deadline=None)
def test_the_warp_is_exact_bilinear_with_a_blended_border(angle, scale, x, y, height, width):
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, (x, y)])
    image = photo(height, width)
    crop = align.warp(image.astype(np.float32), matrix, (13, 9), fill=(10.0, 20.0, 30.0))
    np.testing.assert_allclose(crop, reference_warp(image, matrix, (13, 9)), atol=0.02)


def test_a_warp_does_not_touch_its_input_and_keeps_the_dtype():
    image = photo(150, 131)
    before = image.copy()
    assert align.arcface_crop(image, KEYPOINTS).dtype == np.uint8
    assert align.arcface_crop(image.astype(np.float32), KEYPOINTS).dtype == np.float32
    assert np.array_equal(image, before)


def test_border_modes_continue_the_photo_as_named():
    row = np.arange(1, 5, dtype=np.float32)[None, :, None]
    shifted = np.array([[1.0, 0, 3], [0, 1, 0]])
    expected = {
        Border.CONSTANT: [0, 0, 0],
        Border.EDGE: [1, 1, 1],
        Border.REFLECT: [3, 2, 1],
        Border.REFLECT_101: [4, 3, 2],
    }
    for border, values in expected.items():
        np.testing.assert_allclose(align.warp(row, shifted, (7, 1), border)[0, :3, 0], values, atol=1e-5)


def test_the_differentiable_crop_equals_the_other_and_passes_gradients_to_the_picture_only():
    image = photo(150, 131).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].requires_grad_()
    points = torch.from_numpy(KEYPOINTS).float()[None].requires_grad_()
    crops = align.differentiable_crop(tensor, points)
    np.testing.assert_allclose(
        crops[0].detach().permute(1, 2, 0).numpy(), align.arcface_crop(image, KEYPOINTS), atol=0.06
    )
    crops.square().mean().backward()
    assert tensor.grad is not None and tensor.grad[0, :, 85, 78].abs().min() > 0
    assert tensor.grad[0, :, 0, 0].abs().max() == 0  # far from the face
    assert points.grad is None


def test_labels_come_back_where_they_were():
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 30:60] = 7
    matrix = np.array([[2.0, 0, 5], [0, 2, -3]])
    there = align.warp_nearest(labels, matrix, (200, 150))
    back = align.warp_nearest(there, align.invert(matrix), (80, 60))
    assert np.array_equal(back, labels)


def test_landmark_points_at_the_middle_come_back_to_the_box_centre():
    matrix = align.landmark_matrix(np.array([10.0, 20.0, 50.0, 100.0]), 192, rotation=30)
    np.testing.assert_allclose(align.landmark_points(np.zeros((1, 2)), matrix, 192), [[30, 60]], atol=1e-9)


def test_a_head_crop_repeats_the_edge_outside_the_photo():
    image = photo(40, 30)
    image[:, 0] = (10, 200, 30)
    crop = align.head_crop(image, np.array([0.0, 10.0, 10.0, 20.0]), size=64)
    assert crop.shape == (64, 64, 3)
    assert np.abs(crop[32, :12].astype(int) - (10, 200, 30)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1000, 7)])
def test_a_head_crop_of_odd_photos_has_the_asked_size(shape):
    assert align.head_crop(photo(*shape), np.array([0.0, 0.0, 1.0, 1.0]), 32).shape == (32, 32, 3)


def test_a_crop_from_an_8k_photo_is_the_crop_of_its_part():
    large = np.zeros((4320, 7680, 3), np.uint8)
    part = photo(150, 131)
    large[3000:3150, 6000:6131] = part
    here = align.arcface_crop(part, KEYPOINTS)
    there = align.arcface_crop(large, KEYPOINTS + np.array([6000, 3000]))
    assert np.abs(here.astype(int) - there).max() <= 1
