from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.evaluation.plots import BAD
from likeness.evaluation.portraits import (
    WITH,
    Verdict,
    joint_verdict,
    judge_pictures,
    portrait_sheet,
    sentence,
    to_records,
    verdict_markdown,
)
from likeness.evaluation.report import report

PHOTOS = Path(__file__).parents[2] / "build" / "photos"
RED, GREEN, BLUE = (1.0, 0.25, 0.25), (0.25, 1.0, 0.25), (0.25, 0.25, 1.0)
PINK, BLACK = (1.0, 0.25, 0.5), (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def ann(identify):
    return identify("ann", RED, RED, PINK)


@pytest.fixture(scope="module")
def bob(identify):
    return identify("bob", GREEN)


@pytest.fixture(scope="module")
def verdict(colours, ann, judge):
    return judge_pictures(colours.of(GREEN, RED, BLACK, PINK), [ann], judge)


def _verdict(*percents: float) -> Verdict:
    return Verdict(("ann",), percents, percents, tuple("" for _ in percents), "sface", "Apache-2.0")


def test_pictures_are_ordered_by_likeness_and_a_missing_face_is_0_percent(verdict):
    assert set(verdict.order[:2]) == {1, 3} and verdict.percents[1] > 90
    assert verdict.percents[2] == 0 and verdict.reasons == ("", "", "no face", "")
    assert verdict.mean == pytest.approx(np.mean(verdict.percents))


@pytest.mark.parametrize(
    ("count", "threshold", "kept"), [(1, 0, [2]), (0, 50, [2, 1]), (1, 95, []), (9, 0, [2, 1, 0]), (0, 0, [2, 1, 0])]
)
def test_the_best_are_some_of_those_that_reach_the_threshold(count, threshold, kept):
    assert _verdict(10, 50, 90).best(count, threshold) == kept


def test_equal_pictures_keep_their_order():
    assert _verdict(50, 50, 50).order == [0, 1, 2]


def test_of_several_people_the_least_well_kept_one_counts(colours, ann, bob, judge):
    both, twins = colours.pair(RED, GREEN), colours.pair(RED, PINK)
    assert judge_pictures(both, [ann, bob], judge).percents[0] > 90
    assert judge_pictures(both, [bob, ann], judge).percents[0] > 90, "who stands where does not matter"
    assert judge_pictures(twins, [ann, bob], judge).percents[0] == 0
    alone = judge_pictures(colours.of(RED), [ann, bob], judge)
    assert alone.percents == (0.0,) and alone.reasons == ("1 of 2 faces",)
    assert judge_pictures(torch.full((1, 64, 64, 3), torch.nan), [ann, bob], judge).percents == (0.0,)


# --- photos that were not given


OTHER_RED, OTHER_GREEN = (1.0, 0.6, 0.25), (0.25, 1.0, 0.6)  # the same people on another day


def test_photos_that_were_not_given_tell_likeness_from_copying(colours, identify, judge):
    ann, between = identify("ann", RED), (1.0, 0.45, 0.25)
    verdict = judge_pictures(colours.of(RED, OTHER_RED, between, BLACK), [ann], judge, held_out=colours.of(OTHER_RED))
    given, other, middle, nobody = verdict.multi
    assert given.copy_paste == pytest.approx(1, abs=1e-2) and given.sim_ref > 0.999 > given.sim_gt
    assert other.copy_paste == pytest.approx(-1, abs=1e-2) and other.sim_gt > 0.999 > other.sim_ref
    assert -0.5 < middle.copy_paste < 0.5
    assert nobody.sim_gt == nobody.sim_ref == 0 and np.isnan(nobody.copy_paste) and np.isnan(nobody.blending)
    assert verdict.copies[:3] == pytest.approx([one.copy_paste for one in verdict.multi[:3]]), "one photo of each kind"
    words = verdict_markdown("Report", verdict)
    assert "As multi-identity benchmarks count it, by by colour: Sim(GT)" in words and "blending" not in words
    assert "| image | likeness | cosine | Sim(GT) | Sim(Ref) | copy-paste | copy | remark |" in words
    assert "| 3 | 0 % | 0.00 | 0.00 | 0.00 | – | – | no face |" in words
    measures = to_records(verdict, WITH)[0].measures
    assert measures["copy_paste"] == given.copy_paste and measures["id_other"] == given.sim_gt


def test_several_people_get_a_table_of_who_looks_like_whom(colours, ann, bob, judge):
    """Both there, then ann alone: the second image lacks a person, which the words say."""
    both = judge_pictures(colours.pair(RED, GREEN), [ann, bob], judge)
    [crowd] = both.crowds
    assert crowd.found == 2 and crowd.extra == 0 and crowd.id_conf[1] > 0.1
    words = verdict_markdown("x", both)
    assert "2 of 2 people have a face" in words and "larger is less mixing" in words
    table = [line for line in words.splitlines() if line.startswith(("| ann", "| bob", "| cosine to"))]
    assert table[0] == "| cosine to | the face of ann | the face of bob |" and len(table) == 3
    own, other = (float(cell) for cell in table[1].split("|")[2:4])
    assert own > 0.9 > other
    alone = judge_pictures(colours.of(RED), [ann, bob], judge)
    assert "1 of 2 people have a face" in verdict_markdown("x", alone)
    [record] = to_records(both, "method")
    assert record.value("people_found") == 2 and record.value("matching_reward") == pytest.approx(crowd.reward)
    assert judge_pictures(colours.of(RED), [ann], judge).crowds == ()


def test_of_several_people_it_counts_as_the_benchmark_does(colours, ann, bob, judge):
    """Every photo may show one of them or both; `multi_id` gives the figures of faces, targets and given photos."""
    both = colours.pair(RED, OTHER_GREEN)
    one = judge_pictures(both, [ann, bob], judge, held_out=colours.of(OTHER_GREEN, OTHER_RED))
    together = judge_pictures(both, [ann, bob], judge, held_out=colours.pair(OTHER_RED, OTHER_GREEN))
    [figures], [same] = one.multi, together.multi
    assert figures == same and -0.5 < figures.copy_paste < 0.5 and figures.blending < 0.5 and not one.copies
    [without] = judge_pictures(both, [ann, bob], judge).multi
    assert np.isnan(without.sim_gt) and np.isnan(without.copy_paste) and without.sim_ref == figures.sim_ref
    assert "Sim(GT)" not in verdict_markdown("R", judge_pictures(both, [ann, bob], judge))


def test_both_judges_count_it(colours, identify, judge, other_judge):
    ann, photos = identify("ann", RED), {"held_out": colours.of(OTHER_RED)}
    verdicts = [
        judge_pictures(colours.of(RED), [ann], one, allow_same_recogniser=True, **photos)
        for one in (judge, other_judge)
    ]
    together = joint_verdict(verdicts)
    assert "by by colour: Sim(GT) " in verdict_markdown(
        "R", together
    ) and "; by conditioner: Sim(GT) " in verdict_markdown("R", together)
    assert to_records(together, WITH)[0].measures["copy_second"] == verdicts[1].copies[0]


def test_photos_that_say_nothing_of_copying_are_refused(colours, ann, bob, judge):
    with pytest.raises(LikenessError, match=r"finds nobody on 'held_out' who looks like 'bob': connect other photos"):
        judge_pictures(colours.of(RED), [ann, bob], judge, held_out=colours.of(OTHER_RED))
    with pytest.raises(LikenessError, match=r"looks like 'ann' or 'bob'"):
        judge_pictures(colours.of(RED), [ann, bob], judge, held_out=colours.of(BLACK))
    with pytest.raises(LikenessError, match=r"on 'held_out' shows the same as one that 'ann' was made of \(cosine 1"):
        judge_pictures(colours.of(RED), [ann], judge, held_out=colours.of(OTHER_RED, RED))


def test_the_recogniser_that_made_the_identity_is_refused(colours, ann, other_judge):
    with pytest.raises(LikenessError, match="would judge its own work"):
        judge_pictures(colours.of(RED), [ann], other_judge)
    allowed = judge_pictures(colours.of(RED), [ann], other_judge, allow_same_recogniser=True)
    assert "**Warning: judge equals conditioner" in verdict_markdown("Report", allowed)
    with pytest.raises(LikenessError, match="no identity to compare with: connect one"):
        judge_pictures(colours.of(RED), [], other_judge)


def test_every_picture_is_counted_for_the_progress_bar(colours, ann, bob, judge):
    steps = []
    for people in ([ann], [ann, bob]):
        judge_pictures(colours.of(RED, BLACK), people, judge, after_each=lambda: steps.append(1))
    assert len(steps) == 4


def test_the_sentence_says_what_was_gained_and_what_is_missing(verdict, colours, ann, judge):
    text = sentence(verdict, 60, judge_pictures(colours.of(BLUE), [ann], judge))
    assert text.startswith(f"ann: {verdict.mean:.0f} % of real photos' likeness (from 0 to ")
    assert f"{verdict.mean:+.0f} points against" in text and "2 of 4 images reach 60 %, 1 without a face." in text
    assert sentence(_verdict(70)) == "ann: 70 % of real photos' likeness; 1 of 1 images reach 60 %."


def test_the_text_has_a_line_for_every_picture_best_first(verdict):
    lines = verdict_markdown("Ann", verdict, remarks=["A remark."]).splitlines()
    assert lines[0] == "# Ann" and "A remark." in lines
    numbers = [
        int(line.split("|")[1]) for line in lines if line.startswith("|") and line.split("|")[1].strip().isdigit()
    ]
    assert numbers == verdict.order
    assert "| no face |" in "\n".join(lines) and lines[-1].startswith("Judge: by colour. Licence")


def test_the_sheet_frames_what_is_not_kept(colours, ann, judge):
    def red(threshold: float) -> int:
        images = colours.of(RED, BLACK)
        drawn = portrait_sheet(images, judge_pictures(images, [ann], judge), [ann], threshold=threshold)
        return int((np.asarray(drawn) == BAD).all(-1).sum())

    assert red(200) > 1.7 * red(60) > 500, "first both are framed, then the missing face alone"


def test_the_sheet_shows_the_ends_of_a_long_batch_and_the_pictures_without_identity(colours, ann, judge):
    images = colours.of(*[RED] * 70)
    verdict = judge_pictures(images, [ann], judge)
    long = portrait_sheet(images, verdict, [ann])
    short = portrait_sheet(images[:8], judge_pictures(images[:8], [ann], judge), [ann])
    row = short.height // 2
    assert 4 * row < long.height < 6 * row, "photos, and 32 of the 70 in rows of 8"
    with_base = portrait_sheet(
        images[:8],
        judge_pictures(images[:8], [ann], judge),
        [ann],
        baseline=images[:8],
        baseline_verdict=judge_pictures(images[:8], [ann], judge),
    )
    assert with_base.height > short.height + row / 2


def test_a_verdict_becomes_records_for_the_full_report(verdict, colours, tmp_path):
    records = to_records(verdict, WITH, ["a"] * 4, [0.2] * 4)
    assert [record.value("percent") for record in records] == list(verdict.percents)
    assert records[2].note == "no face" and records[2].value("found") == 0 and records[0].value("clip_t") == 0.2
    pictures = {f"{WITH}/{number}": image for number, image in enumerate(colours.of(GREEN, RED, BLACK, PINK))}
    assert "With the identity the images have" in report(records, pictures, tmp_path).read_text()


# --- two judges


def test_two_judges_stand_side_by_side_and_both_must_be_pleased():
    first, second = _verdict(90, 70, 20), replace(_verdict(80, 10, 30), judge="dlib", licence="CC0-1.0")
    both = joint_verdict([first, second])
    assert both.percents == (85, 40, 25) and both.order == [0, 1, 2]
    assert both.best(threshold=30) == [0] and first.best(threshold=30) == [0, 1]
    assert both.judge == "sface and dlib" and both.licence == "Apache-2.0; CC0-1.0"
    text = verdict_markdown("Ann", both)
    assert "| image | likeness | sface, cosine | dlib, cosine | remark |" in text and "| 90 %, 90.00 | 80 %" in text
    assert "60 % by sface" in text and "40 % by dlib" in text and "Judges: sface and dlib" in text
    assert both.warnings == ("the judges disagree by more than 40 points on 1: look at them yourself",)
    records = to_records(both, WITH)
    assert records[1].measures["percent"] == 70 and records[1].measures["percent_second"] == 10
    assert joint_verdict([first]) is first


# --- real people


@pytest.mark.parametrize("maker", ["dlib", "sface"])
def test_a_mirrored_photo_is_a_copy_and_another_photo_is_none(real_faces, maker):
    """By the judge that had no part in the identity: one photo is given, one held out, a third is a copy of neither."""
    from likeness.evaluation.identity import calibration_of
    from likeness.faces import build_identity, read_photo
    from likeness.faces.ready import free_judges, open_dlib, open_opencv

    if not PHOTOS.is_dir():
        pytest.skip("no photographs in build/photos: `make setup` brings them")
    given, other, third, biden = (read_photo(PHOTOS / f"{name}.jpg") for name in ("obama", "obama2", "obama3", "biden"))
    eyes = {"dlib": open_dlib, "sface": open_opencv}[maker]()
    person = build_identity([given], eyes.find(given)[:1], "Barack")
    [judge] = free_judges(without=[maker])
    batches = [torch.from_numpy(photo.copy())[None].float() / 255 for photo in (given[:, ::-1], third, other)]
    copied, another, same = (
        judge_pictures(one, [person], judge, calibration=calibration_of(judge), held_out=batches[2]) for one in batches
    )
    assert same.multi[0].copy_paste == pytest.approx(-1, abs=1e-3)
    assert copied.multi[0].copy_paste > 0.5 and copied.multi[0].sim_ref > 0.85
    assert -0.4 < another.multi[0].copy_paste < 0.4 and another.multi[0].sim_gt > 0.5
    assert another.percents[0] > 60 and np.isnan(another.multi[0].blending)
    with pytest.raises(LikenessError, match="finds nobody on 'held_out' who looks like 'Barack'"):
        judge_pictures(batches[1], [person], judge, held_out=torch.from_numpy(biden)[None].float() / 255)
