"""Means over people with honest intervals: 400 images of 10 people are 10 samples with repeats.

A person's values are averaged first, then people are, so that everybody counts once. NaN stands for "not defined" and
takes no part; a failure (a face that was not found) is a value, 0, and does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
FEWEST_PEOPLE = 6  # an interval from fewer would be a guess
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` are NaN where there are too few people to say."""

    mean: float
    low: float
    high: float
    people: int
    values: int

    @property
    def is_known(self) -> bool:
        """Whether there are limits."""
        return bool(np.isfinite(self.low))

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside of the limits; False without limits."""
        return self.is_known and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of pairs, with the two-sided p-value of Student's t on the people's mean differences."""

    p: float


def person_means(values: ArrayLike, people: Sequence[str]) -> np.ndarray:
    """The mean of each person's defined values (n,), people in order of their names; who has none is left out."""
    values, names = np.asarray(values, np.float64), np.asarray(people, dtype=object).astype(str)
    if values.shape != names.shape:
        raise ValueError(f"{values.size} values of {names.size} people")
    defined = np.isfinite(values)
    _, index = np.unique(names[defined], return_inverse=True)
    return np.bincount(index, values[defined]) / np.bincount(index) if len(index) else np.zeros(0)


def bootstrap(
    values: ArrayLike,
    people: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
) -> Interval:
    """Mean over people and its 95 % interval by resampling people.

    Percentile limits q are widened about the mean m, because they are too narrow for few people:
    m + (q - m) * sqrt(n / (n - 1)) * t(n - 1) / 1.96. No limits below 6 people. With `prompts`, people and prompts are
    resampled together as well, and the wider interval is given.
    """
    means = person_means(values, people)
    count = int(np.isfinite(np.asarray(values, np.float64)).sum())
    mean = float(means.mean()) if len(means) else float("nan")
    if len(means) < FEWEST_PEOPLE:
        return Interval(mean, float("nan"), float("nan"), len(means), count)
    random = np.random.default_rng(seed)
    limits = [_limits(_resampled(random, len(means), resamples) @ means / len(means), mean, len(means))]
    if prompts is not None:
        limits.append(_limits(_two_way(random, values, people, prompts, resamples), mean, len(means)))
    low, high = max(limits, key=lambda pair: pair[1] - pair[0])
    return Interval(mean, low, high, len(means), count)


def _resampled(random: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """How often each of n things is drawn in every resample: (resamples, n)."""
    return random.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _limits(resampled: np.ndarray, mean: float, n: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    tail = (1 - LEVEL) / 2
    wider = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - tail) / stdtrit(np.inf, 1 - tail)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(mean + (low - mean) * wider), float(mean + (high - mean) * wider)


def _two_way(
    random: np.random.Generator,
    values: ArrayLike,
    people: Sequence[str],
    prompts: Sequence[str],
    resamples: int,
) -> np.ndarray:
    """Means of resampled tables of people x prompts; a cell without a value has no weight."""
    values = np.asarray(values, np.float64)
    defined = np.isfinite(values)
    rows, row = np.unique(np.asarray(people, dtype=object).astype(str)[defined], return_inverse=True)
    columns, column = np.unique(np.asarray(prompts, dtype=object).astype(str)[defined], return_inverse=True)
    cells, counts = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    np.add.at(cells, (row, column), values[defined])
    np.add.at(counts, (row, column), 1)
    cells, filled = cells / counts.clip(min=1), (counts > 0).astype(np.float64)
    of_people, of_prompts = (_resampled(random, len(names), resamples) for names in (rows, columns))
    total = ((of_people @ cells) * of_prompts).sum(1)
    weight = ((of_people @ filled) * of_prompts).sum(1)
    return total / weight.clip(min=1)


def paired(a: ArrayLike, b: ArrayLike, people: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The mean of a - b, pair by pair, with its interval as `bootstrap` gives it. Pairs that lack a value are left out.

    Compare methods by this, never by whether their single intervals overlap.
    """
    from scipy.special import stdtr

    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    interval = bootstrap(differences, people, resamples, seed)
    means = person_means(differences, people)
    p = float("nan")
    if len(means) >= FEWEST_PEOPLE:
        error = means.std(ddof=1) / np.sqrt(len(means))
        ratio = abs(interval.mean) / error if error > 0 else (np.inf if interval.mean else 0.0)
        p = float(2 * stdtr(len(means) - 1, -ratio))
    return Difference(interval.mean, interval.low, interval.high, interval.people, interval.values, p)


def wilson(successes: int, total: int) -> Interval:
    """A share of independent trials with Wilson's score interval (1927), which holds for few trials and at 0 and 1."""
    from scipy.special import ndtri

    if total == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    z2 = float(ndtri((1 + LEVEL) / 2)) ** 2
    share = successes / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return Interval(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)), total, total)


def share(hits: ArrayLike, people: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A share of images (0 or 1 each): Wilson's interval where each person gives one image, else `bootstrap`."""
    hits, names = np.asarray(hits, np.float64), np.asarray(people, dtype=object).astype(str)
    defined = np.isfinite(hits)
    if len(set(names[defined])) == defined.sum():
        return wilson(int(hits[defined].sum()), int(defined.sum()))
    interval = bootstrap(hits, people, resamples, seed)
    low, high = (float(np.clip(limit, 0, 1)) for limit in (interval.low, interval.high))  # a share stays one
    return replace(interval, low=low, high=high)


def holm(p: ArrayLike) -> np.ndarray:
    """p-values (n,) corrected for asking n questions (Holm 1979). NaN asks none and stays NaN."""
    p = np.asarray(p, np.float64)
    corrected = np.full(p.shape, np.nan)
    asked = np.flatnonzero(np.isfinite(p))
    order = asked[np.argsort(p[asked], kind="stable")]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


# --- how well a judge tells people apart


def auc(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """The chance that a genuine pair scores above an impostor pair, ties counting half; NaN without pairs."""
    genuine, impostor = np.asarray(genuine, np.float64), np.sort(np.asarray(impostor, np.float64))
    if not len(genuine) or not len(impostor):
        return float("nan")
    below = np.searchsorted(impostor, genuine, side="left") + np.searchsorted(impostor, genuine, side="right")
    return float(below.mean() / (2 * len(impostor)))


def threshold_at(impostor: ArrayLike, rate: float) -> float:
    """The smallest score that at most `rate` of impostor pairs reach: accept scores from it on."""
    impostor = np.sort(np.asarray(impostor, np.float64))
    if not len(impostor):
        return float("nan")
    allowed = int(np.floor(rate * len(impostor) + 1e-9))  # so many may pass
    if allowed >= len(impostor):
        return float(impostor[0])
    return float(np.nextafter(impostor[len(impostor) - 1 - allowed], np.inf))


def eer(genuine: ArrayLike, impostor: ArrayLike) -> tuple[float, float]:
    """Equal error rate and its threshold, where as many genuine pairs are rejected as impostors are accepted."""
    genuine, impostor = np.sort(np.asarray(genuine, np.float64)), np.sort(np.asarray(impostor, np.float64))
    if not len(genuine) or not len(impostor):
        return float("nan"), float("nan")
    scores = np.unique(np.concatenate([genuine, impostor]))
    rejected = np.searchsorted(genuine, scores, side="left") / len(genuine)
    accepted = 1 - np.searchsorted(impostor, scores, side="left") / len(impostor)
    best = int(np.abs(rejected - accepted).argmin())
    return float((rejected[best] + accepted[best]) / 2), float(scores[best])
