"""Identities in a real MODEL: every site, both halves, windows, masks, other packs, memory, and nothing recomputed."""

from __future__ import annotations

import copy
import inspect
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import comfyui
import pytest
import torch
from helpers.windows import in_context_windows, in_windows_of_animatediff
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from likeness.adapters.effects import AttentionTerm, Scope
from likeness.adapters.types import IdentityTokens, SiteWeight
from likeness.errors import LikenessError
from likeness.injection.plan import uniform


def host_has(file: str, word: str) -> bool:
    """Whether the host has a feature; tests of one that it lacks are not collected."""
    host = comfyui.find()
    return host is not None and (host / file).is_file() and word in (host / file).read_text(encoding="utf-8")


class StandInAdapter(torch.nn.Module):
    """Key and value projections that fit a model's sites, random but fixed by a seed; counts how often it projects."""

    name = "stand-in"

    def __init__(self, sites: Any, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.nn.ParameterDict()
        for site in sites:
            for half in "kv":
                w = torch.randn(site.width, site.context_dim, generator=generator) / site.context_dim**0.5
                self.weights[f"{site.slot}_{half}"] = torch.nn.Parameter(w, requires_grad=False)
        self.site_shapes = {site.slot: (site.width, site.context_dim) for site in sites}
        self.calls: Counter[int] = Counter()

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.calls[slot] += 1
        return tokens @ self.weights[f"{slot}_k"].T, tokens @ self.weights[f"{slot}_v"].T


@pytest.fixture
def ours():
    from likeness.injection import comfy

    return comfy


def tokens(dim: int, seed: int = 0, n: int = 4, rows: int = 1) -> IdentityTokens:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = (torch.randn(rows, n, dim, generator=generator) for _ in range(2))
    return IdentityTokens(cond, uncond)


def injection(
    ours: Any, model: Any, seed: int = 0, strength: float = 1.0, rows: int = 1, **scope: Any
) -> AttentionTerm:
    sites = ours.sites_of(model)
    adapter = ours.ManagedAdapter(StandInAdapter(sites, seed))
    given = tokens(sites[0].context_dim, seed, rows=rows)
    return AttentionTerm(adapter, given, uniform(strength, sites), scope=Scope(**scope))


class Sampler:
    """Samples a tiny model with fixed prompts and seed."""

    def __init__(self, recipes: Any, kind: str) -> None:
        self.recipes = recipes
        pooled = recipes.SDXL_POOLED if kind == "sdxl" else None
        self.model = recipes.tiny_sdxl() if kind == "sdxl" else recipes.tiny_sd15()
        width = self.model.model.model_config.unet_config["context_dim"]
        self.positive = recipes.conditioning(width, pooled=pooled, seed=1)
        self.negative = recipes.conditioning(width, pooled=pooled, seed=2)

    def __call__(self, model: Any, **options: Any) -> Tensor:
        positive = options.pop("positive", self.positive)
        negative = options.pop("negative", self.negative)
        return self.recipes.sample(model, positive, negative, **options)


@pytest.fixture(params=["sd15", "sdxl"])
def sampler(request, recipes):
    return Sampler(recipes, request.param)


@pytest.fixture
def sd15(recipes):
    return Sampler(recipes, "sd15")


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; the tiny models' latents are in the hundreds."""
    return bool((a - b).abs().max() <= 2e-5 * b.abs().max())


def count_sites(ours: Any, sampler: Sampler, model: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Counter:
    """How often our function ran at every site during one sampling."""
    seen: Counter = Counter()
    original = ours.unet.SitePatch.__call__

    def counting(self, *args):
        seen[self.site.key] += 1
        return original(self, *args)

    monkeypatch.setattr(ours.unet.SitePatch, "__call__", counting)
    sampler(model, **options)
    return seen


# Sites ----------------------------------------------------------------------------------------------------------------

SD15_LAYOUT = {
    "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
}  # fmt: skip
SDXL_LAYOUT = {
    "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "layout", "count"), [("tiny_sd15", SD15_LAYOUT, 16), ("tiny_sdxl", SDXL_LAYOUT, 70)]
)
def test_every_site_of_the_real_layouts_hears_the_identity_once_per_call(
    ours, recipes, monkeypatch, recipe, layout, count
):
    sampler = Sampler(recipes, "sdxl" if count == 70 else "sd15")
    base = getattr(recipes, recipe)(**layout)
    sites = ours.sites_of(base)
    assert [site.slot for site in sites] == list(range(1, 2 * count, 2))
    assert sites[-1].block == ("middle", 0), "the middle block is stored last"
    model = ours.apply_identity(base, [injection(ours, base)])
    seen = count_sites(ours, sampler, model, monkeypatch, steps=2)
    assert set(seen) == {site.key for site in sites}
    assert set(seen.values()) == {2}


def test_a_model_that_is_no_unet_is_refused_by_name(ours, recipes, sd15):
    with pytest.raises(LikenessError, match=r"'stand-in' was made for a model with 7 .* MODEL is Flux: choose"):
        ours.apply_identity(recipes.tiny_flux(), [injection(ours, sd15.model)])


def test_an_adapter_for_another_base_is_refused_by_name(ours, recipes, sd15):
    with pytest.raises(LikenessError, match=r"'stand-in' was made for .*connected MODEL is SDXL"):
        ours.apply_identity(recipes.tiny_sdxl(), [injection(ours, sd15.model)])


# Strength, window -----------------------------------------------------------------------------------------------------


def test_an_identity_changes_the_picture_and_another_one_changes_it_differently(ours, sampler):
    plain = sampler(sampler.model)
    pictures = [sampler(ours.apply_identity(sampler.model, [injection(ours, sampler.model, s)])) for s in (1, 2)]
    assert not torch.allclose(plain, pictures[0], atol=1e-3)
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-3)
    assert torch.equal(plain, sampler(sampler.model)), "the given MODEL is left as it is"


@pytest.mark.parametrize(
    "changes",
    [{"strength": 0.0}, {"start": 0.5, "end": 0.5}, {"start": 0.8, "end": 0.2}, {"mask": torch.zeros(1, 8, 8)}],
    ids=["strength 0", "empty window", "start after end", "empty mask"],
)
def test_an_identity_without_effect_leaves_the_picture_bit_identical(ours, sampler, changes):
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model, **changes)])
    assert torch.equal(sampler(sampler.model), sampler(model))


