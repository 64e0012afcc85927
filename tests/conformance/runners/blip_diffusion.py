"""BLIP-Diffusion: the subject encoder in both layouts, the prompt, the insertion, few-shot tuning, a sampling run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfyui
import pytest
import torch
from conformance import harness
from torch import Tensor

from likeness.adapters.blip_diffusion.files import Contents, build_encoder, read
from likeness.adapters.blip_diffusion.networks import HeadSizes, SubjectEncoder
from likeness.adapters.blip_diffusion.prompt import SUBJECT_AT, Insertion, repeated, write
from likeness.adapters.blip_diffusion.subject import BlipDiffusionOptions, ratios
from likeness.adapters.image_prep import Crop, pixel_values
from likeness.adapters.text_encoder import Token, Tower, TransformersTextEncoder, tokenised
from likeness.training.base.model import BaseModel, Codec, TextTower
from likeness.training.base.noise import NoiseSchedule
from likeness.training.base.placeholders import PlaceholderEmbedding
from likeness.training.objectives.reconstruction import squared_error

from ._training import schedule_of, text_encoder_of, unet_of


def contents_of(case: Any) -> Contents:
    vision, queries = case.config["vision"], case.config["qformer"]
    sizes = HeadSizes(
        vision["hidden_size"] // vision["num_attention_heads"],
        queries["hidden_size"] // queries["num_attention_heads"],
        vision["layer_norm_eps"],
    )
    return replace(read(case.weights, "golden"), sizes=sizes)


def encoder_of(case: Any) -> SubjectEncoder:
    return build_encoder(contents_of(case), "golden")


def read_images(case: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(case.inputs[name] for name in ("pixel_values", "text_input_ids", "text_attention_mask"))  # type: ignore[return-value]


@harness.runs("blip_diffusion", r"qformer.*")
def subject_encoder(case: Any) -> dict[str, Tensor]:
    encoder, given = encoder_of(case), read_images(case)
    with torch.no_grad():
        return {"multimodal_embeds": encoder.features(*given), "ctx_embeddings": encoder(*given)}


@harness.runs("blip_diffusion", r"image_preprocess.*")
def image_preprocess(case: Any) -> dict[str, Tensor]:
    image, size = case.inputs["image"], case.config["size"]
    crops = {"crop": Crop.CENTRE, "stretch": Crop.SQUASH}
    return {name: pixel_values(image, size, crop) for name, crop in crops.items() if name in case.expected}


# The prompt -----------------------------------------------------------------------------------------------------------


def without_vectors(window: Any) -> list[Any]:
    return [token.id for token in window if not isinstance(token.id, Tensor)]


@harness.runs("blip_diffusion", r"prompt.*")
def prompt(case: Any) -> dict[str, Tensor]:
    from transformers import CLIPTokenizer

    host = comfyui.find()
    if host is None:
        pytest.skip(f"the vocabulary of CLIP {comfyui.HOW_TO_GET_IT}")
    tokenizer = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer")
    config = case.config
    tower = Tower("clip_l", 768, pad=config["pad_id"])
    vectors = torch.zeros(config["num_query_tokens"], tower.width)
    rows = []
    for row, built in zip(config["rows"], config["built"], strict=True):
        text = repeated(row["prompt"], row["tgt_subject"], int(row["strength"] * row["reps"]))
        assert text == built
        window = write(tower, tokenised(tokenizer, text), [Insertion(vectors, SUBJECT_AT)]).window
        start = config["ctx_begin_pos"]
        assert len(window) == 77 and all(isinstance(t.id, Tensor) for t in window[start : start + len(vectors)])
        rows.append(without_vectors(window))
    return {"input_ids": torch.tensor(rows)}


class Tokenizer:
    """What a text encoder asks of one, where the ids are given."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.bos_token_id = self.eos_token_id = self.pad_token_id = 0
        self.model_max_length = config["max_position_embeddings"]


def text_encoder(case: Any) -> TransformersTextEncoder:
    weights = case.weights_below("text_encoder.") or case.weights
    return TransformersTextEncoder([("clip_l", Tokenizer(case.config["text"]), text_encoder_of(case, weights))])


