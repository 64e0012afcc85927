"""Combine Identities: blends, and several files of one person."""

from __future__ import annotations

import pytest
import torch
from helpers.by_colour import BLUE, found

from likeness.errors import LikenessError
from likeness.faces import Identity


@pytest.fixture
def bob(run) -> Identity:
    return run("IdentityFromPhotos", faces=found(run, BLUE), name="Bob")[0]


def test_a_blend_lies_between_the_people(run, ann, bob):
    def share_of_bob(**weights):
        (both,) = run("CombineIdentities", identity_1=ann, identity_2=bob, mode="blend", **weights)
        return float(both.mean_embedding() @ bob.mean_embedding())

    shares = [share_of_bob(weight_1=weight) for weight in (4.0, 1.0, 0.25)]
    assert shares == sorted(shares) and shares[1] == pytest.approx(0.5**0.5, abs=1e-3)


def test_the_same_person_counts_every_photo_alike(run, ann, bob):
    (both,) = run("CombineIdentities", identity_1=ann, identity_3=bob, name="Cleo")
    assert both.name == "Cleo" and len(both) == 3 and both.weights.tolist() == [1, 1, 1]
    assert run("CombineIdentities", identity_1=ann, identity_4=bob)[0].name == "Ann + Bob"


def test_weight_0_leaves_an_identity_out(run, ann, bob):
    (alone,) = run("CombineIdentities", identity_1=ann, identity_2=bob, weight_2=0.0, mode="blend")
    assert len(alone) == len(ann) and torch.allclose(alone.mean_embedding(), ann.mean_embedding())


def test_what_cannot_be_combined_is_explained(run, mtcnn, astronaut, ann):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=astronaut)
    nameless, *_ = run("IdentityFromPhotos", faces=faces)
    with pytest.raises(LikenessError, match="different recognisers"):
        run("CombineIdentities", identity_1=ann, identity_2=nameless)
    with pytest.raises(LikenessError, match=r"identity_3'? holds a str"):
        run("CombineIdentities", identity_1=ann, identity_3="bob")
    with pytest.raises(LikenessError, match="one must be above zero"):
        run("CombineIdentities", identity_1=ann, weight_1=0.0)
    with pytest.raises(LikenessError, match="mode"):
        run("CombineIdentities", identity_1=ann, mode="average")
