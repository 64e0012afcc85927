"""FastComposer in the real host: its prompt by the real tokenizer, its border between steps, and its UNet."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers import fastcomposer as made
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file
from torch import Tensor

TEXT = "a photo of a woman img in the rain"
PLAIN = "a photo of a woman in the rain"
TWO = "a woman img and a man img in the rain"


class Studio:
    """The small SD1.5, its CLIP, a FastComposer file that fits, and the nodes."""

    def __init__(self, world: Any) -> None:
        from likeness.nodes import fastcomposer

        self.world, self.recipes = world, world.recipes
        world.classes |= {cls.GET_SCHEMA().node_id: cls for cls in fastcomposer.NODES}
        save_file(made.weights(), world.folder / "ipadapter" / "fastcomposer.safetensors")
        self.adapter = world.run("LikenessLoadIdentityAdapter", adapter_file="fastcomposer.safetensors")

    def prompt(self, *people: Any, **inputs: Any) -> tuple[Any, Any, str]:
        """MODEL, conditioning, report"""
        names = ["identity", *(f"identity_{number}" for number in range(2, 5))]
        given = {"text": TEXT, **dict(zip(names, people, strict=False)), **inputs}
        return self.world.prompt(given.pop("adapter", self.adapter), **given)

    def options(self, **inputs: Any) -> Any:
        return self.world.run("LikenessFastComposerOptions", **inputs)

    def encode(self, text: str) -> Any:
        return self.world.encoded(text)[0]

    def sample(self, model: Any, positive: Any, **options: Any) -> Tensor:
        return self.recipes.sample(model, positive, self.encode(""), **{"steps": 4, "shape": (1, 4, 8, 8), **options})

    def states_read(self, model: Any, positive: Any, **run: Any) -> list[int]:
        """At every evaluation of the model, which entry of the positive it reads."""
        from comfy.patcher_extension import WrappersMP

        read = []

        def note(executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, *rest: Any, **named: Any) -> Any:
            place = next(v for v in (*rest, *named.values()) if isinstance(v, dict))["cond_or_uncond"].index(0)
            read.append([torch.equal(c_crossattn[place : place + 1], text) for text, _ in positive].index(True))
            return executor(x, t, c_concat, c_crossattn, *rest, **named)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", note)
        self.sample(model, positive, **run)
        return read


@pytest.fixture(scope="module")
def studio(world) -> Studio:
    return Studio(world)


def test_a_plain_phase_and_one_with_the_people(studio):
    model, conditioning, report = studio.prompt(person(seed=1), person(seed=2), text=TWO)
    (plain, _), (told, _) = conditioning
    ((states, _),) = studio.encode("a woman and a man in the rain")
    assert torch.equal(plain, states)
    assert (told != plain).any(-1)[0].nonzero().flatten().tolist() == [2, 5]
    weights = len(studio.world.model.model.diffusion_model.state_dict())
    assert f"UNet 1 on {weights} weights" in report and "'Ada' is at 'woman', 'Ada' is at 'man'" in report
    assert not same(studio.sample(model, conditioning), studio.sample(studio.world.model, studio.encode(PLAIN)))


def test_nouns_name_people_as_well_as_markers(studio):
    ann, ben = person(seed=1), person(seed=2)
    nouns = studio.options(words="the noun itself")
    _, named, _ = studio.prompt(
        ben, ann, text="a woman and a man in the rain", trigger_word="man, woman", options=nouns
    )
    _, marked, _ = studio.prompt(ann, ben, text=TWO)
    torch.testing.assert_close(named[1][0], marked[1][0])
    assert "does not say 'boy'" in sentence(studio.prompt, ann, text=TWO, trigger_word="boy", options=nouns)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a photo of a WOMAN IMG, happy", "a photo of a woman, happy"),
        ("a (woman img:1.3) in (red:0.8)", "a (woman:1.3) in (red:0.8)"),
        ("a woman <|image|>, and rain", "a woman, and rain"),
        ("a photo of a woman in the rain", "a photo of a woman in the rain"),
    ],
    ids=["capitals", "weighted", "the official marker", "nobody"],
)
def test_real_prompts(studio, text, plain):
    marker = "<|image|>" if "<|image|>" in text else "img"
    people = [person()] if marker in text.lower() else []
    _, conditioning, _ = studio.prompt(*people, text=text, trigger_word=marker)
    torch.testing.assert_close(conditioning[0][0], studio.encode(plain)[0][0], rtol=1e-5, atol=1e-5)
    assert len(conditioning) == (2 if people else 1)


# When -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["normal", "karras", "exponential"])
@pytest.mark.parametrize(
    ("start_at", "options", "expected"),
    [
        (0.5, {}, [0, 0, 0, 0, 1, 1]),  # i <= 0.5 · 6
        (0.0, {}, [0, 1, 1, 1, 1, 1]),  # the border counts
        (0.2, {}, [0, 0, 1, 1, 1, 1]),
        (0.9, {"start_step": 0}, [0, 1, 1, 1, 1, 1]),
        (0.9, {"start_step": -1}, [1] * 6),
        (0.0, {"start_step": 5}, [0] * 6),
    ],
)
def test_the_people_enter_at_the_step_that_is_asked_for(studio, scheduler, start_at, options, expected):
    model, conditioning, _ = studio.prompt(person(), start_at=start_at, options=studio.options(**options))
    assert studio.states_read(model, conditioning, steps=6, scheduler=scheduler)[-6:] == expected


def test_a_second_order_sampler_reads_both_ends_of_a_step_where_they_are(studio):
    """Heun evaluates the end of every step but the last: what lies before the border is before it."""
    model, conditioning, _ = studio.prompt(person(), options=studio.options(start_step=1))
    sigmas = torch.tensor([14.6, 9.0, 1.2, 0.3, 0.0])
    read = studio.states_read(model, conditioning, sampler="heun", sigmas=sigmas)
    assert read == [0, 0, 0, 1, 1, 1, 1]  # at 14.6, 9; 9, 1.2; 1.2, 0.3; 0.3


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_a_sigma_is_the_border_whatever_the_schedule(studio, sampler):
    sigmas = torch.tensor([14.6, 9.0, 1.2, 0.3, 0.0])
    low = studio.options(sigmas=torch.tensor([1.2, 0.3, 0.0]))
    model, conditioning, _ = studio.prompt(person(), start_at=0.9, options=low)
    read = studio.states_read(model, conditioning, sampler=sampler, sigmas=sigmas)
    assert read == ([0, 0, 0, 1, 1, 1, 1] if sampler == "heun" else [0, 0, 1, 1])


# The UNet -------------------------------------------------------------------------------------------------------------


def weights_in_place(model: Any) -> dict[str, Tensor]:
    """Under diffusers' names, with every patch."""
    import comfy.model_management
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    comfy.model_management.load_models_gpu([model])
    own = model.model.diffusion_model.state_dict()
    return {theirs: own[ours].clone() for theirs, ours in names.items() if ours in own}


