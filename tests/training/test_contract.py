"""What every trained method keeps to: it trains, resumes bit for bit after a crash, and what it saved loads back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_method import TOY
from safetensors.torch import load_file

from likeness import adapters
from likeness.adapters.sefi_ide.file import load_subject
from likeness.training import methods
from likeness.training.base.lora import continue_lora, load_lora
from likeness.training.base.model import BaseModel
from likeness.training.base.stage_tokens import StageTokens
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.training.config import RunSettings
from likeness.training.data.dataset import Dataset, DatasetKind, DatasetPicture
from likeness.training.engine import Callbacks, train
from likeness.training.export import Saved, SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.materials import ConceptPhotos, Materials
from likeness.training.methods.method import Method
from likeness.training.recipe import Recipe
from likeness.weights.concepts import load_concept, whole_weights
from likeness.weights.embedding_files import TokenEmbedding, load_embedding

ROOT = Path(__file__).parents[2]


OFFERED = list(methods.METHODS)
METHODS = [*OFFERED, TOY]  # the one line that adds a method
EACH = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
STEPS = 3  # of each phase: one before the crash, and two after it that need what the optimiser remembers


class Killed(BaseException):
    """The process ends here."""


def dataset(kind: DatasetKind, number: int) -> Dataset:
    random = np.random.default_rng(number)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:16] = 255
    word = f"ohwx{number}"
    pictures = tuple(
        DatasetPicture(
            f"{number}-{n}.png", random.integers(0, 256, (32, 32, 3), np.uint8), mask, f"a photo of {word}", (32, 32)
        )
        for n in range(3)
    )
    return Dataset(kind, word, "person", pictures)


def recipe_of(method: Method, base: BaseModel, make_photo: Any) -> Recipe:
    """The recipe as command line and nodes make it: from settings, and one dataset for each concept."""
    kind = method.trainable.settings
    concepts = [
        ConceptPhotos(dataset(concept.kind or DatasetKind.PERSON, n), f"ohwx{n}")
        for n, concept in enumerate(method.concepts)
    ]
    values: dict[str, Any] = {**method.miniature, **dict.fromkeys(kind.phases, STEPS)}
    values |= {field: concept.word for field, concept in zip(kind.words, concepts, strict=False)}
    values |= {knob.setting: 0.0 for knob in method.knobs if knob.setting and knob.name == method.identity_knob}
    materials = Materials(concepts, lambda base, prompt, count, size: [make_photo(90 + n) for n in range(count)])
    return method.trainable.make(base, materials, kind(**values), 0)


def saved_by(recipe: Recipe, base: BaseModel, folder: Path) -> list[Saved]:
    return recipe.save(folder, "result", TrainingRecord(recipe.name, base.family, STEPS))


def tensors(saved: list[Saved]) -> list[dict[str, torch.Tensor]]:
    return [load_file(result.path) for result in saved]


def answer(base: BaseModel, recipe: Recipe, reading: Any = nullcontext) -> torch.Tensor:
    """The denoiser's, to a prompt that names all that was learned."""
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400])
    prompts = ["a photo of " + " ".join(recipe.trigger_words)]
    with torch.no_grad(), reading():
        return base.predict(z, t, base.encode(prompts) if base.staged is None else base.staged(prompts, t))


def load(saved: list[Saved], recipe: Recipe, base: BaseModel) -> Any:
    """Results into an untouched base, each by its kind. How that reads prompts then."""
    reading = nullcontext
    words = [load_embedding(result.path) for result in saved if result.kind is SavedKind.EMBEDDING]
    if words:
        named = zip(recipe.trigger_words, words, strict=True)
        Vocabulary(base, [NewToken(word, found.count, found) for word, found in named])
    for result in saved:
        if result.kind is SavedKind.LORA:
            lora = load_lora(result.path, base.unet, base.encoders)
            for network, pairs in zip(base.networks, (lora.unet, *lora.encoders), strict=True):
                if pairs:
                    continue_lora(network, pairs)
        if result.kind is SavedKind.CONCEPT:
            base.unet.load_state_dict(whole_weights(load_concept(result.path), base.unet.state_dict()), strict=False)
        if result.kind is SavedKind.SUBJECT:
            subject = load_subject(result.path)
            tokens = StageTokens(base, subject.placeholder, subject.class_word, "photo", subject.stages, False)
            for tower in base.text:
                tower.encoder.get_input_embeddings().rows.data.copy_(subject.tables[tower.kind].flatten(0, 1))
            reading = tokens.reading
        if result.kind is SavedKind.TUNED_SUBJECT:
            tuned = adapters.load(result.path)
            found = TokenEmbedding({"clip_l": tuned.vectors})
            Vocabulary(base, [NewToken(tuned.word, found.count, found)])
            continue_lora(base.unet, tuned.unet().changes)
    assert {result.kind for result in saved} <= set(SavedKind) - {SavedKind.CHECKPOINT}
    return reading


@EACH
def test_a_killed_training_goes_on_bit_for_bit_and_its_results_load_back(method, make_base, make_photo, tmp_path):
    settings = RunSettings(save_every=1)
    base = make_base()
    recipe = recipe_of(method, base, make_photo)
    whole = train(base, recipe, settings, tmp_path / "whole")
    assert whole.complete and base.staged is None
    saved = saved_by(recipe, base, tmp_path / "whole results")
    assert saved and all(result.path.is_file() for result in saved)

    def die(done: int, total: int, losses: Any) -> None:
        if done == total - 2:
            raise Killed

    killed = make_base()
    with pytest.raises(Killed):
        train(killed, recipe_of(method, killed, make_photo), settings, tmp_path / "cut", Callbacks(progress=die))
    again = make_base()
    resumed = recipe_of(method, again, make_photo)
    assert train(again, resumed, settings, tmp_path / "cut").complete
    found, wanted = tensors(saved_by(resumed, again, tmp_path / "cut results")), tensors(saved)
    assert [one.keys() for one in found] == [one.keys() for one in wanted]
    assert all(torch.equal(one[key], other[key]) for one, other in zip(found, wanted, strict=True) for key in one)
    assert read_losses(whole.losses) == read_losses(tmp_path / "cut" / "losses.csv")

    fresh = make_base()
    unlearned = answer(fresh, recipe)
    reading = load(saved, recipe, fresh)
    learned = answer(base, recipe, recipe.reading)
    torch.testing.assert_close(answer(fresh, recipe, reading), learned, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(learned, unlearned, atol=1e-6), "the training changed nothing that could be lost"


@EACH
def test_its_settings_lead_back_to_the_method(method, make_base, make_photo, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", METHODS)
    assert methods.method_of(recipe_of(method, make_base(), make_photo).settings) is method
    assert len({other.kind for other in METHODS}) == len({other.node_id for other in METHODS}) == len(METHODS)


@pytest.mark.parametrize("method", OFFERED, ids=lambda method: method.kind)
def test_it_has_help_texts_and_a_row_of_the_table_in_both_languages(method):
    folder = ROOT / "web" / "docs"
    assert (folder / f"{method.node_id}.md").read_text("utf-8").strip()
    assert (folder / method.node_id / "zh.md").read_text("utf-8").strip()
    assert method.node_id in json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    for language in ("en", "zh"):
        rows = "".join(p.read_text("utf-8") for p in sorted((ROOT / "docs/parts/methods").glob(f"*.{language}.md")))
        assert method.title in rows
