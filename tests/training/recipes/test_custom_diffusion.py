"""Custom Diffusion: what it trains and leaves alone, its augmentation and class images, what comes out, bad input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.errors import LikenessError
from likeness.training.base.attention_weights import free_attention, no_gradient_at_start
from likeness.training.config import RunSettings
from likeness.training.data.class_folder import class_examples, cropped
from likeness.training.data.examples import Example
from likeness.training.data.zoom import FAR, NEAR, Draw, Zoom, zoomed
from likeness.training.engine import Callbacks, train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.objectives.custom_diffusion import target_loss
from likeness.training.recipe import Recipe, generator
from likeness.training.recipes.custom_diffusion import (
    CustomDiffusionSettings,
    Layers,
    Targets,
    TrainingPreset,
    custom_diffusion,
)
from likeness.training.recipes.prompts import Photos
from likeness.weights.concepts import Layout, load_concept
from likeness.weights.embedding_files import load_embedding

FAMILIES = pytest.mark.parametrize("sdxl", [False, True], ids=["SD1.5", "SDXL"])
WORDS = ("person", "forest", "photo")  # single tokens of the small tokenizer


def chosen(**values: Any) -> CustomDiffusionSettings:
    given = {"steps": 2, "start": WORDS, "zoom": Zoom.NONE, "learning_rate": 1e-2, **values}
    return CustomDiffusionSettings(**given)


def everything(base: Any) -> dict[str, torch.Tensor]:
    found = {}
    for number, network in enumerate([*base.networks, base.codec.module]):
        for name, value in network.state_dict().items():
            found[f"{number}/{name.replace('token_embedding.table', 'token_embedding')}"] = value.clone()
    return found


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.partition("/")[2] for name, value in before.items() if not torch.equal(after[name], value)}


def started(recipe: Recipe, base: Any) -> list[torch.Tensor]:
    return [tower.encoder.get_input_embeddings().rows.detach().clone() for tower in base.text]


# What is trained ------------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("layers", list(Layers))
def test_keys_values_and_the_word_are_all_that_moves(make_base, photos, make_photo, tmp_path, sdxl, layers):
    base = make_base(sdxl)
    before = everything(base)
    recipe = custom_diffusion(base, [photos], chosen(layers=layers, weight_decay=0.1), 0, [[make_photo(9)]])
    rows = started(recipe, base)
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    after = everything(base)
    endings = {"to_k.weight", "to_v.weight"}
    if layers is Layers.ALL:
        endings |= {"to_q.weight", "to_out.0.weight", "to_out.0.bias"}
    expected = {f"{path}.{e}" for path, _ in base.unet.named_modules() if path.endswith("attn2") for e in endings}
    assert changed(before, after) == expected
    for tower, row in zip(base.text, rows, strict=True):
        assert not torch.equal(tower.encoder.get_input_embeddings().rows, row)


@pytest.mark.parametrize("count", [2, 3])
def test_every_word_gets_gradient_and_each_concept_its_own_prompt(make_base, make_photo, tmp_path, count):
    base = make_base(False)
    found = [[make_photo(n)] for n in range(count)]
    recipe = custom_diffusion(base, found, chosen(steps=2 * count, weight_decay=0.0, prior_weight=0))
    rows = started(recipe, base)[0]
    train(base, recipe, RunSettings(), tmp_path / "run")
    moved = base.text[0].encoder.get_input_embeddings().rows - rows
    assert len(rows) == count and bool((moved.abs().sum(1) > 0).all())
    stream = recipe.phases[0].streams[0]
    said = {stream(n, generator(n)).prompt for n in range(count)}
    assert said == {f"photo of a <new{n + 1}> person" for n in range(count)}


def test_without_a_new_word_only_weights_learn(make_base, photos, tmp_path):
    base = make_base(False)
    recipe = custom_diffusion(base, [photos], chosen(new_words=False, modifier="sks", prior_weight=0))
    train(base, recipe, RunSettings(), tmp_path / "run")
    (saved,) = recipe.save(tmp_path, "x", TrainingRecord("x", base.family, 2))
    assert not load_concept(saved.path).tokens and base.text[0].words == ()


def test_the_first_position_teaches_keys_and_values_nothing(make_unet):
    unet = make_unet()
    trained = free_attention(unet, queries=False)
    text = torch.randn(1, 5, 24, requires_grad=True)
    given = torch.randn(1, 4, 32, 32), torch.tensor([10])
    with no_gradient_at_start(unet):
        stopped = unet(*given, text).sample
        stopped.sum().backward()
    assert text.grad is not None and not bool(text.grad[:, 0].any()) and bool(text.grad[:, 1:].any())
    assert all(parameter.grad is not None for parameter in trained.values())
    assert torch.equal(unet(*given, text).sample, stopped), "what is computed stays the same"
    free = text.detach().clone().requires_grad_()
    unet(*given, free).sample.sum().backward()
    assert free.grad is not None and bool(free.grad[:, 0].any()), "the hooks are gone"


def test_losses_are_those_of_both_halves(make_base, photos, make_photo, tmp_path):
    base = make_base(False)
    recipe = custom_diffusion(base, [photos], chosen(prior_weight=0.5), 0, [[make_photo(9), make_photo(10)]])
    train(base, recipe, RunSettings(batch=2), tmp_path / "run")
    row = read_losses(tmp_path / "run" / "losses.csv")[-1]
    assert float(row["total"]) == pytest.approx(float(row["instance"]) + 0.5 * float(row["prior"]), rel=1e-4)
    assert float(row["instance"]) == pytest.approx(4 * float(row["prior"]), rel=0.9), "summed over channels"


def test_a_run_that_is_killed_resumes_bit_exactly(make_base, photos, make_photo, tmp_path):
    def weights(stop: int | None) -> list[torch.Tensor]:
        folder = tmp_path / f"{stop}"
        steps = [0]

        def progress(done: int, *_: Any) -> None:
            steps[0] = done

        for attempt in range(2):
            base = make_base(False)
            recipe = custom_diffusion(base, [photos], chosen(steps=4, zoom=Zoom.ADOBE), 0, [[make_photo(9)]])
            watch = Callbacks(progress, cancelled=lambda n=attempt: stop is not None and n == 0 and steps[0] >= stop)
            if train(base, recipe, RunSettings(save_every=1), folder, watch).complete:
                rows = base.text[0].encoder.get_input_embeddings().rows
                return [*free_attention(base.unet, False).values(), rows]
        raise AssertionError

    unbroken = weights(None)
    for stop in (1, 3):
        assert all(torch.equal(one, other) for one, other in zip(unbroken, weights(stop), strict=True))


# Augmentation ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from([64, 128, 512]), zoom=st.sampled_from(list(Zoom)), seed=st.integers(0, 10_000))
def test_every_draw_lies_on_the_canvas_and_the_caption_says_so(size, zoom, seed):
    draw = Draw.at_random(size, zoom, torch.Generator().manual_seed(seed))
    assert draw == Draw.at_random(size, zoom, torch.Generator().manual_seed(seed))
    assert size // 3 <= draw.scale <= int(1.4 * size) + 1
    assert 0 <= draw.top <= abs(size - draw.scale) and 0 <= draw.left <= abs(size - draw.scale)
    pixels = torch.ones(3, size, size)
    found = zoomed(pixels, draw, zoom, torch.ones(1, size, size))
    assert found.pixels.shape == pixels.shape and found.mask.shape == (1, size // 8, size // 8)
    assert found.face is not None and found.face.shape == (1, size, size)
    if zoom is Zoom.NONE:
        assert found.prefix == "" and bool(found.mask.all()) and found.pixels is pixels
    if found.prefix in FAR:
        shown = found.pixels[:1, ::8, ::8] * found.mask
        assert draw.scale < 0.6 * size and torch.allclose(shown, found.mask, atol=1e-5), (
            "the loss sees the picture alone"
        )
    if found.prefix in NEAR:
        assert draw.scale > size and bool(found.mask.all())


def test_a_region_of_less_than_three_cells_counts_nothing_and_divides_by_nothing():
    found = zoomed(torch.ones(3, 64, 64), Draw(22, 3, 5), Zoom.ADOBE)
    tiny = zoomed(torch.ones(3, 64, 64), Draw(14, 3, 5), Zoom.ADOBE)
    assert found.mask.sum() <= 1 and not tiny.mask.any()
    prediction = torch.randn(1, 4, 8, 8, requires_grad=True)
    loss = target_loss(prediction, torch.zeros(1, 4, 8, 8), tiny.mask[None]).mean()
    loss.backward()
    assert float(loss.detach()) == 0 and prediction.grad is not None and not bool(prediction.grad.any())


def test_zoomed_photos_are_prefixed_and_not_kept(make_photo):
    photos = Photos([make_photo(1, "a <new1>", side=64)], lambda photo, random: photo.caption, 0)
    stream = Targets(photos, Zoom.ADOBE, face_mask=True, cell=8)
    samples = [stream(n, generator(n)) for n in range(30)]
    prefixes = {sample.prompt.removesuffix("a <new1>") for sample in samples}
    assert prefixes == {"", *FAR, *NEAR} and not any(sample.recurs for sample in samples)
    again = [stream(n, generator(n)) for n in range(30)]
    assert all(torch.equal(a.example.pixels, b.example.pixels) for a, b in zip(samples, again, strict=True))
    plain = Targets(photos, Zoom.NONE, face_mask=True, cell=8)(0, generator(0))
    assert plain.recurs and 0 < float(plain.about.sum()) < plain.about.numel()


def test_photos_that_are_not_square_are_cut_to_their_middle(make_base, make_photo):
    wide = Example(torch.cat([make_photo(1).pixels, make_photo(2).pixels], 2), "", name="wide")
    recipe = custom_diffusion(make_base(False), [[wide]], chosen(prior_weight=0))
    assert recipe.phases[0].streams[0](0, generator(0)).example.size == (32, 32)


# Class pictures -------------------------------------------------------------------------------------------------------


def paint(folder: Path, *names: str, size: tuple[int, int] = (80, 48)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def test_class_pictures_of_a_folder_keep_their_captions_and_are_cut_to_size(tmp_path):
    paint(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_text("a man in a hat")
    (tmp_path / "images.txt").write_text("elsewhere/b.png\nelsewhere/c.png\n")
    (tmp_path / "caption.txt").write_text("a woman\n\n")
    found = class_examples(tmp_path, 32, "a person")
    assert {Path(e.name).stem: e.caption for e in found} == {"a": "a man in a hat", "b": "a woman", "c": "a person"}
    assert all(min(example.size) == 32 for example in found)
    assert cropped(found[0], generator(1)).size == (32, 32)


def test_a_folder_of_the_class_is_learned_beside_the_photos(make_base, photos, tmp_path):
    paint(tmp_path / "class", "a.png", "b.png")
    base = make_base(False)
    options = chosen(class_folder=str(tmp_path / "class"))
    recipe = custom_diffusion(base, [photos], options, 0, [class_examples(tmp_path / "class", 32, "a person")])
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    paint(tmp_path / "class", "c.png")
    other = chosen(class_folder=str(tmp_path / "class"))
    assert other.deciding != options.deciding, "another folder is another training"


def test_without_class_pictures_there_is_no_prior_and_that_is_said(make_base, photos, caplog):
    with caplog.at_level(logging.WARNING):
        recipe = custom_diffusion(make_base(False), [photos], chosen())
    assert "prior's weight is 0" in caplog.text
    assert [objective.name for objective in recipe.phases[0].objectives] == ["instance"]


# What comes out -------------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_file_holds_weights_words_and_what_it_was_made_of(make_base, photos, make_photo, tmp_path, sdxl):
    base = make_base(sdxl)
    recipe = custom_diffusion(base, [photos], chosen(layers=Layers.ALL), 0, [[make_photo(9)]])
    train(base, recipe, RunSettings(), tmp_path / "run")
    concept_file, word_file = recipe.save(tmp_path / "out", "anna", TrainingRecord("x", base.family, 2))
    assert concept_file.kind is SavedKind.CONCEPT and word_file.kind is SavedKind.EMBEDDING
    concept = load_concept(concept_file.path)
    assert concept.layouts == (Layout.PROCESSORS,) and concept.phrases == ["<new1> person"]
    assert concept.metadata["ss_prompt"] == "photo of a {}" and concept.metadata["ss_steps"] == "2"
    state = base.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in concept.weights.items())
    rows = {kind: rows.detach() for kind, rows in ((t.kind, t.encoder.get_input_embeddings().rows) for t in base.text)}
    for token in (concept.tokens["<new1>"], load_embedding(word_file.path)):
        assert all(torch.equal(token.vectors[kind], value) for kind, value in rows.items())


def test_the_face_preset_sets_what_is_not_written():
    face = CustomDiffusionSettings(preset=TrainingPreset.FACE)
    assert (face.layers, face.learning_rate, face.steps) == (Layers.ALL, 5e-6, 1000)
    assert face.zoom is Zoom.NONE and face.face_mask and face.flip == 0
    assert CustomDiffusionSettings(preset=TrainingPreset.FACE, steps=7).steps == 7


# Bad input ------------------------------------------------------------------------------------------------------------


def sentence(call: Any, *arguments: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"start": ("a photo",)}, "2 tokens"),
        ({"modifier": "person"}, "already a word"),
        ({"start": ()}, "1 words need as many"),
        ({"prompt": "a photo"}, "no {}"),
    ],
)
def test_settings_that_cannot_be_trained_are_said(make_base, photos, values, said):
    assert said in sentence(custom_diffusion, make_base(False), [photos], chosen(**values))


def test_photos_that_cannot_be_trained_are_said(make_base, make_photo):
    base = make_base(False)
    assert "no photo" in sentence(custom_diffusion, base, [[]], chosen())
    mixed = [make_photo(1), make_photo(2, side=64)]
    assert "different sizes (32x32, 64x64)" in sentence(custom_diffusion, base, [mixed], chosen())
    faceless = [Example(make_photo(1).pixels, "")]
    assert "no face mask" in sentence(custom_diffusion, base, [faceless], chosen(face_mask=True))
    twice = chosen(modifier_2="<new1>")
    assert "have the same word" in sentence(custom_diffusion, base, [[make_photo(1)], [make_photo(2)]], twice)


def test_folders_without_pictures_are_said(tmp_path):
    assert "no folder" in sentence(class_examples, tmp_path / "gone", 32, "x")
    (tmp_path / "empty").mkdir()
    assert sentence(class_examples, tmp_path / "empty", 32, "x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    paint(tmp_path / "bad", "b.png")
    assert len(class_examples(tmp_path / "bad", 32, "x")) == 1


def test_captions_without_the_word_and_few_photos_are_warned_of(make_base, make_photo, caplog):
    with caplog.at_level(logging.WARNING):
        options = chosen(layers=Layers.ALL, prior_weight=0)
        custom_diffusion(make_base(False), [[make_photo(1, "a person")]], options)
    assert "do not say <new1>" in caplog.text and "1 photos are few" in caplog.text


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(make_base, photos, tmp_path):
    base = make_base(False)
    recipe = custom_diffusion(base, [photos], chosen(steps=60, learning_rate=1.0, prior_weight=0, clip=1e6))

    def spoil(done: int, *_: Any) -> None:
        if done == 2:
            next(iter(free_attention(base.unet, False).values())).data.fill_(torch.nan)

    with pytest.raises(LikenessError, match="not numbers"):
        train(base, recipe, RunSettings(save_every=1), tmp_path / "run", Callbacks(spoil))
    kept = torch.load(next((tmp_path / "run").glob("*/state.pt")), weights_only=True)
    assert kept["step"] >= 1
