"""PhotoMaker: its files in every form, what it looks at, and how its start is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import official
from helpers import photomaker as made
from safetensors.torch import save_file

from likeness.adapters import load
from likeness.adapters.effects import PromptEdit, PromptStates, WeightDelta
from likeness.adapters.photomaker import LongPrompts, MergeTiming, PhotoCrop, PhotoMaker, PhotoMakerOptions, expand
from likeness.adapters.system import Request
from likeness.adapters.text_encoder import Token, Tower
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.injection.plan import layout_of

TINY = [(width, 128) for width in (32, 64, 64, 64, 32, 32, 64)]
SDXL = [(width, 2048) for width, _ in official.SDXL]


def person(name: str = "Ada", photos: int = 2, recogniser: str | None = "buffalo_l", seed: int = 0) -> Identity:
    random = torch.Generator().manual_seed(seed)

    def crops(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=random, dtype=torch.uint8)

    return Identity(
        name=name, recogniser=recogniser,
        embeddings=torch.randn(photos, 512 if recogniser else 0, generator=random) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4),
        photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip


class Encoder:
    """Every token is a number of its own; the states say which token stands where."""

    def __init__(self, dim: int = 128) -> None:
        self.dim = dim
        self.towers = (Tower("clip_l", dim // 2), Tower("clip_g", dim - dim // 2, pad=0))
        self.table = torch.randn(50_000, dim, generator=torch.Generator().manual_seed(9))

    def tokenize(self, text: str) -> dict[str, list[Token]]:
        words = text.replace(",", " ,").split()
        tokens = [Token(sum(map(ord, word)), f"{word}</w>") for word in words]
        return {tower.name: tokens for tower in self.towers}

    def encode(self, windows: Any, layer: int | None = None) -> PromptStates:
        ids = [token.id for window in windows["clip_l"] for token in window]
        states = self.table[ids].unsqueeze(0)
        return PromptStates(states, states.mean(1)[:, :64])


def request(text: str, *people: Identity, options: PhotoMakerOptions | None = None, **given: Any) -> Request:
    encoder = Encoder(given.pop("dim", 128))
    return Request(
        layout_of(()), {}, identity=people[0] if people else None, others=tuple(people[1:]), text=text,
        text_encoder=encoder, options=options, **given,
    )  # fmt: skip


def adapter(version: int = 1, shapes: Any = TINY, seed: int = 0) -> PhotoMaker:
    return PhotoMaker(made.weights(shapes, seed, version), "test.bin")


def sentence(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments, **named)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_the_official_pickle_and_flat_safetensors_are_the_same(tmp_path, version):
    pickle = load(made.write(tmp_path / "photomaker.bin", made.groups(SDXL, version)))
    save_file(made.weights(SDXL, version=version), tmp_path / "any name.safetensors")
    flat = load(tmp_path / "any name.safetensors")
    for one in (pickle, flat):
        assert isinstance(one, PhotoMaker) and one.version == version
        assert one.title == f"PhotoMaker v{version}" and one.needs.base.title == "SDXL"
        assert one.needs.recogniser == (None if version == 1 else "buffalo_l")
        assert one.site_shapes == {2 * i + 1: shape for i, shape in enumerate(SDXL)}
        assert len(one.lora().changes) == 560 and one.tokens_per_photo == version
    assert pickle.lora_id == flat.lora_id
    assert {k: v.shape for k, v in pickle.id_encoder.state_dict().items()} == {
        k: v.shape for k, v in made.groups(SDXL, version)["id_encoder"].items()
    }


def test_the_order_in_the_pickle_does_not_matter_and_code_is_never_run(tmp_path):
    groups = made.groups(TINY)
    turned = {"lora_weights": groups["lora_weights"], "id_encoder": groups["id_encoder"]}
    assert isinstance(load(made.write(tmp_path / "a.bin", turned)), PhotoMaker)

    class Code:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    assert "program code" in sentence(load, made.write(tmp_path / "b.bin", {**groups, "more": Code()}))


@pytest.mark.parametrize("spelling", ["processor", "lora", "peft"])
def test_every_spelling_of_diffusers_is_read(spelling):
    groups = made.groups(TINY, spelling=spelling)
    flat = {f"{group}.{key}": value for group, part in groups.items() for key, value in part.items()}
    expected = adapter().lora().changes
    found = PhotoMaker(flat, "x").lora().changes
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[path].delta(), expected[path].delta()) for path in found)


def test_position_ids_and_mixed_precision_are_fine():
    weights = made.weights(TINY)
    weights["id_encoder.vision_model.embeddings.position_ids"] = torch.arange(5).unsqueeze(0)
    half = {k: v.bfloat16() if "layers" in k else v for k, v in weights.items()}
    tokens = PhotoMaker(half, "x").encode(torch.zeros(1, 3, 28, 28))
    torch.testing.assert_close(tokens, adapter().encode(torch.zeros(1, 3, 28, 28)), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("id_encoder.fuse_module.mlp1.fc1.weight"), "fuse_module.mlp1.fc1.weight"),
        (lambda w: w.update({"id_encoder.another": torch.zeros(1)}), "another"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("lora_weights.")], "its lora_weights is missing"),
        (lambda w: w.pop(next(k for k in w if k.endswith("up.weight"))), "one half of"),
        (lambda w: w.update({"lora_weights.unet.conv_in.lora.down.weight": torch.zeros(1, 1)}), "conv_in"),
    ],
)
def test_what_is_missing_or_unknown_is_named(change, said):
    weights = made.weights(TINY)
    change(weights)
    assert said in sentence(PhotoMaker, weights, "test.bin")


# The start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "steps", "official_step", "share_step"),
    [(0.2, 50, 11, 10), (0.29, 100, 29, 29), (0.5, 100, 31, 50), (0.15, 30, 5, 4), (1.0, 20, 21, 20)],
)
def test_the_share_as_the_demos_and_as_the_paper_count_it(share, steps, official_step, share_step):
    """The demos: int(share · steps), at most 30, is the last step without the person."""
    assert PhotoMakerOptions().first_step(share)(steps) == official_step  # type: ignore[misc]
    assert PhotoMakerOptions(merge=MergeTiming.STEPS).first_step(share)(steps) == share_step  # type: ignore[misc]
    assert PhotoMakerOptions(merge=MergeTiming.NOISE).first_step(share) is None


@pytest.mark.parametrize(("merge_step", "first"), [(-1, 0), (0, 1), (10, 11)])
def test_the_official_merge_step_wins(merge_step, first):
    options = PhotoMakerOptions(merge_step=merge_step, merge=MergeTiming.NOISE)
    assert options.first_step(0.5)(50) == first  # type: ignore[misc]


def test_a_start_of_0_is_from_the_first_step():
    assert PhotoMakerOptions().first_step(0.0) is None


@pytest.mark.parametrize("value", [-2, float("nan"), 10**9])
def test_impossible_merge_steps_are_refused(value):
    assert "The merge step" in sentence(PhotoMakerOptions, merge_step=value)


# The prompt -----------------------------------------------------------------------------------------------------------


def states(effects: Any) -> list[torch.Tensor]:
    nothing = PromptStates(torch.zeros(1, 1, 1))
    return [effect.edit(nothing).states for effect in effects if isinstance(effect, PromptEdit)]


@pytest.mark.parametrize(("version", "photos"), [(1, 1), (1, 4), (2, 1), (2, 3)])
def test_the_noun_stands_there_once_for_each_token(version, photos):
    given = request("a man img in the rain", person(photos=photos))
    plain, fused = states(adapter(version).effects(given))
    table, count = given.text_encoder.table, photos * version  # type: ignore[union-attr]
    noun = table[sum(map(ord, "man"))]
    assert torch.equal(plain[0, 2], noun) and torch.equal(plain[0, 3], table[sum(map(ord, "in"))])
    changed = [i for i in range(77) if not any(torch.equal(fused[0, i], row) for row in plain[0])]
    assert changed == list(range(2, 2 + count))
    assert torch.equal(fused[0, 2 + count], table[sum(map(ord, "in"))])


def test_effects_are_a_plain_phase_a_phase_with_the_person_and_a_lora():
    plain, fused, delta = adapter().effects(request("a man img", person()))
    assert isinstance(plain, PromptEdit) and plain.scope.whole_run
    assert isinstance(fused, PromptEdit) and isinstance(delta, WeightDelta) and delta.scope.whole_run
    assert delta.why_never is None and delta.strength == 1.0


def test_the_fuse_is_the_paper_s_and_weights_move_towards_it():
    """word = c + w · (fuse(c, e) - c): 0 leaves the noun, 1 is official, 0.5 lies between."""
    one = adapter()
    _, official_states = states(one.effects(request("a man img", person())))
    _, half = states(one.effects(request("a man img", person(), strength=0.5)))
    _, unweighted = states(one.effects(request("a man img", person(), strength=1e-9)))
    torch.testing.assert_close(half[0, 2:4], (official_states[0, 2:4] + unweighted[0, 2:4]) / 2)
    assert len(states(one.effects(request("a man img", person(), strength=0.0)))) == 1


def test_mixing_people_in_one_identity_counts_each_by_its_weight():
    from likeness.faces.identity import combine_identities

    ann, ben = person("Ann", photos=1, seed=1), person("Ben", photos=1, seed=2)
    even = combine_identities([ann, ben])
    uneven = combine_identities([ann, ben], [1.0, 0.5])
    one = adapter()
    _, both = states(one.effects(request("a man img", even)))
    _, mixed = states(one.effects(request("a man img", uneven)))
    noun = request("a man img").text_encoder.table[sum(map(ord, "man"))]  # type: ignore[union-attr]
    assert torch.equal(both[0, 2], mixed[0, 2])  # the strongest is as official
    torch.testing.assert_close(mixed[0, 3], torch.lerp(noun, both[0, 3], 0.5))


def test_several_triggers_have_their_own_people():
    ann, ben = person("Ann", photos=1, seed=1), person("Ben", photos=2, seed=2)
    one = adapter()
    _, both = states(one.effects(request("a girl img and a man img", ann, ben)))
    _, ann_alone = states(one.effects(request("a girl img and a man", ann)))
    _, ben_alone = states(one.effects(request("a girl and a man img", ben)))
    assert torch.equal(both[0, :3], ann_alone[0, :3]) and torch.equal(both[0, 5:7], ben_alone[0, 5:7])
    notes = " ".join(one.notes(request("a girl img and a man img", ann, ben)))
    assert "'Ann' is 1 tokens at 'girl'" in notes and "'Ben' is 2 tokens at 'man'" in notes


def test_somebody_whom_no_word_names_is_told_of():
    notes = adapter().notes(request("a man img", person("Ann"), person("Ben")))
    assert any("'Ben' is connected, but no trigger word" in note for note in notes)


@pytest.mark.parametrize("photo", PhotoCrop)
def test_each_crop_is_another_picture(photo):
    one, who = adapter(), person()
    _, found = states(one.effects(request("a man img", who, options=PhotoMakerOptions(photo=photo))))
    _, heads = states(one.effects(request("a man img", who)))
    assert torch.equal(found, heads) == (photo is PhotoCrop.HEAD)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_stand_in_for_the_crops_whatever_their_sizes(channels):
    images = (torch.rand(2, 40, 30, channels), torch.rand(1, 64, 64, channels))
    given = request("a man img", options=PhotoMakerOptions(images=images))
    _, fused = states(adapter().effects(given))
    assert torch.equal(fused[0, 5], given.text_encoder.table[49407])  # type: ignore[union-attr]
    notes = adapter().notes(given)
    assert "'the images' is 3 tokens at 'man'" in notes[0]


# What does not fit ----------------------------------------------------------------------------------------------------


def test_nobody_is_asked_for():
    for version in (1, 2):
        assert "Identity from Photos" in sentence(adapter(version).effects, request("a man img"))
    only_pictures = request("a man img", options=PhotoMakerOptions(images=(torch.rand(1, 8, 8, 3),)))
    assert "needs an identity" in sentence(adapter(2).effects, only_pictures)


@pytest.mark.parametrize(("photos", "version"), [(80, 1), (38, 2)])
def test_more_photos_than_a_window_holds_say_the_limit(photos, version):
    text = sentence(adapter(version).effects, request("a man img", person(photos=photos)))
    assert f"make {photos * version} tokens" in text and "room for 75" in text


def test_the_official_cut_has_the_room_that_is_left():
    long = " ".join(["word"] * 70)
    given = request(f"{long} man img", person(photos=7), options=PhotoMakerOptions(long_prompts=LongPrompts.CUT))
    assert "room for 5 there" in sentence(adapter().effects, given)
    assert "no trigger word" in sentence(
        adapter().effects,
        request(f"{long} {long} man img", person(), options=PhotoMakerOptions(long_prompts=LongPrompts.CUT)),
    )


def test_a_long_prompt_keeps_the_person_in_one_window():
    encoder = Encoder()
    words = " ".join(["word"] * 73)
    expanded = expand(encoder, encoder.tokenize(f"{words} man img and more"), ("img",), (4,))
    assert len(expanded.windows["clip_l"]) == 2
    assert expanded.places[0].tolist() == [78, 79, 80, 81]


def test_text_of_another_width_needs_sdxl():
    text = sentence(adapter(shapes=SDXL).effects, request("a man img", person(), dim=768))
    assert "needs SDXL (2048-wide conditioning)" in text and "width 768" in text


def test_v2_reads_the_raw_embeddings_of_buffalo_l():
    """Twice as long an embedding is another one: nothing normalises it."""
    from dataclasses import replace

    one, who = adapter(2), person()
    longer = replace(who, embeddings=2 * who.embeddings)
    _, found = states(one.effects(request("a man img", who)))
    _, other = states(one.effects(request("a man img", longer)))
    assert not torch.allclose(found[0, 2:6], other[0, 2:6], atol=1e-3)


def test_v2_asks_for_its_recogniser():
    assert "buffalo_l" in sentence(adapter(2).effects, request("a man img", person(recogniser="antelopev2")))
    assert "no face embedding" in sentence(adapter(2).effects, request("a man img", person(recogniser=None)))
    assert states(adapter(1).effects(request("a man img", person(recogniser=None))))  # v1 reads none


def test_v2_is_seen_by_its_recogniser_where_it_is_at_hand():
    from dataclasses import replace

    who = person(recogniser="antelopev2")
    seen = replace(who, also={"buffalo_l": torch.randn(2, 512)})
    given = request("a man img", who, seen_by=lambda identity, recogniser: seen)
    assert len(states(adapter(2).effects(given))) == 2


def test_v2_wants_a_face_for_every_picture():
    options = PhotoMakerOptions(images=(torch.rand(3, 8, 8, 3),))
    text = sentence(adapter(2).effects, request("a man img", person(), options=options))
    assert "3 images and 2 faces" in text


def test_options_of_another_system_are_refused():
    given = request("a man img", person())
    from dataclasses import replace

    assert "another system" in sentence(adapter().effects, replace(given, options=object()))


def test_two_text_encoders_that_place_a_person_differently_are_refused():
    encoder = Encoder()
    tokens = encoder.tokenize("a man img")
    longer = {**tokens, "clip_l": [Token(torch.zeros(64)), *tokens["clip_l"]]}
    assert "different lengths" in sentence(expand, encoder, longer, ("img",), (2,))


def test_the_given_states_are_left_alone():
    one = adapter()
    before = torch.randn(1, 77, 128)
    given = before.clone()
    tokens = one.encode(torch.rand(2, 3, 28, 28))
    changed = one.fuse(given, torch.tensor([4, 5]), tokens)
    assert torch.equal(given, before) and torch.equal(changed[0, 6], before[0, 6])
    assert not torch.equal(changed[0, 4], before[0, 4])
