"""The miniature portrait world: people who are themselves in every image, and images about which all is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces.parsing import Part
from likeness.miniature.drawing import renderer
from likeness.miniature.drawing.people import SPLITS, draw_people, split_people
from likeness.miniature.drawing.shots import Style, draw_shots

SIZE = 64


@pytest.fixture(scope="module")
def pictures():
    return renderer.render(split_people("test", 48), draw_shots(range(48)), SIZE)


def test_the_same_seeds_draw_the_same_people_and_the_same_pictures(pictures):
    again = renderer.render(split_people("test", 48), draw_shots(range(48)), SIZE)
    assert torch.equal(pictures.rgb, again.rgb)
    assert draw_people([7]).person(0) == draw_people([7]).person(0) != draw_people([8]).person(0)


def test_nobody_is_drawn_for_two_purposes():
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert one.stop <= other.start or other.stop <= one.start


def test_people_differ_from_each_other_more_than_a_person_between_two_pictures():
    """The same shot of different people against different light and gaze of one: pixels of the face."""
    shots = draw_shots(np.zeros(12, int))
    people = renderer.render(split_people("test", 12), shots, SIZE)
    same = renderer.render(draw_people(np.full(12, SPLITS["test"].start)), shots, SIZE)
    assert torch.equal(same.rgb[0], same.rgb[-1])
    distances = [float((a - b).abs().mean()) for a, b in itertools.combinations(people.rgb, 2)]
    assert min(distances) > 0.01


@pytest.mark.parametrize("size", [64, 96, 128])
def test_pictures_of_every_size_are_whole_and_within_range(size):
    made = renderer.render(draw_people(range(3)), draw_shots(range(3)), size)
    assert made.rgb.shape == (3, size, size, 3)
    assert made.rgb.isfinite().all() and made.rgb.min() >= 0 and made.rgb.max() <= 1


@pytest.mark.parametrize("size", [32, 129, 512])
def test_other_sizes_are_refused_in_words(size):
    with pytest.raises(LikenessError, match=r"64 to 128 pixels"):
        renderer.render(draw_people(range(1)), draw_shots(range(1)), size)


def test_a_larger_picture_shows_the_same(pictures):
    """Shrunk to half, an image twice as large is the same but for its edges."""
    large = renderer.render(pictures.people, pictures.shots, 2 * SIZE).rgb.movedim(-1, 1)
    shrunk = torch.nn.functional.avg_pool2d(large, 2).movedim(1, -1)
    plain = torch.as_tensor(pictures.shots.style == Style.PHOTO)
    assert float((shrunk - pictures.rgb)[plain].abs().mean()) < 0.02


def test_keypoints_and_boxes_lie_where_the_parts_are(pictures):
    """Eyes on eyes (or on glasses, lids and skin around them), nose on the nose, everything inside the box."""
    around_eyes = {Part.LEFT_EYE, Part.RIGHT_EYE, Part.GLASSES, Part.SKIN}
    hits = 0
    for parts, points, box in zip(pictures.parts, pictures.keypoints, pictures.boxes, strict=True):
        assert (points >= box[:2]).all() and (points <= box[2:]).all()
        eyes = [Part(int(parts[int(y.round()), int(x.round())])) for x, y in points[:2]]
        assert set(eyes) <= around_eyes | {Part.HAIR, Part.HAT}
        hits += sum(eye in (Part.LEFT_EYE, Part.RIGHT_EYE, Part.GLASSES) for eye in eyes)
    assert hits > 0.8 * 2 * len(pictures)
    assert (pictures.keypoints[:, 0, 0] < pictures.keypoints[:, 1, 0]).all()


def test_the_face_is_part_of_the_person_and_the_person_is_not_everything(pictures):
    assert (pictures.face <= pictures.person + 1e-4).all()
    share = pictures.person.mean(dim=(1, 2))
    assert (share > 0.1).all() and (share < 0.95).all()
    assert (pictures.face.mean(dim=(1, 2)) > 0.03).all()


def test_close_ups_paint_what_the_whole_frame_would(monkeypatch):
    """Features are painted in a window around them; a reach beyond the frame must not change a pixel."""
    people, shots = split_people("test", 16, start=100), draw_shots(range(100, 116))
    quick = renderer.render(people, shots, SIZE)
    original = renderer.close_up

    def whole_frame(canvas, figure, where, reach_u, reach_v, chosen=None):
        return original(canvas, figure, where, 9.0, 9.0, chosen)

    monkeypatch.setattr(renderer, "close_up", whole_frame)
    slow = renderer.render(people, shots, SIZE)
    assert torch.allclose(quick.rgb, slow.rgb, atol=1e-4)
    assert torch.equal(quick.parts, slow.parts)


def test_styles_change_the_picture_and_not_what_is_known_of_it():
    people = split_people("test", len(Style))
    shots = draw_shots(np.zeros(len(Style), int))
    people = people[np.zeros(len(Style), int)]
    shots.style[:] = [style.value for style in Style]
    made = renderer.render(people, shots, SIZE)
    for a, b in itertools.combinations(range(len(Style)), 2):
        assert float((made.rgb[a] - made.rgb[b]).abs().mean()) > 0.02
        assert torch.equal(made.parts[a], made.parts[b])
        assert torch.equal(made.keypoints[a], made.keypoints[b])
