"""Windows in the real sampler: prompts, values and weights change between two steps, whatever the scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.adapters.effects import PromptEdit, PromptStates, Scope, WeightDelta
from likeness.weights.lora import LoraPair

STEPS, WIDTH = 6, 64
AYS = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.0]  # "align your steps" of SD1.5, its first and last shortened
SCHEDULES = ["normal", "karras", "exponential", "sgm_uniform", "beta", "AYS"]


def sigmas_of(model: Any, name: str, steps: int = STEPS) -> Tensor:
    import comfy.samplers

    if name == "AYS":
        return torch.tensor(AYS)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)


def text(value: float, pooled: float | None = None, tokens: int = 7) -> PromptStates:
    return PromptStates(
        torch.full((1, tokens, WIDTH), value), None if pooled is None else torch.full((1, WIDTH), pooled)
    )


def conditioning(states: PromptStates) -> Any:
    return [(states.states, {} if states.pooled is None else {"pooled_output": states.pooled})]


def run(model: Any, positive: Any, sigmas: Tensor, sampler: str = "euler", cfg: float = 3.0, seed: int = 0) -> Tensor:
    import comfy.samplers

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    negative = [(torch.zeros(1, 7, WIDTH), {})]
    with torch.inference_mode():
        return comfy.samplers.sample(
            model,
            noise,
            positive,
            negative,
            cfg,
            model.load_device,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            model_options=model.model_options,
            latent_image=torch.zeros_like(noise),
            disable_pbar=True,
            seed=1,
        ).clone()


def watched(model: Any) -> tuple[Any, list[tuple[float, float, int]]]:
    """A MODEL that notes for every evaluation: sigma, the mean of the positive text, and how many chunks ran."""
    from comfy.patcher_extension import WrappersMP

    seen: list[tuple[float, float, int]] = []

    def note(executor: Any, x: Any, t: Any, c_concat: Any = None, c_crossattn: Any = None, *rest: Any, **named: Any):
        options = next(value for value in (*rest, *named.values()) if isinstance(value, dict) and "sigmas" in value)
        chunks = options["cond_or_uncond"]
        positive = c_crossattn.chunk(len(chunks))[chunks.index(0)]
        seen.append((float(t[0]), float(positive.mean()), len(chunks)))
        return executor(x, t, c_concat, c_crossattn, *rest, **named)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", note)
    return clone, seen


@pytest.fixture(scope="module")
def model(recipes) -> Any:
    return recipes.tiny_sd15()


def merging(first_step: Any, start: float = 0.2) -> PromptEdit:
    return PromptEdit(lambda _: text(2.0), Scope(start, first_step=first_step))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_prompt_changes_between_the_steps_it_says(model, schedule, sampler):
    """Also for samplers that look at the model between two steps: there is one threshold of sigma, never a count."""
    from likeness.injection.comfy import apply_effects, edited

    effects = [merging(lambda steps: 2)]
    watching, seen = watched(apply_effects(model, effects).model)
    sigmas = sigmas_of(model, schedule)
    run(watching, edited(conditioning(text(1.0)), effects), sigmas, sampler)
    border = float((sigmas[1] * sigmas[2]).sqrt())
    assert {round(value, 3) for _, value, _ in seen} == {1.0, 2.0}
    clear = [(sigma, value) for sigma, value, _ in seen if abs(sigma - border) > 1e-5 * border]
    assert all((value > 1.5) == (sigma < border) for sigma, value in clear)
    assert {chunks for *_, chunks in seen} == {2}  # both halves in one batch, as without an edit
    starts = [next(value for sigma, value, _ in seen if abs(sigma - float(s)) < 1e-4 * sigma) for s in sigmas[:-1]]
    assert [round(value) for value in starts] == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("first", "expected"), [(0, [2] * 6), (1, [1] + [2] * 5), (5, [1] * 5 + [2]), (6, [1] * 6), (9, [1] * 6)]
)
def test_the_first_and_the_last_step(model, first, expected):
    from likeness.injection.comfy import apply_effects, edited

    effects = [merging(lambda steps: first, start=0.0)]
    watching, seen = watched(apply_effects(model, effects).model)
    run(watching, edited(conditioning(text(1.0)), effects), sigmas_of(model, "karras"))
    assert [round(value) for _, value, _ in seen] == expected


def test_steps_are_counted_in_the_run_that_there_is(model):
    """Half the denoising: half the steps of a longer schedule, and the share of what is run."""
    from likeness.injection.comfy import apply_effects, edited

    counted: list[int] = []

    def first(steps: int) -> int:
        counted.append(steps)
        return steps // 2

    effects = [merging(first)]
    watching, seen = watched(apply_effects(model, effects).model)
    run(watching, edited(conditioning(text(1.0)), effects), sigmas_of(model, "normal", 12)[-7:])
    assert [round(value) for _, value, _ in seen] == [1, 1, 1, 2, 2, 2] and set(counted) == {6}


def test_a_model_without_a_rider_takes_the_share_of_the_noise(model):
    from likeness.injection.comfy import edited

    watching, seen = watched(model)
    run(
        watching, edited(conditioning(text(1.0)), [merging(lambda steps: 5, start=0.5)]), sigmas_of(model, "normal", 10)
    )
    assert [round(value) for _, value, _ in seen] == [1] * 5 + [2] * 5


def test_a_range_of_another_node_narrows_the_window(model):
    from likeness.injection.comfy import apply_effects, edited

    effects = [merging(lambda steps: 2)]
    parts = edited(conditioning(text(1.0)), effects)
    late = [(states, {**options, "start_percent": 0.7, "end_percent": 1.0}) for states, options in parts[1:]]
    watching, seen = watched(apply_effects(model, effects).model)
    always = [(text(1.0).states, {})]
    run(watching, [*always, *late], sigmas_of(model, "normal", 10))
    values = [value for _, value, _ in seen]
    assert len([v for v in values if v > 1.2]) <= 4 < len(values)


# Values ---------------------------------------------------------------------------------------------------------------


def with_values(states: PromptStates, values: Tensor) -> PromptEdit:
    return PromptEdit(lambda _: replace(states, values=values))


@pytest.fixture(scope="module")
def prompts() -> tuple[PromptStates, PromptStates]:
    random = torch.Generator().manual_seed(3)
    return tuple(PromptStates(torch.randn(1, 7, WIDTH, generator=random)) for _ in range(2))  # type: ignore[return-value]


def test_values_equal_to_the_states_change_nothing(model, prompts):
    from likeness.injection.comfy import apply_effects, edited

    one, _ = prompts
    effects = [with_values(one, one.states)]
    changed = run(apply_effects(model, effects).model, edited(conditioning(one), effects), sigmas_of(model, "normal"))
    assert torch.equal(changed, run(model, conditioning(one), sigmas_of(model, "normal")))


def test_keys_of_one_text_and_values_of_another(model, prompts):
    """As a patch by hand says it: every cross-attention reads keys of the states and values of the others, in the rows
    of this entry alone. Other prompts of the batch, and the negative, keep theirs."""
    from likeness.injection.comfy import apply_effects, edited, needs_rider

    one, other = prompts
    effects = [with_values(one, other.states)]
    positive = edited(conditioning(one), effects)
    assert needs_rider(positive) and not needs_rider(conditioning(one))
    found = run(apply_effects(model, effects).model, positive, sigmas_of(model, "normal"))

    def by_hand(n: Tensor, context: Tensor, value: Tensor, options: dict) -> Any:
        chunks = list(value.chunk(len(options["cond_or_uncond"])))
        chunks[options["cond_or_uncond"].index(0)] = other.states
        return n, context, torch.cat(chunks)

    expected_model = model.clone()
    expected_model.set_model_attn2_patch(by_hand)
    expected = run(expected_model, conditioning(one), sigmas_of(model, "normal"))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, run(model, conditioning(one), sigmas_of(model, "normal")), rtol=1e-3)


def test_values_of_stages(model, prompts):
    """Five stages with a pair each, as SeFi-IDE has them: in each the values of its own."""
    from likeness.injection.comfy import apply_effects, edited

    one, _ = prompts
    effects = [
        PromptEdit(lambda _, n=n: replace(one, values=torch.full((1, 7, WIDTH), float(n))), Scope(n / 5, (n + 1) / 5))
        for n in range(5)
    ]
    found: list[float] = []

    def note(n: Tensor, context: Tensor, value: Tensor, options: dict) -> Any:
        if options["block"] == ("input", 1):
            found.append(float(value.chunk(2)[options["cond_or_uncond"].index(0)].mean()))
        return n, context, value

    patched = apply_effects(model, effects).model
    patched.set_model_attn2_patch(lambda *given: given[:3])
    from comfy.patcher_extension import WrappersMP

    def last(executor: Any, *args: Any, **named: Any) -> Any:
        options = executor.class_obj.model_options["transformer_options"]
        options["patches"] = {**options["patches"], "attn2_patch": [*options["patches"]["attn2_patch"], note]}
        return executor(*args, **named)

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "watch", last)
    run(patched, edited(conditioning(one), effects), sigmas_of(model, "normal", 10))
    assert [round(value) for value in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_what_is_joined_to_a_prompt_keeps_its_own_values(model, prompts):
    from likeness.injection.comfy import apply_effects, edited

    one, other = prompts
    effects = [with_values(one, one.states)]
    ((states, options),) = edited(conditioning(one), effects)
    joined = torch.cat([states, other.states], dim=1)
    found = run(apply_effects(model, effects).model, [(joined, options)], sigmas_of(model, "normal"))
    assert torch.equal(found, run(model, [(joined, {})], sigmas_of(model, "normal")))


# Weights --------------------------------------------------------------------------------------------------------------


def delta(model: Any, seed: int = 5, **scope: Any) -> WeightDelta:
    from likeness.injection.comfy import request_layout

    random = torch.Generator().manual_seed(seed)
    net, (_, attention) = model.model.diffusion_model, request_layout(model)
    width = net.input_blocks[1][1].transformer_blocks[0].attn1.to_q.weight.shape[0]
    pair = LoraPair(torch.randn(2, width, generator=random), torch.randn(width, 2, generator=random) / 4)
    return WeightDelta("test", f"test {seed}", {f"{attention[0]}.to_q": pair}, 0.8, Scope(**scope))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("first", [1, 3])
def test_weights_change_exactly_at_a_sigma(model, prompts, schedule, first):
    """As if the first steps ran with one MODEL and the others with another."""
    from likeness.injection.comfy import apply_effects

    sigmas, positive = sigmas_of(model, schedule), conditioning(prompts[0])
    changed, count = apply_effects(model, [delta(model, first_step=lambda steps: first)])[:2]
    always = apply_effects(model, [delta(model)]).model
    assert count == 1
    before = run(model, positive, sigmas)
    late = run(changed, positive, sigmas)
    assert torch.equal(run(model, positive, sigmas), before)  # nothing stays behind
    after = run(always, positive, sigmas)
    assert not torch.allclose(late, before, rtol=1e-3) and not torch.allclose(late, after, rtol=1e-3)
    torch.testing.assert_close(late, in_two_parts(model, always, positive, sigmas, first), rtol=1e-4, atol=1e-3)


def in_two_parts(first_model: Any, then: Any, positive: Any, sigmas: Tensor, step: int) -> Tensor:
    import comfy.sample
    import comfy.samplers

    negative = [(torch.zeros(1, 7, WIDTH), {})]
    euler = comfy.samplers.sampler_object("euler")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"disable_pbar": True, "seed": 1}
    with torch.inference_mode():
        half = comfy.sample.sample_custom(
            first_model, noise, 3.0, euler, sigmas[: step + 1], positive, negative, torch.zeros_like(noise), **given
        )
        whole = comfy.sample.sample_custom(
            then, torch.zeros_like(noise), 3.0, euler, sigmas[step:], positive, negative, half, **given
        )
    return whole.clone()


def test_a_window_that_never_opens_is_bit_identical(model, prompts):
    from likeness.injection.comfy import apply_effects

    sigmas, positive = sigmas_of(model, "normal"), conditioning(prompts[0])
    never = apply_effects(model, [delta(model, first_step=lambda steps: steps)]).model
    closed = apply_effects(model, [delta(model, start=0.4, end=0.4)]).model
    plain = run(model, positive, sigmas)
    assert torch.equal(run(never, positive, sigmas), plain) and torch.equal(run(closed, positive, sigmas), plain)


def test_a_window_composes_with_a_lora_and_with_hooks_of_others(model, prompts):
    """The host's own weight hook on the positive alone, our window on the MODEL, a LoRA below both."""
    import comfy.hooks

    from likeness.injection.comfy import apply_effects

    sigmas, (states, _) = sigmas_of(model, "normal"), conditioning(prompts[0])[0]
    base = apply_effects(model, [replace(delta(model, seed=6), strength=0.3)]).model
    key = next(iter(base.patches))
    hook = comfy.hooks.WeightHook()
    hook.need_weight_init = False
    hook.weights = {key: ("diff", (torch.full_like(model.model.state_dict()[key], 0.01),))}
    group = comfy.hooks.HookGroup()
    group.add(hook)
    positive = [(states, {"hooks": group})]
    windowed = apply_effects(base, [delta(base, first_step=lambda steps: 3)]).model
    always = apply_effects(base, [delta(base)]).model
    found = run(windowed, positive, sigmas)
    torch.testing.assert_close(found, in_two_parts(base, always, positive, sigmas, 3), rtol=1e-4, atol=1e-3)


def test_attention_terms_take_a_first_step_too(recipes, model):
    from likeness.adapters.effects import AttentionTerm
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import apply_identity, sites_of
    from likeness.injection.plan import uniform

    sites = sites_of(model)
    calls: list[int] = []

    class Projector:
        name = "test"
        site_shapes = {site.slot: (site.width, site.context_dim) for site in sites}

        def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
            made = tokens[..., :1].expand(-1, -1, self.site_shapes[slot][0])
            return made, made

    tokens = IdentityTokens(torch.ones(1, 4, WIDTH), torch.ones(1, 4, WIDTH))

    def sampled(first: Any) -> Tensor:
        scope = Scope(first_step=first) if first else Scope()
        term = AttentionTerm(Projector(), tokens, uniform(1.0, sites), scope=scope)
        return run(apply_identity(model, [term]), conditioning(text(1.0)), sigmas_of(model, "karras"))

    plain = run(model, conditioning(text(1.0)), sigmas_of(model, "karras"))
    assert torch.equal(sampled(lambda steps: calls.append(steps) or steps), plain) and calls
    assert torch.equal(sampled(lambda steps: 0), sampled(None))
    assert not torch.equal(sampled(lambda steps: 3), plain)