def test_negative_strength_works_and_pushes_away(ours, sd15):
    pictures = [
        sd15(ours.apply_identity(sd15.model, [injection(ours, sd15.model, strength=s)])) for s in (-1.0, 0.0, 1.0)
    ]
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-3)
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)


def test_a_window_limits_the_identity_to_its_steps(ours, sd15, monkeypatch):
    base = sd15.model
    late = ours.apply_identity(base, [injection(ours, base, start=0.5)])
    seen = count_sites(ours, sd15, late, monkeypatch, steps=4)
    assert 0 < max(seen.values()) < 4
    assert not torch.equal(sd15(base, steps=4), sd15(late, steps=4))


def test_the_window_follows_a_model_sampling_set_after_the_identity(ours, sd15):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    base = sd15.model
    model = ours.apply_identity(base, [injection(ours, base, end=0.5)])
    other = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    assert not torch.equal(sd15(other), sd15(ModelSamplingDiscrete().patch(base, "v_prediction", False)[0]))


# Halves ---------------------------------------------------------------------------------------------------------------


def only_half(ours: Any, model: Any, half: str) -> AttentionTerm:
    """An identity whose other half has no say: zero values on that side."""
    full = injection(ours, model)
    empty = torch.zeros_like(full.tokens.cond)
    t = IdentityTokens(full.tokens.cond, empty) if half == "cond" else IdentityTokens(empty, full.tokens.uncond)
    return replace(full, tokens=t)


def test_without_guidance_only_the_conditioned_half_matters(ours, sd15):
    base = sd15.model
    plain = sd15(base, cfg=1.0)
    assert not torch.equal(plain, sd15(ours.apply_identity(base, [only_half(ours, base, "cond")]), cfg=1.0))
    uncond_only = ours.apply_identity(base, [only_half(ours, base, "uncond")])
    assert same(plain, sd15(uncond_only, cfg=1.0))


@pytest.fixture
def roles_of_calls(ours, monkeypatch) -> list[list[str]]:
    """Which half every chunk of every call was taken for, in the order of the calls."""
    seen: list[list[str]] = []
    original = ours.run._Run.compose

    def spy(self, options, evaluation, x):
        composed = original(self, options, evaluation, x)
        seen.append([role.name for role in composed[ours.unet.KEY].batch.roles])
        return composed

    monkeypatch.setattr(ours.run._Run, "compose", spy)
    return seen


def guide(guider: Any, pictures: int = 1) -> Tensor:
    """As many steps with a guider as leave a sigma for every image, at least one."""
    import comfy.samplers

    sigmas = torch.linspace(5.0, 0.0, max(pictures, 2))
    noise = torch.randn(pictures, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.ksampler("euler"), sigmas, seed=1, disable_pbar=True
        ).clone()


def test_perp_neg_gives_the_empty_prompt_the_unconditioned_tokens(ours, sd15, roles_of_calls):
    """It passes [positive, negative, empty]."""
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(ours.apply_identity(sd15.model, [injection(ours, sd15.model)]))
    guider.set_conds(sd15.positive, sd15.negative, sd15.recipes.conditioning(64, seed=3))
    guider.set_cfg(5.0, 1.0)
    guide(guider)
    assert sorted(role for call in roles_of_calls for role in call) == ["COND", "UNCOND", "UNCOND"]


