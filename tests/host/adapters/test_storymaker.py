"""StoryMaker in a MODEL: characters, body images and masks, places, and what stands beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import storymaker as files
from helpers.small_world import person, pictures, same, sentence
from safetensors.torch import save_file
from torch import Tensor

from likeness.faces.people import PeopleInPhoto

NODE = "LikenessStoryMakerCharacter"


@pytest.fixture(scope="module")
def adapter(world) -> Any:
    """Loaded from the folder people have, under the official name."""
    files.write(world.folder / "storymaker" / "mask.bin", world.shapes)
    return world.run("LikenessLoadIdentityAdapter", adapter_file="storymaker/mask.bin")


said: dict[str, str] = {}  # of the last Apply Identity


def figure(height: int = 40, width: int = 40) -> Tensor:
    """A mask (1, H, W) with soft edges."""
    mask = torch.zeros(1, height, width)
    mask[:, 5:-5, 12:-12] = 0.6
    mask[:, 8:-8, 14:-14] = 1.0
    return mask


def character(world: Any, seed: int = 1, **inputs: Any) -> Any:
    """Options of one character with a body."""
    return world.run(NODE, **{"image": pictures(seed=seed), "mask": figure(), **inputs})


def paint(world: Any, adapter: Any, options: Any = None, sample: Any = None, **inputs: Any) -> Tensor:
    given = {"clip_vision": world.clip_vision, "weight": 0.8, "lora_strength": 0.8, "identity": person(), **inputs}
    given |= {} if options is None else {"options": options}
    made, said["report"] = world.apply(adapter, **given)
    return world.sample(made, **(sample or {}))


# --- the file


def test_the_folder_people_have_is_in_the_list(world, adapter):
    [combo] = [i for i in world.classes["LikenessLoadIdentityAdapter"].define_schema().inputs if i.id == "adapter_file"]
    assert "storymaker/mask.bin" in combo.options
    assert adapter.adapter.title == "StoryMaker"


def test_a_file_of_that_folder_that_is_gone_is_explained(world):
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="storymaker/gone.bin")
    assert "gone.bin" in text and "storymaker" in text


def test_models_of_other_families_are_refused(world, recipes):
    save_file(
        {key: value.contiguous() for key, value in files.weights().items()},
        world.folder / "storymaker" / "sdxl.safetensors",
    )
    sdxl = world.run("LikenessLoadIdentityAdapter", adapter_file="storymaker/sdxl.safetensors")
    for model, name in ((recipes.unet(recipes.SD15_SITES), "SD15"), (recipes.tiny_flux(), "Flux")):
        text = sentence(world.apply, sdxl, person(), model=model, clip_vision=world.clip_vision)
        assert "'sdxl.safetensors' was made for SDXL (70 cross-attention layers" in text and name in text


# --- characters


def test_the_body_picture_decides_and_the_report_says_who_is_there(world, adapter):
    one, other = (paint(world, adapter, character(world, seed)) for seed in (1, 2))
    assert not same(one, other)
    assert "StoryMaker (mask.bin): 'Ada' as 40 tokens at 7 of 7 sites" in said["report"]
    bare = paint(world, adapter)
    assert "has no body image" in said["report"] and not same(bare, one)


def test_two_characters_in_another_order_are_another_picture(world, adapter):
    ann, ben = person(seed=1), person(seed=2)

    def chain(first: Any, second: Any) -> Any:
        return character(world, 2, identity=second, options=character(world, 1, identity=first))

    there, back = (paint(world, adapter, chain(*pair), identity=None) for pair in ((ann, ben), (ben, ann)))
    assert "60 tokens" in said["report"] and "in this order" in said["report"]
    assert not same(there, back)


def test_three_are_painted_and_four_are_refused(world, adapter):
    options = None
    for seed in (1, 2, 3):
        options = character(
            world, seed, identity=person(seed=seed), **({} if options is None else {"options": options})
        )
    assert paint(world, adapter, options, identity=None).isfinite().all()
    four = character(world, 4, identity=person(seed=4), options=options)
    text = sentence(paint, world, adapter, four, identity=None)
    assert "4 characters" in text and "supports 3" in text


def test_clothes_take_the_place_of_the_body(world, adapter):
    dressed = paint(world, adapter, character(world, clothes=pictures(seed=5)))
    assert same(dressed, paint(world, adapter, character(world, 2, clothes=pictures(seed=5))))
    assert not same(dressed, paint(world, adapter, character(world)))


def test_without_a_face_a_character_is_seen_from_behind(world, adapter):
    behind = character(world, seen_from_behind=True)
    assert not same(paint(world, adapter, behind, identity=None), world.sample(world.model))
    assert "seen from behind" in said["report"]
    text = sentence(character, world, seen_from_behind=True, identity=person())
    assert "seen from behind" in text


def test_options_of_the_wrong_system_are_refused_both_ways(world, adapter):
    assert "connect StoryMaker Character" in sentence(paint, world, adapter, world.options())
    text = sentence(world.apply, world.adapter("faceid"), person(), options=character(world))
    assert "connect IP-Adapter Options" in text
    assert "StoryMaker Character before" in sentence(character, world, options=world.options())


# --- body images and masks


def bodies(world: Any, **inputs: Any) -> Tensor:
    return world.run(NODE, every=True, **inputs)[1]


def test_the_body_is_shown_on_white_and_masks_may_be_pictures(world):
    image = pictures() * 0.0
    shown = bodies(world, image=image, mask=figure())
    assert shown.shape == (1, 224, 224, 3) and shown[0, 112, 112].max() == 0
    assert (shown[0, 112, 0] - 0.4).abs().max() < 0.1  # a soft edge
    as_picture = figure().unsqueeze(-1).expand(-1, -1, -1, 3)
    assert torch.equal(bodies(world, image=image, mask=as_picture), shown)
    assert bodies(world, image=pictures(3), mask=figure()).shape[0] == 3
    assert (bodies(world) == 1).all()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.zeros(1, 40, 40), "mask is empty"),
        (torch.full((1, 40, 40), 0.02), "mask is empty"),
        (torch.ones(1, 40, 40), "white everywhere"),
        (torch.ones(1, 64, 64), "64 x 64 and the image 40 x 40"),
        (figure().repeat(2, 1, 1), "2 masks for 1 images"),
        (torch.full((1, 40, 40), torch.nan), "NaN"),
    ],
    ids=["black", "noise", "white", "another size", "two", "NaN"],
)
def test_masks_that_cannot_be_meant_are_explained(world, mask, says):
    assert says in sentence(character, world, mask=mask)


def test_a_mask_without_a_picture_is_explained(world):
    assert "The input mask needs an image" in sentence(world.run, NODE, mask=figure())


@pytest.mark.parametrize("channels", [1, 3, 4], ids=["grey", "colour", "with alpha"])
@pytest.mark.parametrize("size", [(40, 40), (7, 61), (33, 1)], ids=str)
def test_pictures_of_any_kind_and_size_become_bodies_on_white(world, channels, size):
    image = torch.rand(2, *size, channels, generator=torch.Generator().manual_seed(4))
    mask = torch.full((1, *size), 0.9)
    mask[:, 0] = 0
    shown = bodies(world, image=image, mask=mask)
    assert shown.shape == (2, 224, 224, 3) and shown.isfinite().all()


@pytest.mark.parametrize("name", ["image", "clothes"])
def test_pictures_that_are_none_are_explained(world, name):
    for wrong in (torch.zeros(0, 40, 40, 3), torch.full((1, 40, 40, 3), torch.nan), torch.zeros(1, 40, 40, 5)):
        assert name in sentence(character, world, **{name: wrong})


def test_an_empty_region_is_explained(world):
    assert "region is empty" in sentence(character, world, region=torch.zeros(1, 8, 8))


# --- people found without a mask


@pytest.fixture
def found(world, monkeypatch, tmp_path) -> Any:
    """found(*masks): the network that finds people is there, and finds these."""
    from likeness.faces import people

    def make(*masks: np.ndarray) -> None:
        class Segmenter:
            network = torch.nn.Linear(1, 1)

            def people(self, photo: np.ndarray) -> PeopleInPhoto:
                return PeopleInPhoto(
                    np.array(masks).reshape(-1, *photo.shape[:2]), np.zeros((len(masks), 4)), np.ones(len(masks))
                )

        monkeypatch.setattr(people, "load_segmenter", lambda path: Segmenter())
        monkeypatch.setattr("likeness.models_download.locate", lambda model: tmp_path)

    return make


def test_the_person_is_found_where_no_mask_is_given(world, found):
    mask = figure()[0] > 0.5
    found(mask.numpy())
    by_hand = bodies(world, image=pictures(), mask=mask.float())
    assert torch.equal(bodies(world, image=pictures()), by_hand)


def test_the_one_with_the_identitys_face_is_taken(world, found):
    left, right = np.zeros((2, 40, 40), bool)
    left[5:35, 2:12], right[2:38, 20:38] = True, True
    found(right, left)
    who = person(1)
    who.boxes[0], who.photo_sizes[0] = torch.tensor([4.0, 8.0, 10.0, 14.0]), torch.tensor([40, 40])
    taken = bodies(world, image=pictures(), identity=who)
    assert torch.equal(taken, bodies(world, image=pictures(), mask=torch.from_numpy(left).float()))
    assert not torch.equal(bodies(world, image=pictures()), taken)


def test_a_picture_without_a_person_is_explained(world, found):
    found()
    text = sentence(world.run, NODE, image=pictures(2))
    assert "No person was found in image 1 of the batch" in text and "connect a mask" in text


def test_without_the_network_a_mask_is_asked_for(world, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    text = sentence(world.run, NODE, image=pictures())
    assert "connect a mask" in text and "likeness models get mask-rcnn" in text


# --- strengths, places, sampling


def test_both_strengths_at_0_are_the_plain_model_and_each_has_its_own_effect(world, adapter, plain):
    options = character(world)
    assert torch.equal(paint(world, adapter, options, weight=0.0, lora_strength=0.0), plain)
    without_lora = paint(world, adapter, options, lora_strength=0.0)
    with_both = paint(world, adapter, options)
    weaker = paint(world, adapter, options, weight=0.4)
    assert not same(without_lora, plain) and not same(with_both, without_lora) and not same(weaker, with_both)


def test_a_region_of_everything_changes_nothing_and_a_part_does(world, adapter):
    whole = paint(world, adapter, character(world))
    assert same(paint(world, adapter, character(world, region=torch.ones(1, 8, 8))), whole)
    assert "40 tokens" in said["report"]
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    assert not same(paint(world, adapter, character(world, region=left)), whole)


@pytest.mark.parametrize(
    "sample", [{"cfg": 1.0}, {"shape": (3, 4, 8, 8)}, {"shape": (2, 4, 8, 12), "cfg": 1.0}], ids=str
)
def test_cfg_1_and_batches_are_painted(world, adapter, sample):
    result = paint(world, adapter, character(world), sample=sample)
    assert result.isfinite().all()
    assert not same(result, world.sample(world.model, **sample))


def test_a_pose_controlnet_beside_it(world, adapter, recipes, host_nodes):
    model, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, options=character(world))
    net = recipes.controlnet(recipes.SD15_TINY)
    pose = pictures(seed=8)[:, :, :, :3]
    positive, negative = world.text
    with torch.inference_mode():
        posed = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, pose, 1.0, 0.0, 1.0)
        off = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, pose, 0.0, 0.0, 1.0)
    painted = [recipes.sample(model, *text, steps=2, shape=(1, 4, 8, 8)) for text in (world.text, off, posed)]
    assert torch.equal(painted[0], painted[1]) and not same(painted[0], painted[2])
    assert not same(painted[2], recipes.sample(world.model, *posed, steps=2, shape=(1, 4, 8, 8)))


def test_the_lora_is_there_once_and_the_model_is_left_as_it_was(world, adapter, plain):
    model, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, lora_strength=0.8)
    again, _ = world.apply(adapter, person(seed=2), model=model, clip_vision=world.clip_vision, lora_strength=0.8)
    assert {key: len(found) for key, found in again.patches.items()} == dict.fromkeys(model.patches, 1)
    assert len(model.patches) == 4 * 2 * len(world.sites)
    world.sample(again)
    assert torch.equal(world.sample(world.model), plain)
