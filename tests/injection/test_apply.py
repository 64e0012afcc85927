"""One entry to diffusers: every kind of effect alone and together, windows open and close, nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from helpers import tiny_unets as tiny
from helpers import toy_dit
from torch import Tensor

from likeness.adapters.effects import (
    AttentionTerm,
    BlockTerm,
    ControlContext,
    Effect,
    PromptEdit,
    PromptStates,
    Scope,
    WeightDelta,
)
from likeness.adapters.system import WeightFile
from likeness.adapters.types import IdentityTokens
from likeness.errors import LikenessError
from likeness.injection.diffusers import ControlNet, SamplingRun, apply_effects
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.weights.families import DitLayout
from likeness.weights.lora import LoraPair, merged

TEXT = 24  # width
GRID = (4, 3)
QUERIES = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny.unet("small SD")


@pytest.fixture(scope="module")
def net(unet) -> ControlNet:
    torch.manual_seed(0)
    config = {name: unet.config[name] for name in ("attention_head_dim", "cross_attention_dim", "norm_num_groups")}
    made = ControlNetModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        conditioning_embedding_out_channels=(4, 8), **config,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the convolutions to the UNet begin at zero
    return ControlNet(made, torch.rand(1, 3, 32, 32))


def states(seed: int = 0, rows: int = 1, n: int = 7) -> Tensor:
    return torch.randn(rows, n, TEXT, generator=torch.Generator().manual_seed(seed))


def attention(unet: Any, **scope: Any) -> AttentionTerm:
    sites = sites_of_diffusers_unet(unet)
    return AttentionTerm(
        tiny.StandInProjector(sites, 0), tiny.tokens(TEXT, 0), uniform(1.0, sites), scope=Scope(**scope)
    )


def delta(strength: float = 1.0, name: str = "a", **scope: Any) -> WeightDelta:
    random = torch.Generator().manual_seed(3)
    pair = LoraPair(torch.randn(2, 8, generator=random), torch.randn(8, 2, generator=random))
    return WeightDelta(name, name, {QUERIES: pair}, strength, Scope(**scope))


def edit(**scope: Any) -> PromptEdit:
    return PromptEdit(lambda text: PromptStates(text.states * 2), Scope(**scope))


def values_edit(**scope: Any) -> PromptEdit:
    return PromptEdit(lambda text: PromptStates(text.states, values=text.states * 2), Scope(**scope))


def control(**scope: Any) -> ControlContext:
    return ControlContext("a", tiny.tokens(TEXT, 5), scope=Scope(**scope))


def effect_of(kind: str, unet: Any, **scope: Any) -> Effect:
    made = {"delta": delta, "edit": edit, "values": values_edit, "control": control}
    return attention(unet, **scope) if kind == "attention" else made[kind](**scope)


KINDS = ("attention", "delta", "edit", "values", "control")


def paint(unet: Any, text: Tensor | None = None) -> Tensor:
    sample = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(sample, torch.tensor(10), states(rows=2) if text is None else text).sample


def controls_of(effects: list[Effect], net: ControlNet) -> list[ControlNet]:
    return [net for effect in effects if isinstance(effect, ControlContext)]


def ddim(steps: int = 10) -> SamplingRun:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    return SamplingRun.of(scheduler)


# Alone and together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_acts_and_leaves_not_a_bit_behind(unet, net, kind):
    before, processors, plain = {k: v.clone() for k, v in unet.state_dict().items()}, unet.attn_processors, paint(unet)
    effects = [effect_of(kind, unet)]
    with apply_effects(unet, effects, controls=controls_of(effects, net)):
        assert not torch.allclose(paint(unet), plain, atol=1e-4)
    assert torch.equal(paint(unet), plain)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert unet.attn_processors == processors
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())


def test_together_each_does_what_it_does_by_itself(unet, net):
    """By hand: weights merged, term and net one within the other; the second edit reads what the first has made."""
    kinds = ("attention", "delta", "edit", "values", "control")
    effects = [effect_of(kind, unet) for kind in kinds]
    with apply_effects(unet, effects, controls=[net]):
        together = paint(unet)
    with (
        merged(unet, effects[1].changes),  # type: ignore[union-attr]
        apply_effects(unet, [effects[0]]),
        apply_effects(unet, [effects[4]], controls=[net]),
        apply_effects(unet, [PromptEdit(lambda text: PromptStates(text.states * 2, None, text.states * 4))]),
    ):
        apart = paint(unet)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_order_does_not_matter(unet, net):
    effects = [effect_of(kind, unet) for kind in ("attention", "delta", "edit", "control")]
    found = []
    for order in (effects, effects[::-1]):
        with apply_effects(unet, order, controls=[net]):
            found.append(paint(unet))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_an_effect_that_never_acts_changes_not_a_bit(unet, net, kind):
    plain, effects = paint(unet), [effect_of(kind, unet, start=0.5, end=0.5)]
    with apply_effects(unet, effects, controls=controls_of(effects, net)):
        assert torch.equal(paint(unet), plain)


def test_two_at_once_and_one_within_the_other_are_the_same(unet):
    sites = sites_of_diffusers_unet(unet)
    one, other = attention(unet), replace(attention(unet), projector=tiny.StandInProjector(sites, 1))
    with apply_effects(unet, [one, other]):
        at_once = paint(unet)
    with apply_effects(unet, [one]), apply_effects(unet, [other]):
        nested = paint(unet)
    torch.testing.assert_close(nested, at_once, atol=1e-5, rtol=1e-4)


def test_one_delta_of_two_people_is_applied_once_with_the_greater_strength(unet):
    with apply_effects(unet, [delta(0.4), delta(0.9), delta(0.6)]):
        found = paint(unet)
    with apply_effects(unet, [delta(0.9)]):
        assert torch.equal(found, paint(unet))
    with apply_effects(unet, [delta(0.9), delta(0.4, "b")]):
        assert not torch.allclose(found, paint(unet), atol=1e-4)


# Prompts --------------------------------------------------------------------------------------------------------------


def test_an_edit_is_read_by_the_conditioned_half_alone(unet):
    text = states(rows=2)
    with apply_effects(unet, [edit()]) as applied:
        both = paint(unet, text)
        applied.roles = (Role.COND, Role.UNCOND)
        turned = paint(unet, text)
    plain = paint(unet, text)
    by_hand = paint(unet, text * 2)
    torch.testing.assert_close(both, torch.cat([plain[:1], by_hand[1:]]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned, torch.cat([by_hand[:1], plain[1:]]), atol=1e-5, rtol=1e-4)


def test_a_text_is_edited_once_whatever_the_steps(unet):
    calls = []
    counted = PromptEdit(lambda text: calls.append(1) or PromptStates(text.states + 1))
    text = states(rows=2)
    with apply_effects(unet, [counted]):
        found = [paint(unet, text) for _ in range(3)]
        assert len(calls) == 1 and torch.equal(found[0], found[2])
        paint(unet, text + 1)
    assert len(calls) == 2


def test_values_alone_reach_the_values_of_the_conditioned_half(unet):
    plain = paint(unet)
    with apply_effects(unet, [values_edit()]):
        found = paint(unet)
    torch.testing.assert_close(found[:1], plain[:1], atol=1e-5, rtol=1e-4)
    with apply_effects(unet, [edit()]):
        assert not torch.allclose(found[1], plain[1], atol=1e-4) and not torch.allclose(found, paint(unet), atol=1e-4)
    same = PromptEdit(lambda text: PromptStates(text.states, values=text.states))
    with apply_effects(unet, [same]):
        torch.testing.assert_close(paint(unet), plain, atol=1e-5, rtol=1e-4)


def test_a_longer_text_and_a_single_row_fit_the_batch(unet):
    longer = PromptEdit(lambda text: PromptStates(states(4, n=14)))
    text = states(rows=4)
    sample = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with apply_effects(unet, [longer]):
            found = unet(sample, 10, encoder_hidden_states=text).sample
        torch.testing.assert_close(found[:2], unet(sample[:2], 10, text[:2]).sample, atol=1e-5, rtol=1e-4)
        by_hand = unet(sample[2:], 10, states(4, n=14).expand(2, -1, -1)).sample
    torch.testing.assert_close(found[2:], by_hand, atol=1e-5, rtol=1e-4)


# Windows --------------------------------------------------------------------------------------------------------------


def steps_of(unet: Any, net: ControlNet, effects: list[Effect], run: SamplingRun) -> list[int]:
    """The steps in which the image is another than without the effects; in every other it is so bit by bit."""
    plain, changed = paint(unet), []
    with apply_effects(unet, effects, run=run, controls=controls_of(effects, net)) as applied:
        for step in range(len(run.evaluations)):
            applied.at_step(step)
            if not torch.equal(paint(unet), plain):
                changed.append(step)
    assert torch.equal(paint(unet), plain)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_windows_open_and_close(unet, net, kind):
    run = ddim(10)  # timesteps 900, 800, … 0: at shares of 0.099, 0.199, … 0.999 of the timesteps from 999 down
    expected = [2, 3, 4, 5] if kind != "control" else [3, 4, 5]  # steps that lie in it whole
    assert steps_of(unet, net, [effect_of(kind, unet, start=0.25, end=0.6)], run) == expected
    assert steps_of(unet, net, [effect_of(kind, unet, end=0.05)], run) == []
    assert steps_of(unet, net, [effect_of(kind, unet)], run) == list(range(10))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "control"])
@pytest.mark.parametrize("first", [0, 3, 9, 10])
def test_a_first_step_is_exact(unet, net, kind, first):
    effects = [effect_of(kind, unet, start=0.5, first_step=lambda steps: first)]
    assert steps_of(unet, net, effects, ddim(10)) == list(range(first, 10))


def test_neighbours_share_no_step_and_leave_none_out(unet, net):
    """A border at a step's very noise level: edits and deltas begin behind it, a term has it."""
    run = ddim(10)
    share = 1 - 500 / 999
    for kind in ("edit", "delta"):
        before = steps_of(unet, net, [effect_of(kind, unet, end=share)], run)
        after = steps_of(unet, net, [effect_of(kind, unet, start=share)], run)
        assert (before, after) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert steps_of(unet, net, [attention(unet, start=share)], run) == [4, 5, 6, 7, 8, 9]


