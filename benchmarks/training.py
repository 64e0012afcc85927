"""Time and memory of training, as ratios within one process.

    python benchmarks/training.py                       about an hour, most of it in the official structure
    python benchmarks/training.py --only LoRA           some variants, beside what each is compared with
    python benchmarks/training.py --before ../earlier   this pack as another checkout has it, in the same rounds
    python benchmarks/training.py --smoke               does it run at all

A UNet of SD1.5's topology at reduced width, random weights, CPU, float32, one thread. All variants train once per round
in random order; a step's time is the process time between two optimiser steps, the first of each run left out. Reported
are the ratio of medians and the median and quartiles of the ratios paired by round: to the bare loop of diffusers and
peft, to bare loops with the losses of the adapters (`adapter_steps.py`), and to a MagiCapture step in the structure of
its official code, two passes with explicit attention everywhere and a decoded image. ComfyUI's own TrainLoraNode stands
beside them where ComfyUI is there. Bytes are counted on a full-size model without memory.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from adapter_steps import (
    faceid_bare,
    faceid_steps,
    instantid_bare,
    instantid_steps,
    pulid_aligned_steps,
    pulid_bare,
    pulid_bare_aligned,
    pulid_steps,
)
from overhead import UNETS, comfyui_of_the_tests, compared, measure, start_host
from torch import Tensor, nn

from likeness.adapters.clip_tower import ClipTower, TowerSizes
from likeness.adapters.clip_vision import EncoderSize
from likeness.adapters.fastcomposer import SubjectEncoder, fuse_marked
from likeness.adapters.networks import FuseModule
from likeness.adapters.photoverse.face import FaceMask
from likeness.adapters.sefi_ide.networks import TokenGenerator
from likeness.faces import Face
from likeness.miniature.models.networks import build_tokenizer
from likeness.training.base.lora import Reach, add_lora
from likeness.training.base.model import BaseModel, Codec, TextTower
from likeness.training.base.noise import NoiseSchedule
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.training.config import Group, LoraSettings, RunSettings
from likeness.training.data.dataset import Frame
from likeness.training.data.examples import Example
from likeness.training.data.people import FramedPhoto, People, PersonPhoto
from likeness.training.data.photo_files import Photo
from likeness.training.data.portraits import Portrait
from likeness.training.data.subjects import Subject, SubjectExample
from likeness.training.data.zoom import Zoom
from likeness.training.engine import train
from likeness.training.materials import PeopleMaterials
from likeness.training.objectives.attention_refocusing import attention_refocusing
from likeness.training.objectives.identity import Decoder, arcface_measure, identity
from likeness.training.objectives.magicapture import ShotKind, regions
from likeness.training.objectives.reconstruction import masked_reconstruction, soft_mask
from likeness.training.probe import sites_by_grid
from likeness.training.recipe import Recipe
from likeness.training.recipes.blip_diffusion import QUERIES, BlipDiffusionSettings, Tuned, blip_diffusion
from likeness.training.recipes.custom_diffusion import CustomDiffusionSettings, custom_diffusion
from likeness.training.recipes.denoising import Mask
from likeness.training.recipes.dreambooth import DreamBoothSettings, dreambooth
from likeness.training.recipes.fastcomposer import FastComposerSettings, fastcomposer
from likeness.training.recipes.magicapture import MagiCaptureSettings, ShotStream, magicapture
from likeness.training.recipes.photoverse import PhotoVerseSettings, photoverse
from likeness.training.recipes.sefi_ide import Layers, SefiIdeSettings, Tokens, sefi_ide
from likeness.training.recipes.textual_inversion import TextualInversionSettings, textual_inversion

TEXT_WIDTH, RANK = 768, 8
Variant = Callable[[int], None]  # how many steps it trains


@dataclass(frozen=True)
class Size:
    """width: of the UNet's first level, 320 in SD1.5. side: of the latent. layers: of the text encoder."""

    width: int
    side: int
    layers: int = 12

    @property
    def unet(self) -> dict[str, Any]:
        return {
            "sample_size": self.side,
            "block_out_channels": tuple(self.width * m for m in (1, 2, 4, 4)),
            "cross_attention_dim": TEXT_WIDTH,
            "attention_head_dim": 8,
            "norm_num_groups": 8 if self.width % 32 else 32,
        }

    @property
    def vae(self) -> dict[str, Any]:
        """128 channels in SD1.5, at the UNet's scale."""
        first = max(8, round(self.width / 320 * 128 / 8) * 8)
        return {
            "block_out_channels": tuple(first * m for m in (1, 2, 4, 4)),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "norm_num_groups": 8,
        }


