"""Portraits without a host, with random weights: what is drawn follows the seed, the prompt and the identity."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from likeness.adapters import build
from likeness.adapters.effects import Scope
from likeness.errors import LikenessError
from likeness.injection.diffusers.unet import IdentityAttnProcessor
from likeness.miniature.models import generate as module
from likeness.miniature.models.generate import (
    draw_noise,
    generate_latents,
    identity_injection,
    noise_levels,
    pictures_of,
)
from likeness.miniature.models.latents import load_codec
from likeness.miniature.models.networks import build_text_encoder, build_tokenizer, build_unet, frozen, noise_schedule
from likeness.training.ip_adapter import fresh_faceid

PROMPT = "a photo of a person wearing a red shirt in the snow"


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return frozen(build_unet()), frozen(build_text_encoder()), build_tokenizer()


@pytest.fixture(scope="module")
def adapter(nets):
    torch.manual_seed(1)
    return build(fresh_faceid(nets[0]), "untrained")


@pytest.fixture(scope="module")
def people():
    return torch.nn.functional.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(2)), dim=-1)


def test_pictures_are_128_pixels_and_in_range(nets):
    pictures = pictures_of(load_codec(), generate_latents(*nets, PROMPT, [1, 2], steps=1))
    assert pictures.shape == (2, 128, 128, 3)
    assert pictures.min() >= 0 and pictures.max() <= 1


def test_a_seed_gives_the_same_latents_alone_and_in_company(nets, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    prompts = [PROMPT, "a pencil drawing of a person", PROMPT]
    together = generate_latents(*nets, prompts, [5, 6, 7], steps=2)
    alone = generate_latents(*nets, prompts[2], [7], steps=2)
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_the_noise_is_that_of_a_seeded_host():
    torch.manual_seed(11)
    assert torch.equal(draw_noise([3, 11])[1:], torch.randn(1, 16, 16, 16))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_denoiser_that_knows_the_answer_is_obeyed(nets, guidance):
    """v of a world with one image in it."""
    answer = torch.randn(1, 16, 16, 16)
    rates = noise_schedule().alphas_cumprod

    def velocity(z, t, encoder_hidden_states):
        signal, noise = rates[t].sqrt(), (1 - rates[t]).sqrt()
        return SimpleNamespace(sample=signal * (z - signal * answer) / noise - noise * answer)

    made = generate_latents(velocity, *nets[1:], PROMPT, [0, 1], steps=7, guidance=guidance)
    torch.testing.assert_close(made, answer.expand(2, -1, -1, -1), atol=1e-3, rtol=0)


def test_noise_levels_fall_from_the_greatest_to_none():
    sigmas, timesteps = noise_levels(noise_schedule(), 20)
    assert len(sigmas) == 21 and len(timesteps) == 20
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    assert timesteps[0] == 999 and timesteps[-1] == 0
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-3)


def test_identities_follow_their_pictures_across_batches(nets, adapter, people, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    everybody = identity_injection(nets[0], adapter, people)
    together = generate_latents(*nets, PROMPT, [0, 0, 0], steps=2, effects=[everybody])
    third = identity_injection(nets[0], adapter, people[2:])
    alone = generate_latents(*nets, PROMPT, [0], steps=2, effects=[third])
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_strength_zero_is_no_adapter_and_the_denoiser_is_left_as_it_was(nets, adapter, people):
    before = dict(nets[0].attn_processors)
    bare = generate_latents(*nets, PROMPT, [0], steps=2)
    silent = generate_latents(
        *nets, PROMPT, [0], steps=2, effects=[identity_injection(nets[0], adapter, people[:1], 0.0)]
    )
    loud = generate_latents(*nets, PROMPT, [0], steps=2, effects=[identity_injection(nets[0], adapter, people[:1])])
    assert torch.equal(bare, silent)
    assert (bare - loud).abs().max() > 1e-3
    assert nets[0].attn_processors == before


def test_an_identity_with_a_window_is_absent_outside_of_it(nets, adapter, people):
    whole = identity_injection(nets[0], adapter, people[:1])
    steps = []
    unet = nets[0]

    def record(module, args, keywords):
        steps.append(any(isinstance(p, IdentityAttnProcessor) and p.is_open() for p in unet.attn_processors.values()))

    handle = unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        generate_latents(*nets, PROMPT, [0], steps=4, effects=[replace(whole, scope=Scope(0.3, 0.7))])
    finally:
        handle.remove()
    assert steps == [False, True, True, False]


def test_progress_counts_every_step_of_every_batch(nets, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 1)
    seen = []
    generate_latents(*nets, PROMPT, [0, 1], steps=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("prompts", "seeds", "steps", "message"),
    [
        ("a photo of a unicorn", [0], 1, "does not know 'unicorn'"),
        (["a photo", "a photo"], [0], 1, "2 prompts for 1 seeds"),
        ("a photo", [], 1, "0 seeds"),
        ("a photo", [0], 0, "0 steps"),
    ],
)
def test_mistakes_are_one_sentence(nets, prompts, seeds, steps, message):
    with pytest.raises(LikenessError, match=message):
        generate_latents(*nets, prompts, seeds, steps=steps)
