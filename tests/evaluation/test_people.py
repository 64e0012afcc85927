from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from likeness.evaluation.people import (
    NOBODY,
    blend,
    confusion,
    leak_attention,
    leak_pixels,
    match,
    wanted,
    wanted_of,
)

EYE = torch.eye(4)


def _mixed(own: int, other: int, share: float) -> torch.Tensor:
    return (1 - share) * EYE[own] + share * EYE[other]


def test_swapped_faces_find_their_people():
    matching = match(EYE[[1, 0]], EYE[:2])
    assert matching.face_of == (1, 0) and matching.cosines == (1, 1) and matching.id_min == 1


def test_the_assignment_is_the_best_of_all():
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        faces, people = torch.randn(2, 4, 8, generator=random)
        alike = torch.nn.functional.normalize(faces, dim=1) @ torch.nn.functional.normalize(people, dim=1).T
        best = max(
            sum(float(alike[face, n]) for n, face in enumerate(order)) for order in itertools.permutations(range(4))
        )
        assert sum(match(faces, people).cosines) == pytest.approx(best, abs=1e-5)


def test_a_missing_person_counts_as_0_in_the_worst():
    matching = match(EYE[:1], EYE[:2])
    assert matching.face_of == (0, NOBODY) and matching.id_min == 0
    nobody = match(torch.zeros(0, 4), EYE[:2])
    assert nobody.face_of == (NOBODY, NOBODY) and nobody.id_min == 0
    assert np.isnan(confusion(torch.zeros(0, 4), EYE[:2])) and np.isnan(blend(torch.zeros(0, 4), EYE[:2]))


def test_faces_that_are_nobodys_stay_unmatched():
    matching = match(EYE[[3, 1, 0]], EYE[:2])
    assert matching.face_of == (2, 1)


def test_numbers_that_are_none_never_match_first():
    faces = torch.stack([torch.full((4,), torch.nan), EYE[0]])
    assert match(faces, EYE[:1]).face_of == (1,)


def test_pure_faces_are_not_confused_and_a_wrong_one_is():
    assert confusion(EYE[:2], EYE[:2]) == 0
    wrong = torch.stack([EYE[0], _mixed(1, 0, 0.75)])
    right, other = 0.25 / np.hypot(0.25, 0.75), 0.75 / np.hypot(0.25, 0.75)
    assert confusion(wrong, EYE[:2]) == pytest.approx((other - right) / 2, abs=1e-6)
    assert np.isnan(confusion(EYE[:1], EYE[:1])), "one person cannot be confused"


def test_blended_faces_are_nearer_to_the_others_than_people_are():
    assert blend(EYE[:2], EYE[:2]) == pytest.approx(0)
    mixed = torch.stack([_mixed(0, 1, 0.5), _mixed(1, 0, 0.5)])
    assert blend(mixed, EYE[:2]) == pytest.approx(np.sqrt(0.5), abs=1e-6)
    alike = torch.stack([EYE[0], _mixed(0, 1, 0.5)])  # people who look alike are no blend
    assert blend(alike, alike) == pytest.approx(0, abs=1e-6)


def test_pixels_leak_where_the_region_is_left():
    without = torch.zeros(1, 8, 8, 3)
    region = torch.zeros(8, 8)
    region[:, :4] = 1
    inside, everywhere = without.clone(), without + 0.3
    inside[:, :, :4] = 0.3
    assert float(leak_pixels(inside, without, region)) == 0
    assert float(leak_pixels(everywhere, without, region)) == pytest.approx(1)
    assert torch.isnan(leak_pixels(without, without, region)).all()
    assert torch.isnan(leak_pixels(everywhere, without, torch.ones(8, 8))).all(), "there is no outside"


def test_attention_leaks_by_its_mass_outside():
    regions = torch.zeros(2, 8, 8)
    regions[0, :, :4] = regions[1, :, 4:] = 1
    heat = torch.zeros(2, 4, 4)
    heat[0, :, 0] = 1  # inside
    heat[1, :, 1] = 1  # in the other one's half
    np.testing.assert_allclose(leak_attention([heat], regions), [0, 1])
    np.testing.assert_allclose(leak_attention([heat, torch.ones(2, 2, 2)], regions, [1, 3]), [0.375, 0.625])
    assert torch.isnan(leak_attention([torch.zeros(2, 4, 4)], regions)).all()


def test_how_far_the_right_face_is_ahead_tells_mixing_from_likeness():
    right = wanted(EYE[:2], EYE[:2])
    assert right.id_sim == (1, 1) and right.id_conf == (1, 1) and right.found == 2 and right.extra == 0
    assert right.reward == pytest.approx(0.5) and right.matched == 1 and right.unmatched == 0
    both_the_first = wanted(EYE[[0, 0]], EYE[:2])
    assert both_the_first.id_conf == (0, 0) and both_the_first.reward == 0


def test_one_face_has_no_confusion_and_nobody_has_no_likeness():
    alone = wanted(EYE[:1], EYE[:2])
    assert alone.id_conf == () and alone.found == 1 and alone.extra == -1 and alone.reward == pytest.approx(0.5)
    nobody = wanted(torch.zeros(0, 4), EYE[:2])
    assert nobody.id_sim == (0, 0) and nobody.id_conf == () and nobody.reward == 0 and nobody.found == 0


def test_a_face_that_is_unlike_everybody_is_no_lead():
    assert wanted_of(np.array([[-0.1, -0.5]])).id_conf == (0.0,)
    assert wanted_of(np.array([[0.5, -0.5]])).id_conf == (1.0,)


def test_who_looks_like_whom_is_a_table_of_people_and_their_faces():
    faces = torch.stack([_mixed(1, 0, 0.5), EYE[0]])
    crossed = np.array(wanted(faces, EYE[:2]).crossed)
    np.testing.assert_allclose(crossed, [[1, 0.5**0.5], [0, 0.5**0.5]], atol=1e-6)
    alone = np.array(wanted(EYE[:1], EYE[:2]).crossed)
    assert alone[:, 0].tolist() == [1, 0] and np.isnan(alone[:, 1]).all()
