from __future__ import annotations

import numpy as np
import pytest

from likeness.faces import draw_keypoints
from likeness.faces.keypoints import COLOURS_RGB

pytest.importorskip("cv2")
POINTS = np.array([(60.0, 60.0), (140.0, 60.0), (100.0, 100.0), (70.0, 140.0), (130.0, 140.0)])


def test_dots_are_bright_limbs_are_dimmed_and_the_rest_is_black():
    picture = draw_keypoints([POINTS], 200, 180)
    assert picture.shape == (180, 200, 3) and picture.dtype == np.uint8
    for (x, y), colour in zip(POINTS.astype(int), COLOURS_RGB, strict=True):
        assert tuple(picture[y, x]) == colour
    assert tuple(picture[80, 80]) == (153, 0, 0)
    assert picture[5, 5].max() == 0


def test_dots_of_all_faces_lie_above_the_limbs_of_all_faces():
    second = POINTS.copy()
    second[0], second[2] = (100, 20), (20, 60)  # the limb from its right eye crosses the first face's left eye
    assert tuple(draw_keypoints([second], 200, 180)[60, 60]) == (0, 153, 0)
    assert tuple(draw_keypoints([POINTS, second], 200, 180)[60, 60]) == COLOURS_RGB[0]


def test_points_outside_are_cut_off_and_no_face_is_black():
    assert draw_keypoints([POINTS + 1000], 64, 48).max() == 0
    assert draw_keypoints([], 64, 48).shape == (48, 64, 3)