def build(size: Size) -> BaseModel:
    """A base model of SD1.5's layout, random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=size.layers,
        num_attention_heads=12,
    )
    unet = UNet2DConditionModel(**size.unet).requires_grad_(False).eval()
    vae = AutoencoderKL(**size.vae).requires_grad_(False).eval()
    encoder = CLIPTextModel(text).requires_grad_(False).eval()
    return BaseModel(unet, (TextTower(tokenizer, encoder),), Codec.of(vae), NoiseSchedule.scaled_linear())


def photo(side: int) -> Example:
    """An image of `side` latent cells with a face that fills about a sixth of it, as in a portrait."""
    mask = torch.zeros(1, 8 * side, 8 * side)
    mask[:, 2 * side : 6 * side, int(2.5 * side) : int(5.5 * side)] = 1
    return Example(torch.rand(3, 8 * side, 8 * side) * 2 - 1, "", mask)


def keypoints(side: int) -> Tensor:
    """Eyes, nose and mouth of that face."""
    relative = torch.tensor([[0.43, 0.43], [0.57, 0.43], [0.50, 0.51], [0.445, 0.58], [0.555, 0.58]])
    return relative * 8 * side


# A LoRA step ----------------------------------------------------------------------------------------------------------


def bare(base: BaseModel) -> Variant:
    """diffusers and peft, as in their examples, with latents and text ready."""

    def run(steps: int) -> None:
        unet = copy.deepcopy(base.unet)
        parameters = LoraSettings(rank=RANK).add_to(unet)
        unet.train()
        optimiser = torch.optim.AdamW(parameters.values(), lr=1e-4)
        side = base.unet.config.sample_size
        latents, text = torch.randn(1, 4, side, side), torch.randn(1, 77, TEXT_WIDTH)
        for _ in range(steps):
            noise, t = torch.randn_like(latents), torch.randint(1000, (1,))
            prediction = unet(base.schedule.add_noise(latents, noise, t), t, text).sample
            torch.nn.functional.mse_loss(prediction, noise).backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


def ours(base: BaseModel, recipe_of: Callable[[BaseModel, int], Recipe], **options: Any) -> Variant:
    """A recipe in the engine."""

    def run(steps: int) -> None:
        twin = replace(base, unet=copy.deepcopy(base.unet), text=copy.deepcopy(base.text))
        with tempfile.TemporaryDirectory() as folder:
            train(twin, recipe_of(twin, steps), RunSettings(save_every=10**6, **options), Path(folder))

    return run


def lora(mask: Mask = Mask.NONE) -> Callable[[BaseModel, int], Recipe]:
    """DreamBooth's LoRA without class images."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        settings = DreamBoothSettings(steps=steps, prior_weight=0, lora=LoraSettings(rank=RANK), mask=mask)
        return dreambooth(base, [photo(base.unet.config.sample_size)], settings)

    return recipe


def refocusing(base: BaseModel, steps: int) -> Recipe:
    """MagiCapture's masked and attention losses on the denoiser's LoRA alone."""
    portraits = [Portrait(photo(base.unet.config.sample_size))]
    settings = MagiCaptureSettings(tuning_steps=steps, lambda_id=0, lora=LoraSettings(rank=RANK))
    recipe = magicapture(base, portraits, portraits, settings)
    tuning = recipe.phases[1]
    only = replace(tuning, begin=lambda: [Group("unet", settings.lora.add_to(base.unet), 1e-4)])
    return replace(recipe, phases=[only])


def host_trainer(size: Size, checkpointing: bool) -> Variant | None:
    """ComfyUI's TrainLoraNode on a UNet of the same topology, or None without ComfyUI."""
    if comfyui_of_the_tests().find() is None:
        return None
    recipes = start_host()
    from comfy_extras.nodes_train import TrainLoraNode

    layout = UNETS["sd15"]
    model = recipes.unet({**layout.config, "model_channels": size.width}, num_heads=8, num_head_channels=-1)
    positive = recipes.conditioning(TEXT_WIDTH, pooled=None, seed=1)
    latents = {"samples": torch.randn(1, 4, size.side, size.side)}

    def run(steps: int) -> None:
        options: dict[str, Any] = {
            "batch_size": 1,
            "steps": steps,
            "grad_accumulation_steps": 1,
            "learning_rate": 1e-4,
            "rank": RANK,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": 0,
            "training_dtype": "fp32",
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": checkpointing,
            "existing_lora": "[None]",
        }
        TrainLoraNode().train(model, latents, positive, **options)

    return run


# A MagiCapture step ---------------------------------------------------------------------------------------------------


