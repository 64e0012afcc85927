"""Steps of adapters' trainings, and the bare loops that train the same parameters with the same losses.

The bare loops have latents, texts and encoded photos ready, plain attention processors and one optimiser, as the
examples of diffusers and the published trainers do.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likeness.adapters.eva_clip import EvaFeatures
from likeness.adapters.networks import IdProjection
from likeness.adapters.pulid import PuLID
from likeness.faces import Face
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.training.base.lora import Reach
from likeness.training.base.model import BaseModel
from likeness.training.config import LoraSettings, RunSettings
from likeness.training.data.dataset import Frame
from likeness.training.data.people import FramedPhoto, People, PersonPhoto
from likeness.training.data.photo_files import Photo
from likeness.training.engine import train
from likeness.training.few_step import FewStep, Sampler
from likeness.training.ip_adapter import fresh_resampler
from likeness.training.materials import PeopleMaterials
from likeness.training.objectives.pulid import Reduction, Weights, align_layer, identity_loss
from likeness.training.pulid import fresh_pulid
from likeness.training.recipe import Recipe
from likeness.training.recipes.adapter_training import DropRates
from likeness.training.recipes.instantid import InstantIDSettings, identity_net, instantid
from likeness.training.recipes.ip_adapter import IPAdapterSettings, ip_adapter
from likeness.training.recipes.pulid import PuLIDSettings, pulid

Variant = Callable[[int], None]  # how many steps it trains
TEXT_WIDTH, ID_DIM, RANK = 768, 512, 8
EVA_WIDTH, EVA_EMBED, EVA_TOKENS = 1024, 768, 577
NEVER = DropRates(person=0, text=0, both=0)  # a second text would be read in a step
ENCODER = 256  # of PuLID's encoder, 1024 when published: in proportion to the narrow UNet


# Data and networks ----------------------------------------------------------------------------------------------------


def people(side: int) -> People:
    """One photo, `side` latent cells wide, so that what is computed once for each photo is ready after the first
    step."""
    pixels = 8 * side
    points = np.array([(0.43, 0.43), (0.57, 0.43), (0.5, 0.51), (0.445, 0.58), (0.555, 0.58)], np.float32) * pixels
    box = np.array([0.3, 0.3, 0.7, 0.7], np.float32) * pixels
    random = np.random.default_rng(0)
    photo = Photo("a.png", random.integers(0, 256, (pixels, pixels, 3), np.uint8))
    example = FramedPhoto(photo, Frame(0, 0, pixels, pixels, (pixels, pixels)), (pixels, pixels), "a photo")
    face = Face(box, 0.9, points, random.standard_normal(ID_DIM).astype(np.float32), "antelopev2")
    return People((PersonPhoto("a", example, face, "a"),), recogniser="antelopev2")


class Eva:
    """Stands in for EVA02-CLIP, which is asked once for each photo."""

    name, image_size, widths = "eva", 336, (EVA_WIDTH, EVA_EMBED)

    def encode_pixels(self, pixels: Tensor) -> EvaFeatures:
        hidden = tuple(torch.randn(len(pixels), EVA_TOKENS, EVA_WIDTH) for _ in range(5))
        return EvaFeatures(torch.randn(len(pixels), EVA_EMBED), hidden)


def measure(pictures: Tensor, keypoints: Tensor) -> Tensor:
    """Stands in for the recogniser of the identity loss, a hundredth of a step."""
    return F.adaptive_avg_pool2d(pictures, 8).flatten(1) - 0.5


def materials(base: BaseModel, **given: Any) -> PeopleMaterials:
    """What the recipes are made from."""
    found = people(base.unet.config.sample_size)
    points = found.photos[0].keypoints.numpy()
    eva: Any = Eva()
    return PeopleMaterials(found, eva=eva, measure=measure, detect=lambda picture: points, **given)


def ours(base: BaseModel, recipe_of: Callable[[BaseModel, int], Recipe]) -> Variant:
    """A recipe in the engine."""

    def run(steps: int) -> None:
        twin = replace(base, unet=copy.deepcopy(base.unet), text=copy.deepcopy(base.text))
        with tempfile.TemporaryDirectory() as folder:
            train(twin, recipe_of(twin, steps), RunSettings(save_every=10**6), Path(folder))

    return run


class BesideText(nn.Module):
    """A second pair of keys and values at a cross-attention layer, as the published trainers have it."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.tokens: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        out = _attend(q, k, v, attn.heads)
        if self.tokens is not None:
            out = out + _attend(q, self.to_k_ip(self.tokens), self.to_v_ip(self.tokens), attn.heads)
        return attn.to_out[1](attn.to_out[0](out))


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def second_attention(unet: Any) -> list[BesideText]:
    """The processors, one for each site."""
    made = []
    for site in sites_of_diffusers_unet(unet):
        attention = unet.get_submodule(f"{site.diffusers_path}.attn2")
        processor = BesideText(site.width, site.context_dim)
        attention.set_processor(processor)
        made.append(processor)
    return made


