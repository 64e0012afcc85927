"""InstantID in the real ComfyUI: its golden cases through the host's sampler, and ControlNets with a context of their
own among others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import harness
from helpers import official
from torch import Tensor

HERE = Path(__file__).parent

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "instantid" and harness.read_metadata(path)["variant"].startswith(("unet", "pipeline"))
]
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")  # SDXL's time ids, in order


# Golden cases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import instantid

    return instantid


def prompt(case: Any, row: int) -> Any:
    given = case.inputs
    options = dict(zip(SIZES, given["time_ids"][row].int().tolist(), strict=True))
    return [[given["text_context"][row : row + 1], {"pooled_output": given["pooled"][row : row + 1], **options}]]


def sampled(model: Any, latent: Tensor, sigmas: Tensor, cfg: float, positive: Any, negative: Any) -> Any:
    """The host's sampler from a latent as diffusers has it: epsilon of both halves at every step, the last latent."""
    import comfy.sample
    import comfy.samplers

    found: list[Tensor] = []

    def watch(args: dict) -> list[Tensor]:
        cond, uncond = args["conds_out"]
        sigma = args["sigma"].view(-1, 1, 1, 1)
        found.append(torch.cat([(args["input"] - half) / sigma for half in (uncond, cond)]))
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(watch)
    noise = latent * (sigmas[0] ** 2 + 1).sqrt() / sigmas[0]
    with torch.inference_mode():
        last = comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, positive, negative,
            torch.zeros_like(latent), disable_pbar=True, seed=1,
        )  # fmt: skip
        last = model.model.process_latent_in(last.float()) / (sigmas[-1] ** 2 + 1).sqrt()
    return torch.stack(found), last.clone()


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_case_through_the_host_s_sampler(path, runner, recipes):
    """A pipeline of the official code is DDIM, which is Euler's method in the host's terms."""
    from likeness.adapters.effects import AttentionTerm
    from likeness.injection.comfy import ManagedAdapter, apply_effects, sites_of
    from likeness.injection.comfy.control import controlled
    from likeness.injection.plan import Role, uniform

    case = harness.read_case(path)
    given, config = case.inputs, case.config
    base = recipes.unet_from_diffusers(config["unet"], case.weights_below("unet."))
    sites, adapter = sites_of(base), ManagedAdapter(runner.adapter_of(case))
    tokens = adapter.adapter.encode(given["embedding"].reshape(1, -1, adapter.adapter.id_dim))
    term = AttentionTerm(adapter, tokens, uniform(config["scale"], sites), scope=runner.scope_of(case))
    model = apply_effects(base, [term]).model
    prompts = {Role.UNCOND: prompt(case, 0), Role.COND: prompt(case, 1)}
    if "controlnet" in config:
        net = recipes.controlnet_from_diffusers(config["controlnet"]["config"], case.weights_below("controlnet."))
        picture = given["control_image"].movedim(1, -1)
        prompts = controlled(prompts, net, picture, runner.control_effect(case, tokens))
    sigma_of = base.get_model_object("model_sampling").sigma
    if "timesteps" in given:
        sigmas = sigma_of(torch.cat([given["timesteps"], torch.zeros(1)]).float())
        eps, last = sampled(
            model, given["latent_in"][:1], sigmas, config["guidance_scale"], prompts[Role.COND], prompts[Role.UNCOND]
        )
        outputs = {"eps": eps, "final_latent": last}
    else:
        sigmas = torch.stack([sigma_of(given["timestep"].float()), torch.tensor(0.0)])
        eps, _ = sampled(model, given["latent"], sigmas, 5.0, prompts[Role.COND], prompts[Role.UNCOND])
        outputs = {"eps": eps[0]}
    for name, value in outputs.items():
        torch.testing.assert_close(
            value, case.expected[name], rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{n}: {m}"
        )


# A whole SDXL layout --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def person() -> Any:
    from likeness.faces import Identity

    generator = torch.Generator().manual_seed(0)
    return Identity(
        name="Ada", recogniser="antelopev2", embeddings=20 * torch.randn(1, 512, generator=generator),
        weights=torch.ones(1), aligned=torch.zeros(0, 224, 224, 3, dtype=torch.uint8),
        portraits=torch.zeros(0, 512, 512, 3, dtype=torch.uint8),
        heads=torch.zeros(1, 512, 512, 3, dtype=torch.uint8), keypoints=torch.zeros(0, 5, 2),
        boxes=torch.zeros(1, 4), photo_sizes=torch.full((1, 2), 512),
        also={"buffalo_l": torch.randn(1, 512, generator=generator)},
    )  # fmt: skip