def stand_in() -> nn.Module:
    """For the recogniser: 1 % of a step in either variant, as iResNet-100's 12 of 4900 billion multiplications."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 4), nn.Flatten(), nn.Linear(32 * 49, 64)
    )


class BothOnly(ShotStream):
    """Composed prompts, the most expensive samples."""

    def items(self) -> list[tuple[ShotKind, int, int]]:
        return [(ShotKind.BOTH, 0, 0)]


def magicapture_ours(base: BaseModel, steps: int) -> Recipe:
    """The second phase, composed samples."""
    side = base.unet.config.sample_size
    portraits = [Portrait(photo(side), keypoints(side), torch.randn(64))]
    settings = MagiCaptureSettings(tuning_steps=steps)
    recipe = magicapture(base, portraits, portraits, settings, measure=arcface_measure(stand_in()))
    stream = BothOnly(portraits, portraits, settings, (side, side), 0, True)
    return replace(recipe, phases=[replace(recipe.phases[1], streams=[stream])])


class ExplicitAttention:
    """Softmax by hand, all maps of up to 1024 positions kept."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if maps.shape[1] <= 1024:
            self.kept.append(maps)
        return attn.to_out[0](attn.batch_to_head_dim(maps @ v))


def magicapture_official(base: BaseModel) -> Variant:
    """The same step in the official code's structure, with its checkpointing."""

    def run(steps: int) -> None:
        unet, encoder = copy.deepcopy(base.unet), copy.deepcopy(base.text[0].encoder)
        groups = [LoraSettings(reach=Reach.ATTENTION_AND_GEGLU).add_to(unet), LoraSettings().add_to(encoder)]
        encoder.get_input_embeddings().requires_grad_(True)
        parameters = [p for group in groups for p in group.values()] + [encoder.get_input_embeddings().weight]
        kept: list[Tensor] = []
        unet.set_attn_processor(ExplicitAttention(kept))
        unet.enable_gradient_checkpointing()
        for network in (unet, encoder):
            network.train()
        optimiser = torch.optim.AdamW(parameters, lr=1e-4)
        side = unet.config.sample_size
        shown, points, measure = photo(side), keypoints(side).unsqueeze(0), arcface_measure(stand_in())
        latents, face = torch.randn(1, 4, side, side), torch.randn(1, 64)
        assert shown.face_mask is not None
        mask = soft_mask(1 - shown.face_mask.unsqueeze(0), (side, side))
        ids = base.text[0].ids(["a photo of a person in the style of a person"])
        grid = (side // 4, side // 4)
        for _ in range(steps):
            noise, (t, t_id) = torch.randn_like(latents), torch.randint(800, (2, 1))
            text = encoder(ids).last_hidden_state
            kept.clear()
            prediction = unet(base.schedule.add_noise(latents, noise, t), t, text).sample
            cross = [m for m in kept if m.shape[1:] == (grid[0] * grid[1], 77)]
            maps = [m[:, :, [4, 9]].transpose(1, 2).unsqueeze(0) for m in cross]
            refocus = attention_refocusing(maps, regions(ShotKind.BOTH, mask, 1, 1), grid).sum()
            z_t = base.schedule.add_noise(latents, noise, t_id)
            z0 = base.schedule.estimate_z0(z_t, unet(z_t, t_id, text).sample, t_id)
            picture = Decoder.of(base.codec.module).picture(z0)
            likeness = identity(picture, points, face, measure).mean()
            (masked_reconstruction(prediction, noise, mask).mean() + 0.25 * likeness + 2.5 * refocus).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


# A Custom Diffusion step ----------------------------------------------------------------------------------------------


def concept_bare(base: BaseModel) -> Variant:
    """The loop of diffusers' example, with its attention processors, latents ready: keys, values and a word."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0

    def run(steps: int) -> None:
        unet, encoder = copy.deepcopy(base.unet), copy.deepcopy(base.text[0].encoder)
        weights, processors = unet.state_dict(), {}
        for name in unet.attn_processors:
            layer = name.removesuffix(".processor")
            key = weights[f"{layer}.to_k.weight"]
            crosses = layer.endswith("attn2")
            processor = CustomDiffusionAttnProcessor2_0(crosses, False, len(key), key.shape[1] if crosses else None)
            if crosses:
                processor.to_k_custom_diffusion.weight.data.copy_(key)
                processor.to_v_custom_diffusion.weight.data.copy_(weights[f"{layer}.to_v.weight"])
            processors[name] = processor
        unet.set_attn_processor(processors)
        table = encoder.get_input_embeddings().requires_grad_(True)
        trained = [p for processor in processors.values() for p in processor.parameters()]
        unet.train()
        encoder.train()
        optimiser = torch.optim.AdamW([table.weight, *trained], lr=1e-5)
        side, learned = base.unet.config.sample_size, 5
        latents, mask = torch.randn(2, 4, side, side), torch.ones(1, 1, side, side)
        ids = base.text[0].ids(["a photo of a person", "a photo of a person"])
        for _ in range(steps):
            noise, t = torch.randn_like(latents), torch.randint(1000, (2,))
            text = encoder(ids).last_hidden_state
            prediction = unet(base.schedule.add_noise(latents, noise, t), t, text).sample
            mine, others = prediction.chunk(2)
            instance = ((mine - noise[:1]).square() * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])
            (instance.mean() + torch.nn.functional.mse_loss(others, noise[1:])).backward()
            assert table.weight.grad is not None
            table.weight.grad[torch.arange(len(table.weight)) != learned] = 0
            torch.nn.utils.clip_grad_norm_([table.weight, *trained], 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


def concept(**options: Any) -> Callable[[BaseModel, int], Recipe]:
    """One word beside class images, as faces are trained."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        chosen = {"steps": steps, "zoom": Zoom.NONE, "start": ("person",), "prompt": "a photo of a {}", **options}
        side = base.unet.config.sample_size
        others = [replace(photo(side), caption="a photo of a person")]
        return custom_diffusion(base, [[photo(side)]], CustomDiffusionSettings(**chosen), 0, [others])

    return recipe


# A SeFi-IDE step ------------------------------------------------------------------------------------------------------


def word(base: BaseModel) -> Variant:
    """Textual Inversion of one vector, in the engine."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        settings = TextualInversionSettings(token="<a>", steps=steps, captions=False, flip=0.0)
        return textual_inversion(base, [photo(base.unet.config.sample_size)], settings)

    return ours(base, recipe)


def subject(**options: Any) -> Callable[[BaseModel, int], Recipe]:
    """The tokens of one photo."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        settings = SefiIdeSettings(steps=steps, **options)
        return sefi_ide(base, [photo(base.unet.config.sample_size)], settings)

    return recipe


# A few-shot step of BLIP-Diffusion ------------------------------------------------------------------------------------


def tuned_bare(tuned: Tuned) -> Callable[[BaseModel], Variant]:
    """A loop of diffusers, transformers and peft that trains the same parameters, with latents ready."""

    def variant(base: BaseModel) -> Variant:
        def run(steps: int) -> None:
            twin = replace(base, unet=copy.deepcopy(base.unet), text=copy.deepcopy(base.text))
            vocabulary = Vocabulary(twin, [NewToken("<a>", QUERIES, "person")])
            parameters = list(vocabulary.rows.values())
            if tuned is Tuned.LORA:
                parameters += LoraSettings(rank=RANK).add_to(twin.unet).values()
            twin.unet.train()
            optimiser = torch.optim.AdamW(parameters, lr=1e-4)
            side = base.unet.config.sample_size
            latents, ids = torch.randn(1, 4, side, side), twin.text[0].chunks(vocabulary.spell("a <a> person"))
            for _ in range(steps):
                noise, t = torch.randn_like(latents), torch.randint(1000, (1,))
                text = twin.encoders[0](ids[:, : QUERIES + 4]).last_hidden_state
                prediction = twin.unet(base.schedule.add_noise(latents, noise, t), t, text).sample
                torch.nn.functional.mse_loss(prediction, noise).backward()
                optimiser.step()
                optimiser.zero_grad()

        return run

    return variant


def tuned(what: Tuned) -> Callable[[BaseModel, int], Recipe]:
    """Vectors of one photo, with a LoRA or alone."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        settings = BlipDiffusionSettings(steps=steps, tuned=what, lora=LoraSettings(rank=RANK))
        return blip_diffusion(base, [photo(base.unet.config.sample_size)], settings)

    return recipe


# A PhotoVerse step ----------------------------------------------------------------------------------------------------

CLIP_WIDTH, MAPS = 1024, 5


class StillClip:
    """CLIP ViT-L/14's sizes with constant states, so that no step pays for it, as ours pays once for each photo."""

    size = EncoderSize(CLIP_WIDTH, 768, 224)

    def encode_pixels(self, pixels: Tensor) -> Any:
        raise NotImplementedError

    def hidden_states(self, pixels: Tensor, layers: Any) -> list[Tensor]:
        random = torch.Generator().manual_seed(1)
        return [torch.randn(1, 257, CLIP_WIDTH, generator=random) for _ in layers]


class DualBranch(nn.Module):
    """An attention processor in diffusers' manner: the text's attention and that to the image, added up."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.to_k, self.to_v = copy.deepcopy(attention.to_k), copy.deepcopy(attention.to_v)
        self.tokens: Tensor

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        attend = torch.nn.functional.scaled_dot_product_attention
        q = heads(attn.to_q(hidden_states))
        text = attend(q, heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states)))
        image = attend(q, heads(self.to_k(self.tokens)), heads(self.to_v(self.tokens)))
        return attn.to_out[0]((text + image).transpose(1, 2).flatten(2))


def photoverse_bare(base: BaseModel) -> Variant:
    """The same parameters in a loop of diffusers and peft, with states of CLIP and latents ready, without the losses
    that are PhotoVerse's own."""

    def run(steps: int) -> None:
        from likeness.adapters.photoverse.networks import AdapterSizes, FeatureAdapter

        unet, encoder = copy.deepcopy(base.unet), copy.deepcopy(base.text[0].encoder)
        processors = dict(unet.attn_processors)
        for name in processors:
            if name.endswith("attn2.processor"):
                attention = unet.get_submodule(name.removesuffix(".processor"))
                processors[name] = DualBranch(attention).requires_grad_(True)
        branches = [processor for processor in processors.values() if isinstance(processor, DualBranch)]
        unet.set_attn_processor(processors)
        paths = [path for path, _ in unet.named_modules() if path.endswith(("attn2.to_k", "attn2.to_v"))]
        lora = add_lora(unet, paths, RANK)
        for branch in branches:
            branch.requires_grad_(True)
        adapters = [FeatureAdapter(AdapterSizes(MAPS, CLIP_WIDTH, CLIP_WIDTH, TEXT_WIDTH)) for _ in range(2)]
        modules = [*adapters, *branches]
        trained = [*lora, *(parameter for module in modules for parameter in module.parameters())]
        unet.train()
        encoder.train()
        optimiser = torch.optim.AdamW(trained, lr=1e-4)
        side = base.unet.config.sample_size
        latents, states = torch.randn(1, 4, side, side), StillClip().hidden_states(torch.empty(0), range(MAPS))
        ids = torch.stack(base.text[0].ids(["a photo of a person"]).unbind())
        table = encoder.get_input_embeddings()
        for _ in range(steps):
            noise, t = torch.randn_like(latents), torch.randint(1000, (1,))
            words, tokens = (adapter(states) for adapter in adapters)
            for branch in branches:
                branch.tokens = tokens

            def put(_module: Any, _given: Any, out: Tensor, words: Tensor = words) -> Tensor:
                return torch.cat([out[:, :4], words, out[:, 5:]], dim=1)[:, : out.shape[1]]

            hook = table.register_forward_hook(put)
            text = encoder(ids).last_hidden_state
            hook.remove()
            prediction = unet(base.schedule.add_noise(latents, noise, t), t, text).sample
            torch.nn.functional.mse_loss(prediction, noise).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


# A FastComposer step --------------------------------------------------------------------------------------------------


def subject_encoder() -> SubjectEncoder:
    """As narrow beside CLIP ViT-L/14 as the UNet is beside SD1.5's."""
    torch.manual_seed(0)
    tower = ClipTower(TowerSizes(width=320, inner=1280, layers=24, heads=5, patch=14, image_size=224))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    weights = {f"image_encoder.vision_model.{key}": value for key, value in tower.state_dict().items()}
    weights["image_encoder.visual_projection.weight"] = torch.randn(TEXT_WIDTH, 320) / 18
    fuse = FuseModule(TEXT_WIDTH).state_dict()
    return SubjectEncoder(weights | {f"postfuse_module.{key}": value for key, value in fuse.items()})


def composer_bare(base: BaseModel) -> Variant:
    """The loop of diffusers' example with FastComposer's networks, latents, text and images ready: two people."""

    def run(steps: int) -> None:
        unet, networks = copy.deepcopy(base.unet).requires_grad_(True), subject_encoder().requires_grad_(False)
        layers: Any = networks.image_encoder.vision_model.encoder.layers
        for part in (networks.postfuse_module, *layers[-2:]):
            part.requires_grad_(True)
        trained = [*unet.parameters(), *(p for p in networks.parameters() if p.requires_grad)]
        unet.train()
        optimiser = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
        side = base.unet.config.sample_size
        latents, text = torch.randn(1, 4, side, side), torch.randn(1, 77, TEXT_WIDTH)
        images, marks = torch.rand(1, 2, 3, 224, 224), torch.arange(77)[None] % 4 == 2
        for _ in range(steps):
            noise, t = torch.randn_like(latents), torch.randint(1000, (1,))
            people = networks.image_encoder(images)
            told = fuse_marked(networks.postfuse_module, text, marks, people, torch.tensor([2]))
            prediction = unet(base.schedule.add_noise(latents, noise, t), t, told).sample
            torch.nn.functional.mse_loss(prediction, noise).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return run


def faces(side: int) -> People:
    """One photo of one person."""
    shown = photo(side)
    assert shown.face_mask is not None
    pixels = ((shown.pixels.permute(1, 2, 0) / 2 + 0.5) * 255).byte().numpy()
    size = pixels.shape[:2]
    box = np.array([2.5, 2.0, 5.5, 6.0], np.float32) * side
    face = Face(box, 1.0, keypoints(side).numpy(), None, None)
    example = FramedPhoto(Photo("face.png", pixels), Frame(0, 0, *size, size), size, "")
    return People((PersonPhoto("person", example, face, "face"),))


def person(**options: Any) -> Callable[[BaseModel, int], Recipe]:
    """Adapters, branch and LoRA; everybody is seen, in both branches."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        chosen = {"lambda_face": 0, "mask": FaceMask.NONE, "rank": RANK, "drop": {"person": 0, "text": 0, "both": 0}}
        settings = PhotoVerseSettings(steps=steps, **{**chosen, **options})
        measure = arcface_measure(stand_in())
        materials = PeopleMaterials(faces(base.unet.config.sample_size), clip=StillClip(), measure=measure)
        return photoverse(base, materials, settings)

    return recipe


class InMemory(list):
    """Images with people that need no folder."""

    stay = True


def composer(weight: float) -> Callable[[BaseModel, int], Recipe]:
    """One image of two people, both always shown."""

    def recipe(base: BaseModel, steps: int) -> Recipe:
        side = 8 * base.unet.config.sample_size
        people = []
        for left in (0, side // 2):
            shown = torch.zeros(side, side)
            shown[side // 8 :, left : left + side // 2] = 1
            people.append(Subject(torch.rand(1, 400, 300, 3), torch.ones(1, 400, 300, dtype=torch.bool), shown))
        pixels = torch.rand(3, side, side) * 2 - 1
        photos: Any = InMemory([SubjectExample(pixels, "a man img and a woman img", subjects=tuple(people))])
        settings = FastComposerSettings(steps=steps, localisation_weight=weight, unconditional=0, keep_subject=1)
        return fastcomposer(base, photos, subject_encoder(), settings)

    return recipe


def photoverse_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the bare loop that trains the same parameters."""
    plain = {"lambda_text": 0, "lambda_visual": 0}
    return {
        "PhotoVerse, denoising alone": ours(base, person(**plain)),
        "PhotoVerse, both regularisers": ours(base, person()),
        "PhotoVerse, and the face loss at every timestep": ours(
            base, person(lambda_face=0.01, last_face_timestep=1000)
        ),
    }


# Measuring ------------------------------------------------------------------------------------------------------------


def seconds(run: Variant, steps: int) -> list[float]:
    """Process time of every step but the first, whoever trains."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.process_time()))
    try:
        run(steps)
    finally:
        hook.remove()
    return [after - before for before, after in itertools.pairwise(ends)]


def table(title: str, variants: Mapping[str, Variant], rounds: int, steps: int) -> str:
    """Ratios to the first variant, as Markdown."""

    def timed(run: Variant) -> float:
        return statistics.median(seconds(run, steps))

    times = measure({name: partial(timed, run) for name, run in variants.items()}, rounds)
    first = next(iter(times.values()))
    lines = [
        f"### {title}: {rounds} rounds of {steps} steps",
        "",
        "| variant | s per step | ratio of medians | paired median | quartiles |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {statistics.median(t):.3f} | {compared(t, first)} |" for name, t in times.items()]
    return "\n".join(lines)


EARLIER = "likeness_earlier"  # what another checkout's pack is imported as


class EarlierBenchmark(SourceFileLoader):
    """Reads a benchmark whose imports are of that other pack."""

    def path_stats(self, path: str) -> Any:
        raise OSError  # neither reads nor writes compiled files

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:
        return super().source_to_code(data.replace(b"from likeness.", f"from {EARLIER}.".encode()), path, **options)


def earlier(checkout: Path) -> ModuleType:
    """The benchmark of another checkout, on a copy of the pack of its own that stands beside this one's."""

    def imported(name: str, **where: Any) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, **where)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    imported(EARLIER, location=checkout / "__init__.py", submodule_search_locations=[str(checkout)])
    loader = EarlierBenchmark("earlier_training", str(checkout / "benchmarks" / "training.py"))
    return imported(loader.name, location=loader.path, loader=loader)


