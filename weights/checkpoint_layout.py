"""Names of weights in single-file checkpoints (the original LDM layout) and in diffusers and transformers.

Maps are built from a model's own keys, so pruned and test-sized models map like the full ones. Each map goes from our
names to the original ones; read it backwards to load. Prefixes of the parts within a file are in `PREFIXES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import LikenessError
from .families import SD2, Family

UNET = "model.diffusion_model."
VAE = "first_stage_model."

Weights = Mapping[str, Tensor]


# UNet -----------------------------------------------------------------------------------------------------------------

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_MODULE = re.compile(
    r"(?P<block>(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets\.\d+|attentions\.\d+|(?:down|up)samplers\.0\.conv))"
    r"(?P<rest>\..+)?"
)


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """diffusers -> original, for the keys of a UNet's state dict or for paths of its modules."""
    keys = list(keys)
    blocks = _unet_blocks(keys)
    names = {}
    for key in keys:
        match = _UNET_MODULE.fullmatch(key)
        if match:
            block, rest = match["block"], match["rest"] or ""
            names[key] = blocks[block] + (_renamed(rest, _RESNET) if ".resnets." in block else rest)
        else:
            end = next((end for end in _UNET_ENDS if key == end or key.startswith(f"{end}.")), None)
            if end is not None:
                names[key] = _UNET_ENDS[end] + key.removeprefix(end)
    return names


