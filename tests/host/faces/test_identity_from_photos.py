"""Identity from Photos: who takes part, and what the report says."""

from __future__ import annotations

import pytest
from helpers.by_colour import BLACK, BLUE, DARK_RED, RED, found

from likeness.errors import LikenessError


def test_a_stranger_among_the_photos_is_named_and_left_out(run, caplog):
    faces = found(run, RED, BLUE, DARK_RED)
    person, portraits, report = run("IdentityFromPhotos", faces=faces, name="Ann")
    assert person.name == "Ann" and len(person) == len(portraits) == 2 and portraits.shape[1:] == (512, 512, 3)
    assert "Ann: 2 photos used" in report and "recogniser: by colour" in report
    assert "photo 2 does not look like the others" in report and "photo 2 does not look" in caplog.text
    assert "mean similarity of two photos: 1.00" in report


def test_outliers_are_kept_on_request_or_by_the_threshold(run):
    faces = found(run, RED, BLUE, DARK_RED)
    kept, _, report = run("IdentityFromPhotos", faces=faces, outliers="keep")
    assert len(kept) == 3 and "photo 2 does not look like the others" in report
    tolerant, _, report = run("IdentityFromPhotos", faces=faces, outlier_threshold=-1.0)
    assert len(tolerant) == 3 and "does not look" not in report
    with pytest.raises(LikenessError, match="outliers"):
        run("IdentityFromPhotos", faces=faces, outliers="shrug")


def test_whole_pictures_take_no_part_beside_real_faces(run):
    person, _, report = run("IdentityFromPhotos", faces=found(run, RED, BLACK, DARK_RED))
    assert len(person) == len(person.embeddings) == len(person.aligned) == 2
    assert "photo 2 has no embedding or keypoints" in report


def test_one_photo_has_no_similarity_to_report(run):
    person, _, report = run("IdentityFromPhotos", faces=found(run, RED), name=" ")
    assert person.name == "person" and "1 photo used" in report and "similarity" not in report


def test_other_values_on_the_faces_socket_are_refused(run):
    with pytest.raises(LikenessError, match="'faces' holds a list"):
        run("IdentityFromPhotos", faces=[])
