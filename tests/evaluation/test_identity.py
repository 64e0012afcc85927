"""Scores of a judge that reads colours: red, green and blue people are 90 degrees apart or more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.evaluation.identity import (
    TYPICAL_GENUINE,
    Calibration,
    References,
    calibrate,
    check_judge,
    percent,
    references_of,
    score,
    score_sight,
    see,
)
from likeness.faces import FaceAnalysis

RED, GREEN, BLUE = (1.0, 0.25, 0.25), (0.25, 1.0, 0.25), (0.25, 0.25, 1.0)
PINK, BLACK = (1.0, 0.25, 0.5), (0.0, 0.0, 0.0)


def _cosine(a, b):
    a, b = (np.round(np.array(colour) * 255 - 1e-3) - 127.5 for colour in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def ann(identify):
    return identify("ann", RED)


@pytest.fixture(scope="module")
def others(identify):
    return [identify("bob", GREEN), identify("cleo", BLUE)]


def test_the_same_person_scores_1_and_a_stranger_less(colours, ann, judge):
    scores = score(colours.of(RED, PINK, GREEN), ann, judge)
    expected = [1, _cosine(PINK, RED), _cosine(GREEN, RED)]
    np.testing.assert_allclose(scores.cosines, expected, atol=0.02)
    assert scores.id == pytest.approx(np.mean(expected), abs=0.02) and scores.detected == 1
    assert scores.cosines[2] < 0, "negative values are kept"


def test_a_missing_face_counts_as_0_and_is_told_apart(colours, ann, judge):
    scores = score(colours.of(RED, BLACK), ann, judge)
    assert scores.detected == 0.5 and scores.id == pytest.approx(0.5, abs=0.01)
    assert scores.percents[1] == 0 and scores.sight.reasons == ("", "no face") and scores.sight.faces[1] is None


def test_a_missing_face_is_never_the_right_person(colours, ann, others, judge):
    scores = score(colours.of(BLACK), ann, judge, others)
    assert scores.gallery == 3 and scores.ranks.tolist() == [3] and scores.margins.tolist() == [0]
    assert scores.rank1 == 0
    assert not scores.accepted(-1.0).any()


def test_ranks_and_margins_tell_people_apart(colours, ann, others, judge):
    scores = score(colours.of(RED, GREEN, BLUE), ann, judge, others)
    assert scores.ranks.tolist()[0] == 1 and all(rank >= 2 for rank in scores.ranks.tolist()[1:])
    assert scores.rank1 == pytest.approx(1 / 3)
    assert scores.margins[0] > 1 and scores.margins[1] < 0
    assert torch.isnan(score(colours.of(RED), ann, judge).margins).all(), "nobody to compare with"


def test_an_average_face_scores_on_likeness_but_not_on_margin(colours, identify, judge):
    people = [identify(name, colour) for name, colour in (("a", (1, 0.6, 0.5)), ("b", (0.6, 1, 0.5)))]
    average = colours.of((0.8, 0.8, 0.5))
    scores = score(average, people[0], judge, people[1:])
    assert scores.id > 0.8 and abs(float(scores.margins[0])) < 0.01


def test_the_largest_face_is_judged_not_the_most_similar(colours, ann, judge):
    scores = score(colours.pair(GREEN, RED), ann, judge)
    assert scores.id == pytest.approx(_cosine(GREEN, RED), abs=0.02)


def test_a_region_says_whose_face_is_meant(colours, ann, judge):
    right = torch.zeros(1, 16, 16)
    right[:, :, 8:] = 1
    assert score(colours.pair(GREEN, RED), ann, judge, regions=right).id == pytest.approx(1, abs=0.02)
    missed = score(colours.of(RED), ann, judge, regions=torch.zeros(1, 16, 16))
    assert missed.id == 0 and missed.sight.reasons == ("no face in the region",)


@pytest.mark.parametrize("side", [1, 8, 20])
def test_tiny_pictures_and_pictures_of_nothing_are_results_not_errors(ann, judge, side):
    images = [torch.full((side, side, 3), torch.nan), torch.zeros(side, side, 3), torch.rand(side, side, 1)]
    scores = score(images, ann, judge)
    assert len(scores) == 3 and scores.sight.reasons[0].startswith("not an image")
    assert torch.isfinite(scores.cosines).all()


def test_no_pictures_have_no_score(ann, judge):
    scores = score([], ann, judge)
    assert len(scores) == 0 and np.isnan(scores.id) and np.isnan(scores.detected)


def test_pictures_may_differ_in_size(colours, ann, judge):
    wide = colours.of(RED)[0].repeat(2, 3, 1)
    scores = score([colours.of(RED)[0], wide], ann, judge)
    np.testing.assert_allclose(scores.cosines, [1, 1], atol=0.02)
    assert scores.sight.faces[1] is not None and scores.sight.faces[1].photo == 1


# --- judges


def test_a_judge_of_its_own_work_is_refused_unless_asked_for(colours, ann, other_judge):
    with pytest.raises(LikenessError, match=r"conditioner is the recogniser that made the identity.*choose another"):
        score(colours.of(RED), ann, other_judge)
    scores = score(colours.of(RED), ann, other_judge, allow_same_recogniser=True)
    assert "judge equals conditioner" in scores.warnings[0]


def test_related_networks_are_named(judge):
    from dataclasses import replace

    aura = replace(judge, recogniser=type(judge.recogniser)("auraface"))
    assert "closely related to antelopev2" in check_judge(aura, ["antelopev2", None])[0]
    assert check_judge(aura, ["buffalo_l"]) == ()


def test_a_detector_alone_is_no_judge(colours, ann, judge):
    with pytest.raises(LikenessError, match="has no recogniser"):
        score(colours.of(RED), ann, FaceAnalysis("boxes", judge.detector))


def test_the_references_are_seen_by_the_judge_not_by_the_conditioner(identify, judge, other_judge):
    from dataclasses import replace

    ann = identify("ann", RED, PINK)
    told = replace(ann, embeddings=torch.ones(2, 512))  # as a conditioner of another size would
    seen = references_of(told, judge).embeddings
    assert seen.shape == (2, 3)
    np.testing.assert_allclose((seen @ references_of(ann, other_judge).embeddings.T).diagonal(), [1, 1], atol=1e-3)


def test_references_without_keypoints_are_searched_in_the_heads(identify, judge):
    from dataclasses import replace

    ann = identify("ann", RED)
    boxes_only = replace(ann, aligned=ann.aligned[:0], keypoints=ann.keypoints[:0], portraits=ann.portraits[:0])
    np.testing.assert_allclose(references_of(boxes_only, judge).mean, references_of(ann, judge).mean, atol=0.02)
    nobody = replace(boxes_only, heads=torch.zeros_like(ann.heads))
    with pytest.raises(LikenessError, match="finds no face in the photos of the identity 'ann'"):
        references_of(nobody, judge)


# --- percent, calibration


def _references(*angles: float) -> References:
    radians = torch.tensor(angles).deg2rad()
    return References(torch.stack([radians.cos(), radians.sin()], 1), torch.ones(len(angles)))


def test_a_hundred_percent_is_how_alike_the_persons_own_photos_are():
    photos = _references(0, 60, -60)
    expected = np.mean([np.cos(np.deg2rad(60)), np.cos(np.deg2rad(60)), np.cos(np.deg2rad(120))])
    assert photos.level() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(percent(torch.tensor([-0.2, 0.25, 0.5, 2.0]), 0.5), [0, 50, 100, 120])


def test_with_too_few_photos_the_judge_says_what_is_usual(judge, colours):
    calibration = calibrate(judge, {"a": colours.of(RED, PINK), "b": colours.of(GREEN, GREEN)})
    assert _references(0, 60).level() == TYPICAL_GENUINE
    assert _references(0, 60).level(calibration) == pytest.approx(calibration.genuine)
    assert _references(0, 120, 240).level() == TYPICAL_GENUINE, "photos that disagree give no scale"


def test_a_judge_is_measured_on_people(judge, colours):
    people = {"a": colours.of(RED, PINK, BLACK), "b": colours.of(GREEN, GREEN), "c": colours.of(BLUE)}
    calibration = calibrate(judge, people)
    assert (calibration.people, calibration.photos, calibration.missing) == (3, 6, 1)
    assert calibration.auc == 1 and calibration.eer == 0
    assert calibration.genuine == pytest.approx(np.mean([_cosine(RED, PINK), 1]), abs=0.02)
    threshold = calibration.threshold(1e-3)
    assert max(_cosine(RED, GREEN), _cosine(PINK, BLUE)) < threshold + 0.02 < _cosine(RED, PINK)
    with pytest.raises(LikenessError, match=r"choose one of 0\.1, 0\.01, 0\.001"):
        calibration.threshold(0.5)


def test_measuring_a_judge_needs_pairs(judge, colours):
    with pytest.raises(LikenessError, match="two people and two photos"):
        calibrate(judge, {"a": colours.of(RED, RED)})


def test_a_calibration_comes_back_from_its_file(judge, colours, tmp_path):
    calibration = calibrate(judge, {"a": colours.of(RED, PINK), "b": colours.of(GREEN)})
    path = calibration.save(tmp_path / "judge.json")
    assert Calibration.load(path) == calibration
    with pytest.raises(LikenessError, match="exists already"):
        calibration.save(path)
    path.write_text("{}")
    with pytest.raises(LikenessError, match="cannot be read"):
        Calibration.load(path)


def test_shuffled_identities_have_no_margin(judge):
    random = np.random.default_rng(0)
    means = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((40, 16))).float(), dim=1)
    sight = see([], judge)
    margins = []
    for picture in range(40):
        wrong = (picture + 1 + int(random.integers(39))) % 40
        shown = type(sight)((object(),), means[picture : picture + 1], ("",))  # type: ignore[arg-type]
        others = [mean for number, mean in enumerate(means) if number != wrong]
        margins.append(float(score_sight(shown, References(means[[wrong]], torch.ones(1)), others).margins))
    assert abs(np.mean(margins)) < 0.15