def test_a_border_is_a_steps_own_level_whoever_computed_it(unet, net):
    share, exact = 1 - 500 / 999, ddim(10)
    for factor in (1 - 1e-6, 1.0, 1 + 1e-6):
        run = SamplingRun.through(torch.tensor(exact.sigmas) * factor, exact.levels)
        assert steps_of(unet, net, [edit(start=share)], run) == [5, 6, 7, 8, 9]
        assert steps_of(unet, net, [attention(unet, start=share)], run) == [4, 5, 6, 7, 8, 9]


def test_the_processor_that_is_found_runs_while_no_window_is_open(unet):
    class Found(AttnProcessor2_0):
        calls = 0

        def __call__(self, *args: Any, **keywords: Any) -> Tensor:
            self.calls += 1
            return super().__call__(*args, **keywords)

    before, found = unet.attn_processors, Found()
    name = f"{sites_of_diffusers_unet(unet)[0].diffusers_path}.attn2.processor"
    unet.set_attn_processor({**before, name: found})
    try:
        with apply_effects(unet, [attention(unet, start=0.5)], run=ddim(10)) as applied:
            for step in range(10):
                applied.at_step(step)
                paint(unet)
        assert found.calls == 5 and unet.attn_processors[name] is found
    finally:
        unet.set_attn_processor(before)