def _unet_blocks(keys: Sequence[str]) -> dict[str, str]:
    down, up = _counts(keys, "down_blocks"), _counts(keys, "up_blocks")
    names, number = {}, 1
    for level, count in enumerate(down):
        for j in range(count):
            names[f"down_blocks.{level}.resnets.{j}"] = f"input_blocks.{number + j}.0"
            names[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{number + j}.1"
        number += count
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level, count in enumerate(up):
        for j in range(count):
            names[f"up_blocks.{level}.resnets.{j}"] = f"output_blocks.{number + j}.0"
            names[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{number + j}.1"
        number += count
        has_attention = any(key.startswith(f"up_blocks.{level}.attentions.") for key in keys)
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + has_attention}.conv"
    for j in range(_layers(keys, r"mid_block\.resnets\.(\d+)")):
        names[f"mid_block.resnets.{j}"] = f"middle_block.{2 * j}"
        names[f"mid_block.attentions.{j}"] = f"middle_block.{2 * j + 1}"
    return names


def _counts(keys: Iterable[str], part: str) -> list[int]:
    """Residual blocks per level."""
    counts: dict[int, int] = {}
    for key in keys:
        match = re.match(rf"(?:.*\.)?{part}\.(\d+)\.resnets\.(\d+)", key)
        if match:
            level, number = int(match[1]), int(match[2])
            counts[level] = max(counts.get(level, 0), number + 1)
    return [counts[level] for level in sorted(counts)]


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    """`.conv1.weight` with its first name looked up."""
    _, first, *tail = rest.split(".")
    return ".".join(["", table.get(first, first), *tail])


# VAE ------------------------------------------------------------------------------------------------------------------

_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """diffusers -> original, for the keys of an AutoencoderKL's state dict."""
    keys = list(keys)
    last = len(_counts(keys, "decoder.up_blocks")) - 1
    return {key: _vae_name(key, last) for key in keys}


def _vae_name(key: str, last: int) -> str:
    key = re.sub(r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"\bup_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", key)
    key = re.sub(r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"\bup_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", key)
    key = re.sub(r"\bmid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    attention = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", key)
    if attention:
        return f"{attention[1]}mid.attn_1.{_VAE_ATTENTION[attention[2]]}.{attention[3]}"
    return key


def to_original(state: Weights, names: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    """A state dict under the original names; the VAE's attention matrices become 1x1 convolutions."""
    renamed = {}
    for key, value in state.items():
        name = names[key]
        is_matrix = ".attn_1." in name and value.ndim == 2
        renamed[prefix + name] = value[:, :, None, None] if is_matrix else value
    return renamed


def from_original(weights: Weights, own: Weights, names: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    """The inverse of `to_original`, for a model with the state dict `own`.

    Raises LikenessError naming the first weight that is missing or of another size.
    """
    state = {}
    for key, like in own.items():
        name = prefix + names[key]
        value = weights.get(name)
        if value is None or value.numel() != like.numel():
            found = "missing" if value is None else f"of shape {tuple(value.shape)} instead of {tuple(like.shape)}"
            raise LikenessError(f"This checkpoint was made for another model: {name} is {found}.")
        state[key] = value.reshape(like.shape)
    return state


# Text encoders --------------------------------------------------------------------------------------------------------

_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PROJECTION = "text_projection.weight"
_QKV = ("q_proj", "k_proj", "v_proj")


def with_text_model(name: str) -> str:
    """A text encoder's name as files have it: newer transformers leave out the first level of `CLIPTextModel`."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def to_open_clip(state: Weights) -> dict[str, Tensor]:
    """A transformers CLIP text encoder under OpenCLIP's names: q, k, v in one matrix, the projection transposed."""
    state = {with_text_model(key).removeprefix("text_model."): value for key, value in state.items()}
    renamed = {new: state[old] for old, new in _OPEN_CLIP_ENDS.items()}
    if _PROJECTION in state:
        renamed["text_projection"] = state[_PROJECTION].T
    for layer in range(_layers(state, r"encoder\.layers\.(\d+)\.")):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for old, new in _OPEN_CLIP_LAYER.items():
                renamed[f"{theirs}{new}.{kind}"] = state[f"{ours}{old}.{kind}"]
            parts = [state[f"{ours}self_attn.{name}.{kind}"] for name in _QKV]
            renamed[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    return renamed


def from_open_clip(weights: Weights) -> dict[str, Tensor]:
    """The inverse of `to_open_clip`, with the names that files have (`with_text_model`)."""
    state = {f"text_model.{old}": weights[new] for old, new in _OPEN_CLIP_ENDS.items()}
    if "text_projection" in weights:
        state[_PROJECTION] = weights["text_projection"].T
    for layer in range(_layers(weights, r"transformer\.resblocks\.(\d+)\.")):
        ours, theirs = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for old, new in _OPEN_CLIP_LAYER.items():
                state[f"{ours}{old}.{kind}"] = weights[f"{theirs}{new}.{kind}"]
            fused = weights[f"{theirs}attn.in_proj_{kind}"].chunk(3)
            state.update({f"{ours}self_attn.{name}.{kind}": part for name, part in zip(_QKV, fused, strict=True)})
    return state


def load_encoder_weights(encoder: Any, weights: Weights) -> None:
    """Fill a transformers CLIP text encoder from weights named as in files."""
    own = encoder.state_dict()
    names = {key: with_text_model(key) for key in own}
    encoder.load_state_dict(from_original(weights, own, names))


def _layers(keys: Iterable[str], pattern: str) -> int:
    return len({match[1] for match in (re.match(pattern, key) for key in keys) if match})


# Whole files ----------------------------------------------------------------------------------------------------------


def vae_weights(vae: Any) -> dict[str, Tensor]:
    """A diffusers AutoencoderKL's weights under original names."""
    state = vae.state_dict()
    return to_original(state, vae_names(state))


def checkpoint_weights(unet: Any, vae: Weights, text_encoders: Sequence[Any], family: Family) -> dict[str, Tensor]:
    """All weights of a full checkpoint as ComfyUI's Load Checkpoint reads it.

    vae: under original names. text_encoders: those of the family, in its order. LoRA layers must have been merged or
    taken out.
    """
    state = unet.state_dict()
    if any(".lora_A." in key for key in state):
        raise ValueError("merge or remove the LoRA layers before writing a checkpoint")
    weights = to_original(state, unet_names(state), UNET)
    weights |= {VAE + key: value for key, value in vae.items()}
    for (prefix, kind), encoder in zip(family.texts, text_encoders, strict=True):
        text = encoder.state_dict()
        if not kind.open_clip:
            named = {with_text_model(key): value for key, value in text.items()}
        else:
            named = to_open_clip(_all_layers_of_sd2(text) if family is SD2 else text)
        weights |= {prefix + key: value for key, value in named.items()}
    return weights


def _all_layers_of_sd2(state: Weights) -> Weights:
    """SD2 reads the last layer but one, and diffusers' folders leave the last out: a file has it, here as a copy."""
    last, spare = (f"encoder.layers.{layer}." for layer in (22, 23))
    cut = any(last in key for key in state) and not any(spare in key for key in state)
    return {**state, **{key.replace(last, spare): value for key, value in state.items() if cut and last in key}}


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a checkpoint, without its prefix."""
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


_REGISTERED, _EXECUTED = ("down_blocks", "up_blocks", "mid_block"), ("down_blocks", "mid_block", "up_blocks")


def registration_order(path: str) -> tuple[int, ...]:
    """Sorts diffusers' paths of a UNet's layers as diffusers registers them: down, up, middle, by number in each."""
    return _order(path, _REGISTERED)


def execution_order(path: str) -> tuple[int, ...]:
    """Sorts diffusers' paths of a UNet's layers as they run: down, middle, up, by number in each."""
    return _order(path, _EXECUTED)


def _order(path: str, parts: Sequence[str]) -> tuple[int, ...]:
    part, *rest = path.split(".")
    return (parts.index(part) if part in parts else len(parts), *(int(word) for word in rest if word.isdigit()))
