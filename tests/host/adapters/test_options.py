"""IP-Adapter Options: each is heard, none does harm, and what is no option is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.small_world import encoded, person, pictures, same, sentence


def test_untouched_options_change_nothing(world):
    without, _ = world.apply(world.adapter("plus"), person(), clip_vision=world.clip_vision)
    with_options, _ = world.apply(
        world.adapter("plus"), person(), clip_vision=world.clip_vision, options=world.options()
    )
    assert torch.equal(world.sample(without), world.sample(with_options))


@pytest.mark.parametrize(
    "inputs",
    [
        {"weight_type": "ease in"}, {"weight_type": "weak middle"}, {"layer_weights": "0:1.0, middle:2"},
        {"embeds_scaling": "K+V w/ C penalty"}, {"combine_embeds": "average"}, {"unconditional": "black image"},
        {"picture_weights": "0.3"}, {"detail_tiles": 2}, {"tiled": True, "image": pictures()},
        {"image_negative": pictures(seed=5)}, {"image": pictures(2)}, {"crop": "pad", "image": pictures()[:, :20]},
        {"unfold_batch": True}, {"sharpening": 0.8}, {"image": pictures(), "reference_mask": torch.eye(40)[None]},
    ],
    ids=lambda inputs: ", ".join(f"{k}" for k in inputs),
)  # fmt: skip
def test_every_option_is_heard(world, inputs):
    adapter = world.adapter("plus")
    reference = {"image": inputs["image"]} if set(inputs) & {"crop", "reference_mask", "tiled"} else {}
    base, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, options=world.options(**reference))
    model, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, options=world.options(**inputs))
    heard = world.sample(model, shape=(2, 4, 8, 8))
    assert heard.isfinite().all()
    assert not same(heard, world.sample(base, shape=(2, 4, 8, 8)))


def test_style_and_composition_need_a_known_layout(world):
    text = sentence(
        world.apply, world.adapter("plus"), person(), clip_vision=world.clip_vision,
        options=world.options(weight_type="style transfer"),
    )  # fmt: skip
    assert "SD1.5 and SDXL only" in text


def test_options_about_pictures_do_faceid_no_harm_and_the_report_says_so(world):
    options = world.options(image_negative=pictures(), tiled=True, image_composition=pictures())
    model, report = world.apply(world.adapter("faceid"), person(), options=options)
    expected, _ = world.apply(world.adapter("faceid"), person())
    assert torch.equal(world.sample(model), world.sample(expected))
    assert "image_negative, image_composition, tiled" in report


def test_structure_matters_to_version_2_alone(world):
    outputs = {}
    for version in ("1", "2"):
        adapter = world.run("LikenessLoadIdentityAdapter", adapter_file=world.file("faceid-plus"), plus_version=version)
        outputs[version] = [
            world.sample(
                world.apply(
                    adapter, person(1), clip_vision=world.clip_vision, options=world.options(weight_faceidv2=s)
                )[0]
            )
            for s in (0.2, 1.0)
        ]
    assert torch.equal(*outputs["1"]) and not same(*outputs["2"])


@pytest.mark.parametrize("name", ["image", "image_negative", "image_composition"])
@pytest.mark.parametrize("bad", [torch.zeros(0, 8, 8, 3), torch.full((1, 8, 8, 3), torch.nan)], ids=["empty", "NaN"])
def test_pictures_that_are_none_are_refused_by_name(world, name, bad):
    assert f" {name} " in sentence(world.options, **{name: bad})


@pytest.mark.parametrize(
    "name", ["weight_type", "combine_embeds", "embeds_scaling", "crop", "unconditional", "mask_resize"]
)
def test_words_that_are_no_choice_are_refused(world, name):
    """The host does not check what a workflow file puts into a combo."""
    text = sentence(world.options, **{name: "strongest"})
    assert "'strongest'" in text and name in text


@pytest.mark.parametrize("value", ["1.0, x", "nan", "1;;"])
def test_weights_per_picture_that_are_none_are_refused(world, value):
    sentence(world.options, picture_weights=value)


@pytest.mark.parametrize(
    "name", ["weight_faceidv2", "weight_composition", "precise_boost", "sharpening", "detail_share"]
)
def test_options_that_are_no_numbers_are_refused(world, name):
    assert "enter a number" in sentence(world.options, **{name: float("nan")})


@pytest.mark.parametrize("how", ["area", "bilinear", "bicubic"])
def test_the_way_a_mask_is_resized_reaches_the_injection(world, how):
    """Through the options node, Apply Identity and a sampling run: bicubic leaves another image than area."""
    from likeness.injection.comfy import stack_of

    mask = torch.zeros(1, 64, 64)
    mask[:, 10:30, 5:37] = 1
    identity, adapter = person(1), world.adapter("portrait")
    model, _ = world.apply(adapter, identity, attn_mask=mask, options=world.options(mask_resize=how))
    stack = stack_of(model)
    assert stack is not None and [term.scope.mask_resize.value for term in stack.injections] == [how]
    default, _ = world.apply(adapter, identity, attn_mask=mask)
    assert same(world.sample(model), world.sample(default)) == (how == "area")


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64)])
def test_load_image_s_empty_mask_does_not_erase_the_reference_in_silence(world, shape):
    options = world.options(image=pictures(), reference_mask=torch.zeros(shape))
    text = sentence(world.apply, world.adapter("plus"), clip_vision=world.clip_vision, options=options)
    assert "The reference mask is empty" in text and "Load Image gives an empty mask" in text
    assert "The reference mask is empty" in sentence(encoded, world, mask=torch.zeros(shape))


def test_a_skipped_photo_does_not_give_the_next_person_s_face_to_later_pictures(world):
    identity = replace(person(2), kept=(True, False, True))
    text = sentence(world.apply, world.adapter("portrait"), identity, options=world.options(unfold_batch=True))
    assert "unfold_batch" in text and "2 was left out" in text
