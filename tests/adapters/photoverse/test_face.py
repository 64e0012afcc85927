"""What PhotoVerse shows CLIP: the face box times 1.3, black around the photo and around the face."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.small_world import person

from likeness.adapters.photoverse.face import FaceMask, face_crops, small_faces
from likeness.errors import LikenessError
from likeness.faces.align import head_crop
from likeness.faces.identity import Identity
from likeness.faces.parsing import Part


def of_photo(photo: np.ndarray, box: tuple[int, int, int, int]) -> Identity:
    """One person of one photo, with the crops that Identity from Photos makes."""
    boxes = torch.tensor([box], dtype=torch.float32)
    head = torch.from_numpy(head_crop(photo, np.array(box, np.float32)))[None]
    base = person(photos=1)
    return Identity(
        "Ada", None, torch.zeros(1, 0), torch.ones(1), base.aligned, base.portraits, head, base.keypoints, boxes,
        torch.tensor([photo.shape[:2]]),
    )  # fmt: skip


def test_the_square_is_the_box_times_the_scale():
    photo = np.zeros((400, 400, 3), np.uint8)
    photo[150:250, 150:250] = 255  # exactly the face box
    [crop] = face_crops(of_photo(photo, (150, 150, 250, 250)))
    white = (crop[..., 0] > 0.5).float().mean().sqrt()
    assert crop.shape[0] == crop.shape[1] and abs(float(white) - 1 / 1.3) < 0.01


@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_a_tall_box_gives_a_square_of_its_longer_side(scale):
    photo = np.zeros((600, 600, 3), np.uint8)
    photo[200:400, 250:350] = 255
    [crop] = face_crops(of_photo(photo, (250, 200, 350, 400)), scale)
    rows = (crop[..., 0].amax(1) > 0.5).float().mean()
    assert abs(float(rows) - 1 / scale) < 0.01


def test_what_lies_beyond_the_photo_is_black():
    """An identity's own crop repeats the edge there, as other encoders want it."""
    photo = np.full((100, 100, 3), 200, np.uint8)
    who = of_photo(photo, (60, 30, 100, 70))  # the face ends where the photo does
    [crop] = face_crops(who)
    outside = crop[..., 0].mean(0) < 0.01
    assert bool((who.heads == 200).all())
    assert 0.10 < float(outside.float().mean()) < 0.13  # 0.15 / 1.3
    assert outside[-1] and not outside[: len(outside) // 2].any()


def test_the_mask_keeps_face_hair_and_glasses_alone():
    photo = np.full((400, 400, 3), 200, np.uint8)
    parts = [Part.SKIN, Part.HAIR, Part.GLASSES, Part.LEFT_EAR, Part.HAT, Part.NECK, Part.CLOTH, Part.EARRING]

    def parse(crops: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor([int(part) for part in parts], dtype=torch.uint8).repeat_interleave(512 // len(parts))
        return rows[None, :, None].expand(len(crops), 512, 512)

    [crop] = face_crops(of_photo(photo, (150, 150, 250, 250)), 2.0, parse)
    seen = [bool(crop[512 * i // 8 + 30, 256, 0] > 0.5) for i in range(len(parts))]
    assert seen == [True] * 4 + [False] * 4


def test_a_photo_in_which_no_face_is_found_is_named():
    who = person(photos=2)
    labels = torch.full((2, 512, 512), int(Part.SKIN))
    labels[1] = int(Part.BACKGROUND)
    with pytest.raises(LikenessError, match=r"photo 2 of 'Ada'.*PhotoVerse Options\.$"):
        face_crops(who, parse=lambda crops: labels)
    assert len(face_crops(who)) == 2 and FaceMask.NONE.value


def test_small_faces_are_counted_in_pixels_of_their_photo():
    who = person(photos=2)
    who.boxes[:] = torch.tensor([[10.0, 10.0, 50.0, 60.0], [0.0, 0.0, 64.0, 20.0]])
    assert small_faces(who) == [(1, 50)]