def test_windows_of_several_deltas_are_taken_out_in_any_order(unet, net):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    effects = [delta(name="a", end=0.4), delta(name="b", start=0.2), delta(name="c")]
    with apply_effects(unet, effects, run=ddim(10)) as applied:
        for step in (0, 3, 7, 0, 9):
            applied.at_step(step)
            count = sum((step < 4, step >= 2, True))
            expected = before[f"{QUERIES}.weight"] + count * effects[0].changes[QUERIES].delta()
            torch.testing.assert_close(unet.get_parameter(f"{QUERIES}.weight"), expected)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize(
    "scheduler, mu", [(EulerDiscreteScheduler(), None), (HeunDiscreteScheduler(), None), (DDIMScheduler(), None),
                      (FlowMatchEulerDiscreteScheduler(shift=3.0), None),
                      (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 0.8)],
)  # fmt: skip
def test_runs_of_all_schedulers_fall_from_step_to_step(scheduler, mu):
    scheduler.set_timesteps(8, **({} if mu is None else {"mu": mu}))
    run = SamplingRun.of(scheduler) if mu is None else SamplingRun.of(scheduler, mu)
    assert len(run.sigmas) == 9 and list(run.sigmas) == sorted(run.sigmas, reverse=True)
    assert len(run.evaluations) == len(scheduler.timesteps)
    middle = run.percent_to_sigma(0.5)
    assert run.sigmas[-2] < middle < run.sigmas[0]
    assert run.percent_to_sigma(0) > 1e8 and run.percent_to_sigma(1) == 0


