"""Intervals cover what they promise, pairs are compared as pairs, and judges are measured as textbooks do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.evaluation.statistics import (
    auc,
    bootstrap,
    eer,
    holm,
    paired,
    person_means,
    share,
    threshold_at,
    wilson,
)


def _clustered(
    random: np.random.Generator, people: int, skewed: bool, images: int = 16
) -> tuple[np.ndarray, list[str]]:
    """Images of people whose true mean over all people is 0."""
    means = 0.12 * (random.exponential(size=people) - 1 if skewed else random.standard_normal(people))
    values = means[:, None] + 0.15 * random.standard_normal((people, images))
    return values.ravel(), [f"p{number}" for number in range(people) for _ in range(images)]


@pytest.mark.parametrize(
    ("people", "skewed", "least", "most"),
    [(8, False, 0.92, 0.975), (8, True, 0.89, 0.97), (12, False, 0.92, 0.975), (50, True, 0.91, 0.97)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(people, skewed, least, most):
    random = np.random.default_rng(people + skewed)
    covered = 0
    for _ in range(600):
        interval = bootstrap(*_clustered(random, people, skewed), resamples=600, seed=1)
        covered += interval.low <= 0 <= interval.high
    assert least <= covered / 600 <= most


def test_everybody_counts_once_however_many_pictures_there_are():
    interval = bootstrap([1, 1, 1, 1, 0], ["ann"] * 4 + ["bob"])
    assert interval.mean == 0.5 and (interval.people, interval.values) == (2, 5)
    assert person_means([1, 1, 0], ["b", "b", "a"]).tolist() == [0, 1]


def test_more_pictures_of_the_same_people_do_not_narrow_the_interval():
    means, names = np.linspace(0, 1, 10), [str(number) for number in range(10)]
    few = bootstrap(means, names)
    many = bootstrap(np.repeat(means, 40), [name for name in names for _ in range(40)])
    assert many.high - many.low == pytest.approx(few.high - few.low)


def test_fewer_than_six_people_have_a_mean_and_no_interval():
    values = np.arange(5.0)
    interval = bootstrap(values, list("abcde"))
    assert interval.mean == 2 and not interval.is_known and not interval.excludes_zero
    assert bootstrap(np.arange(6.0), list("abcdef")).is_known
    assert np.isnan(paired(values, values - 1, list("abcde")).p)


def test_what_is_not_defined_takes_no_part():
    interval = bootstrap([0.2, np.nan, 0.4, np.nan], ["a", "a", "b", "c"])
    assert interval.mean == pytest.approx(0.3) and (interval.people, interval.values) == (2, 2)
    nobody = bootstrap([], [])
    assert np.isnan(nobody.mean) and nobody.people == 0


def test_the_same_seed_gives_the_same_limits_and_the_widening_is_as_documented():
    from scipy import stats

    random = np.random.default_rng(0)
    values, people = random.standard_normal(9), [str(number) for number in range(9)]
    interval = bootstrap(values, people, resamples=20_000)
    assert interval == bootstrap(values, people, resamples=20_000)
    plain = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile")
    wider = np.sqrt(9 / 8) * stats.t.ppf(0.975, 8) / 1.959964
    expected = values.mean() + (np.array(plain.confidence_interval) - values.mean()) * wider
    np.testing.assert_allclose([interval.low, interval.high], expected, atol=0.03)


def test_prompts_as_a_second_factor_widen_the_interval_where_they_matter():
    random = np.random.default_rng(3)
    of_prompts = np.array([-1.0, -0.5, 0.5, 1.0])
    table = 0.05 * random.standard_normal((20, 4)) + of_prompts
    people = np.repeat([f"p{number}" for number in range(20)], 4).tolist()
    prompts = np.tile(list("abcd"), 20).tolist()
    people_only = bootstrap(table.ravel(), people)
    both = bootstrap(table.ravel(), people, prompts=prompts)
    assert both.mean == people_only.mean
    assert both.high - both.low > 5 * (people_only.high - people_only.low)


def test_pairs_show_a_difference_that_single_intervals_hide():
    random = np.random.default_rng(0)
    people = [str(number) for number in range(20)]
    level = random.standard_normal(20)
    a, b = level + 0.1 + 0.02 * random.standard_normal(20), level
    assert bootstrap(a, people).low < bootstrap(b, people).high, "the single intervals overlap"
    difference = paired(a, b, people)
    assert difference.excludes_zero and difference.p < 0.001 and difference.mean == pytest.approx(0.1, abs=0.02)
    assert paired(b, a, people).mean == pytest.approx(-difference.mean)


def test_the_p_value_is_students_on_person_means():
    from scipy import stats

    random = np.random.default_rng(2)
    people = [str(number) for number in range(12) for _ in range(3)]
    a, b = random.standard_normal((2, 36))
    expected = stats.ttest_1samp((a - b).reshape(12, 3).mean(1), 0)[1]
    # Names sort as text, which changes no mean.
    assert paired(a, b, people).p == pytest.approx(expected)


def test_equal_methods_differ_by_nothing():
    values, people = np.arange(8.0), list("abcdefgh")
    difference = paired(values, values, people)
    assert (difference.mean, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
    assert not difference.excludes_zero
    assert paired(values + 1, values, people).p == 0


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (49, 50)])
def test_wilson_agrees_with_scipy(k, n):
    from scipy import stats

    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    interval = wilson(k, n)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((k / n, expected.low, expected.high), abs=1e-9)


def test_a_share_is_wilsons_only_where_each_person_gives_one_picture():
    people = [str(number) for number in range(10)]
    assert share([1] * 10, people) == wilson(10, 10)
    assert share([1, 0] * 10, [name for name in people for _ in range(2)]).low == 0.5
    nearly = share([1] * 19 + [0], [name for name in people for _ in range(2)])
    assert nearly.low < nearly.mean < nearly.high == 1, "no share is above 1"
    assert np.isnan(wilson(0, 0).mean)


def test_holm_is_the_textbooks_and_leaves_undefined_questions_out():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert holm([]).shape == (0,)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_a_finding_surer(p):
    corrected = holm(p)
    assert (corrected >= np.array(p)).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all(), "the order of findings stays"


def test_auc_counts_pairs_and_halves_ties():
    genuine, impostor = np.array([0.9, 0.5, 0.2]), np.array([0.1, 0.5])
    wins = [(g > i) + 0.5 * (g == i) for g in genuine for i in impostor]
    assert auc(genuine, impostor) == pytest.approx(np.mean(wins))
    assert auc([1, 1], [0, 0]) == 1 and auc([0], [0]) == 0.5 and np.isnan(auc([], [1]))


def test_the_equal_error_rate_of_known_scores():
    assert eer([0.8, 0.9], [0.1, 0.2])[0] == 0
    rate, threshold = eer([0.3, 0.6, 0.7, 0.8], [0.1, 0.2, 0.25, 0.65])
    assert rate == pytest.approx(0.25) and 0.25 < threshold <= 0.65
    assert np.isnan(eer([], [1])[0])


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 1.0])
def test_no_more_impostors_pass_the_threshold_than_the_rate_says(rate):
    impostor = np.random.default_rng(0).standard_normal(1000)
    threshold = threshold_at(impostor, rate)
    assert (impostor >= threshold).mean() == pytest.approx(rate)