def test_dual_guidance_gives_both_prompts_the_conditioned_tokens(ours, sd15, roles_of_calls):
    """It passes [negative, middle, positive]."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(ours.apply_identity(sd15.model, [injection(ours, sd15.model)]))
    guider.set_conds(sd15.positive, sd15.negative, sd15.recipes.conditioning(64, seed=3))
    guider.set_cfg(5.0, 2.0)
    guide(guider)
    assert sorted(role for call in roles_of_calls for role in call) == ["COND", "COND", "UNCOND"]


def test_extra_calls_of_attention_guidance_are_taken_for_what_they_are(ours, sd15, roles_of_calls):
    """Perturbed attention repeats the positive alone, self-attention guidance the negative alone, both as entry 0."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    node = PerturbedAttentionGuidance
    perturbed = (node.execute if hasattr(node, "execute") else node().patch)(model, 3.0)[0]
    sd15(perturbed, steps=1)
    assert roles_of_calls == [["UNCOND", "COND"], ["COND"]]
    roles_of_calls.clear()
    sd15(attention_guided(model), steps=1, shape=(1, 4, 32, 32))
    assert roles_of_calls[0] == ["UNCOND", "COND"]
    assert roles_of_calls[1:] == [["UNCOND"]]


def attention_guided(model: Any) -> Any:
    from comfy_extras.nodes_sag import SelfAttentionGuidance as Node

    return (Node.execute if hasattr(Node, "execute") else Node().patch)(model, 0.5, 2.0)[0]


def test_the_empty_prompt_of_the_old_perp_neg_node_gets_the_unconditioned_tokens(ours, sd15, roles_of_calls):
    """It is no conditioning of the guider's, and is evaluated alone."""
    from comfy_extras.nodes_perpneg import PerpNeg as Node

    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    empty = sd15.recipes.conditioning(64, seed=3)
    sd15((Node.execute if hasattr(Node, "execute") else Node().patch)(model, empty, 1.0)[0], steps=1)
    assert roles_of_calls == [["UNCOND", "COND"], ["UNCOND"]]


if host_has("comfy_extras/nodes_custom_sampler.py", "Guider_DualModel"):

    def test_a_second_model_for_the_negative_gets_the_unconditioned_tokens(ours, sd15, roles_of_calls):
        """Each half is evaluated alone, the negative one from copies of the guider's conditionings."""
        from comfy_extras.nodes_custom_sampler import Guider_DualModel

        model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
        guider = Guider_DualModel(model, model.clone())
        guider.set_conds(sd15.positive, sd15.negative)
        guider.set_cfg(5.0)
        guide(guider)
        assert roles_of_calls == [["COND"], ["UNCOND"]]


