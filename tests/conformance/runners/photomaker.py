"""PhotoMaker: the fuse module, the ID encoders, the expanded prompt, and whole sampling runs across the merge."""

from __future__ import annotations

from typing import Any

import comfyui
import pytest
import torch
from conformance import harness
from torch import Tensor

from likeness.adapters.effects import PromptEdit, PromptStates, Scope
from likeness.adapters.image_prep import pixel_values
from likeness.adapters.networks import FuseModule
from likeness.adapters.photomaker import IdEncoder, LongPrompts, PhotoMaker, expand
from likeness.adapters.text_encoder import Tower, tokenised
from likeness.injection.diffusers import DiscreteLevels, SamplingRun, apply_effects
from likeness.training.base.noise import NoiseSchedule


def places_of(mask: Tensor) -> Tensor:
    """(1, n) -> the marked places"""
    return mask[0].nonzero().flatten()


@harness.runs("photomaker", r"fuse_module")
def fuse_module(case: Any) -> dict[str, Tensor]:
    fuse = FuseModule(case.config["embed_dim"])
    fuse.load_state_dict(case.weights)
    given = case.inputs
    states = given["prompt_embeds"].clone()
    changed = fuse.into(states, places_of(given["class_tokens_mask"]), given["id_embeds"].flatten(1, 2))
    assert torch.equal(states, given["prompt_embeds"])
    return {"updated_prompt_embeds": changed}


def head_widths(config: dict[str, Any]) -> tuple[int, int]:
    vision, resampler = config["vision"], config.get("qformer", {})
    return vision["hidden_size"] // vision["num_attention_heads"], resampler.get("dim_head", 1)


def embeddings_of(case: Any) -> Tensor | None:
    given = case.inputs.get("id_embeds")
    return None if given is None else given.flatten(0, -2)


@harness.runs("photomaker", r"v[12]_id_encoder.*")
def id_encoder(case: Any) -> dict[str, Tensor]:
    encoder = IdEncoder(case.weights, *head_widths(case.config)).eval()
    given = case.inputs
    tokens = encoder.id_tokens(given["id_pixel_values"][0], embeddings_of(case))
    places = places_of(given["class_tokens_mask"])
    changed = encoder.fuse_module.into(given["prompt_embeds"], places, tokens.flatten(0, 1).unsqueeze(0))
    return {"id_tokens": tokens.unsqueeze(0), "updated_prompt_embeds": changed}


@harness.runs("photomaker", r"clip_preprocess")
def clip_preprocess(case: Any) -> dict[str, Tensor]:
    return {"pixel_values": pixel_values(case.inputs["image"], case.config["size"])}


# The prompt -----------------------------------------------------------------------------------------------------------


class Vocabulary:
    """CLIP's own, for two towers that pad differently."""

    def __init__(self, config: dict[str, Any]) -> None:
        from transformers import CLIPTokenizer

        host = comfyui.find()
        if host is None:
            pytest.skip(f"the vocabulary of CLIP {comfyui.HOW_TO_GET_IT}")
        self.tokenizer = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer")
        length = config["max_length"]
        self.towers = tuple(
            Tower(name, width, pad=config[f"pad_id_{name[-1]}"], length=length)
            for name, width in (("clip_l", 768), ("clip_g", 1280))
        )

    def tokenize(self, text: str) -> dict[str, Any]:
        return {tower.name: tokenised(self.tokenizer, text) for tower in self.towers}

    def encode(self, windows: Any, layer: int | None = None) -> Any:
        raise NotImplementedError


@harness.runs("photomaker", r"trigger_tokens.*")
def trigger_tokens(case: Any) -> dict[str, Tensor]:
    config, vocabulary = case.config, Vocabulary(case.config)
    rows: dict[str, list[Any]] = {}
    for number, prompt in enumerate(config["prompts"]):
        count = int(case.inputs["num_images"][number] * case.inputs["num_tokens"][number])
        expanded = expand(vocabulary, vocabulary.tokenize(prompt), (config["trigger_word"],), (count,), LongPrompts.CUT)
        mask = torch.zeros(config["max_length"], dtype=torch.int64)
        mask[expanded.places[0]] = 1
        rows.setdefault("class_tokens_mask", []).append(mask.tolist())
        for tower in vocabulary.towers:
            for prefix, windows in (("ids", expanded.windows), ("text_only_ids", expanded.plain)):
                (window,) = windows[tower.name]
                rows.setdefault(f"{prefix}_{tower.name[-1]}", []).append([token.id for token in window])
    return {name: torch.tensor(row) for name, row in rows.items()}


# Whole runs -----------------------------------------------------------------------------------------------------------


def adapter_of(case: Any) -> PhotoMaker:
    weights = {key: value for key, value in case.weights.items() if not key.startswith("unet.")}
    return PhotoMaker(weights, "golden", *head_widths(case.config))


def fused(case: Any, adapter: PhotoMaker) -> Tensor:
    """The prompt with the person in it."""
    given = case.inputs
    tokens = adapter.encode(given["id_pixel_values"][0], embeddings_of(case))
    return adapter.fuse(given["prompt_embeds"], places_of(given["class_tokens_mask"]), tokens)


@harness.runs("photomaker", r"v[12]_e2e.*")
def sampling_run(case: Any) -> dict[str, Tensor]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from likeness.adapters.photomaker import PhotoMakerOptions

    config, given = case.config, case.inputs
    unet = UNet2DConditionModel(**config["unet"])
    unet.load_state_dict(case.weights_below("unet."))
    adapter = adapter_of(case)
    with_person = fused(case, adapter)
    first = PhotoMakerOptions(merge_step=config["start_merge_step"]).first_step(0.0)
    assert first is not None
    sigmas = given["sigmas"]
    told = PromptStates(with_person, given["pooled"])
    effects = [adapter.lora(config["lora_scale"]), PromptEdit(lambda _text: told, Scope(first_step=first))]
    run = SamplingRun.through(sigmas, DiscreteLevels(NoiseSchedule.scaled_linear().alphas_cumprod))
    text = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds_text_only"]])
    pooled = torch.cat([given["negative_pooled"], given["pooled_text_only"]])
    added = {"text_embeds": pooled, "time_ids": given["time_ids"].expand(2, -1)}
    latent = given["noise"] * (sigmas.max() ** 2 + 1).sqrt()
    seen, said = [], []
    with torch.no_grad(), apply_effects(unet.eval(), effects, run=run) as applied:
        for step, timestep in enumerate(given["timesteps"]):
            applied.at_step(step)
            both = torch.cat([latent / (sigmas[step] ** 2 + 1).sqrt()] * 2)
            eps = unet(both, timestep, text, added_cond_kwargs=added).sample
            negative, positive = eps.chunk(2)
            guided = negative + config["guidance_scale"] * (positive - negative)
            latent = latent + guided * (sigmas[step + 1] - sigmas[step])
            seen.append(both)
            said.append(eps)
    return {
        "latents": latent,
        "model_input": torch.stack(seen),
        "noise_pred": torch.stack(said),
        "updated_prompt_embeds": with_person,
    }
