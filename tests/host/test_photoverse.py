"""PhotoVerse in the real host: golden UNets with both branches, Identity Prompt with a face, ELITE's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conformance import harness
from helpers import photoverse as made
from helpers import small_world
from helpers.host_call import call
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "photoverse" and "end to end" in harness.read_metadata(path)["variant"]
]
TEXT = "a photo of S* in the rain"


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_case_through_the_model_patcher(path, recipes):
    from conformance.runners import photoverse

    from likeness.injection.comfy import apply_effects, sites_of

    case = harness.read_case(path)
    base = recipes.unet_from_diffusers(photoverse.unet_config(case), photoverse.unet_weights(case))
    model, changed, _ = apply_effects(base, photoverse.effects_of(case, sites_of(base)))
    assert changed == (2 * len(sites_of(base)) if case.config["rank"] else 0)
    given, expected = case.inputs, case.expected["noise_pred"]
    found = call(model, given["sample"], given["timestep"], given["encoder_hidden_states"], roles=[0])
    torch.testing.assert_close(found, expected, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_the_unconditioned_half_of_a_golden_case_is_the_model_alone(path, recipes):
    """gamma is not 1 there; a half without a face has neither gamma nor sigma."""
    from conformance.runners import photoverse

    from likeness.injection.comfy import apply_effects, sites_of

    case = harness.read_case(path)
    base = recipes.unet_from_diffusers(photoverse.unet_config(case), photoverse.unet_weights(case))
    terms = photoverse.effects_of(case, sites_of(base))[:1]
    given, model = case.inputs, apply_effects(base, terms).model
    text = given["encoder_hidden_states"]
    both = call(model, given["sample"], given["timestep"], torch.cat([text, text]), roles=[1, 0])
    alone = call(base, given["sample"], given["timestep"], text, roles=[1])
    assert torch.allclose(both[:1], alone, atol=1e-5) and not torch.allclose(both[1:], alone, atol=1e-3)


# Through the nodes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(recipes, tmp_path_factory):
    """The small world, with PhotoVerse's folder and a face parsing network where the host looks for them."""
    import folder_paths
    from helpers import pulid

    from likeness.models_download import register_folders

    register_folders()
    folder, kinds = tmp_path_factory.mktemp("models"), ("ipadapter", "photoverse", "facexlib", "clip_vision")
    before = {kind: folder_paths.folder_names_and_paths[kind] for kind in kinds}
    for kind in kinds:
        (folder / kind).mkdir()
        folder_paths.folder_names_and_paths[kind] = ([str(folder / kind)], before[kind][1])
    pulid.companions(folder)
    folder_paths.filename_list_cache.clear()
    built = small_world.World(recipes, folder)
    from likeness.nodes import photoverse

    built.classes |= {cls.GET_SCHEMA().node_id: cls for cls in photoverse.NODES}
    yield built
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def adapter(world) -> Any:
    return loaded(world, "face.pt", made.nested(made.unofficial(world.shapes), alpha=4))


@pytest.fixture(scope="module")
def deep(world) -> Any:
    """A CLIP vision model with as many layers as are read, and narrow."""
    return world.clip({**small_world.CLIP, "hidden_size": 64, "num_hidden_layers": 17})


def loaded(world: Any, name: str, content: dict[str, Any], metadata: dict[str, str] | None = None) -> Any:
    path = world.folder / "photoverse" / name
    if name.endswith(".pt"):
        torch.save(content, path)
    else:
        save_file({key: value.contiguous() for key, value in content.items()}, path, metadata)
    return world.run("LikenessLoadIdentityAdapter", adapter_file=f"photoverse/{name}")


def prompt(world: Any, adapter: Any, who: Any, options: dict[str, Any] | None = None, **inputs: Any) -> Any:
    """MODEL, conditioning and report, from the first step on."""
    given = {"text": TEXT, "trigger_word": "S*", "start_at": 0.0, "clip_vision": world.clip_vision, **inputs}
    if options is not None:
        given["options"] = world.run("LikenessPhotoVerseOptions", **options)
    return world.prompt(adapter, who, **given)


def painted(world: Any, adapter: Any, who: Any, options: dict[str, Any] | None = None, **inputs: Any) -> torch.Tensor:
    model, positive, _ = prompt(world, adapter, who, options, **inputs)
    return world.recipes.sample(model, positive, world.text[1], steps=2, shape=(1, 4, 8, 8))