def test_regional_prompts_of_one_batch_have_each_its_part_of_the_mask(ours, sd15, monkeypatch):
    """Two areas of one size run in one batch; the left one lies outside the mask, the right one inside."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=mask)])
    (text, options), (other, _) = sd15.positive[0], sd15.recipes.conditioning(64, seed=4)[0]
    regions = [[text, {**options, "area": (16, 8, 0, 0)}], [other, {"area": (16, 8, 0, 8)}]]
    added = first_site_difference(ours, sd15, model, monkeypatch, positive=regions, cfg=1.0)
    assert added.shape == (2, 16 * 8)
    assert sorted((bool((row > 0).all()), bool((row == 0).all())) for row in added) == [(False, True), (True, False)]


@pytest.mark.parametrize("texts", [(77, 77), (77, 154), (77, 7)], ids=["equal", "twice as long", "separate calls"])
def test_any_prompt_length_and_several_prompts_give_the_same_halves(ours, sd15, texts):
    base = sd15.model
    model = ours.apply_identity(base, [injection(ours, base)])
    positive = [*sd15.recipes.conditioning(64, tokens=texts[1], seed=1), *sd15.recipes.conditioning(64, seed=4)]
    negative = sd15.recipes.conditioning(64, tokens=texts[0], seed=2)
    assert torch.isfinite(sd15(model, positive=positive, negative=negative)).all()


def test_split_batches_give_the_same_picture(ours, sampler, monkeypatch):
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model)])
    together = sampler(model, shape=(2, 4, 16, 24))
    monkeypatch.setattr(model.model, "memory_required", lambda *a, **k: 1e30)  # the host then runs each half alone
    assert same(together, sampler(model, shape=(2, 4, 16, 24)))


def test_every_picture_of_a_batch_gets_the_identity(ours, sampler):
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model)])
    one, three = sampler(model), None
    noise_of_one = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    import comfy.sample

    with torch.inference_mode():
        three = comfy.sample.sample(
            model, noise_of_one.repeat(3, 1, 1, 1), 3, 7.0, "euler", "normal", sampler.positive, sampler.negative,
            torch.zeros(3, 4, 16, 16), disable_pbar=True, seed=1,
        ).clone()  # fmt: skip
    for picture in three:
        assert same(picture, one[0])


def test_rows_of_tokens_follow_the_pictures_of_a_batch(ours, sd15):
    """Image i of a batch sees row i; the last row serves the images beyond it."""
    base = sd15.model
    rows = injection(ours, base, rows=2)
    single = [
        replace(rows, tokens=IdentityTokens(rows.tokens.cond[i : i + 1], rows.tokens.uncond[i : i + 1])) for i in (0, 1)
    ]
    batch = sd15(ours.apply_identity(base, [rows]), shape=(3, 4, 16, 16))
    for picture, row in ((0, 0), (1, 1), (2, 1)):
        alone = sd15(ours.apply_identity(base, [single[row]]), shape=(3, 4, 16, 16))
        assert same(batch[picture], alone[picture])


def test_weights_per_picture_scale_each_picture(ours, sd15):
    base = sd15.model
    plain = sd15(base, shape=(2, 4, 16, 16))
    half = ours.apply_identity(base, [injection(ours, base, image_weights=(0.0, 1.0))])
    full = sd15(ours.apply_identity(base, [injection(ours, base)]), shape=(2, 4, 16, 16))
    picture = sd15(half, shape=(2, 4, 16, 16))
    assert same(picture[0], plain[0])
    assert same(picture[1], full[1])


def test_a_swapped_site_pushes_the_unconditioned_half_away(ours, sd15):
    base = sd15.model
    count = len({site.transformer for site in ours.sites_of(base)})
    swapped = replace(injection(ours, base), site_weights=(SiteWeight(1.0, swapped=True),) * count)
    model = ours.apply_identity(base, [swapped])
    assert same(sd15(model, cfg=1.0), sd15(base, cfg=1.0)), "the conditioned half gets nothing"
    assert not torch.allclose(sd15(model), sd15(base), atol=1e-3)


def test_a_swapped_site_lets_the_unconditioned_half_attend_to_the_conditioned_tokens(ours, sd15):
    """The same as a site that is not swapped whose unconditioned tokens are those of the person."""
    base = sd15.model
    count = len({site.transformer for site in ours.sites_of(base)})
    one = injection(ours, base)
    swapped = replace(one, site_weights=(SiteWeight(1.0, swapped=True),) * count)
    person = replace(one, tokens=IdentityTokens(torch.zeros_like(one.tokens.cond), one.tokens.cond))
    got, right = (sd15(ours.apply_identity(base, [i])) for i in (swapped, person))
    assert same(got, right)
    other = replace(swapped, tokens=IdentityTokens(one.tokens.cond, torch.zeros_like(one.tokens.uncond)))
    assert torch.equal(sd15(ours.apply_identity(base, [other])), got), "the unconditioned tokens have no say"


# Context windows ------------------------------------------------------------------------------------------------------


FRAMES = 4  # one more than the steps: 0.3.64 compares the sigmas of all steps with those of all frames
PER_FRAME: dict[str, dict[str, Any]] = {
    "tokens": {"rows": FRAMES},
    "weights": {"image_weights": tuple(i / 4 for i in range(FRAMES))},
    "masks": {"mask": torch.rand(FRAMES, 16, 16, generator=torch.Generator().manual_seed(0))},
}


@pytest.mark.parametrize("changes", PER_FRAME.values(), ids=PER_FRAME)
def test_every_frame_keeps_its_person_weight_and_mask_in_context_windows(ours, sd15, changes):
    """Frames are independent in an image model, so that windows must change nothing. Since 0.21 the host prepends a
    frame to every window but the first."""
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, **changes)])
    shape = (FRAMES, 4, 16, 16)
    assert same(sd15(in_context_windows(model, 2), shape=shape), sd15(model, shape=shape))


@pytest.mark.parametrize("changes", PER_FRAME.values(), ids=PER_FRAME)
def test_every_frame_keeps_its_person_weight_and_mask_in_windows_of_animatediff(ours, sd15, changes):
    """AnimateDiff-Evolved samples some frames at a time and says which in `ad_params`."""
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, **changes)])
    whole = sd15(model, shape=(FRAMES, 4, 16, 16))
    assert same(sd15(in_windows_of_animatediff(model, 2), shape=(FRAMES, 4, 16, 16)), whole)


@pytest.mark.parametrize("dim", [2, 3], ids=["height", "width"])
@pytest.mark.parametrize("mask_size", [(128, 192), (50, 75)], ids=["per latent", "odd"])
def test_a_window_over_a_side_of_the_picture_gets_its_part_of_the_mask(ours, sd15, dim, mask_size):
    """One step, where every window must be what its lines of latents give alone with their part of the mask."""
    generator = torch.Generator().manual_seed(3)
    mask, size, length = torch.rand(1, *mask_size, generator=generator), (16, 24), 8
    whole = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=mask)])
    got = sd15(in_context_windows(whole, length, dim), shape=(1, 4, *size), steps=1)
    latent_mask = mask if mask_size == (128, 192) else torch.nn.functional.adaptive_avg_pool2d(mask, size)
    share = latent_mask.shape[dim - 1] // size[dim - 2]  # of the mask, per line of latents
    noise = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(1))  # as `recipes.sample` draws it
    for first in range(0, size[dim - 2], length):
        before = 1 if first and prepends_a_line() else 0
        start, count = first - before, length + before
        part = latent_mask.narrow(dim - 1, start * share, count * share)
        model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=part)])
        alone = sample_noise(sd15, model, noise.narrow(dim, start, count))
        assert same(got.narrow(dim, first, length), alone.narrow(dim, before, length))


def prepends_a_line() -> bool:
    import comfy.context_windows

    return "causal_window_fix" in inspect.signature(comfy.context_windows.IndexListContextHandler).parameters


def sample_noise(sampler: Sampler, model: Any, noise: Tensor) -> Tensor:
    """One step of `recipes.sample` from a given noise."""
    import comfy.sample

    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 7.0, "euler", "normal", sampler.positive, sampler.negative, torch.zeros_like(noise),
            disable_pbar=True, seed=1,
        ).clone()  # fmt: skip


def dual_guided(sampler: Sampler, model: Any) -> Tensor:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(sampler.positive, sampler.recipes.conditioning(64, seed=3), sampler.negative)
    guider.set_cfg(6.0, 3.0)
    return guide(guider, FRAMES)


def perp_neg(sampler: Sampler, model: Any) -> Tensor:
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds(sampler.positive, sampler.negative, sampler.recipes.conditioning(64, seed=3))
    guider.set_cfg(5.0, 1.0)
    return guide(guider, FRAMES)


def areas(sampler: Sampler, model: Any) -> Tensor:
    """The host copies the area of the positive prompt, its `uuid` included, into the negative list."""
    text, options = sampler.recipes.conditioning(64, seed=4)[0]
    positive = [*sampler.positive, [text, {**options, "area": (16, 8, 0, 8)}]]
    return sampler(model, positive=positive, shape=(FRAMES, 4, 16, 16))


GUIDANCE = [dual_guided, perp_neg, areas]


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_both_halves_keep_their_tokens_in_context_windows(ours, sd15, guidance):
    """The host hands on copies of the conditionings there."""
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    assert same(guidance(sd15, in_context_windows(model, 2)), guidance(sd15, model))


def test_self_attention_guidance_repeats_the_negative_in_context_windows(ours, sd15, roles_of_calls):
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    sd15(in_context_windows(attention_guided(model), 2), shape=(FRAMES, 4, 32, 32))
    assert roles_of_calls == ([["UNCOND", "COND"]] * 2 + [["UNCOND"]] * 2) * 3


# Several devices ------------------------------------------------------------------------------------------------------


def batch_of(ours: Any, pictures: int = 1) -> Any:
    from likeness.injection.plan import Role

    return ours.run._Batch((Role.UNCOND, Role.COND), (None, None), pictures, None, None, (16, 16), (0,))


def test_keys_values_and_masks_are_where_the_queries_are(ours, sd15):
    """MultiGPU CFG Split evaluates the chunks of one run on other devices; `meta` stands for one."""
    mask = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    base = sd15.model
    run = ours.run._Run((injection(ours, base, mask=mask),), base.model, base.model.model_sampling, (16, 16))
    site = run.sites[0]
    for device in ("meta", "cpu", "meta"):
        q = torch.zeros(2, 16 * 16, site.width, device=device)
        (term,) = run.on(q.device).call(batch_of(ours)).terms(site, q, (16, 16))
        assert {term.keys.device.type, term.values.device.type, term.mask.device.type} == {device}


def test_threads_may_ask_one_run_at_once(ours, sd15):
    """The host gives every device a thread; what they find does not depend on who comes first."""
    from concurrent.futures import ThreadPoolExecutor

    base = sd15.model
    one = injection(ours, base, rows=2, mask=torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)))

    def everything(run: Any, device: str) -> list[Tensor]:
        found = []
        for site in run.sites:
            q = torch.zeros(4, 16 * 16, site.width, device=device)
            (term,) = run.on(q.device).call(batch_of(ours, 2)).terms(site, q, (16, 16))
            found += [term.keys, term.values, term.mask]
        return found

    def run() -> Any:
        return ours.run._Run((one,), base.model, base.model.model_sampling, (16, 16))

    alone = everything(run(), "cpu")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            shared = run()
            for device, tensors in pool.map(lambda d: (d, everything(shared, d)), ["cpu", "meta"] * 8):  # noqa: B023
                assert [t.shape for t in tensors] == [t.shape for t in alone]
                assert device == "meta" or all(map(torch.equal, tensors, alone))
            assert set(shared._devices) == {torch.device("cpu"), torch.device("meta")}


if host_has("comfy/multigpu.py", "MultiGPUThreadPool"):

    def test_chunks_split_over_devices_give_the_same_picture(ours, sd15):
        """The host's own split, over two names of the CPU, each with a thread and a clone of the model."""
        import comfy.multigpu
        import comfy.patcher_extension

        model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=torch.rand(1, 32, 32))])
        threads = set()

        def split(executor, *args, **keywords):
            devices = [torch.device("cpu"), torch.device("cpu:0")]
            pool = comfy.multigpu.MultiGPUThreadPool(devices)
            try:
                clones = {device: model.clone() for device in devices}
                options = args[4]
                options.update(multigpu_clones=clones, multigpu_thread_pool=pool)
                return executor(*args, **keywords)
            finally:
                pool.shutdown()

        def note_thread(executor, *args, **keywords):
            threads.add(threading.get_ident())
            return executor(*args, **keywords)

        alone = sd15(model)
        parallel = model.clone()
        kinds = comfy.patcher_extension.WrappersMP
        parallel.add_wrapper_with_key(kinds.CALC_COND_BATCH, "split", split)
        parallel.add_wrapper_with_key(kinds.APPLY_MODEL, "note", note_thread)
        assert same(sd15(parallel), alone)
        assert len(threads) >= 2 and threading.get_ident() not in threads


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (19, 31), (13, 8)], ids=str)
@pytest.mark.parametrize("mask_size", [(64, 64), (100, 37)], ids=str)
def test_masks_of_any_size_fit_latents_of_any_size(ours, sampler, size, mask_size):
    mask = torch.zeros(1, *mask_size)
    mask[:, :, : mask_size[1] // 2] = 1
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model, mask=mask)])
    assert torch.isfinite(sampler(model, shape=(1, 4, *size), steps=1)).all()


