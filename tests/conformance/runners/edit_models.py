"""Edit models: sizes, position ids, texts, attention by rows, and whole networks in diffusers' classes."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import comfyui
import pytest
import torch
import torch.nn.functional as F
from conformance import harness
from torch import Tensor

from likeness.adapters.edit_models import grounding, positions, sizes
from likeness.injection.diffusers import references as binding
from likeness.injection.masks import resize_mask
from likeness.injection.references import Sequences, Sight, Weight, attend, key_weights, target_bias, whole_bias

# Sizes, ids -----------------------------------------------------------------------------------------------------------


def rows(tensor: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in tensor.tolist()]


@harness.runs("edit_models", r"reference sizes")
def reference_sizes(case: Any) -> dict[str, Tensor]:
    longest = case.config["grounding_px"]

    def cut(references: int) -> list[tuple[int, ...]]:
        fitted = [sizes.flux2((h, w), None, references) for h, w in rows(case.inputs["sizes"])]
        return [(*(one.before or ()), *one.crop) for one in fitted]

    def of(size: Any) -> Tensor:
        return torch.tensor([size((h, w)) for h, w in rows(case.inputs["sizes"])])

    def in_host(area: int, step: int) -> Any:
        """ComfyUI's own node, which this pack does not follow: the case shows how it differs."""
        return lambda s: tuple(round(side * math.sqrt(area / (s[0] * s[1])) / step) * step for side in s)

    return {
        "flux2_one": torch.tensor(cut(1)),
        "flux2_many": torch.tensor(cut(2)),
        "qwen_vae": of(lambda s: sizes.qwen(s).size),
        "qwen_vlm": of(sizes.seen_by_qwen),
        "edit_vae": of(lambda s: sizes.native(s).size),
        "edit_vlm": of(sizes.seen_small),
        "identity_vlm": of(lambda s: sizes.seen_whole(s, longest)),
        "host_vae": of(in_host(1024**2, 8)),
        "host_vlm": of(in_host(384**2, 1)),
    }


