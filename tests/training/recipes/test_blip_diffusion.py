"""Few-shot tuning of BLIP-Diffusion: what moves, where it starts, what the file brings back, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import blip_diffusion as made
from helpers.small_world import sentence

from likeness import adapters
from likeness.adapters.blip_diffusion import BlipDiffusion
from likeness.adapters.blip_diffusion.files import read
from likeness.adapters.blip_diffusion.words import WordPieces
from likeness.training.base.lora import Reach
from likeness.training.config import LoraSettings, RunSettings
from likeness.training.data.dataset import Dataset, DatasetKind, DatasetPicture
from likeness.training.engine import Callbacks, train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.methods import blip_diffusion as front
from likeness.training.recipe import Recipe
from likeness.training.recipes.blip_diffusion import (
    ATTENTION,
    BlipDiffusionSettings,
    Tuned,
    blip_diffusion,
    unpadded,
)
from likeness.training.subject_vectors import subject_vectors
from likeness.weights.lora import merged

EACH = pytest.mark.parametrize("tuned", list(Tuned), ids=lambda tuned: tuned.value)
VECTORS = torch.randn(16, 24, generator=torch.Generator().manual_seed(2)) * 0.02


def chosen(**values: Any) -> BlipDiffusionSettings:
    given = {"steps": 3, "placeholder": "<rex>", "class_word": "person", "learning_rate": 1e-2, **values}
    return BlipDiffusionSettings(**given)


def everything(base: Any) -> dict[str, torch.Tensor]:
    parts = [*base.networks, base.codec.module]
    return {f"{n}/{name}": value.clone() for n, part in enumerate(parts) for name, value in part.state_dict().items()}


def saved(recipe: Recipe, base: Any, folder: Path) -> Any:
    (result,) = recipe.save(folder, "rex", TrainingRecord(recipe.name, base.family, 3))
    assert result.kind is SavedKind.TUNED_SUBJECT
    return adapters.load(result.path)


@EACH
def test_what_is_chosen_is_all_that_moves(make_base, photos, tmp_path, tuned):
    base = make_base()
    recipe = blip_diffusion(base, photos[:1], chosen(tuned=tuned), 0, VECTORS)
    before = everything(base)
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    moved = {
        name for name, value in everything(base).items() if name in before and not torch.equal(value, before[name])
    }
    vectors = {name for name in moved if name.endswith("token_embedding.rows")}
    assert vectors and all(name.startswith("0/") for name in moved - vectors)
    assert bool(moved - vectors) is (tuned is Tuned.UNET)
    assert base.staged is None


@EACH
def test_the_file_paints_what_was_trained(make_base, photos, tmp_path, tuned):
    """Through the loader of every adapter, on an untouched UNet."""
    base, fresh = make_base(), make_base()
    recipe = blip_diffusion(base, photos, chosen(tuned=tuned), 0, VECTORS)
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    adapter = saved(recipe, base, tmp_path)
    assert adapter.encoder is None and adapter.subject == "person" and adapter.word == "<rex>"
    rows = base.encoders[0].get_input_embeddings().rows
    assert torch.equal(adapter.vectors, rows) and not torch.equal(adapter.vectors, VECTORS)
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400])
    with torch.no_grad():
        text = base.encode(["a <rex> person"])
        expected, untrained = (one.predict(z, t, text) for one in (base, fresh))
        delta = adapter.unet()
        if delta is None:
            assert tuned is Tuned.VECTORS and torch.equal(expected, untrained)
            return
        assert delta.replaces is (tuned is Tuned.UNET)
        with merged(fresh.unet, delta.changes, 1.0, delta.replaces):
            found = fresh.predict(z, t, text)
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=1e-2)
    assert (found - expected).norm() < 0.1 * (untrained - expected).norm()


@EACH
def test_a_killed_training_goes_on_bit_for_bit(make_base, photos, tmp_path, tuned):
    class Killed(BaseException):
        pass

    def die(done: int, total: int, losses: Any) -> None:
        if done == 2:
            raise Killed

    def run(folder: str, watch: Callbacks | None = None) -> Any:
        base = make_base()
        recipe = blip_diffusion(base, photos, chosen(tuned=tuned), 0, VECTORS)
        assert train(base, recipe, RunSettings(save_every=1), tmp_path / folder, watch or Callbacks()).complete
        return saved(recipe, base, tmp_path / f"{folder} results")

    whole = run("whole")
    with pytest.raises(Killed):
        run("cut", Callbacks(progress=die))
    again = run("cut")
    assert torch.equal(again.vectors, whole.vectors)
    assert (again.unet() is None) is (tuned is Tuned.VECTORS)
    if again.unet() is not None:
        assert again.fingerprint == whole.fingerprint and again._unet_id == whole._unet_id


def test_the_loss_falls(make_base, photos, tmp_path):
    base = make_base()
    settings = chosen(tuned=Tuned.LORA, steps=40, learning_rate=2e-2, vector_learning_rate=1e-2)
    recipe = blip_diffusion(base, photos[:1], settings, 0, VECTORS)
    result = train(base, recipe, RunSettings(batch=2), tmp_path / "run")
    losses = [float(row["total"]) for row in read_losses(result.losses)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_caption_is_the_official_one_without_padding(make_base, photos):
    """Start, a, 16 vectors, the class word, end."""
    base = make_base()
    recipe = blip_diffusion(base, photos, chosen(), 0, VECTORS)
    (stream,) = recipe.phases[0].streams
    prompt = stream(0, torch.Generator()).prompt
    assert prompt == "a <rex> person"
    whole = base.encode([prompt]).states
    with unpadded(base):
        short = base.staged([prompt, prompt], torch.tensor([1, 2]))
        mixed = base.staged([prompt, "a person in the snow"], torch.tensor([1, 2]))
    assert short.states.shape == (2, 20, 24) and short.mask is None
    torch.testing.assert_close(short.states[:1], whole[:, :20])
    assert mixed.mask.sum(1).tolist() == [20, 7]
    assert recipe.phases[0].hooks is not None
    assert blip_diffusion(make_base(), photos, chosen(padded=True), 0, VECTORS).phases[0].hooks is None


def test_without_an_encoder_the_vectors_start_from_the_class_word(make_base, photos):
    base = make_base()
    blip_diffusion(base, photos, chosen())
    embedding = base.encoders[0].get_input_embeddings()
    row = embedding.table.weight[base.text[0].tokenizer("person", add_special_tokens=False).input_ids[0]]
    assert torch.equal(embedding.rows, row.expand(16, -1))


# --- where it starts


def dataset(*sizes: int) -> Dataset:
    random = np.random.default_rng(1)
    pictures = tuple(
        DatasetPicture(f"{n}.png", random.integers(0, 256, (side, 32, 3), np.uint8), None, "a photo of rex", (side, 32))
        for n, side in enumerate(sizes)
    )
    return Dataset(DatasetKind.PERSON, "rex", "dog", pictures)


def words() -> WordPieces:
    return WordPieces(made.PIECES)


def test_training_starts_from_the_mean_of_the_photos():
    adapter = BlipDiffusion(read(made.encoder(64), "blip.bin"), "blip.bin")
    each = [subject_vectors(adapter, dataset(side), "dog", words) for side in (32, 40)]
    assert each[0].shape == (made.QUERIES, 64)
    first = subject_vectors(adapter, dataset(32, 32), "dog", words)
    assert not torch.allclose(first, each[0]) and not torch.allclose(each[0], each[1])
    assert not torch.allclose(subject_vectors(adapter, dataset(32), "cat", words), each[0], atol=1e-3)


def test_a_tuned_subject_is_tuned_further():
    file = {"ctx_embeddings_cache": VECTORS[None]}
    adapter = BlipDiffusion(read(file, "rex.safetensors"), "rex.safetensors", "dog")
    assert torch.equal(subject_vectors(adapter, dataset(32), "dog", words), VECTORS)


def test_files_are_told_apart():
    one, other = (BlipDiffusion(read(made.encoder(64, seed), "x"), "x").fingerprint for seed in (0, 1))
    assert one != other


# --- what does not fit


def test_another_base_model_is_refused(make_base, photos):
    assert "SD1.5" in sentence(blip_diffusion, make_base(True), photos, chosen())


def test_vectors_of_another_width_are_refused(make_base, photos):
    text = sentence(blip_diffusion, make_base(), photos, chosen(), 0, torch.zeros(16, 768))
    assert "768" in text and "24" in text


@pytest.mark.parametrize("reach", [reach for reach in Reach if reach not in ATTENTION])
def test_a_lora_that_the_file_cannot_hold_is_refused(make_base, photos, reach):
    settings = chosen(lora=LoraSettings(reach=reach))
    assert "lora.reach" in sentence(blip_diffusion, make_base(), photos, settings)


def test_no_photo_is_refused(make_base):
    assert "no photo" in sentence(blip_diffusion, make_base(), [], chosen())


def test_another_adapter_is_refused():
    class Other:
        name, title = "faceid.bin", "IP-Adapter FaceID"

    text = sentence(subject_vectors, Other(), dataset(32), "dog", words)
    assert "faceid.bin" in text and "BLIP-Diffusion" in text


# --- what the node offers


def test_the_front_knows_the_choices():
    assert set(front.TUNED) == {tuned.value for tuned in Tuned}
    assert tuple(reach.value for reach in ATTENTION) == front.LAYERS
    assert front.METHOD.trainable.settings is BlipDiffusionSettings


@pytest.mark.parametrize("tuned", list(Tuned))
def test_settings_without_effect_tell_no_runs_apart(tuned):
    plain, other = chosen(tuned=tuned), chosen(tuned=tuned, learning_rate=0.5, lora=LoraSettings(rank=3))
    assert (plain.deciding == other.deciding) is (tuned is Tuned.VECTORS)
