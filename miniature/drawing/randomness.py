"""Numbers that depend on a seed and on nothing else: the same on every machine and with every version of numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform_numbers(seeds: Iterable[int] | np.ndarray, stream: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each seed, (len(seeds), count) float64.

    Counter based: a row depends on its seed and on `stream` alone, never on its neighbours, so that any subset of a
    sequence can be drawn again by itself. Different streams of one seed are independent.
    """
    seeds = np.asarray(seeds if isinstance(seeds, np.ndarray) else list(seeds), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        keys = _mix(_mix(seeds + _GOLDEN) + np.uint64(stream) * _GOLDEN)
        bits = _mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
