"""InstantID: the Resampler, one attention layer, the keypoint image and its canvas, whole UNets with IdentityNet."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from torch import Tensor

from likeness.adapters.effects import AttentionTerm, ControlContext, MaskResize, Scope
from likeness.adapters.instantid import InstantID
from likeness.adapters.types import IdentityTokens
from likeness.faces.keypoints import canvas_size, draw_keypoints
from likeness.injection.attention import SiteTerm, add_identity, attend, split_heads
from likeness.injection.diffusers import Applied, ControlNet, SamplingRun, apply_effects
from likeness.injection.masks import resize_mask
from likeness.injection.plan import uniform
from likeness.injection.sites import sites_of_diffusers_unet

HALVES = 2  # of guidance: every batch is [unconditioned, conditioned]


# The parts ------------------------------------------------------------------------------------------------------------


@harness.runs("instantid", r"resampler")
def resampler(case: Any) -> dict[str, Tensor]:
    """Every row of the batch is a person of their own; a sequence of embeddings is one person's photos."""
    dim, weights = case.config["output_dim"], {f"image_proj.{key}": value for key, value in case.weights.items()}
    site = {f"ip_adapter.1.to_{half}_ip.weight": torch.zeros(1, dim) for half in "kv"}
    adapter = InstantID(weights | site, "golden", case.config["dim_head"])
    rows = [adapter.encode(row.unsqueeze(0)) for row in case.inputs["embedding"]]
    return {"tokens": torch.cat([r.cond for r in rows]), "uncond_tokens": torch.cat([r.uncond for r in rows])}


def region_of(case: Any) -> Tensor | None:
    """(1, H, W) in 0..1: the case's mask, which may be an image."""
    mask = next((value for name, value in case.inputs.items() if name.endswith("mask")), None)
    if mask is None:
        return None
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[-1] == 3 else mask.reshape(-1, *mask.shape[-2:])
    mask = mask.reshape(-1, *mask.shape[-2:])
    return mask / 255 if mask.dtype is torch.uint8 or mask.max() > 1 else mask


@harness.runs("instantid", r"attention")
def attention(case: Any) -> dict[str, Tensor]:
    """softmax(q Kᵀ) V + scale · mask · softmax(q K'ᵀ) V', then the layer's own projection."""
    config, given, weights = case.config, case.inputs, case.weights
    heads = config["heads"]

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    q, text, tokens = linear("attn.to_q", given["hidden_states"]), given["text_context"], given["ip_tokens"]
    keys, values = linear("ip.to_k_ip", tokens), config["scale"] * linear("ip.to_v_ip", tokens)
    mask = None
    if (region := region_of(case)) is not None:
        grid = (config["height"], config["width"])
        mask = resize_mask(region, grid, MaskResize.NEAREST).flatten(1).unsqueeze(-1)
    out = attend(q, linear("attn.to_k", text), linear("attn.to_v", text), heads)
    out = add_identity(out, q, [SiteTerm(split_heads(keys, heads), split_heads(values, heads), mask)])
    return {"hidden_states": linear("attn.to_out.0", out)}


@harness.runs("instantid", r"keypoints")
def keypoints(case: Any) -> dict[str, Tensor]:
    faces = case.inputs["kps"].reshape(-1, 5, 2).numpy()
    return {"image": torch.from_numpy(draw_keypoints(faces, case.config["width"], case.config["height"]))}


@harness.runs("instantid", r"canvas")
def canvas(case: Any) -> dict[str, Tensor]:
    names = {"max_side": "long_side", "min_side": "short_side", "base": "multiple", "base_pixel_number": "multiple"}
    options = {ours: case.config[theirs] for theirs, ours in names.items() if theirs in case.config}
    sizes = [canvas_size(width, height, **options) for width, height in case.inputs["sizes"].tolist()]
    return {"sizes": torch.tensor(sizes, dtype=torch.int64)}


# Whole networks -------------------------------------------------------------------------------------------------------


def adapter_of(case: Any) -> InstantID:
    weights = {k: v for k, v in case.weights.items() if k.startswith(("image_proj.", "ip_adapter."))}
    return InstantID(weights, "golden", case.config["image_proj"]["dim_head"])


def scope_of(case: Any, control: bool = False) -> Scope:
    """Where the case's region lets the person in; the adapter and IdentityNet bring it to their size differently."""
    mask = region_of(case)
    window = case.config.get("controlnet", {}) if control else {}
    resize = MaskResize.BILINEAR if control else MaskResize.NEAREST
    return Scope(window.get("start", 0.0), window.get("end", 1.0), mask, resize)


def control_effect(case: Any, tokens: IdentityTokens) -> ControlContext:
    return ControlContext(
        "golden", tokens, case.config["controlnet"]["conditioning_scale"], scope_of(case, control=True)
    )


class Networks:
    """The case's UNet, its adapter, its IdentityNet if it has one, and what both are given in every step."""

    def __init__(self, case: Any) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        given, config = case.inputs, case.config
        self.unet: Any = UNet2DConditionModel(**config["unet"])
        self.unet.load_state_dict(case.weights_below("unet."))
        self.net: Any = None
        if "controlnet" in config:
            self.net = ControlNetModel(**config["controlnet"]["config"])
            self.net.load_state_dict(case.weights_below("controlnet."))
        adapter, sites = adapter_of(case), sites_of_diffusers_unet(self.unet)
        self.tokens = adapter.encode(given["embedding"].reshape(1, -1, adapter.id_dim))  # a sequence of photos
        term = AttentionTerm(adapter, self.tokens, uniform(config["scale"], sites), scope=scope_of(case))
        self.effects = [term] if self.net is None else [term, control_effect(case, self.tokens)]
        self.controls = [] if self.net is None else [ControlNet(self.net, given["control_image"])]
        self.added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        self.text = given["text_context"]

    def applied(self, run: SamplingRun | None = None) -> Applied:
        """With the adapter and IdentityNet at work."""
        return apply_effects(self.unet.eval(), self.effects, run=run, controls=self.controls)

    @torch.no_grad()
    def epsilon(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """[unconditioned, conditioned] for one latent."""
        sample = latent.repeat(HALVES, 1, 1, 1)
        return self.unet(sample, timestep, encoder_hidden_states=self.text, added_cond_kwargs=self.added).sample


def halves(tokens: IdentityTokens) -> Tensor:
    return torch.cat([tokens.uncond, tokens.cond])


@harness.runs("instantid", r"unet.*")
def whole(case: Any) -> dict[str, Tensor]:
    networks = Networks(case)
    with networks.applied():
        eps = networks.epsilon(case.inputs["latent"], case.inputs["timestep"])
    return {"eps": eps, "tokens": halves(networks.tokens)}


@harness.runs("instantid", r"pipeline trace.*")
def trace(case: Any) -> dict[str, Tensor]:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    networks, config, given = Networks(case), case.config, case.inputs
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(config["steps"])
    latent, outputs = given["latent_in"][:1], []
    assert scheduler.timesteps.tolist() == given["timesteps"].tolist()
    with networks.applied(SamplingRun.of(scheduler)) as applied:
        for step, timestep in enumerate(scheduler.timesteps):
            applied.at_step(step)
            eps = networks.epsilon(latent, timestep)
            outputs.append(eps)
            uncond, cond = eps.chunk(HALVES)
            guided = uncond + config["guidance_scale"] * (cond - uncond)
            latent = scheduler.step(guided, timestep, latent).prev_sample  # type: ignore[union-attr]
    return {"eps": torch.stack(outputs), "final_latent": latent, "tokens": halves(networks.tokens)}
