"""Edit models through the real host's classes: conditionings, wrappers, ids and attention of a sampling run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import harness
from conformance.runners import edit_models as runner
from helpers.references import Latents, velocities, velocity
from torch import Tensor

from likeness.adapters.edit_models import positions
from likeness.adapters.effects import ReferenceTerm, Scope

NETWORKS = {"krea2": "Krea2", "flux2": "Flux2", "qwen": "QwenImage"}


def _is_network(path: Any) -> bool:
    variant = harness.read_metadata(path)["variant"]
    return path.parent.name == "edit_models" and variant.split()[0] in NETWORKS and "sizes" not in variant


CASES = [path for path in harness.find_cases(harness.golden_folder()) if _is_network(path)]
pytestmark = pytest.mark.host(since="0.33")


def placement_of(case: Any, kind: str) -> Callable[..., Any]:
    others = {"flux2": positions.flux2, "qwen": positions.qwen}
    return others.get(kind) or runner.krea2_placement(case)


def people(case: Any, which: str, kind: str) -> list[ReferenceTerm]:
    """A person for each reference of the output of this name."""
    latents, boosts = runner.chosen(case, which), case.config.get("boosts")
    if boosts is None or which in ("plain", "without"):
        boosts = [1.0] * len(latents)
    terms, sight = [], runner.sight_of(case, which)
    for number, (latent, boost) in enumerate(zip(latents, boosts, strict=True), 1):
        face = case.inputs.get(f"face_{number}")
        if which == "masked" and number == len(boosts):
            face = case.inputs["mask"]
        region = None if which == "plain" else case.inputs.get(f"region_{number}")
        terms.append(
            ReferenceTerm(
                "case",
                "the case's scheme",
                Latents(latent, faces=[face]),
                placement_of(case, kind),
                "index_timestep_zero" if case.config.get("timestep_zero") else "index",
                sight.isolated,
                sight.separate,
                boost,
                Scope(mask=region),
            )
        )
    return terms


def without_padding(model: Any, text: int) -> None:
    """The host fills FLUX.2's text up to 512 tokens; the official networks of these cases read it as it is."""
    from comfy.patcher_extension import WrappersMP

    def cut(executor: Any, x: Tensor, t: Tensor, concat: Any, states: Tensor, *args: Any, **keywords: Any) -> Any:
        return executor(x, t, concat, states[:, -text:], *args, **keywords)

    model.add_wrapper(WrappersMP.APPLY_MODEL, cut)


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_case_through_the_hosts_network(path, recipes):
    from likeness.injection.comfy import apply_effects

    case = harness.read_case(path)
    kind = case.variant.split()[0]
    base = recipes.dit(NETWORKS[kind], case.config["model"], case.weights_below("model."))
    outputs: dict[str, Tensor] = {}
    if case.config.get("isolated"):  # both steps in one run, whose second has the keys and values of the first
        model = apply_effects(base, people(case, "", kind)).model
        if kind == "flux2":
            without_padding(model, case.inputs["context"].shape[1])
        names = sorted(case.expected)
        steps = [(case.inputs[n.replace("step", "x")], case.inputs[n.replace("step", "timestep")]) for n in names]
        found = velocities(model, steps, case.inputs["context"], case.inputs.get("guidance"))
        outputs = dict(zip(names, found, strict=True))
    for which in case.expected.keys() - outputs.keys():
        model = apply_effects(base, people(case, which, kind)).model
        if "sampling" in case.variant:
            outputs[which] = sampled(model, case)
            continue
        step = which.removeprefix("step") if which.startswith("step") else ""
        given = case.inputs
        if kind == "flux2":
            without_padding(model, given["context"].shape[1])
        x, t = given[f"x{step}"], given[f"timestep{step}"]
        outputs[which] = velocity(model, x, t, given["context"], given.get("guidance"))
    harness.judge(case, outputs, harness.Runner(lambda _: outputs, {}))


def sampled(model: Any, case: Any) -> Tensor:
    """A whole run of the host's sampler."""
    import comfy.sample
    import comfy.samplers

    given, config = case.inputs, case.config
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, given["noise"], config["cfg"], sampler, torch.tensor(config["sigmas"]),
            [[given["positive"], {}]], [[given["negative"], {}]], torch.zeros_like(given["noise"]), disable_pbar=True,
        ).clone()  # fmt: skip
