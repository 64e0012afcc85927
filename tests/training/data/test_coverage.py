"""Advice about what the photos of a person do not show."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from likeness.faces import read_photo
from likeness.training.data.coverage import Variety, clothes, turn

AHEAD = np.array([(40, 40), (60, 40), (50, 52), (43, 62), (57, 62)], np.float64)
NOON = datetime(2026, 5, 1, 12)


def moved(nose: float) -> np.ndarray:
    """The head turned: the nose this many distances between the eyes off their middle."""
    points = AHEAD.copy()
    points[2, 0] += 20 * nose
    return points


def variety(noses, colours, minutes) -> list[str]:
    found = Variety()
    for number, (nose, colour, minute) in enumerate(zip(noses, colours, minutes, strict=True)):
        photo = np.full((160, 100, 3), colour, np.uint8)
        found.add(f"{number}.jpg", photo, moved(nose), None if minute is None else NOON + timedelta(minutes=minute))
    return found.advice()


def test_varied_photos_need_no_advice():
    assert variety([0, 0.4, -0.4, 0.1], [10, 90, 160, 250], [0, 5, None, None]) == []


@pytest.mark.parametrize(
    ("noses", "colours", "minutes", "words"),
    [
        ([0, 0.1, -0.1, 0], [10, 90, 160, 250], [None] * 4, "No photo shows the face from the side"),
        ([0, 0.4, 0.5, 0.1], [10, 90, 160, 250], [None] * 4, "turned to one side only"),
        ([0, 0.4, -0.4, 0], [90, 92, 95, 99], [None] * 4, "clothes look the same"),
        ([0, 0.4, -0.4, 0], [10, 90, 160, 250], [0, 0.5, 9, None], "within one minute: 0.jpg and 1.jpg. Photos"),
    ],
)
def test_each_lack_is_one_sentence(noses, colours, minutes, words):
    (said,) = variety(noses, colours, minutes)
    assert words in said


def test_few_photos_say_nothing_of_variety():
    assert variety([0, 0], [90, 90], [None, None]) == []


def test_a_tilted_head_is_not_a_turned_one():
    angle = np.deg2rad(30)
    tilted = AHEAD @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    assert abs(turn(tilted)) < 0.01 and turn(moved(0.4)) == pytest.approx(0.4)


def test_clothes_beyond_the_picture_are_unknown():
    assert clothes(np.zeros((70, 100, 3), np.uint8), AHEAD) is None


def test_many_pairs_are_counted():
    said = variety([0, 0.4, -0.4, 0.1], [10, 90, 160, 250], [0, 0.1, 0.2, 0.3])
    assert "and 2 more pairs" in said[0]


def test_the_time_is_the_cameras(tmp_path):
    from likeness.faces.photos import read_photo_file

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2026:05:01 12:00:00"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_photo_file(tmp_path / "a.jpg").taken == NOON
    exif.get_ifd(0x8769)[0x9003] = "yesterday"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "b.jpg", exif=exif)
    assert read_photo_file(tmp_path / "b.jpg").taken is None and read_photo(tmp_path / "b.jpg").shape == (20, 20, 3)
