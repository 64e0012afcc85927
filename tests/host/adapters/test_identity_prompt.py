"""Identity Prompt in the real host: PhotoMaker v1 and v2 on a small SDXL, with the real tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import photomaker as made
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file
from torch import Tensor

TEXT = "a photo of a woman img in the rain"
PLAIN = "a photo of a woman in the rain"
LONG = "a very long description, " * 30


class Studio:
    """A small SDXL, its CLIP, PhotoMaker files that fit, and the nodes."""

    def __init__(self, world: Any) -> None:
        from likeness.injection.comfy import request_layout, sites_of

        self.world, self.recipes = world, world.recipes
        self.model, self.clip = self.recipes.tiny_sdxl(), self.recipes.tiny_clip(sdxl=True)
        self.sites = sites_of(self.model)
        self.blocks = [request_layout(self.model)[1][site.slot].removesuffix(".attn2") for site in self.sites]
        self.shapes = [(site.width, site.context_dim) for site in self.sites]

    def adapter(self, version: int = 1, seed: int = 0) -> Any:
        name = f"photomaker-v{version} {seed}.safetensors"
        if not (self.world.folder / "ipadapter" / name).exists():
            save_file(made.weights(self.shapes, seed, version, self.blocks), self.world.folder / "ipadapter" / name)
        return self.world.run("LikenessLoadIdentityAdapter", adapter_file=name)

    def prompt(self, *people: Any, version: int = 1, text: str = TEXT, **inputs: Any) -> tuple[Any, Any, str]:
        """conditioning, MODEL, report"""
        names = ["identity", *(f"identity_{number}" for number in range(2, 5))]
        given = {"clip": self.clip, "model": self.model, "text": text, **dict(zip(names, people, strict=False))}
        adapter = inputs.pop("adapter", None) or self.adapter(version)
        return self.world.run("LikenessIdentityPrompt", every=True, adapter=adapter, **{**given, **inputs})[:3]

    def options(self, **inputs: Any) -> Any:
        return self.world.run("LikenessPhotoMakerOptions", **inputs)

    def encode(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model: Any, positive: Any, **options: Any) -> Tensor:
        return self.recipes.sample(model, positive, self.encode(""), **{"steps": 4, "shape": (1, 4, 8, 8), **options})


@pytest.fixture(scope="module")
def studio(world) -> Studio:
    return Studio(world)


@pytest.mark.parametrize("version", [1, 2])
def test_a_plain_phase_and_one_with_the_person(studio, version):
    """The plain one is CLIP Text Encode's own, the other has the noun once for each token and a pooled of its own."""
    conditioning, model, report = studio.prompt(person(photos=2), version=version)
    (plain, before), (fused, after) = conditioning
    ((states, told),) = studio.encode(PLAIN)
    assert torch.equal(plain, states) and torch.equal(before["pooled_output"], told["pooled_output"])
    ((expanded, longer),) = studio.encode(PLAIN.replace("woman", " ".join(["woman"] * 2 * version)))
    assert torch.equal(after["pooled_output"], longer["pooled_output"])
    assert not torch.equal(after["pooled_output"], before["pooled_output"])
    changed = (fused != expanded).any(-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(5, 5 + 2 * version))
    assert f"PhotoMaker v{version}" in report and f"'Ada' is {2 * version} tokens at 'woman'" in report
    assert f"LoRA 1 on {8 * len(studio.sites)} weights" in report
    assert not same(studio.sample(model, conditioning), studio.sample(studio.model, studio.encode(PLAIN)))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a photo of a WOMAN IMG, happy", "a photo of a woman, happy"),
        ("a (woman img:1.3) in (red:0.8)", "a (woman:1.3) in (red:0.8)"),
        ("a (woman:1.3) (img) in the rain", "a (woman:1.3)  in the rain"),
        ("half-body, woman img", "half-body, woman"),
        (f"{LONG} a woman img in the rain", f"{LONG} a woman in the rain"),
        (f"a woman img, {LONG}", f"a woman, {LONG}"),
    ],
    ids=["capitals", "weighted", "weighted alone", "hyphen", "after a long text", "before a long text"],
)  # fmt: skip
def test_real_prompts(studio, text, plain):
    """Without the person every prompt is what CLIP Text Encode makes of it; with the person, only the noun differs."""
    conditioning, _, _ = studio.prompt(person(), text=text)
    ((states, _),) = studio.encode(plain)
    torch.testing.assert_close(conditioning[0][0], states, rtol=1e-5, atol=1e-5)
    assert conditioning[1][0].shape[1] % 77 == 0
    alone, _, report = studio.prompt(person(), text=text, strength=0.0)
    assert len(alone) == 1 and torch.equal(alone[0][0], conditioning[0][0]) and "the strength is 0" in report


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a photo of a woman", "no trigger word: write 'img'"),
        ("img, a photo of a woman", "starts with the trigger word 'img'"),
        ("a woman, img", "follows ','"),
        ("a woman img img", "follow each other"),
        ("an imgs of a woman", "no trigger word"),
        ("a woman imgimg", "no trigger word"),
        ("a woman img and a man img", "2 times, but only one identity is connected"),
    ],
)
def test_prompts_that_name_nobody(studio, text, words):
    assert words in sentence(studio.prompt, person(), text=text)


