"""Folders of people: who is whom, which photos are left out, and when that is too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.people import ANALYSIS, GREEN, NOBODY, RED, TWO, ByColour, put
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis
from likeness.faces.people import PeopleInPhoto
from likeness.training.data.people import People, read_people


def read(folder: Path, **given: Any) -> People:
    return read_people(folder, ANALYSIS, 64, **given)


def test_a_folder_is_a_person_and_a_photo_beside_them_too(tmp_path):
    put(tmp_path / "anna" / "1.png", RED, "a woman in a park")
    put(tmp_path / "anna" / "22.png", RED)
    put(tmp_path / "ben.png", GREEN, "a man")
    people = read(tmp_path)
    assert {name: len(photos) for name, photos in people.of_person.items()} == {"anna": 2, "ben": 1}
    assert sorted(photo.example.caption for photo in people.photos) == ["", "a man", "a woman in a park"]
    assert "3 images of 2 people, 1 of them in several images" in people.report()
    assert "1 images have no caption" in people.report()
    example = people.photos[0].example
    assert example.size == (64, 64) and tuple(example.pixels.shape) == (3, 64, 64)
    assert bool((people.photos[0].keypoints > 0).all()) and people.photos[0].keypoints.max() < 64


def test_photos_that_are_unfit_are_left_out_and_named(tmp_path):
    for number in range(9):
        put(tmp_path / "anna" / f"{number}.png", RED)
    put(tmp_path / "anna" / "empty.png", NOBODY)
    put(tmp_path / "anna" / "two.png", TWO)
    people = read(tmp_path)
    assert len(people) == 9
    assert [why.split(":")[0] for why in people.left_out] == ["anna/empty.png", "anna/two.png"]
    assert "no face was found" in people.left_out[0] and "several people" in people.left_out[1]
    assert all(why in people.report() for why in people.left_out)


def test_more_than_a_fifth_of_unfit_photos_is_an_error_that_lists_them(tmp_path):
    for number in range(3):
        put(tmp_path / "anna" / f"{number}.png", RED)
    put(tmp_path / "anna" / "empty.png", NOBODY)
    (tmp_path / "anna" / "broken.png").write_bytes(b"\x89PNG\r\n nothing")
    with pytest.raises(LikenessError, match=r"2 of 5 images.*broken.png.*anna/empty.png"):
        read(tmp_path)


def test_strangers_in_a_person_s_folder_are_not_taken_for_that_person(tmp_path):
    for number in range(8):
        put(tmp_path / "anna" / f"{number}.png", RED)
    put(tmp_path / "anna" / "stranger.png", GREEN)
    people = read(tmp_path)
    assert len(people) == 8 and "stranger.png: its face does not look like the others" in people.left_out[0]


def test_a_folder_without_people_and_an_analysis_without_a_recogniser_are_refused(tmp_path):
    with pytest.raises(LikenessError, match=r"no folder .*data\.people"):
        read(tmp_path / "nowhere")
    with pytest.raises(LikenessError, match="holds no images"):
        read(tmp_path)
    put(tmp_path / "ben.png", GREEN)
    blind = FaceAnalysis("blind", ByColour())  # type: ignore[arg-type]
    with pytest.raises(LikenessError, match="no recogniser"):
        read_people(tmp_path, blind, 64)
    assert read_people(tmp_path, blind, 64, embed=False).photos[0].embedding is None


def test_what_a_training_sees_tells_collections_apart(tmp_path):
    put(tmp_path / "ben.png", GREEN)
    before = read(tmp_path).digest()
    assert read(tmp_path).digest() == before
    (tmp_path / "ben.txt").write_text("a man")
    captioned = read(tmp_path).digest()
    put(tmp_path / "ben.png", RED, "a man")
    assert len({before, captioned, read(tmp_path).digest()}) == 3


def test_a_mask_beside_a_photo_is_cropped_with_it(tmp_path):
    put(tmp_path / "ben.png", GREEN)
    mask = np.zeros((160, 160), np.uint8)
    mask[:, 80:] = 255
    Image.fromarray(mask).save(tmp_path / "ben.mask.png")
    found = read(tmp_path).photos[0].example.face_mask
    assert found is not None and torch.equal(found.amax((0, 1)) > 0.5, torch.arange(64) >= 32)


class Halves:
    """Finds a figure in the upper half of a photo and another in the lower one."""

    def __call__(self, photo: np.ndarray) -> PeopleInPhoto:
        border = photo.shape[0] // 2 + 20
        masks = np.zeros((2, *photo.shape[:2]), bool)
        masks[0, :border], masks[1, border:] = True, True
        return PeopleInPhoto(masks, np.zeros((2, 4), np.float32), np.ones(2, np.float32))


def test_people_who_are_together_in_a_photo_are_told_apart_by_their_figures(tmp_path):
    for number in range(6):
        put(tmp_path / "anna" / f"{number}.png", RED)
    put(tmp_path / "two.png", TWO)
    people = read(tmp_path, together=2, segment=Halves())
    two = next(photo for photo in people.photos if photo.companions)
    (other,) = two.companions
    assert two.name == "two.png" and other.face is not two.face and len(people) == 7
    masks = [photo.example.photo.mask for photo in (two, other)]
    assert masks[0] is not None and masks[1] is not None and not bool((masks[0] & masks[1]).any())
    assert people.photos[0].example.photo.has_mask, "the segmenter's"
    assert "only data.segmenter can tell apart" in read(tmp_path, together=2).left_out[0]
    assert "it shows several people" in read(tmp_path, segment=Halves()).left_out[0]
