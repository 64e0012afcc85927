"""A dataset of real photographs, judged by both free recognisers: other people and copies are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from likeness.faces import build_identity, read_photo
from likeness.faces.ready import open_dlib, open_opencv
from likeness.training.data.dataset import DatasetKind, DatasetSettings, build_dataset
from likeness.training.data.photo_files import Photo

PHOTOS = Path(__file__).parents[3] / "build" / "photos"
PERSON = DatasetSettings(DatasetKind.PERSON, "ohwx")
pytestmark = pytest.mark.usefixtures("real_faces")


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    """Three of one president, a mirrored copy of the first, and the other president."""
    if not PHOTOS.is_dir():
        pytest.skip("no photographs in build/photos: `make setup` brings them")
    found = {name: read_photo(PHOTOS / f"{name}.jpg") for name in ("obama", "obama2", "obama3", "biden")}
    found["mirrored"] = np.ascontiguousarray(found["obama"][:, ::-1])
    return [Photo(name, pixels) for name, pixels in found.items()]


@pytest.mark.parametrize(("first", "second"), [(open_opencv, open_dlib), (open_dlib, open_opencv)])
@pytest.mark.parametrize("is_named", [False, True])
def test_other_people_and_copies_are_left_out(photos, first, second, is_named):
    analysis, identity = first(), None
    if is_named:
        identity = build_identity([photos[1].pixels], analysis.find(photos[1].pixels)[:1], "Barack")
    made = build_dataset(photos, PERSON, analysis, identity=identity, second=second())
    assert [picture.name for picture in made.pictures] == ["obama", "obama2", "obama3"]
    said = {photo.name: photo.reasons[0] for photo in made.left_out}
    assert said.keys() == {"biden", "mirrored"} and "almost the same image as obama" in said["mirrored"]
    assert f"does not look like {repr('Barack') if is_named else 'the others'}" in said["biden"]
    assert " by sface" in said["biden"] or " by dlib" in said["biden"]
    assert all("by the second judge" in picture.remarks[-1] for picture in made.pictures)


def test_the_second_judge_sees_what_the_first_lets_pass(photos):
    """SFace finds the two presidents 0.28 alike where the photo in the middle is the one at the lectern."""
    analysis = open_opencv()
    lectern = build_identity([photos[1].pixels], analysis.find(photos[1].pixels)[:1], "Barack")
    alone = build_dataset(photos[:4], PERSON, analysis, identity=lectern)
    both = build_dataset(photos[:4], PERSON, analysis, identity=lectern, second=open_dlib())
    assert "biden" in {picture.name for picture in alone.pictures}
    [biden] = both.left_out
    assert biden.name == "biden" and biden.reasons[0].endswith("by dlib)") and "by sface" not in biden.reasons[0]
