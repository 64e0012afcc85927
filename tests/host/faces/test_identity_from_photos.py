"""Identity from Photos: who takes part, and what the report says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.by_colour import BLACK, BLUE, DARK_RED, RED, found

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis
from likeness.faces.detection import Detection


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


class Two:
    """Sees a large face at the side and a small one in the middle of every photo, and knows people by colour."""

    name, threshold, sizes = "two", 0.5, (128,)
    places = ((0, 20, 60, 80), 0.7), ((60, 40, 80, 60), 0.9)  # box, score

    def detect(self, image_bgr, size=None):
        five = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], np.float32)
        boxes = [(np.array(box, np.float32), score) for box, score in self.places]
        return [Detection(box, score, box[:2] + five * (box[2:] - box[:2])) for box, score in boxes]

    def embed(self, image_rgb, keypoints):
        x, y = keypoints[2].round().astype(int)
        return image_rgb[y, x].astype(np.float32)


@pytest.mark.parametrize(
    ("rule", "colour"),
    [
        ({}, RED),
        ({"choice": "most central"}, BLUE),
        ({"choice": "highest score"}, BLUE),
        ({"choice": "left to right", "index": 1}, BLUE),
        ({"index": 1}, BLUE),
    ],
    ids=str,
)
def test_everything_of_an_identity_is_of_the_face_that_was_chosen(run, rule, colour):
    """What a recogniser sees and what PuLID's image encoder is shown are one person: there is one detection."""
    photo = torch.zeros(1, 100, 140, 3)
    photo[:, :, :60], photo[:, :, 60:] = torch.tensor(RED) / 255, torch.tensor(BLUE) / 255
    analysis = FaceAnalysis("two", Two(), Two())
    faces = run("FindFaces", face_analysis=analysis, image=photo, min_size=0, **rule)[0]
    person = run("IdentityFromPhotos", faces=faces)[0]
    assert person.embeddings[0].tolist() == list(colour)
    for crops in (person.aligned, person.portraits, person.heads):
        middle = crops.shape[1] // 2
        assert crops[0, middle, middle].tolist() == list(colour)
    assert any(torch.equal(person.boxes[0], torch.tensor(box).float()) for box, _ in Two.places)
