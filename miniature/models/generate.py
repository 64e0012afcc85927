"""Portraits of the miniature world without a host: the same seed gives the same image here and in ComfyUI.

What ComfyUI calls sampler `euler` with scheduler `normal`, written out: the probability flow of diffusion, in steps of
Euler's method over the noise level σ. (Where σ falls to 0 this is DDIM.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import AttentionTerm, Effect
from ...adapters.ip_adapter.adapter import IPAdapter
from ...adapters.ip_adapter.evidence import Evidence
from ...adapters.types import IdentityTokens
from ...errors import LikenessError
from ...injection.diffusers import DiscreteLevels, SamplingRun, apply_effects
from ...injection.plan import Role, uniform
from ...injection.sites import sites_of_diffusers_unet
from ...training.base.noise import NoiseSchedule
from ..drawing.captions import check_prompt
from .latents import PatchCodec
from .networks import LATENT_CHANNELS, LATENT_SIZE, noise_schedule

STEPS, GUIDANCE = 20, 4.0
_BATCH = 32  # images per call of the denoiser: more do not fit the CPU's cache
Progress = Callable[[int, int], None]
Read = Callable[[Sequence[str], int], Tensor]


@torch.no_grad()
def generate_latents(
    unet: Any,
    text_encoder: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    effects: Iterable[Effect] = (),
    negative: str = "",
    placeholders: Iterable[str] = (),
    progress: Progress | None = None,
    read: Read | None = None,
) -> Tensor:
    """Latents (B, 16, 16, 16), one per seed; `pictures_of` shows them.

    prompts: one for all, or one per seed. effects: identities that take part in both halves of guidance (see
    `identity_injection`), whose tokens, masks and row weights have one row or one per image, and an adapter's LoRA.
    placeholders: words of the prompts that were learned later. progress: gets the steps done and their number. read:
    how prompts are read at a timestep, (B, 77, 128), or with values of their own side by side (see `key_values`); None:
    by the text encoder. LikenessError for a word that the world does not know.
    """
    seeds = [int(seed) for seed in seeds]
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(seeds):
        raise LikenessError(f"There are {len(prompts)} prompts for {len(seeds)} seeds: give one prompt, or one a seed.")
    if not seeds or steps < 1:
        raise LikenessError(f"{len(seeds)} seeds and {steps} steps make no image: give at least one of each.")
    placeholders = list(placeholders)
    for prompt in {*prompts, negative}:
        check_prompt(prompt, placeholders)
    read = read or _read_once(text_encoder, tokenizer, prompts, negative)
    effects = list(effects)
    portions = [slice(start, start + _BATCH) for start in range(0, len(seeds), _BATCH)]
    made = []
    for number, rows in enumerate(portions):

        def count(step: int, number: int = number) -> None:
            if progress:
                progress(number * steps + step, len(portions) * steps)

        noise = draw_noise(seeds[rows])
        mine = [_rows_of(e, rows) if isinstance(e, AttentionTerm) else e for e in effects]
        made.append(_sample(unet, noise, partial(_texts, read, prompts[rows], negative), steps, guidance, mine, count))
    return torch.cat(made)


def pictures_of(codec: PatchCodec, latents: Tensor) -> Tensor:
    """Images (B, 128, 128, 3), RGB 0..1."""
    return torch.cat([codec.decode(portion) for portion in latents.split(_BATCH)]).permute(0, 2, 3, 1)


def identity_injection(unet: Any, adapter: IPAdapter, embeddings: Tensor, strength: float = 1.0) -> AttentionTerm:
    """A person as `generate` takes one: unit mean embeddings (1 | images, 512) through a FaceID adapter."""
    tokens = adapter.encode(Evidence(id_embeds=embeddings))
    return AttentionTerm(adapter, tokens, uniform(strength, sites_of_diffusers_unet(unet)))


def draw_noise(seeds: Sequence[int]) -> Tensor:
    """(B, 16, 16, 16): each image's as hosts draw it for a batch of one."""
    shape = (1, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def encode_prompts(text_encoder: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(B, 77, 128); equal prompts are encoded once."""
    unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    ids = tokenizer(list(unique), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids).last_hidden_state[[unique[prompt] for prompt in prompts]]


def _read_once(text_encoder: Any, tokenizer: Any, prompts: Sequence[str], negative: str) -> Read:
    """The same at every timestep."""
    unique = list(dict.fromkeys(prompts))
    states = dict(zip(unique, encode_prompts(text_encoder, tokenizer, unique), strict=True))
    [nothing] = encode_prompts(text_encoder, tokenizer, [negative])
    return lambda asked, _t: torch.stack([states.get(prompt, nothing) for prompt in asked])


def _texts(read: Read, prompts: Sequence[str], negative: str, roles: Sequence[Role], t: int) -> Tensor:
    """What a batch reads: the prompts in its conditioned chunks, the negative prompt in the others."""
    asked = [prompts if role is Role.COND else [negative] * len(prompts) for role in roles]
    return read([prompt for chunk in asked for prompt in chunk], t)


def noise_levels(schedule: NoiseSchedule, steps: int) -> tuple[Tensor, Tensor]:
    """σ of every step and a last 0, (steps + 1,), and the trained timestep next to each but the last, (steps,)."""
    log_sigmas = _log_sigmas(schedule)
    chosen = _between(log_sigmas, torch.linspace(len(schedule) - 1, 0, steps))
    timesteps = (chosen[:, None] - log_sigmas).abs().argmin(1)
    return torch.cat([chosen.exp(), torch.zeros(1)]), timesteps


def _log_sigmas(schedule: NoiseSchedule) -> Tensor:
    """log σ of every trained timestep, where σ² = (1 − ᾱ) / ᾱ."""
    return ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).log() / 2


def _between(values: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation of `values` at fractional indices."""
    return torch.lerp(values[places.floor().long()], values[places.ceil().long()], places.frac())


def _sample(
    unet: Any,
    noise: Tensor,
    texts: Callable[[Sequence[Role], int], Tensor],
    steps: int,
    guidance: float,
    effects: Sequence[Effect],
    count: Callable[[int], None],
) -> Tensor:
    """dx/dσ = (x − x̂₀(x; σ)) / σ from the greatest σ to 0, with x = z₀ + σ ε and a denoiser that predicts v."""
    schedule = noise_schedule()
    sigmas, timesteps = noise_levels(schedule, steps)
    roles = (Role.COND,) if guidance == 1 else (Role.UNCOND, Role.COND)
    run = SamplingRun.through(sigmas, DiscreteLevels(schedule.alphas_cumprod))
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    with apply_effects(unet, effects, roles, run=run) as applied:
        for step, (sigma, following, t) in enumerate(zip(sigmas, sigmas[1:], timesteps, strict=False)):
            applied.at_step(step)
            signal = (1 + sigma**2) ** -0.5  # √ᾱ
            z = x * signal
            velocity = unet(z.repeat(len(roles), 1, 1, 1), t, encoder_hidden_states=texts(roles, int(t))).sample
            if guidance != 1:
                without, with_text = velocity.chunk(2)
                velocity = without + guidance * (with_text - without)
            x0 = signal * z - sigma * signal * velocity
            x = x0 + (x - x0) * following / sigma
            count(step + 1)
    return x


def _rows_of(injection: AttentionTerm, rows: slice) -> AttentionTerm:
    """The part of an injection that concerns these images."""

    def part(per_picture: Any) -> Any:
        return per_picture if per_picture is None or len(per_picture) == 1 else per_picture[rows]

    return replace(
        injection,
        tokens=IdentityTokens(part(injection.tokens.cond), part(injection.tokens.uncond)),
        scope=replace(
            injection.scope, mask=part(injection.scope.mask), image_weights=part(injection.scope.image_weights)
        ),
    )
