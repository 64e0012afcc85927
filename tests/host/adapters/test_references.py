"""Weight Schedule, Prepare Reference and Reference Noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_world import person, pictures, same, sentence


def schedule(world: Any, **inputs: Any) -> tuple:
    return world.run("LikenessWeightSchedule", every=True, **inputs)


def test_a_schedule_feeds_the_options(world):
    weights, inverted, frames, first, second = schedule(world, weights="1.0, 0.0", frames=3, image=pictures(2))
    assert (weights, inverted, frames) == ("1, 0.5, 0", "0, 0.5, 1", 3)
    assert first.shape == (3, 40, 40, 3) and second is None
    options = world.options(picture_weights=weights)
    model, _ = world.apply(world.adapter("portrait"), person(), options=options)
    three = world.sample(model, shape=(3, 4, 8, 8))
    without = world.sample(world.model, shape=(3, 4, 8, 8))
    assert same(three[2], without[2]) and not same(three[0], without[0])


@pytest.mark.parametrize("timing", ["linear", "ease_in", "ease_out", "ease_in_out", "random"])
def test_a_schedule_survives_a_single_frame(world, timing):
    weights, _, frames, *_ = schedule(world, timing=timing, frames=1)
    assert frames == 1 and 0 <= float(weights) <= 1


@pytest.mark.parametrize("method", ["shift batches", "alternate batches"])
def test_pictures_share_the_frames(world, method):
    _, _, frames, first, second = schedule(world, frames=4, method=method, image=pictures(3))
    assert len(first) == len(second) == frames == 8


def test_a_schedule_refuses_what_it_cannot_read(world):
    for weights in ("", "1, x", "nan", "1,,inf"):
        sentence(schedule, world, weights=weights)
    assert "'soon'" in sentence(schedule, world, timing="soon")
    assert "'all'" in sentence(schedule, world, method="all")
    assert "frames" in sentence(schedule, world, frames=0)


def test_random_timing_follows_the_seed(world):
    first, again, other = (schedule(world, timing="random", seed=s)[0] for s in (2**64 - 1, 2**64 - 1, 3))
    assert first == again != other


@pytest.mark.parametrize("crop", ["center", "top", "bottom", "left", "right", "pad", "squash"])
def test_a_reference_is_made_square(world, crop):
    square = world.run("LikenessPrepareReference", image=pictures()[:, :30], crop=crop, sharpening=0.5, size=64)
    assert square.shape == (1, 64, 64, 3) and square.min() >= 0 and square.max() <= 1


@pytest.mark.parametrize("kind", ["fade", "dissolve", "gaussian", "shuffle"])
def test_noise_follows_the_seed_and_leaves_the_global_one_alone(world, kind):
    state = torch.random.get_rng_state()
    first, again, other = (
        world.run("LikenessReferenceNoise", image=pictures(channels=4), kind=kind, seed=seed, blur=2)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    still = world.run("LikenessReferenceNoise", image=pictures(), kind=kind, strength=0.0)
    torch.testing.assert_close(still, pictures())


def test_helpers_refuse_pictures_and_words_that_are_none(world):
    for node, word in (("LikenessPrepareReference", "crop"), ("LikenessReferenceNoise", "kind")):
        assert "empty" in sentence(world.run, node, image=torch.zeros(0, 8, 8, 3))
        assert "'odd'" in sentence(world.run, node, image=pictures(), **{word: "odd"})
    assert "'odd'" in sentence(world.run, "LikenessPrepareReference", image=pictures(), interpolation="odd")
    assert "enter a number" in sentence(world.run, "LikenessReferenceNoise", image=pictures(), strength=float("nan"))
