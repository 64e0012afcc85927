"""What is on the sockets MODEL, CLIP and VAE, as modules that can be trained: diffusers, transformers, no network.

Everything is a copy with all patches (LoRAs, merges) in it: what the host holds is not touched. Call this outside of
inference mode, because tensors made inside it take no part in gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LikenessError
from ..training.base.model import BaseModel, Codec, Posterior, TextTower
from ..training.base.noise import NoiseSchedule, Prediction
from ..training.objectives.identity import Decoder
from ..weights.checkpoint_layout import from_original, load_encoder_weights, unet_names
from ..weights.families import TEXT_ENCODERS, TRAINABLE, listed
from .module_copy import normal_copy, plain_tensor

UNET = "diffusion_model."
ENCODERS = tuple(encoder.name for encoder in TEXT_ENCODERS)  # the host's names are embedding files' names
SUPPORTED = f"training works with {listed(TRAINABLE)} models"


def base_from_sockets(model: Any, clip: Any, vae: Any, side: int, dtype: torch.dtype = torch.float32) -> BaseModel:
    """The sockets' model in `dtype`, on the CPU. side: of its images, in pixels.

    Raises LikenessError for other families, for parts that are missing, and for parts that do not belong together.
    """
    for name, value in (("model", model), ("clip", clip), ("vae", vae)):
        if value is None:
            raise LikenessError(f"The input '{name}' is empty: connect the checkpoint's {name.upper()}.")
    unet = unet_of(model, side // 8, dtype)
    towers = towers_of(clip, dtype)
    width = sum(tower.encoder.config.hidden_size for tower in towers)
    if width != unet.config.cross_attention_dim:
        raise LikenessError(
            f"CLIP and MODEL do not belong together: the text has width {width} and the denoiser reads "
            f"{unet.config.cross_attention_dim}. Connect both from one checkpoint."
        )
    if vae.latent_channels != unet.config.in_channels:
        raise LikenessError(
            f"VAE and MODEL do not belong together: latents have {vae.latent_channels} channels and the denoiser reads "
            f"{unet.config.in_channels}. Connect the checkpoint's own VAE."
        )
    return BaseModel(unet, towers, codec_of(vae, model), schedule_of(model), clip_skip=_clip_skip(clip, towers))


def merged_weights(patcher: Any, prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights below `prefix`, without it, dequantised, with everything that was patched onto them; copies on the
    CPU. Scales and what else belongs to a quantisation are in the weights, and not among them."""
    import comfy.lora

    found = {}
    with torch.no_grad(), patcher.use_ejected():
        for path, op in patcher.model.named_modules(remove_duplicate=False):
            for name, weight in _own_weights(op):
                key = f"{path}.{name}" if path else name
                if key.startswith(prefix):
                    if key in patcher.backup:
                        weight = patcher.backup[key].weight
                    if key in patcher.hook_backup:
                        weight = patcher.hook_backup[key][0]
                    value = plain_tensor(weight, torch.float32)
                    if hasattr(op, f"convert_{name}"):
                        value = getattr(op, f"convert_{name}")(value, inplace=True)
                    if key in patcher.patches:
                        value = comfy.lora.calculate_weight(patcher.patches[key], value, key)
                    if name == "weight" and getattr(op, "pre_quant_scale", None) is not None:  # of the layer's input
                        value = value * plain_tensor(op.pre_quant_scale, torch.float32)
                    found[key[len(prefix) :]] = value.to(dtype).contiguous()
    return found


