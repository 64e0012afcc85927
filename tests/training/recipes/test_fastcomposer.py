"""FastComposer's training: what it trains and how people are shown, its losses, and the file that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import marked_photos as made
from helpers.small_world import sentence
from safetensors.torch import load_file, save_file

from likeness.adapters import load
from likeness.adapters.fastcomposer import FastComposer
from likeness.training.command import Openers, read_configuration
from likeness.training.command import run as run_configuration
from likeness.training.config import Precision, RunSettings
from likeness.training.data.subjects import SubjectPhotos, read_subjects
from likeness.training.engine import Callbacks, train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.materials import GroupMaterials
from likeness.training.recipe import Recipe, generator
from likeness.training.recipes.fastcomposer import FastComposerSettings, People, load_start, make

HEADS = 16  # channels of a head in the small tower


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def photos(tmp_path) -> SubjectPhotos:
    return read_subjects(made.write(tmp_path / "photos"), "img", 32)


def chosen(**values: Any) -> FastComposerSettings:
    given = {"steps": 3, "learning_rate": 1e-3, "head_width": HEADS, "tuned_layers": 1, **values}
    return FastComposerSettings(**given)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A small CLIP image encoder."""
    return made.clip(tmp_path_factory.mktemp("clip") / "clip.safetensors")


def recipe_of(base: Any, photos: SubjectPhotos, settings: FastComposerSettings, start: Path) -> Recipe:
    return make(base, GroupMaterials(photos, start), settings, 0)


def saved(recipe: Recipe, base: Any, folder: Path) -> Path:
    [result] = recipe.save(folder, "made", TrainingRecord(recipe.name, base.family, 3))
    assert result.kind is SavedKind.FASTCOMPOSER and result.kind.label == "adapter"
    return result.path


# What is trained, and what comes out ----------------------------------------------------------------------------------


def test_the_unet_the_mlp_and_the_last_layers_are_all_that_moves(make_base, photos, clip, tmp_path):
    base, settings = make_base(), chosen()
    recipe = recipe_of(base, photos, settings, clip)
    before = load_file(saved(recipe, base, tmp_path / "before"))
    texts = {key: value.clone() for key, value in base.encoders[0].state_dict().items()}
    hooks = [len(module._forward_hooks) for module in base.unet.modules()]
    processors = {name: type(p) for name, p in base.unet.attn_processors.items()}
    assert train(base, recipe, RunSettings(batch=2), tmp_path / "run").complete
    after = load_file(saved(recipe, base, tmp_path / "after"))
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    last = {key for key in after if ".layers.1." in key}
    frozen = {key for key in after if key.startswith("image_encoder.")} - last
    assert not moved & frozen and moved >= {key for key in after if key.startswith("postfuse_module.mlp")}
    assert len(moved & last) > 10 and "unet.conv_in.weight" in moved
    assert all(torch.equal(value, texts[key]) for key, value in base.encoders[0].state_dict().items())
    assert [len(module._forward_hooks) for module in base.unet.modules()] == hooks
    assert {name: type(p) for name, p in base.unet.attn_processors.items()} == processors


def test_a_killed_training_goes_on_bit_for_bit_and_its_file_loads_back(make_base, photos, clip, tmp_path):
    settings, run = chosen(steps=4), RunSettings(save_every=1, batch=2)

    def die(done: int, total: int, losses: Any) -> None:
        if done == 2:
            raise Killed

    base = make_base()
    recipe = recipe_of(base, photos, settings, clip)
    whole = train(base, recipe, run, tmp_path / "whole")
    killed = make_base()
    with pytest.raises(Killed):
        train(killed, recipe_of(killed, photos, settings, clip), run, tmp_path / "cut", Callbacks(progress=die))
    again = make_base()
    resumed = recipe_of(again, photos, settings, clip)
    assert train(again, resumed, run, tmp_path / "cut").complete
    one, other = saved(recipe, base, tmp_path / "one"), saved(resumed, again, tmp_path / "other")
    found, wanted = load_file(other), load_file(one)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert read_losses(whole.losses) == read_losses(tmp_path / "cut" / "losses.csv")

    adapter = load(one)  # with heads of 64 channels, as every published encoder
    assert isinstance(adapter, FastComposer) and adapter.unet().changes.keys() == {
        key.removesuffix(".weight") for key in base.unet.state_dict()
    }
    adapter = FastComposer(wanted, "made", HEADS)
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = load_start(one, make_base(), HEADS).image_encoder(images[None])[0, :, 0]
    torch.testing.assert_close(adapter.encode(images), expected)