def test_the_file_s_unet_is_in_the_model_whatever_was_there(studio):
    model, _, _ = studio.prompt(person())
    found = weights_in_place(model)
    assert found.keys() == made.unet().keys()
    for key, value in made.unet().items():
        assert torch.equal(found[key], value), key


def test_a_part_of_it_and_several_prompts_of_one_file(studio):
    """Half of the way, then three quarters by a second prompt; a third one with less changes nothing."""
    before = weights_in_place(studio.world.model)
    model, _, _ = studio.prompt(person(), lora_strength=0.5)
    model, _, _ = studio.prompt(person(), model=model, lora_strength=0.75)
    model, _, _ = studio.prompt(person(), model=model, lora_strength=0.25)
    for key, value in weights_in_place(model).items():
        torch.testing.assert_close(value, torch.lerp(before[key], made.unet()[key], 0.75), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_lora_counts_whether_it_comes_before_or_behind(studio, strength):
    import comfy.sd

    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    lora = {f"{name}.lora_down.weight": torch.ones(1, 64), f"{name}.lora_up.weight": torch.ones(64, 1)}
    apply = partial(comfy.sd.load_lora_for_models, clip=None, lora=lora, strength_model=1.0, strength_clip=0.0)
    first, _, _ = studio.prompt(person(), model=apply(studio.world.model)[0], lora_strength=strength)
    last = apply(studio.prompt(person(), lora_strength=strength)[0])[0]
    alone, _, _ = studio.prompt(person(), lora_strength=strength)
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    one, other, without = (weights_in_place(model)[key] for model in (first, last, alone))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one - without, torch.ones(64, 64), rtol=1e-4, atol=1e-4)