def _own_weights(op: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a layer would write into a checkpoint, without the extras of a layer that converts its weight."""
    buffers = op.named_buffers(recurse=False, remove_duplicate=False)
    kept = ((name, value) for name, value in buffers if name not in op._non_persistent_buffers_set)
    is_quantised = hasattr(op, "convert_weight")
    for name, value in (*op.named_parameters(recurse=False, remove_duplicate=False), *kept):
        if not is_quantised or name in ("weight", "bias"):
            yield name, value


# --- MODEL


def unet_of(model: Any, latent_side: int, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL's denoiser as diffusers' `UNet2DConditionModel`."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    net = model.model.diffusion_model
    if not hasattr(net, "input_blocks") or not hasattr(net, "middle_block"):
        raise LikenessError(f"The MODEL is a {type(model.model).__name__}: {SUPPORTED}.")
    weights = merged_weights(model, UNET, dtype)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**host_unet_config(model, latent_side))
    own = unet.state_dict()
    names = unet_names(own)
    if set(names.values()) != set(weights):
        raise LikenessError(
            f"The MODEL ({type(model.model).__name__}) has another layout than its family's full models: {SUPPORTED}."
        )
    unet.load_state_dict(from_original(weights, own, names), assign=True)
    return unet.eval().requires_grad_(False)


def host_unet_config(model: Any, latent_side: int) -> dict[str, Any]:
    """diffusers' configuration of a MODEL's denoiser, from the host's."""
    given, net = model.model.model_config.unet_config, model.model.diffusion_model
    widths = [given["model_channels"] * multiplier for multiplier in given["channel_mult"]]
    layers = given["num_res_blocks"]
    layers = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    depths, at = [], 0
    for count in layers:
        depths.append(given["transformer_depth"][at])
        at += count
    has_attention = [depth > 0 for depth in depths]
    heads = given.get("num_heads", -1)
    if heads == -1:
        heads = [width // given["num_head_channels"] for width in widths]
    config: dict[str, Any] = {
        "sample_size": latent_side,
        "in_channels": given["in_channels"],
        "out_channels": given["out_channels"],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers[0] if len(set(layers)) == 1 else tuple(layers),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": given["context_dim"],
        "attention_head_dim": heads,
        "use_linear_projection": bool(given.get("use_linear_in_transformer", False)),
        "norm_num_groups": net.out[0].num_groups,
    }
    if given.get("adm_in_channels") is not None:
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = model.model.embedder.dim
        config["projection_class_embeddings_input_dim"] = given["adm_in_channels"]
    return config


def schedule_of(model: Any) -> NoiseSchedule:
    """A MODEL's noise and what it predicts, as a model sampling node may have changed them."""
    import comfy.model_sampling as sampling

    chosen = model.get_model_object("model_sampling")
    sigmas = getattr(chosen, "sigmas", None)
    is_edm = isinstance(chosen, sampling.EDM)
    if sigmas is None or is_edm or not isinstance(chosen, (sampling.EPS, sampling.V_PREDICTION)):
        raise LikenessError(f"The MODEL has a kind of model sampling that training does not support: {SUPPORTED}.")
    velocity = isinstance(chosen, sampling.V_PREDICTION)
    acp = 1 / (1 + sigmas.detach().to("cpu", torch.float64) ** 2)
    return NoiseSchedule(acp.float(), Prediction.VELOCITY if velocity else Prediction.EPSILON)


# --- CLIP


def towers_of(clip: Any, dtype: torch.dtype = torch.float32) -> tuple[TextTower, ...]:
    """A CLIP's text encoders with the host's tokenizers: one, or SDXL's two."""
    kinds = [kind for kind in ENCODERS if hasattr(clip.cond_stage_model, kind)]
    if not kinds or len(kinds) not in (1, 2):
        raise LikenessError(f"The CLIP is a {type(clip.cond_stage_model).__name__}: {SUPPORTED}.")
    return tuple(_tower(clip, kind, projected=len(kinds) == 2 and kind == "clip_g", dtype=dtype) for kind in kinds)


def _tower(clip: Any, kind: str, projected: bool, dtype: torch.dtype) -> TextTower:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    text = getattr(clip.cond_stage_model, kind).transformer
    weights = merged_weights(clip.patcher, f"{kind}.transformer.", dtype)
    words = getattr(clip.tokenizer, kind)
    tokenizer = copy.deepcopy(words.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(words.pad_token)
    tokenizer.model_max_length = words.max_length
    first = text.text_model.encoder.layers[0]
    table = weights["text_model.embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        vocab_size=table.shape[0],
        hidden_size=table.shape[1],
        intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=text.num_layers,
        num_attention_heads=first.self_attn.heads,
        max_position_embeddings=weights["text_model.embeddings.position_embedding.weight"].shape[0],
        hidden_act=_activation(first.mlp.activation),
        projection_dim=weights["text_projection.weight"].shape[0] if projected else table.shape[1],
        bos_token_id=words.start_token,
        eos_token_id=words.end_token,
        pad_token_id=words.pad_token,
    )
    encoder: Any = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    load_encoder_weights(encoder, weights)
    return TextTower(tokenizer, encoder.to(dtype).eval().requires_grad_(False), kind)


def _activation(function: Any) -> str:
    from comfy.clip_model import ACTIVATIONS

    return next((name for name in ("quick_gelu", "gelu") if ACTIVATIONS[name] is function), "quick_gelu")


def _clip_skip(clip: Any, towers: tuple[TextTower, ...]) -> int:
    """How many last layers CLIP Set Last Layer, or SD2, leaves out. SDXL always takes the last but one."""
    if len(towers) > 1:
        return 0
    index = clip.layer_idx
    if index is None:
        tower: Any = getattr(clip.cond_stage_model, next(iter(towers)).kind)
        index = tower.options_default[1]
    return 0 if index is None else -1 - index


# --- VAE


def codec_of(vae: Any, model: Any) -> Codec:
    """A VAE of any kind as the host uses it, with the scale of the MODEL's latents. Its latents are the posterior's
    mean, as the host's own encoding gives them."""
    module, form = normal_copy(vae.first_stage_model).float(), model.model.latent_format
    before, after = vae.process_input, vae.process_output

    def encode(pictures: Tensor) -> Posterior:
        found = module.encode(before((pictures + 1) / 2).to(_device(module)))
        return Posterior(form.process_in(found.float()))

    def decode(latents: Tensor) -> Tensor:
        return 2 * after(module.decode(form.process_out(latents.float()))) - 1

    return Codec(encode, Decoder(decode, 1.0, int(vae.spacial_compression_encode())), module)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