def test_a_training_goes_on_from_a_fastcomposer_file(make_base, photos, clip, tmp_path):
    base = make_base()
    recipe = recipe_of(base, photos, chosen(), clip)
    train(base, recipe, RunSettings(), tmp_path / "run")
    file = saved(recipe, base, tmp_path / "first")
    fresh = make_base()
    networks = load_start(file, fresh, HEADS)
    assert all(torch.equal(v, base.unet.state_dict()[k]) for k, v in fresh.unet.state_dict().items())
    assert torch.equal(networks.postfuse_module.mlp1.fc1.weight, load_file(file)["postfuse_module.mlp1.fc1.weight"])


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_both_losses_fall(make_base, photos, clip, tmp_path, masked):
    """With the UNet's own noise fixed by a single timestep's worth of steps, on three images."""
    settings = chosen(
        steps=40, localisation_weight=1.0, masked_loss=masked, unconditional=0.0, keep_subject=1.0,
        augment=False, learning_rate=3e-3,
    )  # fmt: skip
    base = make_base()
    train(base, recipe_of(base, photos, settings, clip), RunSettings(batch=3), tmp_path / "run")
    rows = read_losses(tmp_path / "run" / "losses.csv")
    for name in ("reconstruction", "localisation"):
        values = [float(row[name]) for row in rows]
        assert sum(values[-10:]) < sum(values[:10]), name
    assert min(float(row["localisation"]) for row in rows) > -1.0


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_precisions_and_checkpointing(make_base, photos, clip, tmp_path, precision, checkpointing):
    base = make_base()
    run = RunSettings(batch=2, precision=precision, gradient_checkpointing=checkpointing)
    recipe = recipe_of(base, photos, chosen(localisation_weight=0.5), clip)
    assert train(base, recipe, run, tmp_path / "run").complete
    rows = read_losses(tmp_path / "run" / "losses.csv")
    assert all(abs(float(row["localisation"])) < 1 and float(row["total"]) < 100 for row in rows)
    assert not base.unet.is_gradient_checkpointing


def test_without_the_localisation_loss_nothing_is_recorded(make_base, photos, clip, tmp_path):
    base = make_base()
    recipe = recipe_of(base, photos, chosen(localisation_weight=0.0), clip)
    assert recipe.phases[0].recording is None
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete


# How people are shown -------------------------------------------------------------------------------------------------


def shown(base: Any, photos: SubjectPhotos, settings: FastComposerSettings, count: int = 30) -> list[Any]:
    stream = People(photos, settings, 28, base, 0)
    return [stream(n, generator(1, n)) for n in range(count)]


def test_every_place_is_the_noun_s_and_masks_go_with_it(make_base, photos):
    base, settings = make_base(), chosen(unconditional=0.0, keep_subject=1.0, augment=False)
    for sample in shown(base, photos, settings):
        ids = base.ids([sample.prompt])[0].tolist()
        words = [base.text[0].tokenizer.convert_ids_to_tokens(ids[place]) for place in sample.about.places]
        assert "img" not in sample.prompt
        expected = {"a man": ["man</w>"], "a woman and a man": ["woman</w>", "man</w>"], "a house": []}
        assert words == expected[sample.prompt]
        for mask, subject in zip(sample.about.masks, sample.example.subjects, strict=True):
            assert torch.equal(mask.flip(-1) if sample.flipped else mask, subject.shown)
        assert sample.about.images.shape[1:] == (3, 28, 28) and len(sample.about.images) == len(words)
    assert {sample.flipped for sample in shown(base, photos, settings)} == {False, True}


