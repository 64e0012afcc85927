"""PhotoVerse's training: what moves and what does not, what a sample sees, its losses, its file, and bad input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import photoverse as made
from helpers.people import ToyClip, people_materials, some_people
from safetensors.torch import load_file, save_file

from likeness import adapters
from likeness.adapters.effects import AttentionTerm, WeightDelta
from likeness.adapters.image_prep import CLIP_MEAN, CLIP_STD
from likeness.adapters.photoverse import PhotoVerse
from likeness.adapters.photoverse.face import FaceMask
from likeness.adapters.photoverse.fusion import Branches
from likeness.adapters.photoverse.networks import LAYERS, AdapterKind
from likeness.adapters.types import IdentityTokens
from likeness.errors import LikenessError
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.training.config import RunSettings
from likeness.training.engine import train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.recipe import Recipe, generator
from likeness.training.recipes.adapter_training import Shown
from likeness.training.recipes.photoverse import PhotoVerseSettings, Reader, branches_of, photoverse

ALL_SEEN = {"drop": {"person": 0.0, "text": 0.0, "both": 0.0}}


class SeeingClip(ToyClip):
    """Remembers what it was shown, and which layers were asked for."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []
        self.asked: list[Any] = []

    def hidden_states(self, pixels: torch.Tensor, layers: Any) -> list[torch.Tensor]:
        self.shown.append(pixels)
        self.asked.append(tuple(layers))
        return super().hidden_states(pixels, layers)


def chosen(**values: Any) -> PhotoVerseSettings:
    usual: dict[str, Any] = {"steps": 3, "warm_up": 0, "lambda_face": 0.0, "rank": 2, "hidden": 8}
    return PhotoVerseSettings(**{**usual, "learning_rate": 1e-2, **values})


def recipe_for(base: Any, given: dict[str, Any] | None = None, **values: Any) -> Recipe:
    return photoverse(base, people_materials(**(given or {})), chosen(**values))


def saved_file(recipe: Recipe, base: Any, folder: Path) -> Path:
    [saved] = recipe.save(folder, "faces", TrainingRecord(recipe.name, base.family, 3))
    assert saved.kind is SavedKind.PHOTOVERSE
    return saved.path


def trained(base: Any, folder: Path, batch: int = 1, **values: Any) -> dict[str, torch.Tensor]:
    """The tensors of the file of a whole training."""
    recipe = recipe_for(base, **values)
    assert train(base, recipe, RunSettings(batch=batch), folder / "run").complete
    return load_file(saved_file(recipe, base, folder))


def losses(folder: Path) -> list[dict[str, float]]:
    rows = read_losses(folder / "losses.csv")
    return [{k: float(v) for k, v in row.items() if v and k not in ("phase", "step")} for row in rows]


def person(seed: int = 0, dropped: bool = False) -> Shown:
    photo = some_people().photos[0]
    return Shown(photo, photo, dropped, seed)


# What is trained ------------------------------------------------------------------------------------------------------


def test_every_trained_part_moves(make_base, tmp_path):
    short, long = (trained(make_base(), tmp_path / str(n), batch=2, steps=n, **ALL_SEEN) for n in (1, 6))
    assert short.keys() == long.keys() and not [key for key in long if torch.equal(long[key], short[key])]


def test_text_encoder_and_vae_are_left_alone(make_base, tmp_path):
    base = make_base()
    parts = [*base.encoders, base.codec.module]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    trained(base, tmp_path)
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in part.state_dict().items())


def test_the_branch_starts_as_the_texts_keys_and_values_and_the_lora_as_nothing(make_base, tmp_path):
    base = make_base()
    adapter = adapters.load(saved_file(recipe_for(base), base, tmp_path))
    assert isinstance(adapter, PhotoVerse) and adapter.lora_pairs
    for site in sites_of_diffusers_unet(base.unet):
        own: Any = base.unet.get_submodule(f"{site.diffusers_path}.attn2")
        keys, values = adapter.project(site.slot, torch.eye(site.context_dim)[None])
        assert torch.allclose(keys[0].T.float(), own.to_k.base_layer.weight, atol=1e-3)
        assert torch.allclose(values[0].T.float(), own.to_v.base_layer.weight, atol=1e-3)
    assert all(bool((pair.up == 0).all()) for pair in adapter.lora_pairs.values())