def lora_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the bare loop."""
    return {
        "LoRA": ours(base, lora()),
        "LoRA, face mask": ours(base, lora(Mask.FACE_NORMALISED)),
        "LoRA, mask and attention": ours(base, refocusing),
        "LoRA, latents and text not cached": ours(base, lora(), cache_latents=False, cache_text=False),
        "LoRA, checkpointing": ours(base, lora(), gradient_checkpointing=True),
    }


def concept_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the loop of diffusers' example."""
    return {
        "Custom Diffusion": ours(base, concept()),
        "Custom Diffusion, face mask": ours(base, concept(face_mask=True)),
        "Custom Diffusion, zoom": ours(base, concept(zoom=Zoom.ADOBE)),
    }


def subject_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with a step of Textual Inversion."""
    return {
        "SeFi-IDE, table": ours(base, subject(tokens=Tokens.TABLE)),
        "SeFi-IDE, generator": ours(base, subject()),
        "SeFi-IDE, table, loss in all layers": ours(base, subject(tokens=Tokens.TABLE, layers=Layers.ALL)),
        "SeFi-IDE, table, no attention loss": ours(base, subject(tokens=Tokens.TABLE, lambda_attention=0)),
    }


def tuned_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the bare loop."""
    return {"BLIP-Diffusion, vectors and LoRA": ours(base, tuned(Tuned.LORA))}


