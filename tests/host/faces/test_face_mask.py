"""Face Mask: sizes, people, files, and what is said when something is missing."""

from __future__ import annotations

import pytest
import torch
from helpers.by_colour import BLACK, BUILT_IN, BY_COLOUR, RED, coloured

from likeness.errors import LikenessError
from likeness.faces.parsing import BiSeNet


@pytest.fixture
def faces(run, mtcnn, six_people):
    return run("FindFaces", face_analysis=mtcnn, image=six_people)[0]


@pytest.fixture
def parser(places):
    """A small network with random weights, under the published name."""
    path = places.models / "facexlib" / "parsing_bisenet.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(BiSeNet(4, 19).state_dict(), path)
    return path.name


def test_masks_have_the_photos_size_and_lie_on_the_faces(run, faces, six_people):
    mask, preview = run("FaceMask", faces=faces)
    assert mask.shape == six_people.shape[:3] and preview.shape == six_people.shape
    x1, y1, x2, y2 = (int(value) for value in faces.chosen[0].box)
    assert mask[0, y1:y2, x1:x2].mean() > 0.6 and mask.mean() < 0.2
    (every, _), (each, shown) = (
        run("FaceMask", faces=faces, people=p) for p in ("all faces together", "each face apart")
    )
    assert len(each) == len(faces.all_faces[0]) == len(shown) == 6
    assert torch.equal(each.amax(0), every[0])


def test_regions_add_up_and_edges_are_grown_and_feathered(run, faces):
    eyes, both = (run("FaceMask", faces=faces, region="eyes", and_also=text)[0] for text in ("", " Mouth, nose"))
    assert both.sum() > 1.5 * eyes.sum() and (both >= eyes).all()
    larger = run("FaceMask", faces=faces, region="eyes", grow=4)[0]
    soft = run("FaceMask", faces=faces, region="eyes", feather=6)[0]
    assert larger.sum() > eyes.sum() and ((soft > 0) & (soft < 1)).any()


def test_a_parser_is_taken_from_the_models_folder(run, faces, parser, nodes):
    mask, _ = run("FaceMask", faces=faces, parser=parser, region="non-face")
    assert mask.min() >= 0 and mask.max() == 1
    hair, _ = run("FaceMask", faces=faces, parser=parser, region="hair")  # keypoints could not show it
    assert hair.shape == mask.shape
    assert nodes["LikenessFaceMask"].validate_inputs(parser=parser) is True


def test_skipped_photos_have_an_empty_mask_and_their_surroundings_a_full_one(run):
    found = run("FindFaces", face_analysis=BY_COLOUR, image=coloured(BLACK, RED), if_none="skip photo")[0]
    mask, _ = run("FaceMask", faces=found)
    rest, _ = run("FaceMask", faces=found, region="background")
    assert mask.shape == (2, 64, 60) and not mask[0].any() and mask[1].any() and rest[0].all()
    assert len(run("FaceMask", faces=found, people="each face apart")[0]) == 1


def test_what_is_missing_or_wrong_is_said(run, faces, nodes, places, astronaut):
    with pytest.raises(LikenessError, match="do not show the region 'hair'"):
        run("FaceMask", faces=faces, region="hair")
    with pytest.raises(LikenessError, match="'tail' is not a choice for and_also: choose one of face,"):
        run("FaceMask", faces=faces, and_also="eyes, tail")
    said = nodes["LikenessFaceMask"].validate_inputs(parser="parsing_gone.pth")
    assert "parsing_gone.pth" in said and "facexlib" in said
    (boxes_only,) = run("LoadFaceAnalysis", model=BUILT_IN[3], provider="auto")
    found = run("FindFaces", face_analysis=boxes_only, image=astronaut)[0]
    assert run("FaceMask", faces=found)[0].any()
    with pytest.raises(LikenessError, match="A face has no keypoints"):
        run("FaceMask", faces=found, region="eyes")