def test_a_full_mask_is_the_same_as_none(ours, sampler):
    base = sampler.model
    masked = ours.apply_identity(base, [injection(ours, base, mask=torch.ones(1, 32, 32))])
    assert same(sampler(masked), sampler(ours.apply_identity(base, [injection(ours, base)])))


def first_site_difference(
    ours: Any, sampler: Sampler, model: Any, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Tensor:
    """What our function adds at the first site of the first call: (batch, L)."""
    found: list[Tensor] = []
    original = ours.unet.SitePatch.__call__

    def spy(self, q, k, v, extra):
        out = original(self, q, k, v, extra)
        if not found:
            found.append((out - self.base(q, k, v, extra)).abs().sum(-1).clone())
        return out

    monkeypatch.setattr(ours.unet.SitePatch, "__call__", spy)
    sampler(model, steps=1, **options)
    monkeypatch.setattr(ours.unet.SitePatch, "__call__", original)
    return found[0]


def test_a_mask_confines_the_identity_to_its_places(ours, sd15, monkeypatch):
    mask = torch.zeros(1, 128, 192)
    mask[:, :64, :96] = 1  # the upper left quarter
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=mask)])
    added = first_site_difference(ours, sd15, model, monkeypatch, shape=(1, 4, 16, 24)).unflatten(1, (16, 24))
    assert (added[:, :8, :12] > 0).all()
    assert (added[:, 8:, :] == 0).all() and (added[:, :, 12:] == 0).all()