def vector_steps(base: BaseModel) -> dict[str, Variant]:
    """The same of the vectors alone."""
    return {"BLIP-Diffusion, vectors": ours(base, tuned(Tuned.VECTORS))}


def composer_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the bare loop that trains the same parameters."""
    return {
        "FastComposer, no localisation loss": ours(base, composer(0.0)),
        "FastComposer": ours(base, composer(1e-3)),
    }


def magicapture_steps(base: BaseModel) -> dict[str, Variant]:
    """Ours, to be compared with the official structure."""
    return {
        "ours": ours(base, magicapture_ours, gradient_checkpointing=True),
        "ours, no checkpointing": ours(base, magicapture_ours),
    }


def map_bytes() -> str:
    """Attention maps in float32 of SD1.5 at 512: all of them, and what the probe makes."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280))
    everything = probed = 0
    for (height, width), sites in sites_by_grid(unet, (64, 64)).items():
        places = height * width
        for site in sites:
            everything += 4 * site.heads * places * (places + 77)
            if (height, width) == (16, 16):
                probed += 4 * site.heads * places * (77 + 2)  # the scores, then the columns of two words
    share = probed / everything
    return f"Attention maps: all {everything / 2**20:.0f} MiB, probed {probed / 2**20:.1f} MiB ({share:.2%})."