def test_a_noun_that_the_vocabulary_cuts_is_told_of(studio):
    *_, report = studio.prompt(person(), text="a xylophonistin img in the rain")
    assert "cuts the word before the trigger" in report


def test_any_trigger_word_of_several_pieces(studio):
    found, _, _ = studio.prompt(person(), text="a woman xqzphoto in the rain", trigger_word="xqzphoto")
    expected, _, _ = studio.prompt(person(), text="a woman img in the rain")
    assert all(torch.equal(one[0], other[0]) for one, other in zip(found, expected, strict=True))


def test_two_people_by_two_triggers_whatever_their_order(studio):
    ann, ben = person(seed=1), person(seed=2)
    text = "a woman img and a man jpg in the rain"
    one, _, report = studio.prompt(ann, ben, text=text, trigger_word="img, jpg")
    other, _, _ = studio.prompt(ben, ann, text=text, trigger_word="jpg, img")
    in_order, _, _ = studio.prompt(ann, ben, text=text.replace("jpg", "img"))
    for again in (other, in_order):
        assert torch.equal(one[1][0], again[1][0])
    assert "'woman'" in report and "'man'" in report
    swapped, _, _ = studio.prompt(ben, ann, text=text, trigger_word="img, jpg")
    assert not torch.equal(one[1][0], swapped[1][0])
    third = f"{text} with a boy gif"
    assert "3 trigger words" in sentence(studio.prompt, ann, ben, text=third, trigger_word="img, jpg, gif")


@pytest.mark.parametrize("scheduler", ["normal", "karras", "exponential"])
@pytest.mark.parametrize(
    ("start_at", "options", "expected"),
    [
        (0.5, {}, [1, 1, 1, 1, 2, 2]),  # int(0.5 · 6) = 3 is the last without
        (0.5, {"merge": "share of the steps"}, [1, 1, 1, 2, 2, 2]),
        (0.0, {}, [2] * 6),
        (0.9, {"merge_step": 0}, [1, 2, 2, 2, 2, 2]),
        (0.9, {"merge_step": -1}, [2] * 6),
        (0.0, {"merge_step": 5}, [1] * 6),
    ],
)
def test_the_person_enters_at_the_step_that_is_asked_for(studio, scheduler, start_at, options, expected):
    from comfy.patcher_extension import WrappersMP

    conditioning, model, _ = studio.prompt(person(), start_at=start_at, options=studio.options(**options))
    texts, pooled = [], []

    def note(executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, *rest: Any, **named: Any) -> Any:
        place = next(v for v in (*rest, *named.values()) if isinstance(v, dict))["cond_or_uncond"].index(0)
        texts.append(c_crossattn[place : place + 1].clone())
        pooled.append(named["y"][place : place + 1].clone())
        return executor(x, t, c_concat, c_crossattn, *rest, **named)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", note)
    studio.sample(model, conditioning, steps=6, scheduler=scheduler)
    fused = conditioning[-1] if expected != [1] * 6 else conditioning[1]
    seen = [2 if torch.equal(text, fused[0]) else 1 for text in texts]
    assert seen == expected
    vector = fused[1]["pooled_output"]
    assert [2 if torch.equal(y[:, : vector.shape[1]], vector) else 1 for y in pooled] == expected  # both switch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_text_encoders_in_half_precision_give_the_same_but_for_rounding(studio, dtype, version):
    half = studio.recipes.tiny_clip(sdxl=True, dtype=dtype)
    assert {weight.dtype for weight in half.cond_stage_model.clip_g.transformer.parameters()} >= {dtype}
    given, expected = (studio.prompt(person(), version=version, clip=clip)[0] for clip in (half, studio.clip))
    for (found, told), (states, pooled) in zip(given, expected, strict=True):
        assert (found.float() - states).norm() < 0.02 * states.norm()
        assert (told["pooled_output"].float() - pooled["pooled_output"]).norm() < 0.02 * pooled["pooled_output"].norm()


