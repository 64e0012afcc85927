from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.evaluation.copying import (
    HEAD,
    Turn,
    angle,
    copy_angle,
    expression,
    face_ssim,
    mean_copy,
    obeys_pose,
    pose,
    pose_copy,
    relative_spread,
    spread,
)
from likeness.faces import Face
from likeness.faces.align import arcface_template


def _at(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin(), torch.zeros_like(radians)], -1)


@pytest.mark.parametrize(("result", "copy"), [(0, 1), (60, -1), (30, 0), (15, 0.5), (90, -1)])
def test_a_result_lies_between_the_photo_it_was_given_and_another_one(result, copy):
    r, t = _at(0), _at(60)
    assert float(copy_angle(_at(result), t, r)) == pytest.approx(copy, abs=1e-6)


def test_copy_agrees_with_arccos_of_cosines():
    random = np.random.default_rng(0)
    g, t, r = random.standard_normal((3, 50, 32))

    def theta(a, b):
        return np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))

    expected = (theta(g, t) - theta(g, r)) / theta(t, r)
    np.testing.assert_allclose(copy_angle(*map(torch.from_numpy, (g, t, r))), expected, atol=1e-6)


def test_copy_is_not_defined_without_a_face_or_without_another_photo():
    assert torch.isnan(copy_angle(torch.zeros(3), _at(60)[0], _at(0)[0]))
    assert torch.isnan(mean_copy(_at(0, 10), torch.zeros(0, 3), _at(0))).all()
    assert float(copy_angle(_at(20), _at(5), _at(5))) == 0, "one photo twice says nothing"


def test_several_photos_are_averaged_over_pairs():
    results, others, references = _at(10, 40), _at(60, 80), _at(0, 20)
    pairs = [copy_angle(results, t, r) for t in others for r in references]
    np.testing.assert_allclose(mean_copy(results, others, references), torch.stack(pairs).mean(0))


def test_small_angles_are_exact():
    a = _at(0)
    assert float(angle(a, _at(1e-5))) == pytest.approx(np.deg2rad(1e-5), rel=1e-6)
    assert float(angle(a, a)) == 0 and float(angle(a, -a)) == pytest.approx(np.pi)


