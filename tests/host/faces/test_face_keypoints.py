"""Face Keypoints: dots where the keypoints are, in a canvas of any shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.by_colour import BLACK, BUILT_IN, BY_COLOUR, RED, coloured, found

from likeness.errors import LikenessError
from likeness.faces.keypoints import read_points


def test_dots_lie_on_the_keypoints_of_the_chosen_face(run, mtcnn, six_people):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right", index=1)
    picture, *_ = run("FaceKeypoints", faces=faces)
    assert picture.shape == six_people.shape
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]
    for (x, y), colour in zip(faces.chosen[0].keypoints, colours, strict=True):
        assert tuple(picture[0, int(y), int(x)].tolist()) == colour
    lit = picture[0].amax(-1) > 0
    assert 0 < lit.float().mean() < 0.02


@pytest.mark.parametrize(("width", "height", "size"), [(640, 0, (443, 640)), (0, 443, (443, 640)), (512, 1024, None)])
def test_the_photo_is_fitted_into_the_canvas(run, mtcnn, six_people, width, height, size):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people)
    picture, *_ = run("FaceKeypoints", faces=faces, width=width, height=height)
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
    pictures, *_ = run("FaceKeypoints", faces=faces)
    assert pictures.shape == (1, 64, 60, 3)


@pytest.fixture
def astronauts(run, mtcnn, astronaut):
    """The one face of a photo, as Find Faces gives it."""
    return run("FindFaces", face_analysis=mtcnn, image=astronaut)[0]


def test_the_latent_gives_the_size_whatever_the_widgets_say(run, astronauts):
    latent = {"samples": torch.zeros(1, 4, 100, 52)}
    picture, _, width, height = run("FaceKeypoints", faces=astronauts, width=64, height=64, latent=latent)
    assert tuple(picture.shape) == (1, 800, 416, 3) and (width, height) == (416, 800)
    with pytest.raises(LikenessError, match="connect Empty Latent Image"):
        run("FaceKeypoints", faces=astronauts, latent={"samples": None})


def test_the_official_canvas_is_a_choice(run, astronauts):
    picture, *_ = run("FaceKeypoints", faces=astronauts, long_side=1280)
    assert picture.shape[1:3] == (1280, 1280)


def test_written_points_draw_the_same_picture_again_and_can_be_edited(run, astronauts):
    picture, points, width, height = run("FaceKeypoints", faces=astronauts, width=640, height=448)
    again, same_points, *_ = run("FaceKeypoints", points=points, width=width, height=height)
    assert torch.equal(again, picture) and same_points == points
    edited, *_ = run("FaceKeypoints", points=points.replace(points.split()[0], "20,30"), width=width, height=height)
    assert tuple(edited[0, 30, 20].tolist()) == (1, 0, 0)
    both, *_ = run("FaceKeypoints", points=f"{points}\n\n{points}", width=width, height=height)
    assert len(both) == 2, "a blank line begins another picture"


def test_points_take_their_size_from_a_photo_that_is_connected(run, astronauts):
    picture, *_ = run("FaceKeypoints", faces=astronauts, points="10,10 20,10 15,15 11,20 19,20")
    assert picture.shape[1:3] == astronauts.photos[0].shape[:2]
    with pytest.raises(LikenessError, match="need a size: enter width and height, or connect the latent"):
        run("FaceKeypoints", points="10,10 20,10 15,15 11,20 19,20")


@pytest.mark.parametrize("text", ["1,2 3,4", "a,b c,d e,f g,h i,j", "1 2 3 4 5 6 7 8 9 10 11", "nan,1 2,3 4,5 6,7 8,9"])
def test_points_that_are_no_face_are_named(run, text):
    with pytest.raises(LikenessError, match=r"[Ll]ine 1 of the points"):
        run("FaceKeypoints", points=text, width=64, height=64)


def test_an_identity_s_own_keypoints_can_be_drawn(run, astronauts):
    person, *_ = run("IdentityFromPhotos", faces=astronauts)
    assert torch.equal(run("FaceKeypoints", identity=person)[0], run("FaceKeypoints", faces=astronauts)[0])
    without = replace(
        person, keypoints=person.keypoints[:0], aligned=person.aligned[:0], portraits=person.portraits[:0]
    )
    with pytest.raises(LikenessError, match="has no keypoints to draw, because its detector gave none"):
        run("FaceKeypoints", identity=without)
    with pytest.raises(LikenessError, match="has nothing to draw: connect faces"):
        run("FaceKeypoints")


def test_an_identity_stands_in_for_photos_without_a_face(run, astronauts):
    person, *_ = run("IdentityFromPhotos", faces=astronauts)
    faces, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=coloured(BLACK, RED), if_none="skip photo")
    pictures, *_ = run("FaceKeypoints", faces=faces, identity=person)
    assert pictures.shape == (2, 64, 60, 3)
    alone, *_ = run("FaceKeypoints", identity=person, width=60, height=64)
    assert torch.equal(pictures[0], alone[0])


def test_all_faces_of_a_photo_can_be_drawn(run, mtcnn, six_people):
    faces, _, _, _, count = run("FindFaces", face_analysis=mtcnn, image=six_people)
    _, points, *_ = run("FaceKeypoints", faces=faces, drawn="all faces")
    assert len(points.splitlines()) == count > 1


def test_the_face_moves_turns_grows_and_looks_the_other_way(run, astronauts):
    def drawn(**inputs):
        _, text, width, height = run("FaceKeypoints", faces=astronauts, **inputs)
        return read_points(text)[0][0], width, height

    plain, width, height = drawn()
    moved, *_ = drawn(move_x=0.25, move_y=-0.1)
    assert moved == pytest.approx(plain + np.array([0.25 * width, -0.1 * height]), abs=0.1)
    middle = plain.mean(0)
    grown, *_ = drawn(scale=1.5)
    assert grown == pytest.approx(middle + 1.5 * (plain - middle), abs=0.2)
    turned, *_ = drawn(rotate=90.0)
    away = plain - middle
    assert turned == pytest.approx(middle + np.stack([-away[:, 1], away[:, 0]], 1), abs=0.2), "clockwise, y downwards"
    mirrored, *_ = drawn(mirror=True)
    expected = 2 * middle[0] - plain[[1, 0, 2, 4, 3], 0]
    assert mirrored[:, 0] == pytest.approx(expected, abs=0.2)
    assert mirrored[0, 0] < mirrored[1, 0], "the eye at the left of the picture stays the first"


def test_a_face_moved_out_of_the_picture_is_never_a_black_hint(run, astronauts):
    with pytest.raises(LikenessError, match="Nothing of the face is left in image 1"):
        run("FaceKeypoints", faces=astronauts, move_x=1.0, scale=0.05)