def test_its_difference_to_sd15_is_given_to_another_checkpoint(studio):
    original, other = studio.world.model, studio.recipes.tiny_sd15(seed=7)
    options = studio.options(original_model=original)
    model, _, report = studio.prompt(person(), model=other, options=options)
    before, base = weights_in_place(original), weights_in_place(other)
    for key, value in weights_in_place(model).items():
        torch.testing.assert_close(value, base[key] + made.unet()[key] - before[key], rtol=1e-4, atol=1e-4)
    assert "UNet 1 on" in report
    text = sentence(studio.options, original_model=studio.recipes.tiny_flux())
    assert "The original MODEL is Flux" in text


def test_a_unet_with_a_part_missing_and_one_of_another_shape(studio):
    for change, said in (
        (lambda w: w.pop("unet.mid_block.resnets.0.conv1.bias"), "has no 'mid_block.resnets.0.conv1.bias'"),
        (lambda w: w.update({"unet.conv_in.weight": torch.zeros(32, 9, 3, 3)}), "(32, 4, 3, 3)"),
    ):
        weights = made.weights()
        change(weights)
        save_file(weights, studio.world.folder / "ipadapter" / "broken.safetensors")
        adapter = studio.world.run("LikenessLoadIdentityAdapter", adapter_file="broken.safetensors")
        assert said in sentence(studio.prompt, person(), adapter=adapter)
        model, _, _ = studio.prompt(person(), adapter=adapter, lora_strength=0.0)
        assert not model.patches


def test_without_a_model_the_report_asks_for_it(studio):
    model, conditioning, report = studio.prompt(person(), model=None)
    assert model is None and "Its UNet is not applied: connect the MODEL" in report and len(conditioning) == 2


# References -----------------------------------------------------------------------------------------------------------


def test_images_and_masks_stand_in_for_identities(studio):
    images, masks = torch.rand(2, 40, 30, 3), torch.zeros(1, 40, 30)
    masks[:, 10:30, 5:25] = 1
    first = studio.options(images=torch.rand(1, 64, 20, 4))
    chained = studio.options(images=images[:1], masks=masks, options=first)
    _, conditioning, report = studio.prompt(text=TWO, options=chained)
    assert "'image 1' is at 'woman', 'image 2' is at 'man'" in report and len(conditioning) == 2
    _, kept, _ = studio.prompt(text=TWO, options=studio.options(images=images[:1], options=first))
    assert not torch.equal(kept[1][0][0, 5], conditioning[1][0][0, 5])
    assert torch.equal(kept[1][0][0, 2], conditioning[1][0][0, 2])
    assert "needs images" in sentence(studio.options, masks=masks)
    assert "2 images and 3 masks" in sentence(studio.options, images=images, masks=masks.repeat(3, 1, 1))
    assert "The prompt names 1 person (by 'img'), but 2 are connected" in sentence(
        studio.prompt, text=TEXT, options=studio.options(images=images)
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"strengths": "1.0, much"}, "'much' is not a number"),
        ({"strengths": "nan"}, "strengths (1)"),
        ({"sigmas": torch.zeros(0)}, "no noise level"),
        ({"options": "x"}, "another system"),
    ],
)
def test_options_that_cannot_be_meant(studio, inputs, said):
    if inputs.get("options"):
        inputs = {"options": studio.world.run("LikenessPhotoMakerOptions")}
    assert said in sentence(studio.options, **inputs)


# What does not fit ----------------------------------------------------------------------------------------------------


def test_text_encoders_that_are_not_sd15_s(studio):
    clip = studio.recipes.tiny_clip(sdxl=True)
    text = sentence(studio.prompt, person(), clip=clip)
    assert "64-wide conditioning" in text and "text of width 128" in text


def test_skipped_layers_are_told_of(studio):
    clip = studio.world.text_clip.clone()
    clip.clip_layer(-2)
    *_, report = studio.prompt(person(), clip=clip)
    assert "skips its last 1 layer, which" in report
    clip.clip_layer(-1)
    assert "skips" not in studio.prompt(person(), clip=clip)[2]


def test_long_prompts_name_the_numbers(studio):
    text = f"{TEXT}, {'very ' * 80}wet"
    assert "tokens, and FastComposer reads 75" in sentence(studio.prompt, person(), text=text)
    _, conditioning, _ = studio.prompt(
        person(), text=text, options=studio.options(long_prompts="read all of it")
    )  # fmt: skip
    assert conditioning[1][0].shape[1] == 2 * 77