def managed(model: Any, projection: str = "instantid") -> Any:
    """An adapter that fits a MODEL."""
    from likeness.adapters import build
    from likeness.adapters.instantid import InstantID
    from likeness.injection.comfy import ManagedAdapter, sites_of

    shapes = [(site.width, site.context_dim) for site in sites_of(model)]
    dim = shapes[0][1]
    if projection == "faceid":
        groups = official.groups(official.identity(dim), shapes, with_lora=True)
        return ManagedAdapter(build(official.flat(groups), "faceid.bin"))
    groups = official.groups(official.resampler(dim, features=512, dim=64, depth=1), shapes)
    return ManagedAdapter(InstantID(official.flat(groups), "ip-adapter.bin"))


def applied(model: Any, adapter: Any, person: Any, strength: float = 1.0) -> Any:
    from likeness.adapters.system import Request
    from likeness.injection.comfy import apply_effects, request_layout

    return apply_effects(model, adapter.effects(Request(*request_layout(model), strength, identity=person))).model


def test_all_70_layers_hear_the_face_and_the_middle_block_is_one_of_them(recipes, person, monkeypatch):
    from likeness.injection.comfy import unet

    called: list[tuple] = []
    plain = unet.SitePatch.__call__

    def count(self, *arguments):
        called.append(self.site.key)
        return plain(self, *arguments)

    monkeypatch.setattr(unet.SitePatch, "__call__", count)
    model = recipes.unet(recipes.SDXL_SITES)
    dim = recipes.SDXL_TINY["context_dim"]
    texts = [recipes.conditioning(dim, pooled=recipes.SDXL_POOLED, seed=seed) for seed in (1, 2)]
    recipes.sample(applied(model, managed(model), person), *texts, steps=1, shape=(1, 4, 8, 8))
    assert len(called) == len(set(called)) == 70
    assert [key for key in called if key[0] == "middle"] == [("middle", 0, index) for index in range(10)]


@pytest.mark.parametrize("kind", ["sd15", "flux", "refiner"])
def test_other_models_are_refused_in_words(recipes, person, kind):
    from likeness.errors import LikenessError

    adapter = managed(recipes.unet(recipes.SDXL_SITES))
    refiner = {**recipes.SDXL_TINY, "context_dim": 1280}
    model = {"sd15": recipes.tiny_sd15, "flux": recipes.tiny_flux, "refiner": lambda: recipes.unet(refiner)}[kind]()
    with pytest.raises(LikenessError, match=r"The adapter 'ip-adapter\.bin' was made for .* but the connected MODEL"):
        applied(model, adapter, person)


def test_loras_rescaled_guidance_and_an_ip_adapter_work_beside_it_in_any_order(recipes, person):
    """Each of them changes the image, and the order makes no difference."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    model = recipes.tiny_sdxl()
    texts = [recipes.conditioning(recipes.SDXL_TINY["context_dim"], pooled=recipes.SDXL_POOLED, seed=s) for s in (1, 2)]
    instantid, faceid = managed(model), managed(model, "faceid")

    def with_lora(m: Any) -> Any:
        patched = m.clone()
        key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
        change = torch.randn(m.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(1))
        assert patched.add_patches({key: (0.1 * change,)}, 1.0)
        return patched

    steps = [
        lambda m: applied(m, instantid, person, 0.8),
        lambda m: applied(m, faceid, person),
        with_lora,
        lambda m: RescaleCFG().patch(m, 0.7)[0],
    ]

    def paint(order: list[Any]) -> Tensor:
        m = model
        for step in order:
            m = step(m)
        return recipes.sample(m, *texts, steps=2)

    everything = paint(steps)
    torch.testing.assert_close(paint(steps[::-1]), everything, rtol=1e-4, atol=1e-3)
    for left_out in range(len(steps)):
        without = paint([step for i, step in enumerate(steps) if i != left_out])
        assert (without - everything).abs().max() > 1e-2 * everything.abs().max()