def encoded(case: Any, ids: Tensor, vectors: Tensor | None = None) -> Tensor:
    """ids: (n, length), start and end tokens included; vectors: (n, queries, dim)"""
    encoder, rows = text_encoder(case), []
    for number, row in enumerate(ids.tolist()):
        window = [Token(one) for one in row]
        if vectors is not None:
            start = case.config["ctx_begin_pos"]
            window[start:start] = [Token(vector) for vector in vectors[number]]
        rows.append(encoder.encode({"clip_l": [window]}).states)
    return torch.cat(rows)


@harness.runs("blip_diffusion", r"text_encoder.*")
def context(case: Any) -> dict[str, Tensor]:
    given = case.inputs
    outputs = {"hidden": encoded(case, given["input_ids"], given["ctx_embeddings"])}
    if "negative_input_ids" in given:
        outputs["negative_hidden"] = encoded(case, given["negative_input_ids"])
    return outputs


# Sampling and tuning --------------------------------------------------------------------------------------------------


@harness.runs("blip_diffusion", r"e2e.*")
def sampling_run(case: Any) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    with torch.no_grad():
        vectors = encoder_of(case)(*read_images(case))
    negative, positive = encoded(case, given["negative_ids"]), encoded(case, given["prompt_ids"], vectors)
    states, unet = torch.cat([negative, positive]), unet_of(case)
    alphas = schedule_of(config["scheduler"]).alphas_cumprod
    step = config["scheduler"]["num_train_timesteps"] // config["steps"]
    latents, seen, said = given["noise"], [], []
    with torch.no_grad():
        for t in given["timesteps"].tolist():
            both = torch.cat([latents] * 2)
            eps = unet(both, t, states.repeat_interleave(len(latents), 0)).sample
            uncond, cond = eps.chunk(2)
            guided = uncond + config["guidance_scale"] * (cond - uncond)
            now, then = alphas[t], alphas[max(t - step, 0)]
            clean = (latents - (1 - now).sqrt() * guided) / now.sqrt()
            latents = then.sqrt() * clean + (1 - then).sqrt() * guided
            seen.append(both)
            said.append(eps)
    return {
        "ctx_embeddings": vectors,
        "encoder_hidden_states": states,
        "latents": latents,
        "model_input": torch.stack(seen),
        "noise_pred": torch.stack(said),
    }


@harness.runs("blip_diffusion", r"finetune_step.*")
def few_shot_step(case: Any) -> dict[str, Tensor]:
    """One step of few-shot tuning: the vectors are rows of the text encoder's table, as the recipe has them."""
    config, given = case.config, case.inputs
    with torch.no_grad():
        each = encoder_of(case)(*read_images(case))
    mean = each.mean(0, keepdim=True)
    ratio = ratios(BlipDiffusionOptions(ratios=tuple(given["mix_ratio"].tolist())), len(given["mix_ratio"]))
    text, unet = text_encoder_of(case, case.weights_below("text_encoder.")), unet_of(case)
    table = text.get_input_embeddings()
    entries = range(len(table.weight), len(table.weight) + mean.shape[1])
    learned = PlaceholderEmbedding(table, entries, mean[0])
    text.set_input_embeddings(learned)
    conv_in = unet.conv_in.weight.requires_grad_()
    schedule = NoiseSchedule.scaled_linear()
    base = BaseModel(unet, (TextTower(None, text),), Codec.exact(torch.nn.Identity()), schedule)
    start = config["ctx_begin_pos"]
    ids = [[torch.tensor([[*row[:start], *entries, *row[start:]]])] for row in given["caption_ids"].tolist()]
    conditioning = base.encode_ids([[one for (one,) in ids]])
    t = given["timesteps"]
    z_t = schedule.add_noise(given["latents"], given["noise"], t)
    prediction = base.predict(z_t, t, conditioning)
    loss = squared_error(prediction, schedule.target(given["latents"], given["noise"], t)).mean()
    rows, weight = torch.autograd.grad(loss * config["grad_scale"], [learned.rows, conv_in])
    return {
        "ctx_per_image": each,
        "ctx_cache": mean,
        "ctx_mixed": torch.einsum("i,iqd->qd", ratio, each[: len(ratio)]).unsqueeze(0),
        "encoder_hidden_states": conditioning.states.detach(),
        "pred": prediction.detach(),
        "loss": loss.detach().reshape(1),
        "grad.ctx_embeddings_cache": rows.unsqueeze(0),
        "grad.unet.conv_in.weight": weight,
    }