def test_a_scheduler_without_noise_levels_is_refused_by_name():
    class Mystery:
        timesteps, config = torch.arange(3), {}

    with pytest.raises(LikenessError, match="Mystery has no known noise levels"):
        SamplingRun.of(Mystery())


# DiTs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux() -> Any:
    return toy_dit.network()


def blocks(strength: float = 1.0, **scope: Any) -> BlockTerm:
    toy = toy_dit.ToyDit(WeightFile("toy.safetensors", toy_dit.weights(32, modules=4)))
    halves = torch.randn(2, 1, 5, 24, generator=torch.Generator().manual_seed(0))
    return BlockTerm(toy, DitLayout(3, 6, 32).every(2, 4), IdentityTokens(*halves), strength, Scope(**scope))


def flow_run() -> SamplingRun:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    return SamplingRun.of(scheduler)


def paint_dit(flux: Any, text: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images, own, pooled = (torch.randn(1, *size, generator=generator) for size in ((12, 16), (5, 20), (12,)))
    places, half = torch.zeros(12, 3), torch.full((1,), 0.5)
    with torch.no_grad():
        return flux(
            images, own if text is None else text, pooled, half, places, torch.zeros(5, 3), half, return_dict=False
        )[0]


@pytest.mark.parametrize(
    "effect, expected",
    [
        (blocks(start=0.25, end=0.6), [1, 2]),
        (PromptEdit(lambda text: PromptStates(text.states + 1, text.pooled), Scope(0.25, 0.6)), [2]),
        (PromptEdit(lambda text: PromptStates(text.states, text.pooled + 1), Scope(0.2, 0.6)), [1, 2]),
        (WeightDelta("a", "a", {"transformer_blocks.0.attn.to_q": torch.ones(32, 32)}, 1.0, Scope(0.2, 0.6)), [1, 2]),
    ],
)
def test_effects_of_a_dit_act_in_their_windows(flux, effect, expected):
    plain, changed = paint_dit(flux), []
    with apply_effects(flux, [effect], (Role.COND,), run=flow_run(), grid=GRID) as applied:
        for step in range(4):
            applied.at_step(step)
            if not torch.equal(paint_dit(flux), plain):
                changed.append(step)
    assert changed == expected
    assert torch.equal(paint_dit(flux), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in flux.modules())


# What does not fit ----------------------------------------------------------------------------------------------------


def test_what_fits_another_network_is_refused_and_nothing_is_left(unet, flux):
    plain = paint(unet)
    cases = [
        (unet, [attention(unet), blocks()], {"grid": GRID}, r"toy\.safetensors.* UNet2DConditionModel"),
        (flux, [attention(unet)], {}, r"stand-in.* FluxTransformer2DModel"),
        (unet, [attention(unet), replace(delta(), changes={"nowhere": torch.ones(1)})], {}, r"no 'nowhere\.weight'"),
        (unet, [attention(unet), replace(delta(), changes={QUERIES: torch.ones(3, 3)})], {}, "does not fit the model"),
        (flux, [blocks()], {}, "give grid"),
        (unet, [control()], {"controls": [1, 2]}, "There are 1 contexts .* and 2 nets"),
        (unet, [edit(start=0.25)], {}, r"An effect has a window, from 0\.25 to 1 .*SamplingRun"),
    ]
    for network, effects, given, message in cases:
        with pytest.raises(LikenessError, match=message):
            apply_effects(network, effects, **given)
    assert torch.equal(paint(unet), plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_values_of_their_own_are_refused_by_a_dit(flux):
    with (
        apply_effects(flux, [values_edit()], (Role.COND,)),
        pytest.raises(LikenessError, match="which a UNet alone can read"),
    ):
        paint_dit(flux)