# --- pose


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """A head looking right by yaw and up by pitch, tilted clockwise by roll; x right, y down, z to the camera."""
    y, p, r = np.deg2rad([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@settings(max_examples=60, deadline=None)
@given(yaw=st.floats(-60, 60), pitch=st.floats(-40, 40), roll=st.floats(-60, 60), scale=st.floats(0.5, 200))
def test_the_pose_of_a_turned_head_is_found(yaw, pitch, roll, scale):
    picture = scale * (HEAD @ _rotation(yaw, pitch, roll).T)[:, :2] + (100, 80)
    np.testing.assert_allclose(pose(picture), (yaw, pitch, roll), atol=1e-5)


def test_a_face_on_the_template_looks_ahead():
    yaw, pitch, roll = pose(Face(box=np.zeros(4), score=1.0, keypoints=arcface_template(112).astype(np.float32)))
    assert abs(yaw) < 3 and abs(pitch) < 6 and abs(roll) < 2


def test_a_nose_to_the_right_looks_right_and_a_high_nose_up():
    points = arcface_template(112)
    right, up = points.copy(), points.copy()
    right[2, 0] += 8
    up[2, 1] -= 8
    assert pose(right)[0] > 15 and pose(up)[1] > pose(points)[1] + 10


def test_without_keypoints_there_is_no_pose():
    assert np.isnan(pose(Face(box=np.zeros(4), score=1.0))).all()
    assert np.isnan(pose(np.zeros((5, 2)))).all()


def test_turns_are_told_apart_and_a_missing_face_does_not_obey():
    poses = np.array([(0, 0, 5), (-30, 0, 0), (30, 0, 0), (0, 20, 0), (0, -20, 0), (np.nan, np.nan, np.nan)])
    asked = [Turn.AHEAD, Turn.LEFT, Turn.RIGHT, Turn.UP, Turn.DOWN, Turn.AHEAD]
    assert obeys_pose(poses, asked).tolist() == [1, 1, 1, 1, 1, 0]
    assert obeys_pose(poses[:5], [Turn.LEFT, Turn.RIGHT, Turn.AHEAD, Turn.DOWN, Turn.UP]).sum() == 0


# --- spread


def test_a_frozen_head_has_no_spread_and_a_free_one_that_of_the_base():
    random = np.random.default_rng(1)
    free = random.normal(0, 10, (50, 3))
    assert relative_spread(free, free) == 1 and relative_spread(np.zeros((50, 3)), free) == 0
    assert relative_spread(free / 2, free) == pytest.approx(0.5)
    assert np.isnan(spread(free[:1])) and np.isnan(relative_spread(free, np.zeros((5, 3))))
    with_gap = np.concatenate([free, np.full((1, 3), np.nan)])
    assert spread(with_gap) == spread(free)


def test_poses_that_follow_the_reference_are_copied():
    random = np.random.default_rng(2)
    references, free = random.normal(0, 10, (2, 200, 3))
    assert pose_copy(references, references, free) == pytest.approx(1, abs=0.15)
    assert pose_copy(free, references, free) == 0
    assert np.isnan(pose_copy(free[:1], references[:1], free[:1]))
    assert pose_copy(np.zeros((200, 3)), references, free) == pytest.approx(0, abs=0.15)


# --- expression


def _face_of_106() -> np.ndarray:
    random = np.random.default_rng(0)
    points = np.zeros((106, 2))
    for part, centre, size in (
        (slice(33, 43), (30, 40), (12, 5)),
        (slice(87, 97), (70, 40), (12, 5)),
        (slice(43, 52), (30, 28), (14, 3)),
        (slice(97, 106), (70, 28), (14, 3)),
        (slice(52, 72), (50, 80), (30, 8)),
    ):
        points[part] = np.array(centre) + random.uniform(-0.5, 0.5, (part.stop - part.start, 2)) * size
    return points


def test_expression_changes_with_the_mouth_and_not_with_the_camera():
    points = _face_of_106()
    before = expression(points)
    turned = (3 * points @ _rotation(0, 0, 20)[:2, :2].T) + (5, 7)
    np.testing.assert_allclose(expression(turned), before, atol=1e-9)
    open_mouth = points.copy()
    open_mouth[52:72, 1] = 80 + (points[52:72, 1] - 80) * 3
    after = expression(open_mouth)
    assert after[1] == pytest.approx(3 * before[1], rel=0.05)
    np.testing.assert_allclose(np.delete(after, 1), np.delete(before, 1), atol=0.01)


def test_five_points_know_the_width_of_the_mouth():
    points = arcface_template(112)
    smile = points.copy()
    smile[3, 0] -= 5
    smile[4, 0] += 5
    assert expression(smile)[0] > expression(points)[0] + 0.2 and expression(points).shape == (2,)


# --- pixels


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    random = np.random.default_rng(0)
    a = random.random((2, 40, 40, 3))
    b = np.clip(a + 0.2 * random.standard_normal(a.shape), 0, 1)
    luma = np.array([0.299, 0.587, 0.114])
    options = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False, "full": True}
    maps = [structural_similarity(x @ luma, y @ luma, **options)[1] for x, y in zip(a, b, strict=True)]
    inner = [np.asarray(full)[5:-5, 5:-5].mean() for full in maps]
    np.testing.assert_allclose(face_ssim(torch.from_numpy(a), torch.from_numpy(b)), inner, atol=1e-6)


def test_a_paste_is_a_1_and_another_face_far_below():
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 112, 112, 3, generator=random)
    assert float(face_ssim(a, a)) == pytest.approx(1) and float(face_ssim(a, b)) < 0.2


# --- as multi-identity benchmarks count it


def test_with_one_photo_of_each_kind_copy_paste_is_copy():
    from likeness.evaluation.copying import copy_paste, mean_copy

    g, t, r = torch.randn(5, 8), torch.randn(1, 8), torch.randn(1, 8)
    torch.testing.assert_close(copy_paste(g, t, r), mean_copy(g, t, r))
    more = torch.cat([r, r + 0.3 * torch.randn(3, 8)])
    assert not torch.allclose(copy_paste(g, t, more), mean_copy(g, t, more))
    assert bool(copy_paste(g, t[:0], r).isnan().all())


def test_several_people_are_counted_as_in_the_benchmark():
    """Against the formulas in numpy: matched by cosine, angles by arccos."""
    from likeness.evaluation.people import multi_id

    random = np.random.default_rng(0)
    targets, references = random.standard_normal((2, 3, 16))
    references = targets + 0.8 * references
    faces = (targets + 0.5 * random.standard_normal((3, 16)))[[2, 0, 1]]

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    g, t, r = unit(faces)[[1, 2, 0]], unit(targets), unit(references)
    theirs = lambda a, b: np.arccos((a * b).sum(-1))  # noqa: E731
    found = multi_id(*(torch.from_numpy(rows).float() for rows in (faces, targets, references)))
    assert found.sim_gt == pytest.approx((g * t).sum(-1).mean(), abs=1e-5)
    assert found.sim_ref == pytest.approx((g * r).sum(-1).mean(), abs=1e-5)
    assert found.copy_paste == pytest.approx(np.mean((theirs(g, t) - theirs(g, r)) / theirs(t, r)), abs=1e-4)
    assert found.blending == pytest.approx((g @ t.T)[~np.eye(3, dtype=bool)].mean(), abs=1e-5)
    nobody = multi_id(torch.zeros(0, 16), torch.from_numpy(targets).float(), torch.from_numpy(references).float())
    assert nobody.sim_gt == 0 and np.isnan(nobody.copy_paste) and np.isnan(nobody.blending)
