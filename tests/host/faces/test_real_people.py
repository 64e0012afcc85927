"""The main job in the host with real weights: a photo becomes an identity, is saved, and judged by a second network.

The weights come in packages that `make setup` installs; nothing is generated here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.by_colour import FREE

pytestmark = pytest.mark.usefixtures("real_faces")


@pytest.fixture
def works_now(run):
    return run("LoadFaceAnalysis", model=FREE[0], provider="CPU")[0]


def test_a_photo_becomes_an_identity_that_an_independent_judge_recognises(run, works_now, astronaut, six_people):
    from likeness.nodes.evaluation import IdentityReport

    found, _, _, _, count = run("FindFaces", face_analysis=works_now, image=astronaut)
    assert count == 1
    person = run("IdentityFromPhotos", faces=found, name="Eileen")[0]
    assert person.recogniser == "dlib" and person.has_embeddings
    stranger = torch.nn.functional.interpolate(six_people.movedim(-1, 1), (512, 512)).movedim(1, -1)
    pictures = torch.cat([astronaut.flip(2), astronaut * 0.4, stranger])
    report = IdentityReport.execute(images=pictures, identity=person).result
    assert "Judge: sface. Licence of the judge: YuNet: MIT; SFace: Apache-2.0" in report[1]
    own, dark, other = report[3]
    assert own > 100 and dark > 100 and other < 60


def test_six_people_are_found_and_told_apart_by_an_identity(run, works_now, six_people):
    found, _, _, _, count = run("FindFaces", face_analysis=works_now, image=six_people, choice="left to right", index=2)
    assert count == 6
    third = run("IdentityFromPhotos", faces=found, name="third")[0]
    mirrored = six_people.flip(2)
    again = run(
        "FindFaces", face_analysis=works_now, image=mirrored, choice="most similar to reference", reference=third
    )[0]
    width = six_people.shape[2]
    box, expected = again.chosen[0].box, found.chosen[0].box
    assert abs((box[0] + box[2]) / 2 - (width - (expected[0] + expected[2]) / 2)) < 20


def test_a_real_detector_stands_in_for_the_one_that_knows_its_photos(run, works_now, pack, astronaut):
    """FaceID's graph up to the identity: a real detector, the random recogniser of the adapter's random pack."""
    from likeness.faces import load_pack

    analysis = replace(load_pack(pack), detector=works_now.detector)
    found = run("FindFaces", face_analysis=analysis, image=astronaut)[0]
    person = run("IdentityFromPhotos", faces=found, name="Eileen")[0]
    known = run("IdentityFromPhotos", faces=run("FindFaces", face_analysis=load_pack(pack), image=astronaut)[0])[0]
    assert person.recogniser == known.recogniser == "buffalo_l"
    assert float((person.keypoints - known.keypoints).abs().max()) < 8, "where MTCNN has seen them"