def test_people_and_texts_are_left_out_as_often_as_asked_for(make_base, photos):
    base = make_base()
    nobody = shown(base, photos, chosen(unconditional=1.0))
    assert all(not sample.prompt and not sample.about.places for sample in nobody)
    texts = shown(base, photos, chosen(unconditional=0.0, text_only=1.0))
    assert all(sample.prompt and not sample.about.places for sample in texts)
    never = shown(base, photos, chosen(unconditional=0.0, keep_subject=0.0))
    assert all(sample.prompt and not sample.about.places for sample in never)
    one = shown(base, photos, chosen(unconditional=0.0, most_subjects=1))
    assert {len(sample.about.places) for sample in one} == {0, 1}
    assert {sample.about.only_people for sample in one} == {False, True}


def test_people_stand_before_noise(make_base, tmp_path):
    """A mask of an odd shape: what is around it in its box is another noise for every sample."""
    from PIL import Image

    folder = made.write(tmp_path / "photos", ("a man img",))
    _, [mask] = made.painted(0, 1)
    mask[30:50, 10:20] = False
    Image.fromarray((mask * 255).astype("uint8")).save(folder / "0.1.mask.png")
    photos, base = read_subjects(folder, "img", 32), make_base()
    settings = chosen(unconditional=0.0, keep_subject=1.0, augment=False)
    before = [sample.about.images for sample in shown(base, photos, settings, 2)]
    assert not torch.equal(*before)
    kept = [s.about.images for s in shown(base, photos, settings.model_copy(update={"background_noise": False}), 2)]
    assert torch.equal(*kept)


# `likeness train`, and what does not fit ------------------------------------------------------------------------------


def test_likeness_train_makes_a_file_from_a_configuration(make_base, clip, tmp_path):
    made.write(tmp_path / "photos")
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
name = "composer"
base = "small"
output = "{(tmp_path / "run").as_posix()}"
[data]
people = "{(tmp_path / "photos").as_posix()}"
encoder = "{clip.as_posix()}"
resolution = 64
[recipe]
kind = "fastcomposer"
head_width = {HEADS}
steps = 2
[run]
batch = 2
"""
    )

    def no_faces(name: str) -> Any:
        raise AssertionError("nobody's face is looked for")

    openers = Openers(lambda name: make_base(), no_faces)
    [result] = run_configuration(read_configuration(config), openers)
    assert result.name == "composer.safetensors" and isinstance(load(result), FastComposer)
    assert run_configuration(read_configuration(config), openers) == [result], "it is there already"
    (tmp_path / "photos" / "0.txt").write_text("an old man img")
    assert "photos" in sentence(run_configuration, read_configuration(config), openers)
    told = config.read_text()
    for entry, said in (("people", "data.people"), ("encoder", "data.encoder, or that of a FastComposer")):
        config.write_text("\n".join(line for line in told.splitlines() if not line.startswith(entry)))
        assert said in sentence(run_configuration, read_configuration(config), openers)


def test_starts_that_are_none(make_base, photos, clip, tmp_path):
    base = make_base()
    save_file({"conv.weight": torch.zeros(600, 1)}, tmp_path / "other.safetensors")
    assert "neither CLIP's image encoder nor" in sentence(load_start, tmp_path / "other.safetensors", base, HEADS)
    wide = made.clip(tmp_path / "wide.safetensors", 48)
    assert "text of width 48" in sentence(recipe_of, base, photos, chosen(), wide)
    assert "text of width 24" in sentence(recipe_of, make_base(sdxl=True), photos, chosen(), clip)
    broken = load_file(tmp_path / "wide.safetensors")
    broken.pop("vision_model.post_layernorm.weight")
    save_file(broken, tmp_path / "broken.safetensors")
    assert "post_layernorm" in sentence(load_start, tmp_path / "broken.safetensors", base, HEADS)