def test_the_lora_of_one_file_is_added_once(studio):
    """Two prompts of the same adapter, one after the other, as for two regions."""
    adapter = studio.adapter()
    _, first, _ = studio.prompt(person(seed=1), adapter=adapter)
    _, second, _ = studio.prompt(person(seed=2), adapter=adapter, model=first)
    assert {key: len(patches) for key, patches in second.patches.items()} == dict.fromkeys(first.patches, 1)


def test_without_a_model_the_report_asks_for_it(studio):
    conditioning, model, report = studio.prompt(person(), model=None)
    assert model is None and "connect the MODEL" in report and len(conditioning) == 2
    *_, report = studio.prompt(person(), lora_strength=0.0)
    assert "LoRA" not in report


def test_pictures_without_an_identity_are_enough_for_v1(studio):
    options = studio.options(images=torch.rand(3, 50, 40, 3))
    *_, report = studio.prompt(options=options)
    assert "'the images' is 3 tokens" in report
    assert "needs an identity" in sentence(studio.prompt, version=2, options=options)


def test_what_does_not_belong_together(studio, world):
    faceid = world.adapter("faceid")
    assert "Apply Identity" in sentence(studio.prompt, person(), adapter=faceid)
    assert "Identity Prompt" in sentence(world.apply, studio.adapter(), person())
    assert "connected MODEL is" in sentence(studio.prompt, person(), model=world.recipes.tiny_sd15())
    assert "connected MODEL is" in sentence(studio.prompt, person(), model=world.recipes.tiny_flux())
    assert "-wide conditioning" in sentence(studio.prompt, person(), clip=world.text_clip)
    assert "SDXL checkpoint" in sentence(studio.prompt, person(), clip=object())
    assert "another system" in sentence(studio.prompt, person(), options=world.options())
    assert "PhotoMaker v2 reads a face in every image" in sentence(
        studio.prompt, person(), version=2, options=studio.options(images=torch.rand(5, 8, 8, 3))
    )
    assert "buffalo_l" in sentence(studio.prompt, person(recogniser="antelopev2"), version=2)
    assert "trigger word" in sentence(studio.prompt, person(), trigger_word="")
    assert "strength" in sentence(studio.prompt, person(), strength=float("nan"))
    assert "not a choice for merge" in sentence(studio.options, merge="sometimes")


# With others ----------------------------------------------------------------------------------------------------------


def test_regions_and_combined_prompts(studio):
    """The result is ordinary CONDITIONING: areas, combinations and time ranges of the host apply to it."""
    import node_helpers

    conditioning, model, _ = studio.prompt(person())
    area = node_helpers.conditioning_set_values(conditioning, {"area": (8, 4, 0, 0), "strength": 1.0})
    beside = node_helpers.conditioning_set_values(studio.encode("a tree"), {"area": (8, 4, 0, 4), "strength": 1.0})
    both = studio.sample(model, [*area, *beside])
    assert torch.isfinite(both).all() and not same(both, studio.sample(model, area))


def test_with_an_ip_adapter_and_a_lora_in_any_order(studio):
    """The MODEL may go through other nodes before or after; the order does not matter."""
    from likeness.adapters.effects import AttentionTerm, WeightDelta
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import apply_effects
    from likeness.injection.plan import uniform
    from likeness.weights.lora import LoraPair

    class Projector:
        name = "other"
        site_shapes = {site.slot: (site.width, site.context_dim) for site in studio.sites}

        def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
            made = tokens[..., :1].expand(-1, -1, self.site_shapes[slot][0])
            return made, made

    tokens = IdentityTokens(torch.ones(1, 4, 128), torch.zeros(1, 4, 128))
    width = studio.shapes[0][0]
    pair = LoraPair(torch.ones(1, width) / 8, torch.ones(width, 1) / 8)
    others = [
        AttentionTerm(Projector(), tokens, uniform(0.7, studio.sites)),
        WeightDelta("other", "other", {f"{studio.blocks[0]}.attn1.to_q": pair}),
    ]
    conditioning, after, _ = studio.prompt(person(), model=apply_effects(studio.model, others).model)
    again, first, _ = studio.prompt(person())
    one = studio.sample(after, conditioning)
    other = studio.sample(apply_effects(first, others).model, again)
    assert same(one, other) and not same(one, studio.sample(first, again))


def test_twenty_runs_leave_nothing(studio):
    conditioning, model, _ = studio.prompt(person())
    first = studio.sample(model, conditioning, steps=1)
    for _ in range(20):
        assert torch.equal(studio.sample(model, conditioning, steps=1), first)
    assert "likeness_text" not in model.model_options["transformer_options"].get("patches", {})