def test_a_mask_keeps_its_place_under_an_area_conditioning(ours, sd15, monkeypatch):
    """The host crops the latent to the area; the mask of the whole image must be cropped with it."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1  # the right half of the image
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=mask)])
    text, options = sd15.positive[0]
    area = [[text, {**options, "area": (16, 8, 0, 8)}]]  # height, width, y, x: the right half again
    added = first_site_difference(ours, sd15, model, monkeypatch, positive=area, negative=area, cfg=1.0)
    assert added.shape[1] == 16 * 8
    assert (added > 0).all(), "the area lies wholly inside the mask"


def test_masks_per_picture_follow_the_batch(ours, sd15, monkeypatch):
    mask = torch.stack([torch.ones(32, 32), torch.zeros(32, 32)])
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, mask=mask)])
    added = first_site_difference(ours, sd15, model, monkeypatch, shape=(2, 4, 16, 16)).unflatten(0, (2, 2))
    assert (added[:, 0] > 0).all() and (added[:, 1] == 0).all()


def in_tiles(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
    """A wrapper such as tiled diffusion sets: two halves one after the other, and nobody is told which."""
    c = dict(arguments["c"])
    halves = [apply_model(x, arguments["timestep"], **c) for x in arguments["input"].chunk(2, dim=-1)]
    return torch.cat(halves, dim=-1)


@pytest.mark.parametrize("masked", [True, False])
def test_tiles_below_the_sampler_are_said_once_when_there_is_a_mask(ours, sd15, caplog, masked):
    from likeness.injection.masks import warn_tile

    warn_tile.cache_clear()
    changes: dict[str, Any] = {"mask": torch.ones(1, 64, 64)} if masked else {}
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model, **changes)])
    with caplog.at_level("WARNING", "likeness"):
        sd15(model)
        assert not [record for record in caplog.records if record.name == "likeness"]
        model.set_model_unet_function_wrapper(in_tiles)
        sd15(model)
    said = [record.message for record in caplog.records if record.name == "likeness"]  # the host warns as well
    assert ["each tile gets the whole mask" in message for message in said] == [True] * masked


def test_two_people_with_masks_each_stay_in_their_half(ours, sd15):
    base, left, right = sd15.model, torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    left[..., :8], right[..., 8:] = 1, 1
    a, b = injection(ours, base, 1, mask=left), injection(ours, base, 2, mask=right)
    both = ours.apply_identity(ours.apply_identity(base, [a]), [b])
    swapped = ours.apply_identity(ours.apply_identity(base, [b]), [a])
    assert same(sd15(both), sd15(swapped))
    assert not torch.allclose(sd15(both), sd15(ours.apply_identity(base, [a])), atol=1e-3)


# Other packs ----------------------------------------------------------------------------------------------------------


def foreign_replace(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v, extra["n_heads"]) * 0.5


def with_foreign(model: Any, sites: Any, *, two_part_keys: bool) -> Any:
    patched = model.clone()
    for site in sites:
        if two_part_keys:
            patched.set_model_attn2_replace(foreign_replace, *site.block)
        else:
            patched.set_model_attn2_replace(foreign_replace, *site.block, site.index)
    return patched


@pytest.mark.parametrize("two_part_keys", [True, False])
def test_patches_of_other_packs_act_in_either_order(ours, sampler, two_part_keys):
    base, sites = sampler.model, ours.sites_of(sampler.model)
    mine = injection(ours, base)
    before = ours.apply_identity(with_foreign(base, sites, two_part_keys=two_part_keys), [mine])
    after = with_foreign(ours.apply_identity(base, [mine]), sites, two_part_keys=two_part_keys)
    assert torch.equal(sampler(before), sampler(after))
    assert not torch.allclose(sampler(before), sampler(ours.apply_identity(base, [mine])), atol=1e-3)
    assert not torch.allclose(
        sampler(before), sampler(with_foreign(base, sites, two_part_keys=two_part_keys)), atol=1e-3
    )


def test_nobody_finds_our_object_among_the_patches(ours, sampler):
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model)])
    assert "patches_replace" not in model.model_options["transformer_options"]


def test_two_identities_add_up_in_any_order(ours, sampler):
    base = sampler.model
    a, b = injection(ours, base, 1), injection(ours, base, 2)
    one_way = ours.apply_identity(ours.apply_identity(base, [a]), [b])
    other_way = ours.apply_identity(base, [b, a])
    assert same(sampler(one_way), sampler(other_way))


def test_branches_of_a_graph_do_not_affect_each_other(ours, sd15):
    base = sd15.model
    trunk = ours.apply_identity(base, [injection(ours, base, 1)])
    before = sd15(trunk)
    ours.apply_identity(trunk, [injection(ours, base, 2)])
    assert torch.equal(sd15(trunk), before)


def test_a_call_outside_of_sampling_still_hears_the_identity(ours, sd15):
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    x, sigma, text = torch.randn(1, 4, 16, 16), torch.tensor([2.0]), torch.randn(1, 77, 64)
    options = {"wrappers": model.wrappers}
    with torch.inference_mode():
        direct = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options)
        plain = model.model.apply_model(x, sigma, c_crossattn=text, transformer_options={})
    assert not same(direct, plain)


# Memory, speed --------------------------------------------------------------------------------------------------------


def test_clones_share_the_weights_of_the_adapter(ours, sampler):
    one = injection(ours, sampler.model)
    model = ours.apply_identity(sampler.model, [one])
    clones = [model.clone().clone().clone(), copy.deepcopy(model.model_options)]
    stack = ours.stack_of(clones[0])
    assert stack.injections[0] is one
    weight = next(one.projector.adapter.parameters())
    assert next(stack.injections[0].projector.adapter.parameters()).data_ptr() == weight.data_ptr()


def test_keys_and_values_are_projected_once_whatever_the_steps_and_runs(ours, sampler):
    one = injection(ours, sampler.model)
    model, calls = ours.apply_identity(sampler.model, [one]), one.projector.adapter.calls
    sampler(model, steps=6)
    assert set(calls.values()) == {2}, "once for each half"
    sampler(model, steps=1, seed=2)
    sampler(ours.apply_identity(model, [injection(ours, sampler.model, 5)]), steps=1)
    assert set(calls.values()) == {2}


def test_projections_are_forgotten_with_the_model_that_carried_them(ours, sd15):
    import gc

    gc.collect()
    before = len(ours.run._projections)
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    sd15(model, steps=1)
    assert len(ours.run._projections) == before + 1
    del model
    gc.collect()
    assert len(ours.run._projections) == before


def test_a_site_that_does_not_listen_is_not_projected(ours, sd15):
    base = sd15.model
    one = injection(ours, base)
    weights = tuple(SiteWeight(float(i == 1)) for i in range(len(one.site_weights)))
    model = ours.apply_identity(base, [replace(one, site_weights=weights)])
    sd15(model, steps=1)
    heard = {site.slot for site in ours.sites_of(base) if site.transformer == 1}
    assert set(one.projector.adapter.calls) == heard


def test_nothing_of_the_run_is_kept_after_it(ours, sd15):
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])
    sd15(model)
    assert ours.stack_of(model)._run is None


def test_the_run_is_dropped_when_sampling_is_cancelled(ours, sd15):
    model = ours.apply_identity(sd15.model, [injection(ours, sd15.model)])

    def cancel(*_args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sd15(model, callback=cancel)
    assert ours.stack_of(model)._run is None
    assert torch.isfinite(sd15(model)).all()


class SyncSpy(TorchDispatchMode):
    """Records operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def synchronisations(ours: Any, sampler: Sampler, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What waits inside our part of each model call after the first, whose caches are then filled."""
    calls: list[list[str]] = []
    compose, patch = ours.run._Run.compose, ours.unet.SitePatch.__call__

    def traced(function):
        def wrapper(*args):
            with SyncSpy() as spy:
                result = function(*args)
            if function is compose:
                calls.append([])
            calls[-1].extend(spy.found)
            return result

        return wrapper

    monkeypatch.setattr(ours.run._Run, "compose", traced(compose))
    monkeypatch.setattr(ours.unet.SitePatch, "__call__", traced(patch))
    sampler(model, steps=4)
    return calls[1:]


@pytest.mark.parametrize("limited", [False, True], ids=["whole run", "window and mask"])
def test_no_step_waits_for_the_device_in_the_patched_path(ours, sampler, monkeypatch, limited):
    changes = {"start": 0.0, "end": 0.9, "mask": torch.rand(1, 32, 32)} if limited else {}
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model, **changes)])
    steps = synchronisations(ours, sampler, model, monkeypatch)
    assert len(steps) >= 2
    assert steps == [[]] * len(steps)


def test_the_spy_would_notice(ours):
    with SyncSpy() as spy:
        float(torch.ones(1))
        bool(torch.ones(1) > 0)
    assert len(spy.found) == 2


class OperationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_adds_six_operations_to_a_site_and_none_that_are_constant(ours, sampler, masked):
    """Two layouts of the queries, attention, two layouts of its result, one sum: on a GPU each may be a launch."""
    mask = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) if masked else None
    model = ours.apply_identity(sampler.model, [injection(ours, sampler.model, mask=mask)])
    sampler(model, steps=1)

    def operations(model: Any, steps: int) -> int:
        with OperationCounter() as counter:
            sampler(model, steps=steps)
        return counter.count

    per_step, before = (operations(m, 3) - operations(m, 2) for m in (model, sampler.model))
    assert per_step - before == 6 * len(ours.sites_of(model))


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_base_models_in_any_precision_work(ours, recipes, sd15, dtype):
    base = recipes.unet(recipes.SD15_TINY)
    model = ours.apply_identity(base, [injection(ours, base)])
    reference = sd15(model, steps=2)
    base.model.diffusion_model.to(dtype)
    base.model.manual_cast_dtype = torch.float32
    for module in base.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    base.model.diffusion_model.dtype = dtype
    low = sd15(model, steps=2)
    assert torch.isfinite(low).all()
    assert (low - reference).abs().mean() < 0.5 * reference.abs().mean()


def test_a_half_precision_adapter_works_on_a_cpu(ours, sd15):
    sites = ours.sites_of(sd15.model)
    adapter = ours.ManagedAdapter(StandInAdapter(sites).half())
    model = ours.apply_identity(sd15.model, [AttentionTerm(adapter, tokens(64), uniform(1.0, sites))])
    assert torch.isfinite(sd15(model)).all()


def test_rescaling_changes_all_identities_of_a_model(ours, sd15):
    base = sd15.model
    model = ours.apply_identity(base, [injection(ours, base, strength=1.0)])
    half = ours.apply_identity(base, [injection(ours, base, strength=0.5)])
    assert same(sd15(ours.rescale(model, 0.5)), sd15(half))
    assert torch.equal(sd15(ours.rescale(model, 0.0)), sd15(base))
