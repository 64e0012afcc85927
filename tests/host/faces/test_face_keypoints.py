"""Face Keypoints: dots where the keypoints are, in a canvas of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from likeness_host_faces import BLACK, BUILT_IN, BY_COLOUR, RED, coloured, found

from likeness.errors import LikenessError


def test_dots_lie_on_the_keypoints_of_the_chosen_face(run, mtcnn, six_people):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right", index=1)
    (picture,) = run("FaceKeypoints", faces=faces)
    assert picture.shape == six_people.shape
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]
    for (x, y), colour in zip(faces.chosen[0].keypoints, colours, strict=True):
        assert tuple(picture[0, int(y), int(x)].tolist()) == colour
    lit = picture[0].amax(-1) > 0
    assert 0 < lit.float().mean() < 0.02


@pytest.mark.parametrize(("width", "height", "size"), [(640, 0, (443, 640)), (0, 443, (443, 640)), (512, 1024, None)])
def test_the_photo_is_fitted_into_the_canvas(run, mtcnn, six_people, width, height, size):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people)
    (picture,) = run("FaceKeypoints", faces=faces, width=width, height=height)
    assert picture.shape[1:3] == (size or (height, width))
    scale = 0.5 if size else 0.4
    above = 0 if size else (1024 - 0.4 * 886) / 2
    x, y = faces.chosen[0].keypoints[4] * scale + np.array([0, above])  # drawn last, so it lies on top
    assert tuple(picture[0, int(y), int(x)].tolist()) == (1, 0, 1)


def test_faces_without_keypoints_cannot_be_drawn(run, astronaut, mtcnn):
    (boxes_only,) = run("LoadFaceAnalysis", model=BUILT_IN[3], provider="auto")
    faces, *_ = run("FindFaces", face_analysis=boxes_only, image=astronaut)
    person, portraits, _ = run("IdentityFromPhotos", faces=faces)
    assert len(person.portraits) == 0 and len(portraits) == 1, "heads stand in for portraits"
    with pytest.raises(LikenessError, match=r"Photo 1 has no keypoints to draw, because LBP.* boxes only"):
        run("FaceKeypoints", faces=faces)
    with pytest.raises(LikenessError, match="Photo 2 has no keypoints to draw, because it shows no face"):
        run("FaceKeypoints", faces=found(run, RED, BLACK))


def test_skipped_photos_have_no_keypoint_picture(run):
    faces, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=coloured(BLACK, RED), if_none="skip photo")
    (pictures,) = run("FaceKeypoints", faces=faces)
    assert pictures.shape == (1, 64, 60, 3)