class Bare:
    """What the loops of all adapters have in common. Latents and text are ready."""

    def __init__(self, base: BaseModel) -> None:
        self.base, self.unet = base, copy.deepcopy(base.unet).requires_grad_(False)
        side = base.unet.config.sample_size
        self.latents, self.text = torch.randn(1, 4, side, side), torch.randn(1, 77, TEXT_WIDTH)
        self.processors = second_attention(self.unet)
        self.unet.train()

    def show(self, tokens: Tensor | None) -> None:
        for processor in self.processors:
            processor.tokens = tokens

    def denoising(self, **given: Any) -> Tensor:
        noise, t = torch.randn_like(self.latents), torch.randint(1000, (1,))
        z_t = self.base.schedule.add_noise(self.latents, noise, t)
        if "control" in given:
            down, middle = given["control"](z_t, t)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        else:
            more = {}
        return F.mse_loss(self.unet(z_t, t, self.text, **more).sample, noise)

    def own(self) -> list[nn.Parameter]:
        return [p for processor in self.processors for p in processor.parameters()]


# FaceID ---------------------------------------------------------------------------------------------------------------


def faceid_bare(base: BaseModel) -> Variant:
    """The loop of the official FaceID trainer, with peft's LoRA."""

    def run(steps: int) -> None:
        bare = Bare(base)
        lora = LoraSettings(rank=RANK, reach=Reach.ATTENTION).add_to(bare.unet)
        projection = IdProjection(ID_DIM, 2 * ID_DIM, 4, TEXT_WIDTH)
        parameters = [*lora.values(), *projection.parameters(), *bare.own()]
        optimiser, embedding = torch.optim.AdamW(parameters, lr=1e-4), F.normalize(torch.randn(1, ID_DIM), dim=-1)
        for _ in range(steps):
            bare.show(projection(embedding))
            bare.denoising().backward()
            optimiser.step()
            optimiser.zero_grad()

    return run


def faceid_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with that loop."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        return ip_adapter(base, materials(base), IPAdapterSettings(steps=steps, rank=RANK, drop=NEVER))

    return {"FaceID": ours(base, recipe)}


# InstantID ------------------------------------------------------------------------------------------------------------


def instantid_bare(base: BaseModel) -> Variant:
    """Resampler, keys and values, and a ControlNet, in a plain loop."""

    def run(steps: int) -> None:
        bare, net = Bare(base), identity_net(base).train()
        resampler = fresh_resampler(ID_DIM, TEXT_WIDTH, 16)
        parameters = [*net.parameters(), *resampler.parameters(), *bare.own()]
        optimiser, side = torch.optim.AdamW(parameters, lr=1e-5), 8 * base.unet.config.sample_size
        embedding, hint = torch.randn(1, 1, ID_DIM), torch.rand(1, 3, side, side)
        for _ in range(steps):
            tokens = resampler(embedding)
            bare.show(tokens)

            def control(z_t: Tensor, t: Tensor, tokens: Tensor = tokens) -> Any:
                return net(z_t, t, tokens, hint, return_dict=False)

            bare.denoising(control=control).backward()
            optimiser.step()
            optimiser.zero_grad()

    return run


def instantid_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with that loop."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        return instantid(base, materials(base), InstantIDSettings(steps=steps, drop=NEVER))

    return {"InstantID": ours(base, recipe)}


# PuLID ----------------------------------------------------------------------------------------------------------------

FAST_STEPS = 4


