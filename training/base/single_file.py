"""A base model from one .safetensors checkpoint in the original layout, as artists have them: SD1.x, SD2 or SDXL.

All sizes are read off the weights' shapes; nothing is asked of a network. A checkpoint holds no tokenizer: its files
come from a folder `tokenizer` beside it, from a ComfyUI, or from the Hugging Face cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LikenessError
from ...models_download import model_roots
from ...weights.checkpoint_layout import (
    UNET,
    VAE,
    below,
    from_open_clip,
    from_original,
    load_encoder_weights,
    unet_names,
    vae_names,
    with_text_model,
)
from ...weights.families import CLIP_G, CLIP_L, HEAD_WIDTH, SD2, SDXL, TRAINABLE, Family, listed, of_checkpoint
from .model import BaseModel, Codec, TextTower
from .noise import NoiseSchedule

SUPPORTED = f"training works with full checkpoints of {listed(TRAINABLE)}"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
TOKENIZER = "openai/clip-vit-large-patch14"  # the name in the Hugging Face cache; all three families have this one
VOCABULARIES = ("tokenizer.json", "vocab.json")  # of newer and older transformers


@dataclass(frozen=True)
class _File:
    path: Path
    weights: Mapping[str, Tensor]  # float32, below the prefixes of all parts; and markers such as v_pred
    metadata: Mapping[str, str]


def load_single_file(path: Path) -> BaseModel:
    """The model in a checkpoint, float32 on the CPU. Raises LikenessError for other files, saying what they are."""
    file = _read(path)
    family = _family(file)
    tokenizer = find_tokenizer(path)
    towers = tuple(_tower(file, tokenizer, prefix, kind.name) for prefix, kind in family.texts)
    unet = _unet(file, family, towers)
    vae = _vae(file, family)
    if unet.config.in_channels != vae.config.latent_channels:
        raise LikenessError(
            f"The denoiser of '{path.name}' reads {unet.config.in_channels} channels (an inpainting or editing model): "
            f"{SUPPORTED}, made for text alone."
        )
    return BaseModel(unet, towers, Codec.of(vae), _schedule(file, family), clip_skip=family.text_skip)


# The file -------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _File:
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() in PICKLES:
        raise LikenessError(
            f"'{path.name}' is a pickle, which can run code when it is opened, and is not read: load it in ComfyUI, "
            "write it with Save Checkpoint, and give the .safetensors file."
        )
    texts = (prefix for family in TRAINABLE for prefix, _ in family.texts)
    parts = (UNET, VAE, *texts, "v_pred", "ztsnr")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(parts)]  # noqa: SIM118
            return _File(path, {name: file.get_tensor(name).float() for name in names}, file.metadata() or {})
    except FileNotFoundError as error:
        raise LikenessError(f"There is no base model '{path}': check its path and name.") from error
    except (SafetensorError, OSError) as error:
        raise LikenessError(
            f"'{path.name}' cannot be read as a .safetensors file ({error}): download it again, or give another one."
        ) from error


def _family(file: _File) -> Family:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in file.weights)

    if not has(UNET):
        raise LikenessError(
            f"'{file.path.name}' is not a checkpoint: it holds no denoiser (a LoRA, an embedding or a VAE, perhaps): "
            f"{SUPPORTED}."
        )
    if not has(f"{UNET}input_blocks.") or not has(f"{UNET}middle_block."):
        raise LikenessError(f"'{file.path.name}' is a checkpoint of another family of models: {SUPPORTED}.")
    if not has(f"{VAE}decoder.mid."):
        raise LikenessError(f"'{file.path.name}' holds no VAE of its family: {SUPPORTED}.")
    family = of_checkpoint(file.weights)
    if family is None:
        raise LikenessError(f"'{file.path.name}' holds no text encoder, or lacks one of SDXL's two: {SUPPORTED}.")
    return family


def _layers(weights: Mapping[str, Tensor], template: str) -> int:
    """How many of template.format(0), template.format(1) … there are."""
    return next(number for number in count() if template.format(number) not in weights)


# Denoiser -------------------------------------------------------------------------------------------------------------


def _unet(file: _File, family: Family, towers: Sequence[TextTower]) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    weights = below(file.weights, UNET)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**unet_config(weights, family, towers[-1].encoder.config.projection_dim))
    own = unet.state_dict()
    names = unet_names(own)
    if set(names.values()) != set(weights):
        raise LikenessError(
            f"The denoiser of '{file.path.name}' has another layout than its family's full models (a distilled or "
            f"extended one): {SUPPORTED}."
        )
    width = sum(tower.encoder.config.hidden_size for tower in towers)
    if width != unet.config.cross_attention_dim:
        raise LikenessError(
            f"The parts of '{file.path.name}' do not belong together: its text has width {width} and its denoiser "
            f"reads {unet.config.cross_attention_dim}; give another checkpoint."
        )
    unet.load_state_dict(from_original(weights, own, names), assign=True)
    return unet.eval().requires_grad_(False)


def unet_config(weights: Mapping[str, Tensor], family: Family, pooled: int) -> dict[str, Any]:
    """diffusers' configuration of a denoiser, from its weights under original names. pooled: SDXL's text vector."""
    levels: list[list[tuple[int, int]]] = [[]]  # of residual blocks: their width, and how deep their transformers are
    for number in count(1):
        block = f"input_blocks.{number}."
        if f"{block}0.op.weight" in weights:
            levels.append([])
        elif f"{block}0.in_layers.2.weight" in weights:
            depth = _layers(weights, f"{block}1.transformer_blocks.{{}}.norm1.weight")
            levels[-1].append((weights[f"{block}0.in_layers.2.weight"].shape[0], depth))
        else:
            break
    widths, depths = zip(*(level[0] for level in levels), strict=True)
    attentive = [depth > 0 for depth in depths]
    project = next(value for name, value in weights.items() if name.endswith(".1.proj_in.weight"))
    context = next(value for name, value in weights.items() if name.endswith(".attn2.to_k.weight"))
    config: dict[str, Any] = {
        "sample_size": family.latent_side,
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attentive),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attentive)),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": context.shape[1],
        # heads, not their width: diffusers keeps the misnomer for old checkpoints
        "attention_head_dim": family.heads or tuple(max(1, w // HEAD_WIDTH) for w in widths),
        "use_linear_projection": project.ndim == 2,
    }
    if family is SDXL:
        added = weights["label_emb.0.0.weight"].shape[1]
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = (added - pooled) // 6
        config["projection_class_embeddings_input_dim"] = added
    return config


def _schedule(file: _File, family: Family) -> NoiseSchedule:
    """The noise, and what is predicted, by the marks that ComfyUI knows, and by the metadata of ModelSpec."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    velocity = "v_pred" in file.weights or file.metadata.get("modelspec.prediction_type") == "v"
    if family is SD2:  # whose velocity models carry no mark, but larger biases in their last transformer
        bias = file.weights.get(f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias")
        velocity = velocity or (bias is not None and float(bias.std(unbiased=False)) > 0.09)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction" if velocity else "epsilon",
        rescale_betas_zero_snr="ztsnr" in file.weights,
    )
    return NoiseSchedule.of(scheduler)


