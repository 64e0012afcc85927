"""StoryMaker's file, who is in its cast, and the tokens that are made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import storymaker as files
from safetensors.torch import save_file
from torch import Tensor

from likeness.adapters import load
from likeness.adapters.clip_vision import ClipFeatures, EncoderSize
from likeness.adapters.effects import AttentionTerm, Scope, WeightDelta
from likeness.adapters.ip_adapter.reference import ReferenceOptions
from likeness.adapters.storymaker import SYSTEM, StoryMaker
from likeness.adapters.storymaker.cast import OPTIONS, Cast, Character
from likeness.adapters.system import Request
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.injection.attention import attend_by_head
from likeness.injection.plan import Role, project
from likeness.injection.sites import AttentionSite
from likeness.weights.families import SDXL, TransformerLayout

SHAPES = [(64, 64), (64, 64), (32, 64)]
ATTENTION = {slot: f"path.{slot}" for slot in range(2 * len(SHAPES))}


class Encoder:
    """Stands in for CLIP: a few numbers of every image, as hidden states of the given width."""

    def __init__(self, hidden: int = 1280) -> None:
        self.size = EncoderSize(hidden, 1024, 32)
        self.seen: list[Tensor] = []

    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        self.seen.append(pixels)
        rows = pixels.flatten(1)[:, : 4 * 512].reshape(len(pixels), 4, 512)
        hidden = torch.nn.functional.pad(rows, (0, self.size.hidden - 512))
        return ClipFeatures(hidden.mean(1), hidden)


def person(seed: int = 0, photos: int = 1, **changes: Any) -> Identity:
    random = torch.Generator().manual_seed(seed)

    def crops(side: int) -> Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=random, dtype=torch.uint8)

    made = Identity(
        name=f"person {seed}", recogniser="buffalo_l", embeddings=torch.randn(photos, 512, generator=random) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4),
        photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip
    return replace(made, **changes)


def body(seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (40, 20, 3), generator=random, dtype=torch.uint8),)


@pytest.fixture(scope="module")
def adapter() -> StoryMaker:
    return StoryMaker(files.weights(SHAPES), "mask.bin")


def request(*cast: Character, **changes: Any) -> Request:
    layout = TransformerLayout((1,), True, (2,))
    options = Cast(cast) if cast else None
    return Request(layout, ATTENTION, encoder=changes.pop("encoder", Encoder()), options=options, **changes)


def tokens(adapter: StoryMaker, *cast: Character, **changes: Any) -> Tensor:
    term = adapter.effects(request(*cast, **changes))[0]
    assert isinstance(term, AttentionTerm)
    return term.tokens.cond


def refused(adapter: StoryMaker, *cast: Character, **changes: Any) -> str:
    with pytest.raises(LikenessError) as error:
        adapter.effects(request(*cast, **changes))
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["official pickle", "flat safetensors"])
def test_both_forms_of_the_file_load_as_storymaker_for_sdxl(tmp_path, form):
    weights = files.weights()
    path = tmp_path / ("mask.bin" if form == "official pickle" else "flat.safetensors")
    if form == "official pickle":
        files.write(path)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    made = load(path)
    assert isinstance(made, StoryMaker) and made.title == "StoryMaker" and made.needs.base is SDXL
    assert made.needs.recogniser == "buffalo_l" and not made.needs.raw and made.needs.encoder_width == 1280
    delta = made.lora({slot: f"layer{slot}" for slot in range(140)})
    assert len(made.site_shapes) == 70 and len(delta.changes) == 140 * 4
    assert {f"image_proj_model.{key}" for key in made.image_proj_model.state_dict()} == {
        key for key in weights if key.startswith("image_proj_model.")
    }


@pytest.mark.parametrize(
    "lost",
    [
        "ip_adapter.0.to_q_lora.up.weight",
        "ip_adapter.3.to_out_lora.down.weight",
        "ip_adapter.5.to_v_ip.weight",
        "image_proj_model.resample.latents",
        "image_proj_model.perceiver_resampler.proj_in.weight",
    ],
)
def test_a_file_that_lacks_a_part_is_refused_by_name(lost):
    weights = files.weights(SHAPES)
    del weights[lost]
    with pytest.raises(LikenessError, match=r"'half\.bin' is not a complete StoryMaker file"):
        StoryMaker(weights, "half.bin")


def test_a_whole_layer_without_lora_is_refused():
    weights = {k: v for k, v in files.weights(SHAPES).items() if not k.startswith("ip_adapter.2.")}
    with pytest.raises(LikenessError, match="LoRA does not have every attention layer"):
        StoryMaker(weights, "half.bin")


def test_its_kind_knows_the_folder_people_have():
    assert SYSTEM.folders == ("storymaker",)


# The cast -------------------------------------------------------------------------------------------------------------


def test_the_background_stands_first_and_each_character_brings_twenty_tokens(adapter):
    for count in (1, 2, 3):
        cast = [Character(person(i), body(i)) for i in range(count)]
        made = tokens(adapter, *cast)
        assert made.shape == (1, 20 * (1 + count), 64)
        assert torch.equal(made[:, :20], adapter.image_proj_model.bg_embed)
        torch.testing.assert_close(made[:, :40], tokens(adapter, cast[0]))


def test_the_order_of_characters_counts(adapter):
    ann, ben = Character(person(1), body(1)), Character(person(2), body(2))
    there, back = tokens(adapter, ann, ben), tokens(adapter, ben, ann)
    assert not torch.allclose(there[:, 20:40], back[:, 40:60], atol=1e-3)


def test_a_fourth_character_is_refused(adapter):
    text = refused(adapter, *(Character(person(i)) for i in range(4)))
    assert "4 characters" in text and "3" in text


def test_apply_identitys_person_takes_the_open_place(adapter):
    ann, ben = person(1), person(2)
    made = tokens(adapter, Character(ben, body(2)), Character(bodies=body(1)), identity=ann)
    assert torch.equal(made, tokens(adapter, Character(ben, body(2)), Character(ann, body(1))))


def test_apply_identitys_person_stands_first_where_no_place_is_open(adapter):
    ann, ben = person(1), person(2)
    made = tokens(adapter, Character(ben, body(2)), identity=ann)
    assert torch.equal(made, tokens(adapter, Character(ann), Character(ben, body(2))))
    assert torch.equal(tokens(adapter, Character(ben), identity=ben), tokens(adapter, Character(ben)))


def test_nobody_and_two_open_places_are_explained(adapter):
    assert "Identity from Photos" in refused(adapter)
    assert "Identity from Photos" in refused(adapter, Character(bodies=body()))
    assert "Characters 1 and 2 have no identity" in refused(adapter, Character(), Character(), identity=person())


def test_options_of_another_system_are_refused(adapter):
    with pytest.raises(LikenessError, match=f"connect {OPTIONS}"):
        adapter.effects(replace(request(identity=person()), options=ReferenceOptions()))


@pytest.mark.parametrize("value", [float("nan"), -0.1, 2.5])
def test_strengths_out_of_range_are_refused(value):
    with pytest.raises(LikenessError, match="strength of the body"):
        Character(body_strength=value)


# What is missing ------------------------------------------------------------------------------------------------------


def test_another_recogniser_is_refused(adapter):
    text = refused(adapter, identity=person(recogniser="antelopev2"))
    assert "buffalo_l" in text and "antelopev2" in text and "allow" not in text


def test_an_identity_that_buffalo_l_has_also_seen_is_read_by_it(adapter):
    seen = person(1)
    both = replace(seen, recogniser="antelopev2", embeddings=-seen.embeddings, also={"buffalo_l": seen.embeddings})
    assert torch.equal(tokens(adapter, identity=both), tokens(adapter, identity=seen))


def test_without_an_aligned_face_the_sentence_says_why(adapter):
    made = person()
    bare = replace(made, aligned=made.aligned[:0], keypoints=made.keypoints[:0], portraits=made.portraits[:0])
    assert "no aligned face" in refused(adapter, identity=bare)


def test_without_an_encoder_and_with_a_wrong_one_the_sentence_names_vit_h(adapter):
    assert "ViT-H/14" in refused(adapter, identity=person(), encoder=None)
    for width in (1024, 1664):
        text = refused(adapter, identity=person(), encoder=Encoder(width))
        assert "needs ViT-H/14" in text and str(width) in text


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_the_length_of_the_embedding_does_not_count(adapter):
    one = person(1)
    longer = replace(one, embeddings=3 * one.embeddings)
    torch.testing.assert_close(tokens(adapter, identity=longer), tokens(adapter, identity=one))


def test_face_and_body_each_decide_over_their_tokens(adapter):
    ann = person(1)
    plain = tokens(adapter, Character(ann, body(1)))
    dressed = tokens(adapter, Character(ann, body(2)))
    other = tokens(adapter, Character(person(2), body(1)))
    assert torch.equal(dressed[:, :24], plain[:, :24]) and not torch.allclose(dressed[:, 24:], plain[:, 24:])
    assert torch.equal(other[:, 24:], plain[:, 24:]) and not torch.allclose(other[:, 20:24], plain[:, 20:24])


def test_a_strength_of_0_and_no_picture_at_all_are_the_drop_of_training(adapter):
    ann, network = person(1), adapter.image_proj_model
    none = tokens(adapter, Character(ann))
    assert torch.equal(none, tokens(adapter, Character(ann, body(1), body_strength=0.0)))
    dropped = network(torch.zeros(1, 4, 64), torch.zeros(1, 16, 64))
    torch.testing.assert_close(none[:, 24:], dropped[:, 24:])
    faceless = tokens(adapter, Character(ann, body(1), face_strength=0.0))
    torch.testing.assert_close(faceless[:, 20:24], dropped[:, 20:24])


def test_a_character_from_behind_has_the_face_of_the_unconditioned_half(adapter):
    behind = Character(None, body(1), faceless=True)
    made = adapter.effects(request(behind))[0].tokens
    torch.testing.assert_close(made.cond[:, 20:24], made.uncond[:, 20:24], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made.cond[:, 24:], made.uncond[:, 24:], atol=1e-2)
    assert "from behind" in " ".join(adapter.notes(request(behind)))


def test_the_unconditioned_half_keeps_the_background_and_knows_nobody(adapter):
    one, other = (adapter.effects(request(Character(person(i), body(i))))[0].tokens for i in (1, 2))
    assert torch.equal(one.uncond, other.uncond)
    assert torch.equal(one.uncond[:, :20], adapter.image_proj_model.bg_embed)


def test_several_photos_are_seen_one_by_one_and_the_heavier_counts_more(adapter):
    two = person(3, photos=2)
    both = tokens(adapter, identity=two)
    assert both.shape == (1, 40, 64)
    uneven = torch.tensor([1.0, 1e-6])
    first = tokens(adapter, identity=replace(two, weights=uneven))
    alone = tokens(adapter, identity=replace(two, weights=uneven, aligned=two.aligned[[0, 0]]))
    torch.testing.assert_close(first, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both, first, atol=1e-3)


def test_pictures_are_squashed_to_the_encoders_square(adapter):
    encoder = Encoder()
    adapter.effects(request(Character(person(), body()), encoder=encoder))
    assert {tuple(pixels.shape[1:]) for pixels in encoder.seen} == {(3, 32, 32)}


def test_pictures_that_give_nan_are_not_painted(adapter):
    encoder = Encoder()
    encoder.encode_pixels = lambda pixels: ClipFeatures(pixels, torch.full((len(pixels), 4, 1280), torch.nan))
    assert "NaN" in refused(adapter, identity=person(), encoder=encoder)


# Effects --------------------------------------------------------------------------------------------------------------


def test_attention_and_lora_have_strengths_of_their_own(adapter):
    term, delta = adapter.effects(request(identity=person(), strength=0.5, weight_strength=0.25))
    assert isinstance(term, AttentionTerm) and {site.strength for site in term.site_weights} == {0.5}
    assert isinstance(delta, WeightDelta) and delta.strength == 0.25
    assert all(pair.scale == 1 for pair in delta.changes.values())


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"scope": Scope(0.5, 0.5)}])
def test_what_never_acts_brings_no_lora(adapter, off):
    assert not [e for e in adapter.effects(request(identity=person(), **off)) if isinstance(e, WeightDelta)]


def test_two_people_with_one_file_share_its_lora(adapter):
    deltas = [adapter.effects(request(identity=person(i)))[1] for i in (1, 2)]
    assert deltas[0].id == deltas[1].id


def site(adapter: StoryMaker, slot: int) -> AttentionSite:
    width, text = adapter.site_shapes[slot]
    return AttentionSite(slot, ("input", 1), 0, 0, "", "", width, text, heads=4)


def test_regions_share_one_softmax_and_add_up_to_the_whole(adapter):
    everywhere = torch.ones(1, 4, 4)
    cast = [Character(person(i), body(i)) for i in (1, 2)]
    placed = [replace(one, region=everywhere) for one in cast]
    [whole], parts = (
        [e for e in adapter.effects(request(*people, strength=0.7)) if isinstance(e, AttentionTerm)]
        for people in (cast, placed)
    )
    assert [part.region is None for part in parts] == [True, False, False]
    queries = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))

    def heard(term: AttentionTerm) -> Tensor:
        [projected] = project(term, [site(adapter, 1)], term.tokens)
        [(keys, values)] = projected.of_batch([Role.UNCOND, Role.COND], 1).values()
        return attend_by_head(queries, keys, values)

    together = torch.stack([heard(part) for part in parts]).sum(0)
    torch.testing.assert_close(together, heard(whole), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(heard(parts[1]), heard(parts[2]), atol=1e-3)


def test_notes_name_the_order_and_what_is_left_to_the_prompt(adapter):
    notes = " ".join(adapter.notes(request(Character(person(1), body(1)), Character(person(2)))))
    assert "'person 1', 'person 2'" in notes and "Character 2 (person 2) has no body image" in notes