def test_the_three_layouts_of_one_adapter_paint_the_same(world, adapter):
    """The unofficial LoRA with alpha = rank is ours with alpha = 1."""
    tensors, metadata = made.ours(world.shapes)
    ours = loaded(world, "ours.safetensors", tensors, metadata)
    assert same(painted(world, ours, person()), painted(world, adapter, person()))


def test_the_factor_of_an_unofficial_lora_is_alpha_by_rank(world, adapter):
    """So that four times alpha is what four times lora_strength... is not: the node allows 1.5."""
    quarter = loaded(world, "quarter.pt", made.nested(made.unofficial(world.shapes), alpha=1))
    assert same(
        painted(world, quarter, person(), lora_strength=1.0), painted(world, adapter, person(), lora_strength=0.25)
    )


def test_sigma_0_and_gamma_1_are_the_words_alone_bit_by_bit(world, adapter):
    silent = painted(world, adapter, person(), {"sigma": 0.0})
    model, positive, _ = prompt(world, adapter, person())
    from likeness.injection.comfy import rescale

    words = world.recipes.sample(rescale(model, 0.0), positive, world.text[1], steps=2, shape=(1, 4, 8, 8))
    assert torch.equal(silent, words)
    assert not same(silent, painted(world, adapter, person()))


@pytest.mark.parametrize("options", [{"gamma": 0.5}, {"sigma": 0.5}, {"gamma": 1.5, "sigma": 0.0}, {"crop": 2.0}])
def test_every_option_decides_over_the_picture(world, adapter, options):
    assert not same(painted(world, adapter, person(), options), painted(world, adapter, person()))


def test_every_layer_of_clip_that_is_read_becomes_a_word(world, deep):
    adapter = loaded(world, "deep.safetensors", made.unofficial(world.shapes, width=64))
    states = [prompt(world, adapter, person(), {"words": m}, clip_vision=deep)[1][0][0] for m in (1, 2, 5)]
    assert all(torch.equal(one[:, :5], states[0][:, :5]) for one in states)  # "a photo of" and the first word
    for one, m in zip(states, (1, 2, 5), strict=True):
        assert one.shape == states[0].shape and torch.equal(one[:, 5], states[0][:, 5]) is (m == 1)


def test_the_options_defaults_change_nothing(world, adapter):
    assert torch.equal(painted(world, adapter, person(), {}), painted(world, adapter, person()))


def test_a_region_is_where_the_image_branch_acts(world, adapter):
    """With gamma = 1 an empty half is the words alone; here half of the latents see the face."""
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    whole, half, silent = (
        painted(world, adapter, person(), options) for options in ({}, {"region": left}, {"sigma": 0.0})
    )
    assert not same(half, whole) and not same(half, silent)
    assert torch.equal(painted(world, adapter, person(), {"region": torch.ones(1, 8, 8)}), whole)


def test_the_mask_of_the_face_and_an_empty_image_are_what_the_options_say(world, adapter, monkeypatch):
    from likeness.nodes import companions

    def parse(crops: torch.Tensor) -> torch.Tensor:
        """Skin above, background below."""
        return torch.arange(crops.shape[1]).lt(256).long()[None, :, None].expand(crops.shape[:3])

    monkeypatch.setattr(companions, "parse_aligned", parse)
    masks = ("all of the crop", "face and hair", "as the file was made")
    whole, masked, published = (painted(world, adapter, person(), {"mask": mask}) for mask in masks)
    assert not same(masked, whole) and torch.equal(masked, published)
    assert not same(painted(world, adapter, person(), {"unconditioned": "an empty image"}), masked)


def test_several_photos_are_their_weighted_mean(world, adapter):
    two = person(photos=2)
    alone = painted(world, adapter, two.take([0]))
    assert same(painted(world, adapter, replace(two, weights=torch.tensor([1.0, 1e-6]))), alone)
    assert not same(painted(world, adapter, two), alone)


def test_a_strength_between_is_neither(world, adapter):
    none, half, whole = (painted(world, adapter, person(), strength=strength) for strength in (0.0, 0.5, 1.0))
    assert not same(half, none) and not same(half, whole)