SD15_TEXT, SD15_VAE = 123_060_480, 83_653_863  # parameters


def sd15_without_memory() -> Any:
    """SD1.5's UNet in bfloat16."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280)
        )
    return unet.to(torch.bfloat16)


def activation_bytes(unet: Any, learns_text: bool = False) -> dict[str, int]:
    """What a step of batch 1 at 512 keeps for its backward pass, with checkpointing. learns_text: the gradient goes to
    the text, not to weights."""
    inputs, segments = 0, [0]

    def checkpoint(module: nn.Module, *args: Any) -> Any:
        nonlocal inputs
        inputs += sum(a.numel() * a.element_size() for a in args if isinstance(a, Tensor))
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                saved[id(tensor)] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = module(*args)
        segments.append(sum(saved.values()))
        return found

    unet.enable_gradient_checkpointing(checkpoint)
    unet.train()
    sample = torch.empty(1, 4, 64, 64, dtype=torch.bfloat16, device="meta")
    text = torch.empty(1, 77, 768, dtype=torch.bfloat16, device="meta", requires_grad=learns_text)
    unet(sample, torch.empty(1, device="meta"), text)
    return {"checkpoints": inputs, "largest block": max(segments)}


def listed_bytes(what: str, unet: Any, parts: Mapping[str, int]) -> str:
    """The peak of a training at 512, batch 1, bfloat16, checkpointing: counted on tensors without memory."""
    fixed = {
        "UNet": 2 * sum(p.numel() for p in unet.parameters()),
        "text encoder and VAE": 2 * SD15_TEXT + 4 * SD15_VAE,  # bfloat16 and float32
    }
    everything = fixed | dict(parts)
    listed = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in everything.items())
    total = sum(everything.values())
    return f"SD1.5 {what} training at 512, batch 1, bfloat16, checkpointing: {total / 2**30:.2f} GiB ({listed})."


def lora_bytes() -> str:
    """Peak of LoRA training."""
    unet = sd15_without_memory()
    with torch.device("meta"):
        trained = LoraSettings(rank=RANK).add_to(unet)
    for parameter in trained.values():
        parameter.data = parameter.data.bfloat16()  # activations are bfloat16 under autocast; the weights count below
    adapters = 4 * 4 * sum(p.numel() for p in trained.values())  # values, gradients, two moments, float32
    return listed_bytes("LoRA", unet, {"LoRA and optimiser": adapters, **activation_bytes(unet)})


def subject_bytes() -> str:
    """Peak of SeFi-IDE training with the network that makes the tokens."""
    unet = sd15_without_memory().requires_grad_(False)
    compared, maps = 16, 0  # tokens of a prompt
    for (height, width), sites in sites_by_grid(unet, (64, 64)).items():
        if height <= 32:
            places = height * width
            # The maps of both prompts, and what a layer computes them from: all scores.
            maps += sum(4 * site.heads * places * (2 * compared + 2 * 77) for site in sites)
    with torch.device("meta"):
        tokens = 4 * 4 * sum(p.numel() for p in TokenGenerator(TEXT_WIDTH).parameters())
    text = 2 * 2 * 12 * 77 * 768 * 2 * 14  # keys and values, bfloat16: about 14 widths of a token in each layer
    parts = {"network and optimiser": tokens, "text": text, "attention maps": maps}
    return listed_bytes("SeFi-IDE", unet, {**parts, **activation_bytes(unet, learns_text=True)})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="a regular expression for the variants' names, such as Custom")
    parser.add_argument("--before", type=Path, help="another checkout of this pack, from this benchmark's form on")
    parser.add_argument("--smoke", action="store_true", help="Tiny models, two rounds.")
    arguments = parser.parse_args()
    plain, large = (Size(32, 16, 1), Size(32, 16, 1)) if arguments.smoke else (Size(96, 32), Size(48, 64))
    rounds, steps = (2, 2) if arguments.smoke else (arguments.rounds, arguments.steps)
    torch.set_num_threads(1)
    before = earlier(arguments.before) if arguments.before else None
    print(map_bytes())
    print(lora_bytes())
    print(subject_bytes())

    def compare(title: str, size: Size, first: str, other: Callable[[BaseModel], Variant], kind: str) -> None:
        """kind: the function of this module, or of the earlier one, that gives a base model's variants."""
        base = build(size)
        found = globals()[kind](base)
        if before is not None:
            old = getattr(before, kind)(before.build(before.Size(size.width, size.side, size.layers)))
            found |= {f"{name}, before": run for name, run in old.items()}
        if kind == "lora_steps":
            for name, checkpointing in (("", False), (", checkpointing", True)):
                if host := host_trainer(size, checkpointing):
                    found[f"ComfyUI TrainLoraNode{name}"] = host
        found = {name: run for name, run in found.items() if re.search(arguments.only, name)}
        if found:
            title = f"{title}, width {size.width}, latent {size.side}"
            print(table(title, {first: other(base), **found}, rounds, steps), end="\n\n", flush=True)

    compare("LoRA step", plain, "bare diffusers and peft loop", bare, "lora_steps")
    compare("Custom Diffusion step", plain, "bare diffusers loop", concept_bare, "concept_steps")
    # At this width twelve layers of text would cost 0.7 of the UNet's operations; of SD1.5's it is 0.016, here 0.06.
    compare("SeFi-IDE step", replace(plain, layers=1), "Textual Inversion", word, "subject_steps")
    for what, kind in ((Tuned.LORA, "tuned_steps"), (Tuned.VECTORS, "vector_steps")):
        title = f"BLIP-Diffusion step, {what.value}"
        compare(title, replace(plain, layers=1), "bare loop", tuned_bare(what), kind)
    compare("PhotoVerse step", plain, "bare loop of the same parameters", photoverse_bare, "photoverse_steps")
    # So of adapters, whose texts are read once.
    few = replace(plain, layers=1)
    for title, loop, kind in (
        ("FaceID step", faceid_bare, faceid_steps),
        ("InstantID step", instantid_bare, instantid_steps),
        ("PuLID step, stage 1", pulid_bare, pulid_steps),
        ("PuLID step, stage 3", pulid_bare_aligned, pulid_aligned_steps),
    ):
        compare(title, few, "bare diffusers loop", loop, kind.__name__)
    compare("FastComposer step", replace(plain, layers=1), "bare FastComposer loop", composer_bare, "composer_steps")
    compare(
        "MagiCapture step with a composed prompt",
        large,
        "official structure",
        magicapture_official,
        "magicapture_steps",
    )


if __name__ == "__main__":
    main()
