"""Stage 2 of BLIP-Diffusion: what the encoder is shown, what is trained with it, and what is said without a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blip_diffusion as made
from helpers.people import people_materials, some_people
from helpers.small_world import sentence
from safetensors.torch import save_file

from likeness import adapters
from likeness.training.config import RunSettings
from likeness.training.engine import train
from likeness.training.export import TrainingRecord
from likeness.training.recipe import generator
from likeness.training.recipes.adapter_training import DropRates, Shown
from likeness.training.recipes.blip_diffusion_encoder import (
    BlipDiffusionEncoderSettings,
    blip_diffusion_encoder,
    reference,
)

DIM = 64


def settings(**values: Any) -> BlipDiffusionEncoderSettings:
    return BlipDiffusionEncoderSettings(**{"steps": 2, "learning_rate": 1e-3, **values})


@pytest.fixture
def base(make_base, make_unet) -> Any:
    base = make_base()
    base.unet = make_unet(cross_attention_dim=DIM).eval()
    encoder = base.text[0].encoder
    torch.manual_seed(1)
    base.text[0].encoder = type(encoder)(
        type(encoder.config)(**{**encoder.config.to_dict(), "hidden_size": DIM})
    ).eval()
    return base


@pytest.fixture
def start(tmp_path) -> Path:
    made.vocabulary(tmp_path)
    save_file(made.encoder(DIM), tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def materials(start: Path | None) -> Any:
    return people_materials(some_people(width=16), start=start)


def test_encoder_and_unet_are_trained_and_lie_in_one_file(base, start, tmp_path):
    recipe = blip_diffusion_encoder(base, materials(start), settings())
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    text = {name: value.clone() for name, value in base.encoders[0].state_dict().items()}
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    assert any(not torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())
    assert all(torch.equal(value, text[name]) for name, value in base.encoders[0].state_dict().items())
    (saved,) = recipe.save(tmp_path, "trained", TrainingRecord(recipe.name, base.family, 2))
    found, given = adapters.load(saved.path), adapters.load(start)
    assert found.unet().replaces and len(found.unet().changes) == len(before)
    moved = {
        name
        for name, value in found.encoder.state_dict().items()
        if not torch.equal(value, given.encoder.state_dict()[name].half())
    }
    assert {
        "query_tokens",
        "proj_layer.dense1.weight",
        "encoder.layer.0.crossattention.attention.value.weight",
    } <= moved
    assert not any(name.startswith("visual_encoder.") for name in moved)


def test_some_samples_have_no_vectors(base, start):
    recipe = blip_diffusion_encoder(base, materials(start), settings(drop=DropRates(person=1.0, text=0, both=0)))
    phase = recipe.phases[0]
    samples = [phase.streams[0](n, generator(n)) for n in range(2)]
    said = [sample.prompt for sample in samples]
    with torch.no_grad(), phase.hooks():
        phase.show(samples)
        found = base.staged(said, torch.zeros(2))
    torch.testing.assert_close(found.states, base.encode(said).states, atol=1e-5, rtol=1e-5)


def test_the_background_is_another_one_in_every_sample():
    photo = some_people(width=16).photos[0]

    class Masked:
        pixels = photo.example.pixels
        face_mask = torch.zeros(1, *photo.example.size)

    Masked.face_mask[:, 4:12, 4:12] = 1
    target = replace(photo, example=Masked)
    first, other = (reference(Shown(target, target, False, seed), settings()) for seed in (1, 2))
    inside = Masked.face_mask[0].bool()
    assert torch.equal(first[0][inside], other[0][inside]) and not torch.equal(first, other)
    assert torch.equal(first, reference(Shown(target, target, False, 1), settings()))
    plain = reference(Shown(target, target, False, 1), settings(random_background=False))
    assert torch.allclose(plain, (Masked.pixels.permute(1, 2, 0)[None] + 1) / 2)


def test_a_file_to_start_from_is_asked_for(base):
    assert "data.start_from" in sentence(blip_diffusion_encoder, base, materials(None), settings())


def test_a_tuned_subject_has_no_encoder_to_train(base, tmp_path):
    save_file({"ctx_embeddings_cache": torch.ones(1, 4, DIM)}, tmp_path / "rex.safetensors")
    text = sentence(blip_diffusion_encoder, base, materials(tmp_path / "rex.safetensors"), settings())
    assert "rex.safetensors" in text and "no subject encoder" in text