def test_elite_puts_its_own_keys_and_values_in_place_of_the_models(world, deep):
    """Whatever the MODEL's are; they come back when the MODEL alone samples."""
    before = painted_alone(world)
    content = made.elite(world.shapes, width=64)
    elite = loaded(world, "global_mapper.safetensors", content)
    model, positive, report = prompt(world, elite, person(), clip_vision=deep)
    assert "objects" in report and "ELITE" in report
    world.recipes.sample(model, positive, world.text[1], steps=1, shape=(1, 4, 8, 8))
    path = made.attention(world.shapes)[0]
    found = patched(model, f"{path}.to_k.weight")
    assert torch.allclose(found, content[f"{path.replace('.', '_')}_to_k.weight"], atol=1e-4)
    model.detach()
    assert torch.equal(painted_alone(world), before)


def patched(model: Any, name: str) -> torch.Tensor:
    """A weight of the denoiser as it samples."""
    import comfy.lora
    import comfy.utils

    from likeness.injection.comfy import base_weights

    own = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    key = f"diffusion_model.{own[name]}"
    base = base_weights(model, lambda one: one == name)[name]
    return comfy.lora.calculate_weight(model.patches[key], base.clone(), key)


def painted_alone(world: Any) -> torch.Tensor:
    return world.recipes.sample(world.model, *world.text, steps=1, shape=(1, 4, 8, 8))


def test_hidden_states_are_counted_as_elsewhere(world):
    from likeness.injection.comfy import ComfyClipEncoder

    encoder = ComfyClipEncoder(world.clip_vision)  # of two layers
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        last, first, second = encoder.hidden_states(pixels, [-1, 1, 2])
        assert torch.equal(last, second) and torch.allclose(first, encoder.encode_pixels(pixels).penultimate, atol=1e-5)
        assert torch.equal(encoder.hidden_states(pixels, [-1])[0], last)


# What does not fit ----------------------------------------------------------------------------------------------------


def test_what_is_missing_is_asked_for(world, adapter):
    assert "connect ViT-L/14 to clip_vision" in sentence(prompt, world, adapter, person(), clip_vision=None)
    assert "Identity from Photos" in sentence(prompt, world, adapter, None)
    assert "write 'S*' where the person is" in sentence(prompt, world, adapter, person(), text="a photo of a man")
    elite = loaded(world, "elite.safetensors", made.elite(world.shapes))
    assert "connect the MODEL" in sentence(prompt, world, elite, person(), model=None)


def test_another_clip_and_a_text_of_another_width_say_the_numbers(world, adapter, recipes):
    narrow = loaded(world, "narrow.safetensors", made.unofficial(world.shapes, width=1024))
    text = sentence(prompt, world, narrow, person())
    assert "1024 wide" in text and "makes 1280" in text
    text = sentence(prompt, world, adapter, person(), clip=recipes.tiny_clip(sdxl=True), model=None)
    assert "64-wide" in text and "width 128" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"words": 9}, "asks for 9 words"),
        ({"gamma": 2.5}, "gamma is 2.5"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"crop": 0.5}, "crop is 0.5"),
        ({"mask": "half"}, "mask"),
        ({"unconditioned": "x"}, "unconditioned"),
        ({"words": 1.5}, "whole number"),
        ({"class_word": " "}, "class_word"),
        ({"region": torch.zeros(1, 8, 8)}, "The region"),
    ],
)
def test_impossible_options_are_refused_by_name(world, adapter, options, said):
    assert said.replace("asks", "ask") in sentence(prompt, world, adapter, person(), options)


def test_options_of_another_system_are_refused(world, adapter):
    given = {"text": TEXT, "trigger_word": "S*", "options": world.run("LikenessPhotoMakerOptions")}
    assert "connect PhotoVerse Options" in sentence(world.prompt, adapter, person(), **given)


def test_more_layers_than_clip_has_are_refused(world, adapter):
    """The small world's has two; ViT-L/14 has 24."""
    assert "reads layer 4" in sentence(prompt, world, adapter, person(), {"words": 2})


def test_a_face_of_few_pixels_is_told_of(world, adapter):
    tiny = person()
    tiny.boxes[:] = torch.tensor([0.0, 0.0, 40.0, 30.0])
    report = prompt(world, adapter, tiny)[2]
    assert "photo 1 of 'Ada' is 40 pixels" in report
