"""Each objective: its limits, its gradients, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces.align import ARCFACE_112
from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.objectives import magicapture, snr_weighting, token_embeddings
from likeness.training.objectives.attention_refocusing import attention_refocusing, attention_refocusing_per_map
from likeness.training.objectives.identity import (
    Decoder,
    LikenessTarget,
    arcface_measure,
    below_cap,
    face_window,
    identity,
    identity_of_latents,
)
from likeness.training.objectives.magicapture import ShotKind
from likeness.training.objectives.prior_preservation import prior_preservation
from likeness.training.objectives.reconstruction import (
    masked_reconstruction,
    masked_squared_error,
    soft_mask,
    squared_error,
)

seeds = st.integers(0, 2**31)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The forward process --------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(0, 999), st.sampled_from(Prediction))
def test_a_perfect_prediction_leads_back_to_the_clean_latents(seed, t, prediction):
    schedule = NoiseSchedule.scaled_linear(prediction)
    z0, noise, t = gaussian(seed, 1, 4, 4, 4), gaussian(seed + 1, 1, 4, 4, 4), torch.tensor([t])
    z_t = schedule.add_noise(z0, noise, t)
    torch.testing.assert_close(schedule.estimate_z0(z_t, schedule.target(z0, noise, t), t), z0, atol=2e-4, rtol=1e-3)


def test_the_schedule_is_that_of_diffusers():
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    theirs, ours = NoiseSchedule.of(scheduler), NoiseSchedule.scaled_linear(Prediction.VELOCITY)
    assert theirs.prediction is Prediction.VELOCITY and len(theirs) == 1000
    torch.testing.assert_close(theirs.alphas_cumprod, ours.alphas_cumprod, rtol=1e-6, atol=0)
    z0, noise, t = gaussian(0, 2, 4, 8, 8), gaussian(1, 2, 4, 8, 8), torch.tensor([10, 900])
    torch.testing.assert_close(ours.add_noise(z0, noise, t), scheduler.add_noise(z0, noise, t))  # type: ignore[arg-type]
    torch.testing.assert_close(ours.target(z0, noise, t), scheduler.get_velocity(z0, noise, t))  # type: ignore[arg-type]


# Reconstruction -------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_mask_of_ones_is_the_plain_loss(seed):
    prediction, target = gaussian(seed, 2, 4, 8, 8), gaussian(seed + 1, 2, 4, 8, 8)
    ones = torch.ones(2, 1, 64, 64)
    plain = squared_error(prediction, target)
    torch.testing.assert_close(masked_squared_error(prediction, target, ones), plain)
    torch.testing.assert_close(masked_reconstruction(prediction, target, soft_mask(ones, (8, 8))), plain)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_batch_gives_the_losses_of_its_samples(seed):
    prediction, target = gaussian(seed, 3, 4, 8, 8), gaussian(seed + 1, 3, 4, 8, 8)
    mask = (gaussian(seed + 2, 3, 1, 64, 64) > 0).float() * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1, 1)
    together = masked_reconstruction(prediction, target, soft_mask(mask, (8, 8)))
    alone = [
        masked_reconstruction(p[None], t[None], soft_mask(m[None], (8, 8)))[0]
        for p, t, m in zip(prediction, target, mask, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone))


def test_the_size_of_the_face_does_not_weigh_when_normalised_by_area():
    error = torch.ones(1, 4, 16, 16)
    small, large = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    small[..., :4, :4], large[..., :12, :12] = 1, 1
    losses = [float(masked_reconstruction(error, 0 * error, m)) for m in (small, large)]
    assert losses == pytest.approx([1.0, 1.0])
    assert float(masked_squared_error(error, 0 * error, small)) == pytest.approx(16 / 256)


def test_outside_the_mask_weighs_a_hundredth_and_never_nothing():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :] = 1
    m = soft_mask(mask, (8, 8))
    assert float(m.max()) == 1
    assert float(m.min()) == pytest.approx(0.01 / 1.01)
    assert torch.isfinite(soft_mask(torch.zeros(1, 1, 8, 8), (8, 8))).all()


def test_the_gradient_of_the_masked_loss_is_the_analytic_one():
    prediction = gaussian(3, 1, 2, 4, 4).double().requires_grad_()
    mask = soft_mask(torch.rand(1, 1, 4, 4), (4, 4))
    loss = masked_reconstruction(prediction, torch.zeros_like(prediction), mask).sum()
    expected = 2 * mask**2 * prediction / (2 * mask.sum())
    torch.testing.assert_close(torch.autograd.grad(loss, prediction)[0].float(), expected.float())


# Weights --------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 1e4), st.floats(0.5, 20))
def test_min_snr_never_raises_a_loss_and_keeps_noisy_timesteps(snr, gamma):
    ratio = torch.tensor([snr], dtype=torch.float64)
    weight = float(snr_weighting.min_snr(ratio, gamma, Prediction.EPSILON))
    assert 0 < weight <= 1 + 1e-9
    assert weight == pytest.approx(1.0) or snr > gamma
    velocity = float(snr_weighting.min_snr(ratio, gamma, Prediction.VELOCITY))
    assert velocity == pytest.approx(weight * snr / (snr + 1))


def test_a_velocity_loss_weighted_like_noise_is_the_epsilon_loss():
    """ε̂ − ε = √ᾱ (v̂ − v), so their squares differ by ᾱ = SNR / (SNR + 1)."""
    schedule = NoiseSchedule.scaled_linear(Prediction.VELOCITY)
    weight = snr_weighting.like_noise(schedule.snr(torch.tensor([300, 700])))
    torch.testing.assert_close(weight, schedule.alphas_cumprod[[300, 700]])


# Prior preservation ---------------------------------------------------------------------------------------------------


def test_prior_preservation_adds_the_class_half_and_weighs_only_the_first():
    losses = torch.tensor([1.0, 3.0, 10.0, 20.0])
    parts = prior_preservation(losses, 0.5, torch.tensor([1.0, 0.0]))
    assert [float(p) for p in parts] == [0.5, 15.0, 8.0]
    assert float(prior_preservation(losses, 0.0).total) == 2.0


# Attention refocusing -------------------------------------------------------------------------------------------------


def refocusing_case(seed: int, batch: int = 1, tokens: int = 1):
    maps = [torch.rand(batch, 2, tokens, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]
    regions = torch.zeros(batch, tokens, 8, 8)
    regions[..., :4, :4] = 1
    return [m.requires_grad_() for m in maps], regions


@pytest.mark.parametrize("loss", [attention_refocusing, attention_refocusing_per_map])
def test_only_attention_outside_the_region_costs_something(loss):
    a_map = torch.zeros(1, 1, 1, 4, 4)
    a_map[..., :1, :1] = 1  # well inside: bilinear resizing spreads a cell to its neighbours
    inside = a_map.flatten(-2)
    regions = torch.zeros(1, 1, 8, 8)
    regions[..., :4, :4] = 1
    value = loss([inside], regions, (4, 4))
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    outside = torch.zeros(1, 1, 1, 4, 4)
    outside[..., 3, 3] = 1
    assert float(loss([outside.flatten(-2)], regions, (4, 4))) > 0.01


@pytest.mark.parametrize("loss", [attention_refocusing, attention_refocusing_per_map])
def test_refocusing_pulls_attention_down_outside_and_leaves_it_inside(loss):
    maps, regions = refocusing_case(1)
    gradients = [g.unflatten(-1, (4, 4)) for g in torch.autograd.grad(loss(maps, regions, (4, 4)).sum(), maps)]
    for gradient in gradients:
        assert float(gradient[..., 0, 0].abs().max()) == 0
        assert (gradient[..., 3, 3] >= 0).all() and float(gradient[..., 3, 3].max()) > 0


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.01, 100.0), st.floats(-1.0, 1.0))
def test_refocusing_does_not_see_scale_or_offset_of_a_map(seed, factor, offset):
    maps, regions = refocusing_case(seed)
    moved = [factor * m.detach() + offset for m in maps]
    torch.testing.assert_close(
        attention_refocusing(moved, regions, (4, 4)),
        attention_refocusing([m.detach() for m in maps], regions, (4, 4)),
        atol=1e-4,
        rtol=1e-3,
    )


def test_a_constant_map_gives_no_nan():
    maps = [torch.full((1, 2, 1, 16), 0.3, requires_grad=True)]
    regions = refocusing_case(0)[1]
    loss = attention_refocusing(maps, regions, (4, 4)).sum()
    assert torch.isfinite(loss) and torch.isfinite(torch.autograd.grad(loss, maps)[0]).all()


def test_a_batch_of_maps_gives_the_losses_of_its_samples():
    maps, regions = refocusing_case(5, batch=3, tokens=2)
    together = attention_refocusing(maps, regions, (4, 4))
    alone = [attention_refocusing([m[i : i + 1] for m in maps], regions[i : i + 1], (4, 4))[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_the_subject_belongs_in_the_face_and_the_style_around_it():
    mask = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    subject, style = magicapture.regions(ShotKind.BOTH, mask, 1, 1)[0]
    assert subject.flatten().tolist() == [1, 0] and style.flatten().tolist() == [0, 1]
    assert magicapture.regions(ShotKind.INSTANCE, mask, 3, 1).shape == (1, 3, 1, 2)


def test_a_prompt_without_its_token_is_an_error_in_words():
    with pytest.raises(LikenessError, match="placeholder"):
        magicapture.positions(torch.tensor([[1, 2, 3]]), [9])
    assert magicapture.positions(torch.tensor([[1, 9, 9, 4]]), [9, 4]).tolist() == [[1, 3]]


# Identity -------------------------------------------------------------------------------------------------------------

KEYPOINTS = torch.from_numpy(ARCFACE_112 * 0.5 + 20).float()  # a face of half the template's size


def tiles(crops: torch.Tensor) -> torch.Tensor:
    """Sees the mean colours of 8 x 8 tiles."""
    return torch.nn.functional.adaptive_avg_pool2d(crops, 8).flatten(1)


measure = arcface_measure(tiles)


def upscaling_decoder(calls: list[torch.Size] | None = None) -> Decoder:
    def decode(z: torch.Tensor) -> torch.Tensor:
        if calls is not None:
            calls.append(z.shape)
        return torch.nn.functional.interpolate(z[:, :3], scale_factor=8.0, mode="nearest")

    return Decoder(decode, scaling_factor=0.5, pixels_per_cell=8)


def test_the_same_face_costs_nothing_at_any_length_of_its_embedding():
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    points = KEYPOINTS.unsqueeze(0)

    embedding = measure(picture, points)
    assert float(identity(picture, points, 7 * embedding, measure)) == pytest.approx(0, abs=1e-5)
    assert float(identity(picture, points, -embedding, measure)) == pytest.approx(2, abs=1e-5)


def test_the_gradient_of_the_identity_loss_stays_in_the_face():
    z0 = gaussian(0, 1, 4, 16, 16).mul(0.2).requires_grad_()
    likeness = LikenessTarget(KEYPOINTS, gaussian(1, 192))
    loss = identity_of_latents(z0, [likeness], upscaling_decoder(), measure).sum()
    gradient = torch.autograd.grad(loss, z0)[0]
    window = face_window(KEYPOINTS, (16, 16), 8, margin=0)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[window.top : window.bottom, window.left : window.right] = True
    assert float(gradient[..., inside].abs().max()) > 0
    assert float(gradient[..., ~inside].abs().max()) == 0


def test_decoding_only_the_face_gives_the_same_loss_with_a_local_decoder():
    z0, likeness = gaussian(0, 1, 4, 32, 24).mul(0.2), LikenessTarget(KEYPOINTS + 40, gaussian(1, 192))
    calls: list[torch.Size] = []
    whole = identity_of_latents(z0, [likeness], upscaling_decoder(calls), measure)
    window = identity_of_latents(z0, [likeness], upscaling_decoder(calls), measure, margin=2)
    torch.testing.assert_close(window, whole, atol=1e-5, rtol=1e-5)
    assert calls[1].numel() < 0.4 * calls[0].numel()


def test_a_face_at_the_edge_has_a_window_inside_the_latents():
    window = face_window(KEYPOINTS - 60, (16, 16), 8)
    assert 0 <= window.top < window.bottom <= 16 and 0 <= window.left < window.right <= 16


def test_samples_without_a_face_or_too_noisy_are_not_decoded():
    calls: list[torch.Size] = []
    likeness = LikenessTarget(KEYPOINTS, gaussian(1, 192))
    likenesses = below_cap([likeness, likeness, None], torch.tensor([799, 800, 0]), cap=800)
    assert [x is None for x in likenesses] == [False, True, True]
    losses = identity_of_latents(gaussian(0, 3, 4, 16, 16), likenesses, upscaling_decoder(calls), measure)
    assert len(calls) == 1 and losses[1:].tolist() == [0, 0] and float(losses[0]) > 0


def test_the_keypoints_are_read_as_pixels_and_move_the_crop():
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    embedding = gaussian(1, 1, 192)
    here, there = (identity(picture, KEYPOINTS.unsqueeze(0) + d, embedding, measure) for d in (0, 5))
    assert not np.isclose(float(here), float(there))


# Token embeddings -----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 1))
def test_norm_decay_moves_norms_towards_the_words_and_keeps_directions(seed, rate):
    rows = gaussian(seed, 3, 16) * 3
    decayed = token_embeddings.norm_decay(rows, rate)
    before, after = (rows.norm(dim=1) - 0.4).abs(), (decayed.norm(dim=1) - 0.4).abs()
    assert (after <= before + 1e-5).all()
    torch.testing.assert_close(torch.cosine_similarity(rows, decayed), torch.ones(3))
    if rate >= 0.01:
        assert float(after.max()) < 1e-5


def test_norm_decay_leaves_a_zero_row_without_nan():
    assert token_embeddings.norm_decay(torch.zeros(1, 4), 0.1).tolist() == [[0, 0, 0, 0]]


def test_std_retraction_comes_to_rest_at_the_tables_deviation():
    rows = gaussian(0, 2, 64)
    for _ in range(200):
        rows = token_embeddings.std_retraction(rows, 0.02)
    assert float(rows.std()) == pytest.approx(0.02, rel=1e-3)
