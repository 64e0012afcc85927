"""FastComposer: postfuse, image encoder, words of subjects, the delayed schedule, a training step, whole runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from conformance.runners.photomaker import Vocabulary
from torch import Tensor

from likeness.adapters.effects import PromptEdit, PromptStates, Scope
from likeness.adapters.fastcomposer import FastComposerOptions, LongPrompts, SubjectEncoder, fuse_marked
from likeness.adapters.fastcomposer.networks import ImageEncoder
from likeness.adapters.fastcomposer.prompt import read
from likeness.adapters.fastcomposer.references import cut_out, reference
from likeness.adapters.fastcomposer.timing import alpha_of, text_only_steps
from likeness.adapters.networks import FuseModule
from likeness.injection.diffusers import DiscreteLevels, SamplingRun, apply_effects
from likeness.training.base.noise import NoiseSchedule
from likeness.training.objectives.localisation import localisation, site_localisation, subject_error
from likeness.training.objectives.reconstruction import squared_error
from likeness.training.probe import AttentionProbe, sites_around_middle

# Networks -------------------------------------------------------------------------------------------------------------


@harness.runs("fastcomposer", r"postfuse")
def postfuse(case: Any) -> dict[str, Tensor]:
    fuse, given = FuseModule(case.config["embed_dim"]), case.inputs
    fuse.load_state_dict(case.weights)
    states = given["text_embeds"].clone()
    changed = fuse_marked(fuse, states, given["image_token_mask"], given["object_embeds"], given["num_objects"])
    assert torch.equal(states, given["text_embeds"])
    return {"augmented_embeds": changed}


def head_width(config: dict[str, Any]) -> int:
    return config["vision"]["hidden_size"] // config["vision"]["num_attention_heads"]


@harness.runs("fastcomposer", r"image_encoder")
def image_encoder(case: Any) -> dict[str, Tensor]:
    encoder = ImageEncoder(case.weights, head_width(case.config))
    encoder.load_state_dict(case.weights)
    return {"object_embeds": encoder(case.inputs["object_pixel_values"])}


@harness.runs("fastcomposer", r"object_preprocess")
def object_preprocess(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    image, background = (given[name].movedim(0, -1).unsqueeze(0) / 255 for name in ("image", "background"))
    mask = (given["segmap"] == config["segment_id"]).float().unsqueeze(0)
    left, top, right, bottom = given["bbox"].tolist()
    subject = cut_out(image, mask, background, (left, top, right, bottom))
    return {"object": reference(subject, config["resolution"])[0]}


# The prompt -----------------------------------------------------------------------------------------------------------


@harness.runs("fastcomposer", r"tokens")
def tokens(case: Any) -> dict[str, Tensor]:
    config = case.config
    vocabulary = Vocabulary({**config, "pad_id_l": config["pad_id"], "pad_id_g": config["pad_id"]})
    vocabulary.towers = vocabulary.towers[:1]
    (tower,) = vocabulary.towers
    most, rows = config["max_num_objects"], []
    for row in case.inputs["rows"].tolist():
        caption = config["captions"][row]
        people = caption.count(config["image_token"])
        text = read(vocabulary, caption, (config["image_token"],), people, long_prompts=LongPrompts.CUT)
        mask = torch.zeros(tower.length, dtype=torch.int64)
        mask[text.places] = 1
        (window,) = text.windows[tower.name]
        padding = most - len(text.places)
        rows.append(
            {
                "input_ids": torch.tensor([token.id for token in window]),
                "image_token_mask": mask,
                "image_token_idx": torch.tensor([*text.places, *[0] * padding]),
                "image_token_idx_mask": torch.tensor([*[1] * len(text.places), *[0] * padding]),
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@harness.runs("fastcomposer", r"delayed_conditioning_schedule")
def delayed_schedule(case: Any) -> dict[str, Tensor]:
    pairs = list(zip(case.config["alpha"], case.config["steps"], strict=True))
    first = FastComposerOptions().first_step
    assert [first(1 - alpha)(steps) for alpha, steps in pairs] == [text_only_steps(a, n) for a, n in pairs]  # type: ignore[misc]
    return {"text_only_steps": torch.tensor([text_only_steps(alpha_of(1 - a), n) for a, n in pairs])}


# Training -------------------------------------------------------------------------------------------------------------


@harness.runs("fastcomposer", r"localization_loss")
def localization_loss(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    positions, valid, masks = (given[n] for n in ("image_token_idx", "image_token_idx_mask", "object_segmaps"))
    probabilities = [given[f"attn.{layer}"].clone().requires_grad_() for layer in config["layers"]]
    maps, grids = [], []
    for probability in probabilities:  # (batch * heads, L, tokens)
        by_head = probability.unflatten(0, (len(masks), -1)).transpose(2, 3)
        wanted = positions[:, None, :, None].expand(-1, by_head.shape[1], -1, by_head.shape[3])
        maps.append(by_head.gather(2, wanted))
        grids.append((math.isqrt(by_head.shape[3]),) * 2)
    loss = localisation(maps, masks, valid, grids, config["normalize"]).mean()
    each = [
        site_localisation(a, masks, valid, grid, config["normalize"]).mean()
        for a, grid in zip(maps, grids, strict=True)
    ]
    found = torch.autograd.grad(loss, probabilities)
    grads = {f"grad.{layer}": value for layer, value in zip(config["layers"], found, strict=True)}
    return {**grads, "loss": loss[None], "per_layer": torch.stack(each)}


# Gradients are written times 1000, with the tolerance of what is not: the recorded ones of conv_in are 1.7 of it away
# from those that the official code gives in float64. This is 1e-6 of the gradients themselves, of which the largest is
# 0.13.
GRADIENTS: dict[str, float] = dict.fromkeys(
    (
        "grad.postfuse_module.mlp1.fc1.weight",
        "grad.unet.conv_in.weight",
        "grad.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ),
    1e-3,
)


@harness.runs("fastcomposer", r"training_step", GRADIENTS)
def training_step(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    networks = encoder_of(case).train().requires_grad_()
    unet = common.unet_of(case).train().requires_grad_()
    subjects = networks.image_encoder(given["object_pixel_values"])
    marks, counts, masks = given["image_token_mask"], given["num_objects"], given["object_segmaps"]
    text = fuse_marked(networks.postfuse_module, given["text_embeds"], marks, subjects, counts)
    noisy = NoiseSchedule.scaled_linear().add_noise(given["latents"], given["noise"], given["timesteps"])
    latent = given["latents"].shape[-2:]
    sites = sites_around_middle(unet, (latent[0], latent[1]), config["localization_layers"])
    assert sorted(f"{site.diffusers_path}.attn2" for site, _ in sites) == sorted(config["attention_layers"])
    probe = AttentionProbe(unet, [site for site, _ in sites])
    with probe.recording(given["image_token_idx"]) as maps:
        prediction = unet(noisy, given["timesteps"], text).sample
    probe.detach()
    if config["mask_loss"]:
        denoise = subject_error(prediction, given["noise"], masks).mean()
    else:
        denoise = squared_error(prediction, given["noise"]).mean()
    looks = localisation(maps, masks, given["image_token_idx_mask"], [grid for _, grid in sites]).mean()
    total = denoise + config["localization_weight"] * looks
    trained = {**dict(networks.named_parameters()), **{f"unet.{k}": v for k, v in unet.named_parameters()}}
    wanted = {name: trained[name.removeprefix("grad.")] for name in case.expected if name.startswith("grad.")}
    grads = torch.autograd.grad(total, list(wanted.values()))
    return {
        "augmented_embeds": text,
        "losses": torch.stack([denoise, looks, total]),
        "pred": prediction,
        **{name: config["grad_scale"] * grad for name, grad in zip(wanted, grads, strict=True)},
    }


# Whole runs -----------------------------------------------------------------------------------------------------------


def encoder_of(case: Any) -> SubjectEncoder:
    own = {key: value for key, value in case.weights.items() if not key.startswith("unet.")}
    return SubjectEncoder(own, head_width(case.config)).eval().requires_grad_(False)


def augmented(case: Any) -> Tensor:
    """The prompt with the subjects in it."""
    networks, given = encoder_of(case), case.inputs
    subjects = networks.image_encoder(given["object_pixel_values"])
    return fuse_marked(
        networks.postfuse_module, given["text_embeds"], given["image_token_mask"], subjects, given["num_objects"]
    )


@harness.runs("fastcomposer", r"e2e")
def sampling_run(case: Any) -> dict[str, Tensor]:
    config, given = case.config, case.inputs
    unet, text = common.unet_of(case), augmented(case)
    first = FastComposerOptions().first_step(1 - config["alpha"])
    effects = [PromptEdit(lambda _text: PromptStates(text), Scope(first_step=first))]
    sigmas = given["sigmas"]
    run = SamplingRun.through(sigmas, DiscreteLevels(NoiseSchedule.scaled_linear().alphas_cumprod))
    both_texts = torch.cat([given["negative_embeds"], given["text_only_embeds"]])
    latent = given["noise"] * (sigmas.max() ** 2 + 1).sqrt()
    seen, said = [], []
    with torch.no_grad(), apply_effects(unet, effects, run=run) as applied:
        for step, timestep in enumerate(given["timesteps"]):
            applied.at_step(step)
            both = torch.cat([latent / (sigmas[step] ** 2 + 1).sqrt()] * 2)
            eps = unet(both, timestep, both_texts).sample
            negative, positive = eps.chunk(2)
            latent = latent + (negative + config["guidance_scale"] * (positive - negative)) * (
                sigmas[step + 1] - sigmas[step]
            )
            seen.append(both)
            said.append(eps)
    return {
        "augmented_embeds": text,
        "latents": latent,
        "model_input": torch.stack(seen),
        "noise_pred": torch.stack(said),
    }