def test_the_unofficial_file_is_trained_further(make_base, tmp_path):
    base = make_base()
    shapes = [(site.width, site.context_dim) for site in sites_of_diffusers_unet(base.unet)]
    blocks = [site.diffusers_path for site in sites_of_diffusers_unet(base.unet)]
    weights = made.unofficial(shapes, width=20, maps=3, paths=blocks)
    torch.save(made.nested(weights, alpha=2), tmp_path / "photoverse.pt")
    recipe = recipe_for(base, {"start": tmp_path / "photoverse.pt"})
    before = adapters.load(saved_file(recipe, base, tmp_path / "start"))
    assert isinstance(before, PhotoVerse) and before.text_adapter.sizes.maps == 3
    assert {pair.scale for pair in before.lora_pairs.values()} == {2 / made.RANK}
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    after = adapters.load(saved_file(recipe, base, tmp_path / "end"))
    assert isinstance(after, PhotoVerse)
    assert {pair.scale for pair in after.lora_pairs.values()} == {2 / made.RANK}
    one, other = (found.text_adapter.state_dict() for found in (before, after))
    assert any(not torch.equal(one[key], other[key]) for key in one)


# What a sample sees ---------------------------------------------------------------------------------------------------


def test_a_third_of_the_samples_sees_each_branch_by_one_draw_of_its_own():
    found = Counter(branches_of(person(seed), chosen()) for seed in range(2000))
    assert all(0.28 < found[branches] / 2000 < 0.39 for branches in Branches)
    assert branches_of(person(5), chosen()) is branches_of(person(5), chosen())
    only = chosen(only_text_below=1.0, only_image_above=1.0)
    assert {branches_of(person(seed), only) for seed in range(20)} == {Branches.TEXT}


@pytest.mark.parametrize(
    ("branches", "settings"),
    [
        (Branches.TEXT, {"only_text_below": 1.0, "only_image_above": 1.0}),
        (Branches.IMAGE, {"only_text_below": 0.0, "only_image_above": 0.0}),
        (Branches.BOTH, {"only_text_below": 0.0, "only_image_above": 1.0}),
    ],
)
def test_only_the_branches_of_a_sample_answer_to_its_person(make_base, branches, settings):
    """Where the text is alone other tokens change nothing, and where the image is alone other words do not."""
    base = make_base()
    recipe = recipe_for(base, **settings, **ALL_SEEN)
    phase = recipe.phases[0]
    phase.begin()
    sample = phase.streams[0](0, generator(0))
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400])
    with torch.no_grad(), phase.hooks():  # type: ignore[misc]
        assert phase.show is not None
        phase.show([sample])
        said = [base.staged([prompt], t) for prompt in (sample.prompt, "a photo of a house by night")]
        one, other_text = (base.predict(z, t, each) for each in said)
    assert torch.allclose(one, other_text, atol=1e-6) is (branches is Branches.IMAGE)


def test_a_person_who_is_left_out_leaves_the_model_alone(make_base):
    base = make_base()
    recipe = recipe_for(base, drop={"person": 1.0, "text": 0.0, "both": 0.0})
    phase = recipe.phases[0]
    phase.begin()
    sample = phase.streams[0](0, generator(0))
    assert sample.about.dropped
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400])
    with torch.no_grad(), phase.hooks():  # type: ignore[misc]
        phase.show([sample])  # type: ignore[misc]
        conditioning = base.staged([sample.prompt], t)
        found = base.predict(z, t, conditioning)
    with torch.no_grad():
        assert torch.allclose(found, base.predict(z, t, conditioning), atol=1e-5)