@harness.runs("edit_models", r"krea2 fit sizes")
def fit_sizes(case: Any) -> dict[str, Tensor]:
    boxes = []
    for h, w, th, tw in rows(case.inputs["sizes"]):
        fitted = sizes.fit((h, w), (th, tw))
        cells = [tuple(side // 8 for side in size) for size in ((th, tw), fitted.size)]
        target_tokens = math.prod(positions.tokens_of(cells[0], 2))
        first = positions.centred(0, cells[0], cells[1:]).image[target_tokens]
        boxes.append([*fitted.crop, *fitted.size, *(2 * first[1:]).tolist()])
    outputs = {"boxes": torch.tensor(boxes)}
    for name, photo in case.inputs.items():
        if name.startswith("picture_"):
            target = tuple(case.inputs[name.replace("picture", "target")].tolist())
            outputs[name.replace("picture", "fitted")] = sizes.fit(tuple(photo.shape[1:3]), target).apply(photo)
    return outputs


PLACEMENTS = {
    "krea2_origin": positions.origin,
    "krea2_fit": positions.centred,
    "flux2": positions.flux2,
    "flux1_index": positions.origin,
    "flux1_uxo": positions.uxo,
    "flux1_offset": positions.offset,
    "qwen": positions.qwen,
}


@harness.runs("edit_models", r"position ids")
def position_ids(case: Any) -> dict[str, Tensor]:
    outputs = {}
    for name in case.expected:
        kind, _, number = name.rpartition("_")
        (text, _), target, *references = rows(case.inputs[f"scene_{number}"])
        outputs[name] = PLACEMENTS[kind](text, target, references).all
    return outputs


# Texts ----------------------------------------------------------------------------------------------------------------

FORMS = {
    "identity": grounding.IDENTITY_EDIT,
    "edit": grounding.KREA2_LABELS,
    "qwen": grounding.QWEN_LABELS,
}
IMAGE_PAD = 151655


@harness.runs("edit_models", r"grounded tokens")
def grounded_tokens(case: Any) -> dict[str, Tensor]:
    from transformers import Qwen2Tokenizer

    host = comfyui.find()
    if host is None:
        pytest.skip(f"the tokenizer is the host's: {comfyui.HOW_TO_GET_IT}")
    tokenizer = Qwen2Tokenizer.from_pretrained(host / "comfy" / "text_encoders" / "qwen25_tokenizer")
    photos, outputs = rows(case.inputs["pictures"]), {}
    for name in case.expected:
        kind, prompt, count = re.fullmatch(r"(\w+?)_(\d+)_(\d+)(?:_length)?", name).groups()  # pyright: ignore
        form, shown = FORMS[kind], photos[: int(count)]
        text = form.template.format(form.turn(case.config["prompts"][int(prompt) - 1], len(shown)))
        ids = torch.tensor(tokenizer(text)["input_ids"])
        if not name.endswith("_length"):
            outputs[name] = torch.where(ids == IMAGE_PAD, -1, ids)
            continue
        seen = [form.tokens_of(photo, case.config["grounding_px"]) for photo in shown]
        cut = grounding.template_length(ids.tolist())
        outputs[name] = torch.tensor([cut, len(ids) - cut + sum(seen) - len(seen), *seen])
    return outputs


# Attention ------------------------------------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


@harness.runs("edit_models", r"attention bias")
def attention_bias(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    parts = Sequences(config["text"], config["target"], tuple(config["references"]))
    weights = [
        Weight(given[f"row_weight_{n}"].unsqueeze(0), given[f"key_weight_{n}"])
        for n in range(1, len(parts.references) + 1)
    ]
    bias, outputs = target_bias(parts, weights), {}
    for name in case.expected:
        sight = Sight(isolated="isolated" in name, separate="separate" in name)
        outputs[name] = attend(given["q"], given["k"], given["v"], parts, bias, sight, sdpa)
        dense = sdpa(given["q"], given["k"], given["v"], whole_bias(parts, bias, sight))
        torch.testing.assert_close(outputs[name], dense, rtol=1e-4, atol=1e-5)
    return outputs


# Networks -------------------------------------------------------------------------------------------------------------


def krea2_of(case: Any) -> Any:
    from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
    from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel

    config, weights = case.config["model"], case.weights_below("model.")
    head = config["features"] // config["heads"]
    unit = head // 16
    net = Krea2Transformer2DModel(
        in_channels=config["channels"] * config["patch"] ** 2,
        num_layers=config["layers"],
        attention_head_dim=head,
        num_attention_heads=config["heads"],
        num_key_value_heads=config["kvheads"],
        intermediate_size=weights["blocks.0.mlp.up.weight"].shape[0],
        timestep_embed_dim=config["tdim"],
        text_hidden_dim=config["txtdim"],
        num_text_layers=config["txtlayers"],
        text_num_attention_heads=config["txtheads"],
        text_num_key_value_heads=config["txtkvheads"],
        text_intermediate_size=weights["txtfusion.refiner_blocks.0.mlp.up.weight"].shape[0],
        axes_dims_rope=(head - 12 * unit, 6 * unit, 6 * unit),
    )
    net.load_state_dict(convert_krea2_transformer_checkpoint_to_diffusers(dict(weights)))
    return net.eval()


def flux2_of(case: Any) -> Any:
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
    from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

    config = case.config["model"]
    net = Flux2Transformer2DModel(
        in_channels=config["in_channels"],
        num_layers=config["depth"],
        num_single_layers=config["depth_single_blocks"],
        attention_head_dim=config["hidden_size"] // config["num_heads"],
        num_attention_heads=config["num_heads"],
        joint_attention_dim=config["context_in_dim"],
        mlp_ratio=config["mlp_ratio"],
        axes_dims_rope=tuple(config["axes_dim"]),
        rope_theta=config["theta"],
        guidance_embeds=config["guidance_embed"],
    )
    net.load_state_dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(case.weights_below("model."))))
    return net.eval()


def qwen_of(case: Any) -> Any:
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    net = QwenImageTransformer2DModel(**case.config["model"], zero_cond_t=case.config["timestep_zero"])
    net.load_state_dict(case.weights_below("model."))
    return net.eval()


def references_of(case: Any) -> list[Tensor]:
    """The reference latents in order, without a frame axis."""
    return [case.inputs[name].flatten(-2).unflatten(-1, case.inputs[name].shape[-2:]) for name in reference_names(case)]


def reference_names(case: Any) -> list[str]:
    return sorted((n for n in case.inputs if n.startswith("ref_")), key=lambda n: int(n.removeprefix("ref_")))


def weights_of(
    case: Any, which: str, cells: list[tuple[int, int]], target: tuple[int, int], patch: int
) -> list[Weight]:
    """What the output of this name gives each reference.

    cells: of the references; target: of the target. A factor counts in the face alone where there is a mask of it.
    """
    boosts = case.config.get("boosts")
    if boosts is None or which in ("plain", "without"):
        return []
    weights = []
    for number, (boost, size) in enumerate(zip(boosts, cells, strict=True), 1):
        face = case.inputs.get(f"face_{number}")
        if which == "masked" and number == len(boosts):
            face = case.inputs["mask"]
        region = case.inputs.get(f"region_{number}")
        grid = positions.tokens_of(target, patch)
        weights.append(
            Weight(
                None if region is None else resize_mask(region, grid).flatten(1),
                key_weights(boost, positions.tokens_of(size, patch), face),
            )
        )
    return weights


def sight_of(case: Any, which: str) -> Sight:
    return Sight(case.config.get("isolated", False), "region_1" in case.inputs and which == "out")


def chosen(case: Any, which: str) -> list[Tensor]:
    """The references of the output of this name."""
    latents = references_of(case)
    special = {"swapped": latents[::-1], "first": latents[:1], "none": [], "without": []}
    return special.get(which, latents)


def predict(case: Any, net: Any, placement: Any, patch: int) -> dict[str, Tensor]:
    """Every output of a case that has one network call for each."""
    given, outputs = case.inputs, {}
    for which in case.expected:
        step = which.removeprefix("step") if which.startswith("step") else ""
        x, latents = given[f"x{step}"], chosen(case, which)
        shape, x = x.shape, x.flatten(-2).unflatten(-1, x.shape[-2:])
        x = x.squeeze(2) if x.ndim == 5 else x
        latents = [one.squeeze(2) if one.ndim == 5 else one for one in latents]
        cells = [(one.shape[-2], one.shape[-1]) for one in latents]
        references = binding.References(
            latents,
            placement,
            weights_of(case, which, cells, (x.shape[-2], x.shape[-1]), patch),
            sight_of(case, which),
            case.config.get("timestep_zero", False),
        )
        with torch.no_grad():
            out = binding.velocity(
                net, x, given[f"timestep{step}"], given["context"], references, given.get("guidance")
            )
        outputs[which] = out.reshape(shape)
    return outputs


def krea2_placement(case: Any) -> Any:
    return positions.centred if case.config.get("placement") == "fit" else positions.origin


@harness.runs("edit_models", r"krea2 (?!fit sizes|sampling).*")
def krea2(case: Any) -> dict[str, Tensor]:
    return predict(case, krea2_of(case), krea2_placement(case), case.config["model"]["patch"])


@harness.runs("edit_models", r"flux2 .*")
def flux2(case: Any) -> dict[str, Tensor]:
    return predict(case, flux2_of(case), positions.flux2, 1)


@harness.runs("edit_models", r"qwen .*")
def qwen(case: Any) -> dict[str, Tensor]:
    return predict(case, qwen_of(case), positions.qwen, case.config["model"]["patch_size"])


@harness.runs("edit_models", r"krea2 sampling")
def krea2_sampling(case: Any) -> dict[str, Tensor]:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    config, given, net = case.config, case.inputs, krea2_of(case)
    defaults = inspect.signature(AutoencoderKLQwenImage.__init__).parameters
    mean, std = (torch.tensor(defaults[name].default).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    patch, outputs = config["model"]["patch"], {}
    for which in case.expected:
        latents = [(one.squeeze(2) - mean) / std for one in chosen(case, which)]
        cells = [(one.shape[-2], one.shape[-1]) for one in latents]
        x = given["noise"].squeeze(2) * config["sigmas"][0]
        weights = weights_of(case, which, cells, (x.shape[-2], x.shape[-1]), patch) if latents else []
        references = binding.References(latents, krea2_placement(case), weights)
        for sigma, following in zip(config["sigmas"], config["sigmas"][1:], strict=False):
            with torch.no_grad():
                positive, negative = (
                    binding.velocity(net, x, torch.tensor([sigma]), given[half], references)
                    for half in ("positive", "negative")
                )
            x = x + (following - sigma) * (negative + config["cfg"] * (positive - negative))
        outputs[which] = (x * std + mean).unsqueeze(2)
    return outputs
