"""People in photos: whose mask is taken, what is refused, and torchvision's network itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces.people import PeopleInPhoto, PersonSegmenter, load_segmenter


def masks(*boxes: tuple[int, int, int, int]) -> PeopleInPhoto:
    found = np.zeros((len(boxes), 60, 80), bool)
    for mask, (x1, y1, x2, y2) in zip(found, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return PeopleInPhoto(found, np.array(boxes, np.float32).reshape(-1, 4), np.linspace(1, 0.6, len(boxes)))


def test_the_largest_person_is_taken_and_the_one_with_the_face_where_it_is_known():
    people = masks((0, 0, 20, 50), (30, 0, 70, 60))
    assert people.of_face(None) is not None
    assert np.array_equal(people.of_face(None), people.masks[1])
    assert np.array_equal(people.of_face(np.array([5, 5, 15, 15])), people.masks[0])
    assert np.array_equal(people.of_face(np.array([75, 5, 79, 9])), people.masks[1])
    assert np.array_equal(people.of_face(np.array([900, 900, 950, 950])), people.masks[1])


def test_nobody_is_nobody():
    assert len(masks()) == 0 and masks().of_face(None) is None


class Network(torch.nn.Module):
    """Finds a sure person, an unsure one, and a sure bicycle."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        [picture] = pictures
        assert picture.shape == (3, 60, 80) and picture.min() >= 0 and picture.max() <= 1
        shown = torch.full((3, 1, 60, 80), 0.9)
        shown[0, 0, :, 40:] = 0.4
        return [
            {
                "labels": torch.tensor([1, 1, 2]),
                "scores": torch.tensor([0.9, 0.3, 0.9]),
                "boxes": torch.zeros(3, 4),
                "masks": shown,
            }
        ]


def test_only_sure_people_count_and_their_masks_are_cut_at_the_half():
    people = PersonSegmenter(Network(), "stub").people(np.zeros((60, 80, 3), np.uint8))
    assert len(people) == 1
    assert people.masks[0, :, :40].all() and not people.masks[0, :, 40:].any()


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(LikenessError, match="not torchvision's Mask R-CNN"):
        load_segmenter(path)


def test_without_torchvision_the_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(LikenessError, match="needs torchvision") as error:
        load_segmenter(tmp_path / "any.pth")
    assert "connect a mask" in str(error.value)


@pytest.mark.slow
def test_torchvisions_own_file_is_read_and_finds_whom_it_is_made_to_find(tmp_path):
    """Every region is made a person whose mask fills it: what is held is the way there and back."""
    from helpers.mask_rcnn import write

    people = load_segmenter(write(tmp_path / "mask_rcnn.pth")).people(np.full((120, 80, 3), 128, np.uint8))
    assert len(people) and people.masks.shape[1:] == (120, 80)
    mask = people.of_face(None)
    assert mask is not None and mask.mean() > 0.05
