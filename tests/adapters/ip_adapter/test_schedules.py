from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.ip_adapter.schedules import FrameRange, FrameSharing, Timing, curve, parse_weights, schedule
from likeness.errors import LikenessError

timings = st.sampled_from([t for t in Timing if t is not Timing.CUSTOM])
spans = st.builds(
    FrameRange,
    frames=st.integers(1, 30),
    start=st.integers(0, 40),
    end=st.integers(0, 40),
    add_starting=st.integers(0, 5),
    add_ending=st.integers(0, 5),
)
weights = st.lists(st.floats(-2, 2), min_size=1, max_size=4)


@given(weights, timings, spans)
def test_every_frame_has_a_weight_between_the_first_and_the_last(values, timing, span):
    row = curve(values, timing, span)
    assert len(row) == span.frames
    low, high = sorted((values[0], values[-1]))
    assert all(low - 1e-6 <= value <= high + 1e-6 for value in row)


@given(timings.filter(lambda t: t is not Timing.RANDOM), st.integers(2, 20))
def test_curves_reach_both_ends(timing, frames):
    row = curve([0.2, 0.9], timing, FrameRange(frames))
    assert (row[0], row[-1]) == pytest.approx((0.2, 0.9))
    assert list(row) == sorted(row)


@given(timings)
def test_a_single_frame_does_not_divide_by_zero(timing):
    assert len(curve([1.0, 0.0], timing, FrameRange(1))) == 1


def test_weights_are_held_before_the_start_and_after_the_end():
    assert curve([0.0, 1.0], Timing.LINEAR, FrameRange(7, start=2, end=5)) == (0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0)


def test_an_end_before_the_start_is_a_step():
    assert curve([0.0, 1.0], Timing.LINEAR, FrameRange(4, start=2, end=1)) == (0.0, 0.0, 1.0, 1.0)


def test_custom_weights_stay_as_written():
    assert curve([0.1, 0.4, 0.3], Timing.CUSTOM, FrameRange(9)) == (0.1, 0.4, 0.3)


def test_random_weights_follow_their_generator_and_leave_the_global_one_alone():
    state = torch.get_rng_state()

    def draw(seed):
        return curve([0.0, 1.0], Timing.RANDOM, FrameRange(8), torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.sampled_from(list(FrameSharing)), timings, spans, st.integers(0, 5))
def test_all_lists_of_a_schedule_have_one_entry_per_frame(method, timing, span, n_images):
    frames = schedule([1.0, 0.3], timing, span, method, n_images)
    assert frames.inverted == frames.weights[::-1]
    assert len(frames.image_1) in (0, len(frames.weights))
    assert len(frames.image_2) in (0, len(frames.weights))
    assert all(0 <= image < n_images for image in frames.image_1 + frames.image_2)
    if method is not FrameSharing.FULL_BATCH and n_images > 1:
        added = span.add_starting + span.add_ending
        assert len(frames.weights) == span.frames * (n_images - 1) + added
        assert all(abs(a - b) == 1 for a, b in zip(frames.image_1, frames.image_2, strict=True))


@given(timings.filter(lambda t: t is not Timing.RANDOM), st.integers(2, 5), st.integers(2, 6))
def test_alternating_pictures_keep_their_side_and_their_weight_at_every_change(timing, n_images, frames):
    result = schedule([0.0, 1.0], timing, FrameRange(frames), FrameSharing.ALTERNATE_BATCHES, n_images)
    assert all(image % 2 == 0 for image in result.image_1)
    assert all(image % 2 == 1 for image in result.image_2)
    for change in range(frames, len(result.weights), frames):
        assert result.weights[change] == pytest.approx(result.weights[change - 1])


def test_added_frames_hold_the_first_and_last_of_a_cross_fade():
    span = FrameRange(2, add_starting=2, add_ending=1)
    result = schedule([0.0, 1.0], Timing.LINEAR, span, FrameSharing.SHIFT_BATCHES, 3)
    assert result.weights == (0, 0, 0, 1, 0, 1, 1)
    assert result.image_1 == (0, 0, 0, 0, 1, 1, 1)
    assert result.image_2 == (1, 1, 1, 1, 2, 2, 2)


def test_a_full_batch_shows_its_pictures_in_turn_and_holds_the_last():
    result = schedule([1.0], Timing.LINEAR, FrameRange(4), n_images=3)
    assert result.image_1 == (0, 1, 2, 2)
    assert result.image_2 == ()


@pytest.mark.parametrize("text", ["1.0, 0.5", "1\n.5", " 1 ,\n 5e-1,", "1.0,0.5\r\n"])
def test_weights_are_read_from_commas_and_lines(text):
    assert parse_weights(text) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("text", "named"), [("1, x", "'x'"), ("nan", "'nan'"), ("1 2", "'1 2'"), ("1e38", "'1e38'"), (" ,\n", "empty")]
)
def test_weights_that_are_no_numbers_are_named(text, named):
    with pytest.raises(LikenessError, match=named):
        parse_weights(text)


@pytest.mark.parametrize("bad", [{"frames": 0}, {"frames": 3, "start": -1}, {"frames": 3, "add_ending": -2}])
def test_impossible_frame_counts_are_refused(bad):
    with pytest.raises(LikenessError):
        FrameRange(**bad)
