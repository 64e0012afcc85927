"""How long the text is read without its subjects."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.effects import Scope
from likeness.adapters.fastcomposer import FastComposerOptions, StepCount
from likeness.adapters.fastcomposer.timing import alpha_of, text_only_steps
from likeness.injection.windows import Window


@given(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), st.integers(1, 300))
def test_the_border_counts_and_no_run_is_longer_than_it_is(alpha, steps):
    official = sum(i <= (1 - alpha) * steps for i in range(steps))
    assert text_only_steps(alpha, steps) == official


@pytest.mark.parametrize(("alpha", "steps", "count"), [(0.7, 50, 16), (0.8, 50, 10), (0.5, 50, 26), (1.0, 50, 1)])
def test_a_share_is_the_alpha_that_a_user_means(alpha, steps, count):
    """1 - 0.7 is 0.30000000000000004 and a user writes 0.3: both are the same steps."""
    for share in (1 - alpha, float(f"{1 - alpha:.2f}")):
        assert FastComposerOptions().first_step(share)(steps) == count  # type: ignore[misc]
    assert alpha_of(1 - alpha) == alpha


def test_the_official_step_and_a_sigma_win():
    assert FastComposerOptions(start_step=10).first_step(0.9)(50) == 11  # type: ignore[misc]
    assert FastComposerOptions(start_step=-1).first_step(0.9)(50) == 0  # type: ignore[misc]
    assert FastComposerOptions(start_sigma=3.0).first_step(0.9) is None
    assert FastComposerOptions(count=StepCount.NOISE).first_step(0.9) is None


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1 / 3, 7.25])
def test_a_sigma_is_the_first_one_of_the_window_whatever_the_schedule(sigma):
    import torch

    scope = FastComposerOptions(start_sigma=sigma).scope(Scope(0.2))
    assert not scope.whole_run
    for sigmas in ((), (14.6, 9.0, 0.3, 0.0), (14.6, 7.25, 0.0)):
        high, low = Window.of(scope).sigmas(None, sigmas)  # type: ignore[arg-type]
        assert high == float(torch.tensor(sigma)) and low == -math.inf