class BarePuLID(Bare):
    """PuLID's encoder beside the second attention."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        weights = fresh_pulid(base.unet, ID_DIM + EVA_EMBED, EVA_WIDTH, width=ENCODER)
        self.encoder = PuLID(weights, "pulid").id_adapter.requires_grad_(True)
        self.parameters = [*self.encoder.parameters(), *self.own()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5)
        self.id = torch.randn(1, ID_DIM + EVA_EMBED)
        self.hidden = [torch.randn(1, EVA_TOKENS, EVA_WIDTH) for _ in range(5)]

    def tokens(self) -> Tensor:
        return self.encoder(self.id, self.hidden)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def pulid_bare(base: BaseModel) -> Variant:
    """Stage 1 in a plain loop."""

    def run(steps: int) -> None:
        bare = BarePuLID(base)
        for _ in range(steps):
            bare.show(bare.tokens())
            bare.denoising().backward()
            bare.step()

    return run


def pulid_bare_aligned(base: BaseModel) -> Variant:
    """Stage 3 in a plain loop: the identity loss through the last of four steps, the alignment step by step."""

    def run(steps: int) -> None:
        bare = BarePuLID(base)
        branch, weights = FewStep.of(Sampler.DDIM, base.schedule, FAST_STEPS), Weights()
        seen: dict[str, Tensor] = {}
        layers = []
        for site in sites_of_diffusers_unet(bare.unet):
            attention = bare.unet.get_submodule(f"{site.diffusers_path}.attn2")
            for name in ("to_q", "to_k"):
                key = f"{site.slot}.{name}"
                getattr(attention, name).register_forward_hook(lambda _m, _a, out, key=key: seen.update({key: out}))
            layers.append((site.slot, site.heads))

        def predict(x: Tensor, step: int) -> Tensor:
            return bare.unet(x, torch.tensor([branch.timesteps[step]]), bare.text).sample

        def queries() -> list[tuple[Tensor, Tensor]]:
            found = []
            for slot, heads in layers:
                pair = (seen[f"{slot}.{name}"].unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
                found.append(tuple(pair))
            return found

        reference = torch.randn(1, 192)
        for _ in range(steps):
            bare.show(bare.tokens())
            bare.denoising().backward()

            bare.show(bare.tokens())
            x = torch.randn_like(bare.latents)
            for step in range(FAST_STEPS):
                with torch.set_grad_enabled(step == FAST_STEPS - 1):
                    x = branch.update(x, predict(x, step), step)
            face = measure(base.codec.decoder.picture(x), torch.zeros(1, 5, 2))
            identity_loss(face, reference, torch.tensor([True])).backward()

            x = bare_x = torch.randn_like(bare.latents)
            for step in range(FAST_STEPS):
                with torch.no_grad():
                    bare.show(None)
                    bare_x = branch.update(bare_x, predict(bare_x, step), step)
                    alone = queries()
                bare.show(bare.tokens())
                x = branch.update(x.detach(), predict(x.detach(), step), step)
                found = [
                    align_layer(q, other, k, Reduction.MSE) for (q, k), (other, _) in zip(queries(), alone, strict=True)
                ]
                semantic, layout = (torch.stack(each).mean() for each in zip(*found, strict=True))
                ((weights.semantic * semantic + weights.layout * layout) / FAST_STEPS).backward()
            bare.step()

    return run


def _pulid(**options: Any) -> Callable[[BaseModel, int], Recipe]:
    def recipe(base: BaseModel, steps: int) -> Recipe:
        from safetensors.torch import save_file

        settings = PuLIDSettings(steps=steps, width=ENCODER, background="as in the photo", drop=NEVER, **options)  # type: ignore[arg-type]
        if settings.stage == 1:
            return pulid(base, materials(base), settings)
        with tempfile.TemporaryDirectory() as folder:
            start = Path(folder) / "start.safetensors"
            save_file(fresh_pulid(base.unet, ID_DIM + EVA_EMBED, EVA_WIDTH, width=ENCODER), start)
            return pulid(base, materials(base, start=start), settings)

    return recipe


def pulid_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the loop of stage 1."""
    return {"PuLID, stage 1": ours(base, _pulid())}


def pulid_aligned_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the loop of stage 3."""
    return {"PuLID, stage 3": ours(base, _pulid(stage=3, base_is_few_step=True, id_backprop="last:1"))}
