"""BLIP-Diffusion: where the vectors stand, what images make of them, and what is said when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blip_diffusion as made
from helpers.small_world import person, sentence

from likeness.adapters.blip_diffusion import Background, BlipDiffusion, BlipDiffusionOptions
from likeness.adapters.blip_diffusion.files import read
from likeness.adapters.blip_diffusion.prompt import Insertion, write
from likeness.adapters.blip_diffusion.subject import on_background
from likeness.adapters.blip_diffusion.words import WordPieces
from likeness.adapters.effects import PromptEdit, PromptStates, WeightDelta
from likeness.adapters.image_prep import Crop
from likeness.adapters.system import Request
from likeness.adapters.text_encoder import Token, Tower
from likeness.errors import LikenessError
from likeness.injection.plan import layout_of

DIM = 64
ADAPTER = BlipDiffusion(read(made.encoder(DIM), "blip.bin"), "blip.bin")
VECTORS = torch.randn(1, made.QUERIES, DIM, generator=torch.Generator().manual_seed(4))
TRAINED = BlipDiffusion(read({"ctx_embeddings_cache": VECTORS}, "dog.safetensors"), "dog.safetensors", "dog")
IMAGES = torch.rand(3, 40, 30, 3, generator=torch.Generator().manual_seed(1))
DOG = BlipDiffusionOptions(category="dog", images=(IMAGES[:1],))


class Encoder:
    """Its states are what it reads: a vector of its own for every word, and the vectors that stand between them."""

    def __init__(self, *widths: int) -> None:
        names = ("clip_l", "clip_g")
        self.towers = tuple(Tower(name, width) for name, width in zip(names, widths or (DIM,), strict=False))
        self.table = torch.randn(60_000, DIM, generator=torch.Generator().manual_seed(9))

    def tokenize(self, text: str) -> dict[str, list[Token]]:
        words = text.replace(",", " ,").split()
        return {tower.name: [Token(sum(map(ord, w)), f"{w}</w>", 1.2) for w in words] for tower in self.towers}

    def encode(self, windows: Any, layer: int | None = None) -> PromptStates:
        (window,) = windows["clip_l"]
        rows = [token.id if isinstance(token.id, torch.Tensor) else self.table[token.id] for token in window]
        self.window = window
        return PromptStates(torch.stack(rows).unsqueeze(0), None)


def request(text: str = "swimming", *people: Any, options: Any = DOG, **given: Any) -> Request:
    settings = {
        "layout": layout_of(()), "attention": {}, "text": text, "text_encoder": Encoder(), "options": options,
        "find_vocabulary": lambda: WordPieces(made.PIECES), "identity": people[0] if people else None,
        "others": tuple(people[1:]), **given,
    }  # fmt: skip
    return Request(**settings)


def subject_states(asked: Request, adapter: BlipDiffusion = ADAPTER) -> torch.Tensor:
    """What the text reads with the subject in it: (77, dim)"""
    *_, edit = (effect for effect in adapter.effects(asked) if isinstance(effect, PromptEdit))
    return edit.edit(PromptStates(torch.zeros(1))).states[0]


def vectors_of(asked: Request, at: int = 2, adapter: BlipDiffusion = ADAPTER) -> torch.Tensor:
    return subject_states(asked, adapter)[at : at + made.QUERIES]


def word(name: str) -> torch.Tensor:
    return Encoder().table[sum(map(ord, name))]


# --- where they stand


def test_the_official_prompt_fills_a_window_of_exactly_77(tmp_path):
    asked = request()
    found = subject_states(asked)
    assert found.shape == (77, DIM)
    window = asked.text_encoder.window
    assert [isinstance(token.id, torch.Tensor) for token in window] == [2 <= i < 6 for i in range(77)]
    assert [token.weight for token in window[2:6]] == [1.0] * 4, "emphasis leaves the vectors alone"
    assert torch.equal(found[1], word("a")) and torch.equal(found[6], word("dog"))
    assert torch.equal(found[7], word("swimming")) and torch.equal(found[8], word(","))
    assert window[-1].id == 49407 and window[-2].id != 49407, "the end token stays, the words are cut"


def test_once_is_once():
    found = subject_states(request(options=replace(DOG, repeats=1)))
    assert torch.equal(found[8], Encoder().table[49407]) and torch.equal(found[76], Encoder().table[49407])


@pytest.mark.parametrize(("strength", "repeats", "times"), [(0.5, 5, 2), (1.0, 1, 1), (2.0, 3, 6)])
def test_the_number_of_repeats_is_the_official_one(strength, repeats, times):
    options = replace(DOG, prompt_strength=strength, repeats=repeats)
    asked = request("x", options=options)
    subject_states(asked)
    assert [token.piece for token in asked.text_encoder.window].count("dog</w>") == times


def test_the_target_is_the_category_unless_it_is_said():
    assert torch.equal(subject_states(request())[6], word("dog"))
    assert torch.equal(subject_states(request(options=replace(DOG, target=" tiger ")))[6], word("tiger"))
    assert torch.equal(subject_states(request("x", person(), options=None))[6], word("person"))


def test_a_place_in_free_text_is_where_the_vectors_stand():
    found = subject_states(request("photo of img dog beside a tree"))
    assert torch.equal(found[3 : 3 + made.QUERIES], vectors_of(request()))
    assert torch.equal(found[2], word("of")) and torch.equal(found[7], word("dog"))


def test_every_subject_has_a_place_of_its_own():
    ann, ben = person(seed=1), person(seed=2)
    alone = [vectors_of(request("x", who, options=None)) for who in (ann, ben)]
    found = subject_states(request("img and img", ann, ben, options=None))
    assert torch.equal(found[1:5], alone[0]) and torch.equal(found[6:10], alone[1])
    found = subject_states(request("ben and ann", ann, ben, options=None, trigger_words=("ann", "ben")))
    assert torch.equal(found[1:5], alone[1]) and torch.equal(found[6:10], alone[0])


def test_the_plain_prompt_is_the_text_without_the_subject():
    plain, _ = ADAPTER.effects(request("photo of img dog", person(), options=None))
    states = plain.edit(PromptStates(torch.zeros(1))).states[0]
    assert torch.equal(states[3], word("dog")) and torch.equal(states[4], Encoder().table[49407])


def test_strength_lies_between_the_two_prompts():
    plain, full = (subject_states(request(strength=s)) for s in (1e-6, 1.0))
    assert torch.allclose(subject_states(request(strength=0.5)), (plain + full) / 2, atol=1e-4)
    assert len(ADAPTER.effects(request(strength=0.0))) == 1, "the plain prompt alone"


# --- what the images make of them


def test_several_images_are_mixed_by_their_ratios():
    one, two, three = (vectors_of(request(options=replace(DOG, images=(IMAGES[i : i + 1],)))) for i in range(3))
    batch = replace(DOG, images=(IMAGES[:2], IMAGES[2:]))
    assert torch.allclose(vectors_of(request(options=batch)), (one + two + three) / 3, atol=1e-5)
    mixed = vectors_of(request(options=replace(batch, ratios=(0.5, 0.3, 0.2))))
    assert torch.allclose(mixed, 0.5 * one + 0.3 * two + 0.2 * three, atol=1e-5)
    asked = request(options=replace(batch, ratios=(5, 3, 2)))
    assert torch.allclose(vectors_of(asked), mixed, atol=1e-5)
    assert any("add up to 10" in note for note in ADAPTER.notes(asked))


def test_each_image_may_have_a_word_of_its_own():
    dog, cat = (vectors_of(request(options=replace(DOG, category=name))) for name in ("dog", "cat"))
    assert not torch.allclose(dog, cat, atol=1e-3)
    pair = replace(DOG, category="dog, cat", images=(IMAGES[:1], IMAGES[:1]))
    assert torch.allclose(vectors_of(request(options=pair)), (dog + cat) / 2, atol=1e-5)


def test_people_are_mixed_where_the_text_has_no_place():
    ann, ben = person(seed=1), person(seed=2)
    options = BlipDiffusionOptions(ratios=(0.25, 0.75))
    one, other = (vectors_of(request("x", who, options=None)) for who in (ann, ben))
    found = vectors_of(request("x", ann, ben, options=options))
    assert torch.allclose(found, 0.25 * one + 0.75 * other, atol=1e-5)


def test_photos_of_a_person_count_as_the_identity_says():
    who = person(photos=2)
    first = vectors_of(request("x", who.take([0]), options=None))
    weighted = replace(who, weights=torch.tensor([1.0, 1e-6]))
    assert torch.allclose(vectors_of(request("x", weighted, options=None)), first, atol=1e-4)


def test_images_of_any_shape_and_depth_are_read():
    for images in (IMAGES[:1, ..., :1], IMAGES[0], torch.cat([IMAGES, IMAGES[..., :1]], -1)[:1]):
        assert vectors_of(request(options=replace(DOG, images=(images,)))).isfinite().all()


def test_the_crop_can_be_the_one_of_diffusers():
    assert not torch.equal(vectors_of(request(options=replace(DOG, crop=Crop.SQUASH))), vectors_of(request()))


@pytest.mark.parametrize("background", Background)
def test_what_is_outside_of_the_mask_does_not_count(background):
    mask = torch.zeros(1, 40, 30)
    mask[:, 10:30, 5:25] = 1
    other = IMAGES[:1].clone()
    other[:, :10] = 0.3
    options = replace(DOG, mask=mask, background=background)
    assert torch.equal(*(vectors_of(request(options=replace(options, images=(i,)))) for i in (IMAGES[:1], other)))
    assert not torch.equal(vectors_of(request(options=options)), vectors_of(request()))


def test_what_is_transparent_is_the_background_as_well():
    alpha = torch.zeros(1, 40, 30, 1)
    alpha[:, 10:30] = 1
    masked = on_background(IMAGES[:1], alpha[..., 0], Background.BLACK)
    assert torch.equal(on_background(torch.cat([IMAGES[:1], alpha], -1), None, Background.BLACK), masked)
    assert float(masked[:, :9].abs().max()) == 0


# --- a subject that was trained


def test_a_trained_subject_needs_nothing_beside_it():
    asked = request("x", options=None, find_vocabulary=None)
    assert torch.equal(vectors_of(asked, adapter=TRAINED), VECTORS[0])
    assert torch.equal(subject_states(asked, TRAINED)[6], word("dog"))
    assert "'dog'" in TRAINED.notes(asked)[0]
    assert any("not looked at" in note for note in TRAINED.notes(request("x", person(), options=None)))


def test_images_come_before_the_subject_of_the_file(tmp_path):
    path = tmp_path / "both.pth"
    torch.save(made.checkpoint(made.encoder(DIM), VECTORS), path)
    from likeness import adapters

    both = adapters.load(path)
    assert torch.equal(vectors_of(request("x", options=None), adapter=both), VECTORS[0])
    assert torch.allclose(vectors_of(request("x"), adapter=both), vectors_of(request("x")), atol=1e-6)


def test_the_unet_of_the_file_acts_as_long_as_the_subject_does():
    weights = made.checkpoint(made.encoder(DIM), VECTORS, made.attention([(32, DIM)] * 7))["model"]
    adapter = BlipDiffusion(read(weights, "x.pth"), "x.pth")
    cases: list[tuple[dict[str, Any], float]] = [({}, 1.0), ({"weight_strength": 0.3}, 0.3), ({"strength": 0.0}, 0.0)]
    for given, strength in cases:
        (delta,) = (e for e in adapter.effects(request(**given)) if isinstance(e, WeightDelta))
        assert delta.strength == strength and delta.replaces


# --- what is said


def test_what_was_looked_at_is_told():
    notes = ADAPTER.notes(request())
    assert notes == ["image 1 (dog) as 4 vectors."]
    (_, late) = ADAPTER.notes(replace(request(), scope=replace(request().scope, start=0.2)))
    assert "start_at 0 is official" in late


def test_a_text_that_does_not_fit_is_told():
    long = " ".join(["word"] * 80)
    for text in (long, f"img {long}"):
        assert any("not read" in note for note in ADAPTER.notes(request(text)))
        assert subject_states(request(text)).shape == (77, DIM)
    assert len(ADAPTER.notes(request("short"))) == 1, "a repetition that is cut is nothing to tell"


@pytest.mark.parametrize("category", ["狗", "zzz qqq"])
def test_a_word_that_the_vocabulary_does_not_know_is_told(category):
    assert any("English" in note for note in ADAPTER.notes(request(options=replace(DOG, category=category))))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing to look at": (lambda: request(options=None), "connect Identity from Photos, or images"),
    "no word for the images": (lambda: request(options=replace(DOG, category=" !, ")), "no word for what they show"),
    "a category that is too long": (lambda: request(options=replace(DOG, category="狗" * 600)), "602 pieces, and 16"),
    "another number of categories": (
        lambda: request(options=replace(DOG, category="dog, cat, tea")), "3 categories (dog, cat, tea) for 1",
    ),
    "another number of ratios": (lambda: request(options=replace(DOG, ratios=(0.5, 0.5))), "2 ratios for 1"),
    "another number of masks": (
        lambda: request(options=replace(DOG, mask=torch.ones(2, 4, 4))), "2 masks for 1 images",
    ),
    "an empty mask": (lambda: request(options=replace(DOG, mask=torch.zeros(1, 4, 4))), "mask of the subject"),
    "options of another system": (lambda: request(options=3), "BLIP-Diffusion Options"),
    "SDXL's two towers": (
        lambda: replace(request(), text_encoder=Encoder(DIM, DIM)), "CLIP is clip_l (64) and clip_g (64)",
    ),
    "a wider text": (lambda: replace(request(), text_encoder=Encoder(1024)), "needs the 64-wide CLIP-L"),
    "more places than subjects": (lambda: request("img and img"), "places for 2 subjects, but 1 of them"),
    "no room for the last subject": (lambda: request("word " * 72 + "img dog"), "room for 75 tokens"),
    "another vocabulary": (
        lambda: request(find_vocabulary=lambda: WordPieces([*made.PIECES, "x", "y", "z"])), "17 pieces",
    ),
    "no vocabulary": (lambda: request(find_vocabulary=Request.__dataclass_fields__["find_vocabulary"].default), "bert"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said_in_one_sentence(what):
    asked, said = REFUSED[what]
    assert said in sentence(lambda: ADAPTER.effects(asked()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt_strength": 0.04}, "0.04 times 20 repeats is less than 1"),
        ({"prompt_strength": float("nan")}, "prompt strength"),
        ({"repeats": 0}, "repeats"),
        ({"ratios": (0.5, -0.5)}, "ratio"),
        ({"ratios": (0.0, 0.0)}, "All ratios are 0"),
    ],
)
def test_impossible_options_are_refused(given, said):
    assert said in sentence(lambda: BlipDiffusionOptions(**given))


def test_vectors_fill_the_window_to_the_last_place():
    tower = Tower("clip_l", DIM)
    tokens = [Token(1)] * 71
    written = write(tower, tokens, [Insertion(VECTORS[0], 71)])
    assert len(written.window) == 77 and written.cut == 0
    with pytest.raises(LikenessError, match="room for 75"):
        write(tower, [*tokens, Token(1)], [Insertion(VECTORS[0], 72)])


def test_the_module_needs_no_path(tmp_path: Path):
    assert ADAPTER.name == "blip.bin" and ADAPTER.site_shapes == {} and ADAPTER.needs.text_width == DIM