def test_clip_is_shown_the_face_alone_once_and_all_layers_are_asked_for(make_base, tmp_path):
    """The box times 1.3; what the parser calls background is black."""

    def parse(crops: torch.Tensor) -> torch.Tensor:
        return torch.arange(crops.shape[1]).lt(256).long()[None, :, None].expand(crops.shape[:3])

    base, clip = make_base(), SeeingClip()
    recipe = recipe_for(base, {"clip": clip, "parse": parse}, steps=8)
    train(base, recipe, RunSettings(), tmp_path)
    assert len(clip.shown) == 4 and set(clip.asked) == {LAYERS}
    black = (0 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    for pixels in clip.shown:
        assert pixels.shape == (1, 3, 28, 28)
        assert torch.allclose(pixels[0, :, 16:], black.view(3, 1, 1).expand(3, 12, 28), atol=1e-4)
        assert float(pixels[0, :, :12].std()) > 0.1


def test_sentences_are_the_templates_with_the_persons_word(make_base):
    recipe = recipe_for(make_base(), templates=("a photo of {}", "{} laughing"), **ALL_SEEN)
    stream = recipe.phases[0].streams[0]
    found = {stream(n, generator(n)).prompt for n in range(40)}
    assert found == {"a photo of <face>", "<face> laughing"}
    silent = recipe_for(make_base(), drop={"person": 0.0, "text": 1.0, "both": 0.0}).phases[0].streams[0]
    assert {silent(n, generator(n)).prompt for n in range(5)} == {""}


@pytest.mark.parametrize("m", [1, 3, 80])
def test_words_stand_where_the_placeholder_is_and_the_rest_moves(base, m):
    """As the paper's equation; what does not fit into the window is cut."""
    words = torch.randn(2, m, 24, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    encoder = getattr(base.encoders[0], "text_model", base.encoders[0])
    encoder.encoder.register_forward_pre_hook(
        lambda _module, args, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    Reader(base).read(["a photo of <face> laughing", "a photo"], words)
    Reader(base).read(["a photo of laughing", "a photo"], words)
    positions = encoder.embeddings.position_embedding.weight
    found, plain = (rows - positions for rows in seen)
    room = min(m, 77 - 4)
    assert torch.allclose(found[0, 4 : 4 + room], words[0, :room], atol=1e-6)
    assert torch.allclose(found[0, 4 + m :], plain[0, 4 : max(77 - m, 4)], atol=1e-6)
    assert torch.equal(found[:, :4], plain[:, :4]) and torch.equal(found[1], plain[1])


# Losses ---------------------------------------------------------------------------------------------------------------


def test_all_losses_are_in_the_curves_and_the_face_loss_counts_active_samples(make_base, tmp_path):
    base = make_base()
    train(base, recipe_for(base, steps=8, lambda_face=0.01), RunSettings(), tmp_path)
    weights = {"reconstruction": 1.0, "text": 0.01, "visual": 0.001, "face": 0.01}
    rows = losses(tmp_path)
    for row in rows:
        assert row["total"] == pytest.approx(sum(w * row[name] for name, w in weights.items()), rel=1e-4)
    faces = [row["face"] for row in rows]
    assert any(face > 0 for face in faces) and any(face == 0 for face in faces)


def test_no_sample_is_too_noisy_for_a_face_loss_that_looks_at_all(make_base, tmp_path):
    base = make_base()
    recipe = recipe_for(base, steps=6, lambda_face=0.01, last_face_timestep=1000)
    train(base, recipe, RunSettings(), tmp_path)
    assert all(row["face"] > 0 for row in losses(tmp_path))


# The file in use ------------------------------------------------------------------------------------------------------


def test_the_file_paints_as_the_training_did(make_base, tmp_path):
    """Through the same loader and effects that any artist uses, on an untouched base."""
    base = make_base()
    both = {"only_text_below": 0.0, "only_image_above": 1.0}
    recipe = recipe_for(base, steps=4, **both, **ALL_SEEN)
    train(base, recipe, RunSettings(batch=2), tmp_path / "run")
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400])
    phase = recipe.phases[0]
    sample = phase.streams[0](0, generator(0))
    clip = SeeingClip()
    with torch.no_grad(), phase.hooks():  # type: ignore[misc]
        phase.show([sample])  # type: ignore[misc]
        conditioning = base.staged([sample.prompt], t)
        expected = base.predict(z, t, conditioning)
    again = recipe_for(make_base(), {"clip": clip}, **both, **ALL_SEEN).phases[0]
    with torch.no_grad(), again.hooks():  # type: ignore[misc]
        again.show([sample])  # type: ignore[misc]
    adapter = adapters.load(saved_file(recipe, base, tmp_path))
    assert isinstance(adapter, PhotoVerse) and adapter.image_adapter is not None
    tokens = adapter.image_adapter(clip.hidden_states(clip.shown[0], LAYERS))
    fresh = make_base()
    sites = sites_of_diffusers_unet(fresh.unet)
    effects = [
        AttentionTerm(adapter, IdentityTokens(tokens, torch.zeros_like(tokens)), uniform(1.0, sites)),
        WeightDelta("faces", "faces", adapter.lora_pairs),
    ]
    with torch.no_grad(), apply_effects(fresh.unet, effects, [Role.COND]):
        found = fresh.predict(z, t, conditioning)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=1e-2)
    with torch.no_grad():
        assert not torch.allclose(fresh.predict(z, t, conditioning), expected, atol=2e-2)