# VAE ------------------------------------------------------------------------------------------------------------------


def _vae(file: _File, family: Family) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    weights = below(file.weights, VAE)
    levels = _layers(weights, "encoder.down.{}.block.0.conv1.weight")
    config: dict[str, Any] = {
        "block_out_channels": tuple(weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": _layers(weights, "encoder.down.0.block.{}.conv1.weight"),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "scaling_factor": family.latent_scale,
    }
    vae = AutoencoderKL(**config)
    own = vae.state_dict()
    vae.load_state_dict(from_original(weights, own, vae_names(own)))
    return vae.eval().requires_grad_(False)


# Text -----------------------------------------------------------------------------------------------------------------


def _tower(file: _File, tokenizer: Any, prefix: str, kind: str) -> TextTower:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    weights = below(file.weights, prefix)
    is_open_clip = any(name.startswith("transformer.resblocks.") for name in weights)
    weights = from_open_clip(weights) if is_open_clip else {with_text_model(k): v for k, v in weights.items()}
    words, width = weights["text_model.embeddings.token_embedding.weight"].shape
    if len(tokenizer) > words:
        raise LikenessError(
            f"The tokenizer that was found for '{file.path.name}' has {len(tokenizer)} words and its text encoder "
            f"{words}: put the checkpoint's own into a folder named 'tokenizer' beside it."
        )
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, local_files_only=True)
    if kind != CLIP_L.name:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    projected = kind == CLIP_G.name
    layers = {m[1] for m in (re.match(r"text_model\.encoder\.layers\.(\d+)\.", name) for name in weights) if m}
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=weights["text_model.embeddings.position_embedding.weight"].shape[0],
        hidden_act="quick_gelu" if kind == CLIP_L.name else "gelu",
        projection_dim=weights["text_projection.weight"].shape[0] if projected else width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: Any = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    load_encoder_weights(encoder, weights)
    return TextTower(tokenizer, encoder.eval().requires_grad_(False), kind)


def find_tokenizer(checkpoint: Path) -> Any:
    """CLIP's tokenizer. Raises LikenessError when its files are nowhere on this machine."""
    from transformers import CLIPTokenizer

    file = checkpoint.resolve()
    hosts = [*file.parents, *(root.parent for root in model_roots())]
    folders = [file.parent / "tokenizer", *(host / "comfy" / "sd1_tokenizer" for host in hosts), *_cached()]
    found = next((folder for folder in folders if any((folder / name).is_file() for name in VOCABULARIES)), None)
    problem = "no tokenizer was found"
    if found is not None:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(found, local_files_only=True)
            if len(tokenizer("person", add_special_tokens=False).input_ids) == 1:
                return tokenizer
            problem = f"the tokenizer in '{found}' is not complete"
        except Exception as error:  # whatever a damaged file makes of transformers
            problem = f"the tokenizer in '{found}' cannot be read ({error})"
    raise LikenessError(
        f"A checkpoint holds no tokenizer, and {problem}: set COMFYUI_PATH to a ComfyUI's folder, or put CLIP's "
        "vocab.json, merges.txt and tokenizer_config.json into a folder named 'tokenizer' beside "
        f"'{checkpoint.name}'."
    )


def _cached() -> list[Path]:
    """Folders of the Hugging Face cache that hold the tokenizer's files; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(TOKENIZER, name) for name in VOCABULARIES]
    return [Path(path).parent for path in paths if isinstance(path, str)]
