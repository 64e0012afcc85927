"""What can be put together on one MODEL: a part each, which joins a graph's state at a strength.

Every system of the registry is a part by its contract case: on the MODEL, or through the prompt where the case has one.
`EXTRAS` is for what a system does beside them, `CONCEPTS` for trained ones that have nodes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from .concepts import concept
from .contract import Case, cases
from .subjects import subject


@dataclass(frozen=True)
class State:
    """What a sampler is given."""

    model: Any
    positive: Any
    negative: Any


Join = Callable[[Any, State, float], State]  # (world, state, strength) -> state


@dataclass(frozen=True)
class Part:
    """join: puts it onto a state at a strength. rides: it changes the prompts it is given. adds: it adds prompts.

    begin: writes the positive prompt, with which the graph begins whatever stands in it. plain: that text without
    anybody. exact: at strength 0 it is gone bit by bit; else the host still computes with it, and rounds.
    """

    title: str
    join: Join
    begin: Join | None = None
    plain: str = ""
    rides: bool = False
    adds: bool = False
    exact: bool = True


def commute(one: Part, other: Part) -> bool:
    """Whether the order makes no difference: what changes prompts changes those that are there."""
    return not ((one.rides and other.adds) or (one.adds and other.rides))


# Systems --------------------------------------------------------------------------------------------------------------


def _of_system(case: Case) -> Part:
    return _through_the_prompt(case) if case.prompt else _on_the_model(case)


def _through_the_prompt(case: Case) -> Part:
    """Identity Prompt gives a prompt and a MODEL, and each goes its own way through the graph."""

    def prompt(world: Any, state: State, strength: float) -> tuple[Any, Any]:
        adapter, who = world.case_adapter(case), world.case_person(case)
        gear = {"clip_vision": world.clip_vision} if case.reads_clip else {}
        given = {"text": case.prompt, "strength": strength, "start_at": 0.0}  # of two steps the second hears little
        model, positive, _ = world.prompt(adapter, who, model=state.model, **given, **gear)
        return model, positive

    def begin(world: Any, state: State, strength: float) -> State:
        return replace(state, positive=prompt(world, state, strength)[1])

    def join(world: Any, state: State, strength: float) -> State:
        return replace(state, model=prompt(world, state, strength)[0])

    return Part(case.title, join, begin, case.plain)


def _on_the_model(case: Case) -> Part:
    def join(world: Any, state: State, strength: float) -> State:
        adapter, who = world.case_adapter(case), world.case_person(case)
        gear = {"clip_vision": world.clip_vision} if case.reads_clip else {}
        model, _ = world.apply(adapter, who, model=state.model, weight=strength, **gear)
        extra = EXTRAS.get(case.title)
        state = replace(state, model=model)
        return extra(world, state, strength) if extra else state

    return Part(case.title, join, rides=case.title in EXTRAS)


def _identitynet(world: Any, state: State, strength: float) -> State:
    """InstantID's other half, a ControlNet that reads the face."""
    case = cases()["InstantID"]
    positive, negative, _ = world.run(
        "LikenessIdentityControlNet",
        every=True,
        positive=state.positive,
        negative=state.negative,
        adapter=world.case_adapter(case),
        control_net=world.net(7),
        identity=world.case_person(case),
        image=_hint(9),
        strength=strength,
    )
    return State(state.model, positive, negative)


EXTRAS: dict[str, Join] = {"InstantID": _identitynet}


# Trained concepts -----------------------------------------------------------------------------------------------------


def _concept(world: Any, state: State, strength: float) -> State:
    """Apply Concept. Its words are the CLIP's, which prompts that name nobody read as before."""
    given = {"model": state.model, "clip": world.text_clip, "concept": concept(world.model), "strength": strength}
    return replace(state, model=world.run("LikenessApplyConcept", **given))


def _subject() -> Part:
    """Subject Prompt gives a prompt and a MODEL, and each goes its own way through the graph."""

    def prompt(world: Any, state: State, strength: float) -> Any:
        given = {"clip": world.text_clip, "model": state.model, "subject": subject(), "strength": strength}
        return world.run("LikenessSubjectPrompt", every=True, text="a photo of <ann> in the rain", **given)

    def begin(world: Any, state: State, strength: float) -> State:
        return replace(state, positive=prompt(world, state, strength)[0])

    def join(world: Any, state: State, strength: float) -> State:
        return replace(state, model=prompt(world, state, strength)[1])

    return Part("SeFi-IDE", join, begin, "a photo of person in the rain")


CONCEPTS = (Part("Custom Diffusion", _concept), _subject())

# What is the host's ---------------------------------------------------------------------------------------------------