def test_accumulated_batches_train_what_a_large_one_does(make_base, tmp_path):
    """So that it runs with a batch of 1 where memory is short."""
    large, small = make_base(), make_base()
    one, other = recipe_for(large, steps=2, **ALL_SEEN), recipe_for(small, steps=2, **ALL_SEEN)
    train(large, one, RunSettings(batch=2), tmp_path / "large")
    train(small, other, RunSettings(batch=1, accumulation=2), tmp_path / "small")
    first, second = (losses(tmp_path / name)[0]["reconstruction"] for name in ("large", "small"))
    assert first == pytest.approx(second, rel=1e-3)


# Bad input ------------------------------------------------------------------------------------------------------------


def sentence(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments, **named)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("given", "values", "said"),
    [
        ({"parse": None}, {}, "data.parser"),
        ({"measure": None}, {"lambda_face": 0.1}, "recipe.lambda_face"),
        ({"clip": None}, {}, "data.encoder"),
        ({}, {"only_text_below": 0.9, "only_image_above": 0.1}, "only_text_below is 0.9"),
        ({}, {"adapter": AdapterKind.LITERAL, "hidden": 8}, "as wide as the text, 24"),
        ({}, {"templates": ("a photo",)}, "{}"),
        ({}, {"templates": ()}, "no template"),
    ],
)
def test_what_is_missing_or_impossible_is_said_in_a_sentence(make_base, given, values, said):
    assert said in sentence(recipe_for, make_base(), given, **values)


def test_the_face_parser_is_not_needed_for_whole_crops(make_base, tmp_path):
    base = make_base()
    assert train(base, recipe_for(base, {"parse": None}, mask=FaceMask.NONE), RunSettings(), tmp_path).complete


def test_sdxl_and_files_of_other_systems_are_refused(make_base, tmp_path):
    assert "SD1.5" in sentence(recipe_for, make_base(True))
    base = make_base()
    shapes = [(site.width, site.context_dim) for site in sites_of_diffusers_unet(base.unet)]
    blocks = [site.diffusers_path for site in sites_of_diffusers_unet(base.unet)]
    wide = made.unofficial(shapes, width=1280, paths=blocks)
    save_file({key: value.contiguous() for key, value in wide.items()}, tmp_path / "wide.safetensors")
    assert "1280 wide" in sentence(recipe_for, base, {"start": tmp_path / "wide.safetensors"})


def test_a_photo_in_which_the_parser_finds_no_face_is_named(make_base, tmp_path):
    base = make_base()
    recipe = recipe_for(base, {"parse": lambda crops: torch.zeros(crops.shape[:3])})
    text = sentence(train, base, recipe, RunSettings(), tmp_path)
    assert "finds no face in" in text and ".png" in text
