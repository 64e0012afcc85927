"""FastComposer: its files in every form, whom it looks at, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import fastcomposer as made
from helpers.small_world import person as anybody
from helpers.small_world import sentence
from safetensors.torch import save_file
from torch import Tensor

from likeness.adapters import load
from likeness.adapters.effects import PromptEdit, PromptStates, WeightDelta
from likeness.adapters.fastcomposer import Background, FastComposer, FastComposerOptions, LongPrompts, SubjectWords
from likeness.adapters.photo_crops import PhotoCrop
from likeness.adapters.system import Request
from likeness.adapters.text_encoder import Token, Tower
from likeness.faces import Identity
from likeness.injection.plan import layout_of


def person(name: str = "Ada", seed: int = 0, photos: int = 1) -> Identity:
    return replace(anybody(photos, recogniser=None, seed=seed), name=name)


class Encoder:
    """Every word is a number of its own, cut after four letters; the states say which token stands where."""

    def __init__(self, dim: int = 64) -> None:
        self.towers = (Tower("clip_l", dim),)
        self.table = torch.randn(50_000, dim, generator=torch.Generator().manual_seed(9))

    def tokenize(self, text: str) -> dict[str, list[Token]]:
        pieces = []
        for word in text.replace(",", " ,").split():
            parts = [word[i : i + 4] for i in range(0, len(word), 4)]
            pieces += [*parts[:-1], f"{parts[-1]}</w>"]
        return {"clip_l": [Token(sum(ord(c) * 31**i for i, c in enumerate(p)) % 49_000, p) for p in pieces]}

    def encode(self, windows: Any, layer: int | None = None) -> PromptStates:
        ids = [token.id for window in windows["clip_l"] for token in window]
        return PromptStates(self.table[ids].unsqueeze(0))


def request(text: str, *people: Identity, options: FastComposerOptions | None = None, **given: Any) -> Request:
    encoder = Encoder(given.pop("dim", 64))
    return Request(
        layout_of(()), {}, identity=people[0] if people else None, others=tuple(people[1:]), text=text,
        text_encoder=encoder, options=options, **given,
    )  # fmt: skip


def adapter(seed: int = 0) -> FastComposer:
    return FastComposer(made.weights(seed=seed), "test.bin")


def states(effects: Any) -> list[Tensor]:
    return [e.edit(PromptStates(torch.zeros(1, 1, 1))).states for e in effects if isinstance(e, PromptEdit)]


def moved(effects: Any) -> list[int]:
    """Which places of the prompt the subjects changed."""
    plain, told = states(effects)
    return (plain != told).any(-1)[0].nonzero().flatten().tolist()


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_released_pickle_and_a_safetensors_copy_are_the_same(tmp_path):
    weights = made.weights()
    torch.save({k: v.half() if k.startswith("unet.") else v for k, v in weights.items()}, tmp_path / "a.bin")
    save_file(weights, tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        found = load(tmp_path / name)
        assert isinstance(found, FastComposer) and found.title == "FastComposer"
        assert found.site_shapes == {2 * i + 1: shape for i, shape in enumerate(made.TINY)}
        assert set(found.encoder.state_dict()) == {
            key for key in weights if key.startswith(("image_", "postfuse")) and "position_ids" not in key
        }
        assert len(found.unet().changes) == len(made.unet())


def test_code_in_the_pickle_is_never_run(tmp_path):
    class Code:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    torch.save({**made.weights(), "more": Code()}, tmp_path / "c.bin")
    assert "program code" in sentence(load, tmp_path / "c.bin")


def test_mixed_precision_is_cast():
    weights = made.weights()
    half = {k: v.bfloat16() if "vision_model.encoder" in k else v for k, v in weights.items()}
    images = torch.rand(1, 3, 28, 28)
    found = FastComposer(half, "x").encode(images)
    torch.testing.assert_close(found, adapter().encode(images), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("postfuse_module.mlp1.fc1.weight"), "postfuse_module.mlp1.fc1.weight"),
        (lambda w: w.update({"image_encoder.another": torch.zeros(1)}), "another"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("image_encoder.")], "its image_encoder is missing"),
        (lambda w: w.update({"postfuse_module.layer_norm.weight": torch.ones(1, 7)}), "postfuse_module"),
    ],
)
def test_what_is_missing_or_unknown_is_named(change, said):
    weights = made.weights()
    change(weights)
    assert said in sentence(FastComposer, weights, "test.bin")


def test_a_file_without_a_unet_changes_the_prompt_alone():
    weights = {key: value for key, value in made.weights().items() if not key.startswith("unet.")}
    found = FastComposer(weights, "encoder.safetensors")
    *_, delta = found.effects(request("a man img", person()))
    assert isinstance(delta, WeightDelta) and delta.why_never is not None
    assert any("no UNet" in note for note in found.notes(request("a man img", person())))


# The prompt -----------------------------------------------------------------------------------------------------------


def test_effects_are_a_plain_phase_a_phase_with_the_people_and_a_unet():
    plain, told, delta = adapter().effects(request("a man img", person()))
    assert isinstance(plain, PromptEdit) and plain.scope.whole_run
    assert isinstance(told, PromptEdit) and told.scope.first_step is not None
    assert isinstance(delta, WeightDelta) and delta.replaces and delta.scope.whole_run


def test_the_kth_word_is_the_kth_person_s():
    ann, ben, one = person("Ann", 1), person("Ben", 2), adapter()
    both = one.effects(request("a girl img and a man img", ann, ben))
    swapped = states(one.effects(request("a girl img and a man img", ben, ann)))[1]
    assert moved(both) == [2, 5]
    told = states(both)[1]
    assert not torch.equal(told[0, 2], swapped[0, 2])
    alone = states(one.effects(request("a girl img and a man", ann)))[1]
    torch.testing.assert_close(told[0, 2], alone[0, 2])
    notes = " ".join(one.notes(request("a girl img and a man img", ann, ben)))
    assert "'Ann' is at 'girl'" in notes and "'Ben' is at 'man'" in notes


def test_the_last_piece_of_a_noun_carries_the_person():
    one, given = adapter(), request("a firefighter img runs", person())
    assert moved(one.effects(given)) == [4]
    assert any("last piece 'ter'" in note for note in one.notes(given))


@pytest.mark.parametrize("marker", ["img", "<|image|>"])
def test_markers_are_taken_out_wherever_they_stand(marker):
    text = f"a man {marker}, and a woman {marker}"
    given = request(text, person(), person(seed=1), trigger_words=(marker,))
    plain = states(adapter().effects(given))[0]
    assert torch.equal(plain, states(adapter().effects(request("a man, and a woman")))[0])


def test_nouns_can_be_named_instead():
    nouns = FastComposerOptions(words=SubjectWords.NOUN)
    given = request("a man and a woman", person(), person(seed=1), options=nouns, trigger_words=("woman", "man"))
    found = adapter().effects(given)
    assert moved(found) == [2, 6]
    marked = request("a man b and a woman c", person(), person(seed=1), trigger_words=("c", "b"))
    assert torch.equal(states(found)[1], states(adapter().effects(marked))[1])
    text = sentence(adapter().effects, replace(given, text="a boy and a girl"))
    assert "does not say 'woman'" in text


def test_strengths_move_every_word_from_itself_to_the_fused_one():
    """c + w · (fuse - c)"""
    one, text, people = adapter(), "a girl img and a man img", (person("A", 1), person("B", 2))
    plain, full = states(one.effects(request(text, *people)))
    _, half = states(one.effects(request(text, *people, options=FastComposerOptions(strengths=(1.0, 0.5)))))
    assert torch.equal(half[0, 2], full[0, 2])
    torch.testing.assert_close(half[0, 5], (plain[0, 5] + full[0, 5]) / 2)
    _, common = states(one.effects(request(text, *people, strength=0.5)))
    torch.testing.assert_close(common[0, 2], (plain[0, 2] + full[0, 2]) / 2)


def test_photos_of_one_person_are_their_mean():
    ann, ben, one = person("A", 1), person("B", 2), adapter()
    from likeness.faces.identity import combine_identities

    both = one._embeds(one._subjects(request("", combine_identities([ann, ben])), FastComposerOptions()))
    each = one._embeds(one._subjects(request("", ann, ben), FastComposerOptions()))
    torch.testing.assert_close(both[0], each.mean(0))


def test_nobody_is_plain_text():
    effects = adapter().effects(request("a man in the rain"))
    assert len(states(effects)) == 1 and isinstance(effects[-1], WeightDelta)
    assert "plain text" in adapter().notes(request("a man in the rain"))[0]


@pytest.mark.parametrize("photo", PhotoCrop)
def test_each_crop_is_another_image(photo):
    options = FastComposerOptions(photo=photo)
    found = states(adapter().effects(request("a man img", person(), options=options)))[1]
    heads = states(adapter().effects(request("a man img", person())))[1]
    assert torch.equal(found, heads) == (photo is PhotoCrop.HEAD)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_stand_in_for_people_whatever_their_sizes(channels):
    images = (torch.rand(1, 40, 30, channels), torch.rand(1, 64, 64, channels))
    given = request("a girl img and a man img", options=FastComposerOptions(images=images))
    assert moved(adapter().effects(given)) == [2, 5]
    assert "'image 2' is at 'man'" in adapter().notes(given)[0]


def test_a_mask_and_what_stands_around_the_subject():
    image, mask = torch.ones(1, 20, 20, 3), torch.zeros(1, 20, 20)
    mask[:, 5:15, 5:15] = 1
    found = {}
    for background in Background:
        options = FastComposerOptions(images=(image,), masks=(mask,), background=background)
        found[background] = states(adapter().effects(request("a man img", options=options)))[1]
    plain = states(adapter().effects(request("a man img", options=FastComposerOptions(images=(image,)))))[1]
    assert torch.equal(found[Background.KEEP], plain)
    assert not torch.equal(found[Background.NOISE], found[Background.BLACK])
    other = FastComposerOptions(images=(image,), masks=(mask,), seed=1)
    assert not torch.equal(states(adapter().effects(request("a man img", options=other)))[1], found[Background.NOISE])


# The UNet -------------------------------------------------------------------------------------------------------------


def test_the_unet_takes_the_place_of_the_model_s_and_goes_again():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from likeness.injection.diffusers import apply_effects

    net = UNet2DConditionModel(**made.UNET)
    net.load_state_dict(made.unet(5))
    before, one = {k: v.clone() for k, v in net.state_dict().items()}, adapter()
    for strength in (1.0, 0.25):
        with apply_effects(net, [one.unet(strength)]):
            for key, value in net.state_dict().items():
                torch.testing.assert_close(value, torch.lerp(before[key], made.unet(0)[key], strength))
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_its_difference_is_given_to_another_checkpoint():
    options = FastComposerOptions(original=made.unet(5))
    *_, delta = adapter().effects(request("a man img", person(), options=options, weight_strength=1.5))
    assert isinstance(delta, WeightDelta) and not delta.replaces and delta.strength == 1.5
    torch.testing.assert_close(
        delta.changes["conv_in"], made.unet(0)["conv_in.weight"] - made.unet(5)["conv_in.weight"]
    )
    less = {k: v for k, v in made.unet(5).items() if k != "conv_in.bias"}
    given = request("a man img", person(), options=FastComposerOptions(original=less))
    assert "no 'conv_in.bias'" in sentence(adapter().effects, given)


# What does not fit ----------------------------------------------------------------------------------------------------

FIVE = [person(f"person {i}", i) for i in range(5)]


@pytest.mark.parametrize(
    ("text", "people", "said"),
    [
        ("a man img", 0, "Identity from Photos"),
        ("a man", 1, "no trigger word"),
        ("a man img", 2, "names 1 person (by 'img'), but 2 are connected"),
        ("a man img and a boy img", 1, "'img' 2 times, but only one identity"),
        ("img in the rain", 1, "starts with the trigger word"),
        ("a man, img in the rain", 1, "follows ','"),
        (" ".join(["word"] * 80) + " man img", 1, "has 81 tokens, and FastComposer reads 75"),
        (" ".join(["man img"] * 5), 5, "5 people, and FastComposer was trained with 4"),
    ],
)
def test_prompts_that_cannot_be_meant(text, people, said):
    assert said in sentence(adapter().effects, request(text, *FIVE[:people]))


def test_long_prompts_are_read_where_a_user_wants_it():
    text = " ".join(["word"] * 80) + " man img"
    whole = request(text, person(), options=FastComposerOptions(long_prompts=LongPrompts.WINDOWS))
    assert moved(adapter().effects(whole)) == [77 + 1 + 80 - 75]
    cut = request(text, person(), options=FastComposerOptions(long_prompts=LongPrompts.CUT))
    assert "'man' of a person lies behind the 77 tokens" in sentence(adapter().effects, cut)
    early = request(f"a man img {text.removesuffix(' man img')}", person(), options=cut.options)
    assert moved(adapter().effects(early)) == [2]


@pytest.mark.parametrize(("dim", "family"), [(2048, "SDXL"), (1024, "SD2")])
def test_text_of_another_family_needs_sd15(dim, family):
    given = request("a man img", person(), dim=dim)
    text = sentence(FastComposer({**made.encoder(768)}, "fc.bin").effects, given)
    assert "needs SD1.5 (768-wide conditioning)" in text and str(dim) in text


def test_options_that_do_not_fit_each_other():
    images = (torch.rand(1, 8, 8, 3),) * 3
    given = request("a man img", person(), options=FastComposerOptions(images=images))
    assert "3 images and 1 identities" in sentence(adapter().effects, given)
    wrong = FastComposerOptions(images=images[:1], masks=(torch.rand(1, 9, 8),))
    assert "mask of image 1 is 8 x 9, and the image 8 x 8" in sentence(
        adapter().effects, request("a man img", options=wrong)
    )
    two = FastComposerOptions(strengths=(1.0, 0.5))
    assert "2 strengths for 1 people" in sentence(adapter().effects, request("a man img", person(), options=two))
    assert "from 0 to 1" in sentence(adapter().effects, request("a man img", person(), weight_strength=1.2))
    assert "another system" in sentence(adapter().effects, replace(given, options=object()))
    for wrong_number in ({"start_step": -2}, {"start_sigma": -1.0}, {"strengths": (float("nan"),)}):
        assert "enter a number" in sentence(FastComposerOptions, **wrong_number)