def _lora(world: Any, state: State, strength: float) -> State:
    """Load LoRA, with a low-rank change of every attention layer."""
    layers = {}
    for site in world.sites:
        for layer, columns in (("to_q", site.width), ("to_k", site.context_dim), ("to_v", site.context_dim)):
            layers[f"lora_unet_{site.diffusers_path}_attn2_{layer}".replace(".", "_")] = (site.width, columns)
    return _low_rank(state, layers, strength)


def _flux_lora(world: Any, state: State, strength: float) -> State:
    """The same for the image's attention in every double block, by ComfyUI's own names."""
    width = world.shapes[0][0]
    blocks = range(len(state.model.model.diffusion_model.double_blocks))
    layers = {f"diffusion_model.double_blocks.{i}.img_attn.qkv": (3 * width, width) for i in blocks}
    return _low_rank(state, layers, strength)


def _low_rank(state: State, layers: dict[str, tuple[int, int]], strength: float) -> State:
    import comfy.sd

    random, weights = torch.Generator().manual_seed(11), {}
    for name, (rows, columns) in layers.items():
        weights[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=random) / columns**0.5
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=random) / 2
    model, _ = comfy.sd.load_lora_for_models(state.model, None, weights, strength, 0.0)
    return replace(state, model=model)


def _controlnet(world: Any, state: State, strength: float) -> State:
    """Apply ControlNet, on both prompts."""
    import nodes

    apply = nodes.ControlNetApplyAdvanced().apply_controlnet  # type: ignore[attr-defined]
    return State(state.model, *apply(state.positive, state.negative, world.net(8), _hint(10), strength, 0.0, 1.0))


def _regions(world: Any, state: State, strength: float) -> State:
    """A second prompt for the right half: Conditioning (Set Mask), Conditioning (Combine)."""
    import nodes

    right = torch.zeros(1, 8, 8)
    right[..., 4:] = 1
    prompt = world.conditioning(seed=12)
    [region] = nodes.ConditioningSetMask().append(prompt, right, "default", strength)  # type: ignore[attr-defined]
    [both] = nodes.ConditioningCombine().combine(state.positive, region)  # type: ignore[attr-defined]
    return replace(state, positive=both)


def _block_patch(world: Any, state: State, strength: float) -> State:
    """Another pack's replace patch of blocks that identities act behind as well."""

    def louder(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        return {**out, "img": (1 + 0.1 * strength) * out["img"]} if strength else out

    model = state.model.clone()
    for block in (("double_block", 0), ("single_block", 4)):
        model.set_model_patch_replace(louder, "dit", *block)
    return replace(state, model=model)


def _reference_latent(world: Any, state: State, strength: float) -> State:
    """Reference Latent, as FLUX.1 Kontext reads it; at strength 0 there is none."""
    import node_helpers

    if not strength:
        return state
    seen = torch.randn(world.latents(1, 4, 6), generator=torch.Generator().manual_seed(13))
    positive = node_helpers.conditioning_set_values(state.positive, {"reference_latents": [seen]}, append=True)
    return replace(state, positive=positive)


def _hint(seed: int) -> torch.Tensor:
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


# All of them ----------------------------------------------------------------------------------------------------------

HOSTS = {
    "sd15": (
        Part("a LoRA", _lora),
        Part("a ControlNet", _controlnet, rides=True),
        Part("regional prompts", _regions, adds=True, exact=False),
    ),
    "flux": (
        Part("a LoRA", _flux_lora),
        Part("a ControlNet", _controlnet, rides=True),
        Part("a patch of blocks", _block_patch),
        Part("a reference latent", _reference_latent, rides=True),
        Part("regional prompts", _regions, adds=True, exact=False),
    ),
}


def parts(base: str, titles: tuple[str, ...]) -> dict[str, Part]:
    """The parts of these systems, of trained concepts on SD1.5, and the host's, for one base model."""
    known = cases()
    systems = [_of_system(known[title]) for title in titles]
    concepts = CONCEPTS if base == "sd15" else ()
    return {part.title: part for part in (*systems, *concepts, *HOSTS[base])}


def table(base: str, titles: tuple[str, ...]) -> str:
    """Every pair, as Markdown."""
    every = list(parts(base, titles).values())
    lines = [f"| | {' | '.join(part.title for part in every[1:])} |", f"| --- |{' --- |' * (len(every) - 1)}"]
    said = {(a.title, b.title): "any order" if commute(a, b) else "order counts" for a, b in combinations(every, 2)}
    for row in every[:-1]:
        cells = (said.get((row.title, column.title), "") for column in every[1:])
        lines.append(f"| **{row.title}** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
