"""The trainings of adapters: what is dropped and shown, what each loss sees, and what is missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import official
from helpers.people import people_materials, person_photo, some_people, toy_clip_file
from safetensors.torch import load_file, save_file

from likeness import adapters
from likeness.errors import LikenessError
from likeness.training import methods
from likeness.training.config import RunSettings
from likeness.training.data.people import People
from likeness.training.data.photo_files import Photo
from likeness.training.engine import train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.recipe import Pass, generator
from likeness.training.recipes import storymaker as recipes_storymaker
from likeness.training.recipes.adapter_training import DropRates, EncodedPhotos, PeopleStream
from likeness.training.recipes.instantid import InstantIDSettings, hint_of, identity_net, instantid
from likeness.training.recipes.ip_adapter import IPAdapterSettings, ip_adapter
from likeness.training.recipes.photomaker import (
    ClassWords,
    PhotoMakerSettings,
    References,
    photomaker,
    reference_crop,
    run_of,
)
from likeness.training.recipes.storymaker import StoryMakerSettings, cast_of, masks_of, storymaker
from likeness.training.storymaker import fresh_storymaker, from_ip_adapter

PROJECTION = "image_proj_model."

# What all share ------------------------------------------------------------------------------------------------------


def test_person_text_and_both_are_left_out_as_often_as_asked():
    drops = DropRates(person=0.1, text=0.2, both=0.3)
    drawn = [drops.draw(generator(n)) for n in range(4000)]
    shares = {fate: drawn.count(fate) / len(drawn) for fate in set(drawn)}
    wanted = {(True, False): 0.1, (False, True): 0.2, (True, True): 0.3, (False, False): 0.4}
    assert shares.keys() == wanted.keys()
    assert all(abs(shares[fate] - share) < 0.03 for fate, share in wanted.items())


def test_a_person_is_often_seen_in_another_photo_and_never_as_somebody_else():
    people = some_people("abc", 3)
    stream = PeopleStream(people, DropRates(text=1.0, person=0.0), another_photo=0.5, seed=1)
    samples = [stream(n, generator(n)) for n in range(600)]
    assert all(sample.prompt == "" for sample in samples)
    pairs = [(sample.about.target, sample.about.reference) for sample in samples]
    assert all(target.person == reference.person for target, reference in pairs)
    assert 0.4 < sum(target is not reference for target, reference in pairs) / len(pairs) < 0.6
    assert len({target for target, _ in pairs[:9]}) == 9, "each once per epoch"
    alone = PeopleStream(some_people("a", 1), DropRates(), another_photo=1.0)
    assert alone(0, generator(0)).about.reference is alone.people.photos[0]


def test_a_photo_is_encoded_once():
    asked, people = [], some_people("ab", 1)
    photos = EncodedPhotos(lambda photo: asked.append(photo) or {"id": photo.embedding})  # type: ignore[func-returns-value]
    with photos.kept():
        for _ in range(3):
            assert photos.of(people.photos, "cpu")["id"].shape == (2, 16)
    assert asked == list(people.photos)


SDXL: list[tuple[str, dict[str, Any]]] = [
    ("ip_adapter", {"layout": "faceid", "rank": 2}),
    ("pulid", {"width": 64}),
    ("instantid", {}),
    ("photomaker", {"rank": 2, "smallest_face": 0, "version": "v2"}),
]


@pytest.mark.parametrize(("kind", "values"), SDXL, ids=[kind for kind, _ in SDXL])
def test_it_trains_on_sdxl(kind, values, make_base, tmp_path):
    (method,) = [method for method in methods.ADAPTERS if method.kind == kind]
    base = make_base(sdxl=True)
    people = some_people(width=512 if kind in ("instantid", "photomaker") else 16)
    materials = people_materials(people, encoder=toy_clip_file(tmp_path / "clip.safetensors"))
    settings = method.trainable.settings(steps=1, **values)
    recipe = method.trainable.make(base, materials, settings, 0)
    assert train(base, recipe, RunSettings(batch=2), tmp_path / "run").complete
    for saved in recipe.save(tmp_path, "x", TrainingRecord(recipe.name, base.family, 1)):
        if saved.kind is not SavedKind.CONTROLNET:
            assert adapters.load(saved.path, folder=saved.kind.value).title.startswith(("PuLID", method.title))


# IP-Adapter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plus-v2", "portrait-unnorm"])
def test_files_whose_tensors_do_not_tell_them_apart_are_themselves_again(base, variant, tmp_path):
    sites = [(site.width, site.context_dim) for site in _sites(base)]
    weights = official.key_values(sites, 0)
    people, width = some_people(width=512), 512
    if variant == "plus-v2":
        projection = official.identity_plus(24, 20, depth=1, seed=0)
        weights |= official.lora(sites, 2, 0)
        width = projection["proj.0.weight"].shape[1]
        people = some_people(width=width)
    else:
        projection = official.resampler(24, 512, dim=64, depth=1, tokens=16, seed=0)
    file = tmp_path / f"ip-adapter-faceid-{'plusv2' if variant == 'plus-v2' else 'portrait_unnorm'}.safetensors"
    groups = {f"image_proj.{k}": v for k, v in projection.items()} | {f"ip_adapter.{k}": v for k, v in weights.items()}
    save_file({key: value.contiguous() for key, value in groups.items()}, file)
    given = adapters.load(file)
    recipe = ip_adapter(base, people_materials(people, start=file), IPAdapterSettings(steps=1))
    train(base, recipe, RunSettings(), tmp_path / "run")
    (saved,) = recipe.save(tmp_path / "out", "anna", TrainingRecord("x", base.family, 1))
    assert adapters.load(saved.path).title == given.title


def _sites(base: Any) -> Any:
    from likeness.injection.sites import sites_of_diffusers_unet

    return sites_of_diffusers_unet(base.unet)


def test_an_adapter_of_another_recogniser_or_system_is_refused(base, tmp_path):
    recipe = ip_adapter(base, people_materials(), IPAdapterSettings(rank=2))
    (saved,) = recipe.save(tmp_path, "x", TrainingRecord("x", base.family, 1))
    with pytest.raises(LikenessError, match=r"embeddings of 16 numbers .* makes 20.*data\.faces"):
        ip_adapter(base, people_materials(some_people(width=20), start=saved.path), IPAdapterSettings())
    with pytest.raises(LikenessError, match=r"not of PhotoMaker.*data\.start_from"):
        photomaker(base, people_materials(start=saved.path), PhotoMakerSettings(smallest_face=0))
    with pytest.raises(LikenessError, match="through CLIP"):
        ip_adapter(base, people_materials(clip=None), IPAdapterSettings(layout="plus"))  # type: ignore[arg-type]


# InstantID ------------------------------------------------------------------------------------------------------------


def test_identitynet_reads_the_person_and_the_keypoints_and_not_the_text(base, monkeypatch):
    recipe = instantid(base, people_materials(some_people(width=512)), InstantIDSettings())
    (phase,) = recipe.phases
    groups = phase.begin()
    assert [group.name for group in groups] == ["adapter", "identitynet"]
    samples = [phase.streams[0](n, generator(n)) for n in range(2)]
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([5, 600])
    with phase.hooks():  # type: ignore[misc]
        phase.show(samples)  # type: ignore[misc]
        [(context, net)] = _control_of(phase).pairs
        assert context.tokens.cond.shape == (2, 16, 24) and net.picture.shape == (2, 3, 32, 32)
        assert float(net.picture.max()) == 1.0
        before = len(base.unet._forward_pre_hooks)
        base.predict(z, t, base.encode(["a", "b"])).square().mean().backward()
    assert len(base.unet._forward_pre_hooks) == before - 1, "nothing is left in the UNet"
    zero_convolutions = [p for name, p in groups[1].parameters.items() if name.startswith("controlnet_down_blocks")]
    assert all(float(p.grad.abs().max()) > 0 for p in zero_convolutions if p.grad is not None and p.ndim > 1)


def _control_of(phase: Any) -> Any:
    cells = {name: cell.cell_contents for name, cell in zip(phase.show.__code__.co_freevars, phase.show.__closure__)}  # noqa: B905
    return cells["control"]._controlled


def test_keypoints_are_those_of_the_image_that_is_trained_on():
    photo = person_photo("a", 0, side=64)
    assert hint_of(photo).shape == (1, 3, 64, 64) and float(hint_of(photo).max()) == 1.0


def test_what_instantid_cannot_read_is_named(base, tmp_path):
    with pytest.raises(LikenessError, match="antelopev2"):
        instantid(base, people_materials(), InstantIDSettings())
    save_file({"a": torch.ones(1)}, tmp_path / "control.safetensors")
    with pytest.raises(LikenessError, match=r"not an IdentityNet.*data\.control"):
        identity_net(base, tmp_path / "control.safetensors")


# StoryMaker -----------------------------------------------------------------------------------------------------------


def story_base(base: Any, make_unet: Any) -> Any:
    levels = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    ups = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    base.unet = make_unet(down_block_types=levels, up_block_types=ups, block_out_channels=(16, 32, 32)).eval()
    return base


def story_pass(base: Any, recipe: Any) -> tuple[Any, Pass]:
    (phase,) = recipe.phases
    phase.begin()
    samples = [phase.streams[0](n, generator(n)) for n in range(2)]
    z, t = torch.randn(2, 4, 16, 16, generator=generator("z")), torch.tensor([5, 600])
    found = Pass(samples, base.schedule, 0.0, z, z, t, z, z, [], lambda: found)
    return phase, found


def test_the_mask_loss_sees_the_character_and_the_attention_loss_every_coarse_layer(base, make_unet, monkeypatch):
    seen, loss = [], recipes_storymaker.attention_loss
    monkeypatch.setattr(
        recipes_storymaker, "attention_loss", lambda maps, masks, n: seen.append((maps, n)) or loss(maps, masks, n)
    )
    base = story_base(base, make_unet)
    settings = StoryMakerSettings(rank=2, drop=DropRates(person=0, text=0, both=0))
    recipe = storymaker(base, people_materials(), settings)
    phase, found = story_pass(base, recipe)
    masks = masks_of(found)
    assert masks.shape == (2, 1, 16, 16) and 0.3 < float(masks.mean()) < 0.6
    with phase.hooks():
        phase.show(found.samples)
        prediction = base.predict(found.z_t, found.t, base.encode(["a", "b"]))
        found.prediction = prediction
        losses = {objective.name: objective.loss(found) for objective in phase.objectives}
    error = (prediction - found.target).square()
    inside = (error * (1 + 5 * masks)).mean()
    torch.testing.assert_close(losses["reconstruction"], inside)
    trained = recipe.phases[0].begin()[0].parameters
    (gradient,) = torch.autograd.grad(losses["attention"], [trained["image_proj_model.bg_embed"]])
    assert float(gradient.abs().max()) > 0
    ((maps, tokens),) = seen
    assert [tuple(one.shape) for one in maps] == [(2, 40, 16)] * 4 and tokens == 20, "of one softmax, at 4x4"
    assert all(torch.allclose(one.sum(1), torch.ones(2, 16)) for one in maps)


def together(first: str, second: str) -> Any:
    """A photo of two people, one at the left and one at the right."""
    one, other = person_photo(first, 0), person_photo(second, 0)
    pixels = one.example.photo.pixels
    for photo, columns in ((one, slice(0, 16)), (other, slice(16, 32))):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, columns] = 255
        object.__setattr__(photo.example, "photo", Photo(f"{first}/0.png", pixels, "two people", mask))
    return replace(one, companions=(other,))


def two_steps(base: Any, people: People) -> Any:
    settings = StoryMakerSettings(rank=2, steps=2, drop=DropRates(person=0, text=0, both=0))
    return storymaker(base, people_materials(people), settings)


def test_every_character_of_a_photo_has_tokens_and_a_mask_in_the_same_order(base, make_unet, tmp_path):
    base = story_base(base, make_unet)
    recipe = two_steps(base, People((together("a", "b"), together("c", "d")), recogniser="test"))
    stream, orders = recipe.phases[0].streams[0], set()
    z = torch.zeros(1, 4, 16, 16)
    for n in range(20):
        sample = stream(n, generator(n))
        cast = cast_of(sample.about)
        orders.add(tuple(photo.person for photo, _ in cast))
        masks = masks_of(Pass([sample], base.schedule, 0.0, z, z, torch.tensor([1]), z, z, [], NotImplemented))
        left = [photo.person in "ac" for photo, _ in cast]
        assert masks.shape == (1, 2, 16, 16) and [bool(mask[0, 0] > 0.5) for mask in masks[0]] == left
    assert orders == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}
    assert train(base, recipe, RunSettings(batch=2), tmp_path / "run").complete


def test_a_batch_of_different_casts_is_refused(base, make_unet, tmp_path):
    base = story_base(base, make_unet)
    people = People((together("a", "b"), person_photo("c", 0)), recogniser="test")
    with pytest.raises(LikenessError, match=r"run\.batch to 1"):
        train(base, two_steps(base, people), RunSettings(batch=2), tmp_path / "run")
    base = story_base(base, make_unet)
    assert train(base, two_steps(base, people), RunSettings(), tmp_path / "one").complete


def test_photos_without_a_mask_are_left_out_and_too_many_are_an_error(base, make_unet):
    base, whole = story_base(base, make_unet), some_people("abcd", 2)
    bare = person_photo("e", 0)
    object.__setattr__(bare.example, "photo", Photo("e/0.png", bare.example.photo.pixels))
    people = People((*whole.photos, bare), recogniser="test")
    recipe = storymaker(base, people_materials(people), StoryMakerSettings(rank=2))
    assert bare not in recipe.phases[0].streams[0].people.photos  # type: ignore[attr-defined]
    with pytest.raises(LikenessError, match=r"1 of 3 images .*e/0\.png: it has no mask.*0\.mask\.png"):
        few = People((*whole.photos[:2], bare), recogniser="test")
        storymaker(base, people_materials(few), StoryMakerSettings(rank=2))


def test_a_new_storymaker_begins_with_what_a_faceid_plus_has_learned(base, make_unet):
    base = story_base(base, make_unet)
    fresh = fresh_storymaker(base.unet, 512, 20, rank=2)
    sites = [(site.width, site.context_dim) for site in _sites(base)]
    given = {f"image_proj.{k}": v for k, v in official.identity_plus(24, 20, depth=1, seed=0).items()}
    given |= {f"ip_adapter.{k}": v for k, v in official.key_values(sites, 0).items()}
    begun = from_ip_adapter(fresh, given)
    assert begun.keys() == fresh.keys()
    key = "ip_adapter.1.to_k_ip.weight"
    assert torch.equal(begun[key], given[key]) and torch.equal(
        begun["image_proj_model.norm.weight"], given["image_proj.norm.weight"]
    )
    assert torch.equal(begun[f"{PROJECTION}bg_embed"], fresh[f"{PROJECTION}bg_embed"])


# PhotoMaker -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "wanted", "word"),
    [
        ("a man and a dog", "a man man man and a dog", "man"),
        ("two women", "two woman woman woman", "woman"),
        ("a dog", "a photo of a person person person, a dog", "person"),
        ("", "a photo of a person person person", "person"),
        ("A Woman, a man", "A woman woman woman, a man", "woman"),
        ("a policeman", "a photo of a person person person, a policeman", "person"),
    ],
)
def test_captions_are_marked_at_their_class_word(base, caption, wanted, word):
    assert ClassWords(base, "person").marked(caption, 3) == (wanted, word)


def test_a_class_word_of_several_tokens_is_refused(base):
    with pytest.raises(LikenessError, match=r"one token.*recipe\.class_word"):
        ClassWords(base, "gentleman")


def test_the_place_of_the_person_is_where_its_word_is_repeated():
    ids = torch.tensor([1, 7, 5, 7, 7, 7, 2])
    assert run_of(ids, 7, 3).tolist() == [3, 4, 5] and run_of(ids, 7, 1).tolist() == [1]
    with pytest.raises(LikenessError, match="most_references"):
        run_of(ids, 7, 4)


def test_the_target_is_its_own_reference_only_where_there_is_no_other(base):
    people = People((*some_people("a", 3).photos, person_photo("b", 0)), recogniser="test")
    settings = PhotoMakerSettings(smallest_face=0, drop=DropRates(person=0, text=0, both=0))
    stream = References(people, settings, ClassWords(base, "person"), 2, 0)
    stacked = [stream(n, generator(n)) for n in range(200)]
    for sample in stacked:
        one = sample.about
        assert one.target.person == one.references[0].person
        assert (one.target in one.references) == (one.target.person == "b")
        assert sample.prompt.split().count(one.word) + sample.prompt.count(f"{one.word},") >= 2 * len(one.references)
    assert {len(sample.about.references) for sample in stacked} == {1, 2}


def test_the_background_of_a_reference_is_noise_and_the_same_each_time():
    photo = person_photo("a", 0)
    noisy, plain = reference_crop(photo, True), reference_crop(photo, False)
    assert torch.equal(noisy, reference_crop(photo, True))
    changed = (noisy != plain).any(-1).float().mean()
    assert 0.1 < float(changed) < 0.9


def test_small_faces_and_a_missing_encoder_are_named(base, tmp_path):
    with pytest.raises(LikenessError, match=r"too small .*smallest_face"):
        photomaker(base, people_materials(), PhotoMakerSettings())
    with pytest.raises(LikenessError, match=r"data\.encoder"):
        photomaker(base, people_materials(), PhotoMakerSettings(smallest_face=0))
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(LikenessError, match=r"'other\.safetensors' is no CLIP image encoder"):
        photomaker(base, people_materials(encoder=tmp_path / "other.safetensors"), PhotoMakerSettings(smallest_face=0))


def test_the_first_layers_of_the_encoder_stay_as_they_are(base, tmp_path):
    clip = toy_clip_file(tmp_path / "clip.safetensors")
    settings = PhotoMakerSettings(smallest_face=0, rank=2, steps=2, encoder_layers=1, encoder_rate=0.1)
    recipe = photomaker(base, people_materials(encoder=clip), settings)
    before = load_file(clip)
    train(base, recipe, RunSettings(), tmp_path / "run")
    (saved,) = recipe.save(tmp_path, "x", TrainingRecord("x", base.family, 2))
    after = load_file(saved.path)
    same = {key for key, value in before.items() if torch.equal(after[f"id_encoder.{key}"], value.half())}
    frozen = {key for key in before if ".layers.0." in key or ".embeddings." in key or "pre_layrnorm" in key}
    assert frozen <= same and not any(".layers.1." in key and key.endswith("fc1.weight") for key in same)
