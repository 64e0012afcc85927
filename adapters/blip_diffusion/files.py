"""Where BLIP-Diffusion's weights lie: every published layout to our own names, and back to the Hub's.

    Hub        qformer/pytorch_model.bin      query_tokens, embeddings.*, encoder.*, proj_layer.*, visual_encoder.*
    LAVIS      blip_model/blip_weight.pt      query_tokens, Qformer.bert.*, ln_vision.*, visual_encoder.*
               proj_layer/proj_weight.pt      dense1.*, dense2.*, LayerNorm.*
               ctx_embeddings_cache/ctx_embeddings_cache.pt    the vectors of a subject that was trained
    checkpoint checkpoint_40.pth              {"model": {blip.*, proj_layer.*, ctx_embeddings_cache, unet.*, ...}}
    ours       a subject                      ctx_embeddings_cache, and unet.* whole or as LoRA pairs

Both name the same weights one to one. LAVIS's heads of BLIP-2 (`vision_proj`, `Qformer.cls`, ...) are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LikenessError, logger
from ...weights.checkpoint_layout import below
from ...weights.files import read_content, read_weights
from ...weights.lora import LoraPair
from ...weights.lora_files import read_attention_lora
from ..whole_file import fault, of_one_precision, without_buffers
from .networks import HeadSizes, SubjectEncoder

log = logger("likeness.adapters")

VECTORS = "ctx_embeddings_cache"
QUERIES = "query_tokens"
_PROJECTION, _UNET, _TOWER = "proj_layer.", "unet.", "visual_encoder."
_PROJECTION_ALONE = {f"{layer}.{kind}" for layer in ("dense1", "dense2", "LayerNorm") for kind in ("weight", "bias")}
_UNUSED = ("Qformer.cls.", "vision_proj.", "text_proj.", "itm_head.", "temp")
_BEFORE = ("", "blip.", "qformer.")  # the encoder's names, in files that hold other parts as well


@dataclass(frozen=True, eq=False)
class Contents:
    """What files hold together. encoder: under our own names, empty where there is none. vectors: (1, n, dim) of one
    trained subject. unet: whole weights, lora: pairs, both as `WeightDelta` has them. sizes: see `HeadSizes`."""

    encoder: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Tensor | None = None
    unet: Mapping[str, Tensor] = field(default_factory=dict)
    lora: Mapping[str, LoraPair] = field(default_factory=dict)
    sizes: HeadSizes = field(default_factory=HeadSizes)


def is_blip_diffusion(weights: Mapping[str, Tensor]) -> bool:
    """Whether a file is BLIP-Diffusion's in any of its layouts, whole or a part."""
    whole = _without_wrapping(weights)
    return VECTORS in whole or set(whole) == _PROJECTION_ALONE or bool(_encoder(whole))


def read(weights: Mapping[str, Tensor], name: str, path: Path | None = None) -> Contents:
    """What a file holds, and the files that belong to it where it lies in one of the published folders.

    Raises LikenessError when a part is missing.
    """
    whole = _without_wrapping(weights)
    encoder = _encoder(whole)
    if set(whole) == _PROJECTION_ALONE:
        encoder = _encoder(_beside(path, "blip_model", "blip_weight", name)) | _named(_PROJECTION, whole)
    elif encoder and not any(key.startswith(_PROJECTION) for key in encoder):
        encoder = encoder | _named(_PROJECTION, _beside(path, "proj_layer", "proj_weight", name))
    vectors = whole.get(VECTORS)
    if vectors is None or not bool(vectors.any()):  # LAVIS writes zeros where no subject was trained
        vectors = _cached(path)
    pairs = {key: value for key, value in whole.items() if key.startswith(_UNET) and ".lora" in key}
    return Contents(
        to_own(encoder),
        vectors,
        {} if pairs else {key.removesuffix(".weight"): value for key, value in below(whole, _UNET).items()},
        read_attention_lora(pairs, name) if pairs else {},
        _sizes(path),
    )


def _without_wrapping(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model of a training checkpoint, which has an optimiser and more beside it."""
    inside = below(weights, "model.")
    return inside if VECTORS in inside or _encoder(inside) else dict(weights)


def _encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The subject encoder's weights in either layout; empty where there is none."""
    for prefix in _BEFORE:
        classes = [f"{prefix}{_TOWER}{name}" for name in ("class_embedding", "embeddings.class_embedding")]
        if prefix + QUERIES in weights and any(key in weights for key in classes):
            return below(weights, prefix) | {k: v for k, v in weights.items() if k.startswith(_PROJECTION)}
    return {}


def _named(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


# --- the files of one folder


def _beside(path: Path | None, folder: str, stem: str, name: str) -> dict[str, Tensor]:
    """The other file of LAVIS's pair."""
    places = [] if path is None else [path.parent.parent / folder, path.parent]
    for place in places:
        for suffix in (".pt", ".pth", ".bin", ".safetensors"):
            if (place / f"{stem}{suffix}").is_file():
                return read_weights(place / f"{stem}{suffix}")[0]
    raise LikenessError(
        f"{name!r} is one half of BLIP-Diffusion's published files, and the other half, {folder}/{stem}.pt, is not "
        "beside it: put both folders of the archive side by side, or choose the Hub's qformer/pytorch_model.bin."
    )


def _cached(path: Path | None) -> Tensor | None:
    """The vectors of LAVIS's folder, which is a file of a single tensor."""
    cache = None if path is None else path.parent.parent / VECTORS / f"{VECTORS}.pt"
    if cache is None or not cache.is_file():
        return None
    content, _ = read_content(cache)
    if isinstance(content, Tensor) and content.ndim == 3 and bool(content.any()):
        return content.detach()
    return None


def _sizes(path: Path | None) -> HeadSizes:
    """What the Hub's config.json says beside the weights; the published sizes without one."""
    config = None if path is None else path.parent / "config.json"
    if config is None or not config.is_file():
        return HeadSizes()
    try:
        told = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return HeadSizes()
    vision, queries = (told.get(f"{part}_config") if isinstance(told, dict) else None for part in ("vision", "qformer"))
    if not isinstance(vision, dict) or not isinstance(queries, dict):
        return HeadSizes()
    default, eps = HeadSizes(), vision.get("layer_norm_eps", 1e-6)  # transformers' where the file leaves it out
    return HeadSizes(
        _head_width(vision, default.tower),
        _head_width(queries, default.queries),
        eps if isinstance(eps, float) else default.tower_eps,
    )


def _head_width(config: Mapping[str, Any], default: int) -> int:
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else default


# --- names


_TOWER_NAMES = (  # LAVIS's, the Hub's, our own
    ("class_embedding", "embeddings.class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding", "embeddings.position_embedding.weight"),
    ("conv1.weight", "embeddings.patch_embedding.weight", "embeddings.patch_embedding.weight"),
    *((f"ln_pre.{kind}", f"pre_layernorm.{kind}", f"pre_layrnorm.{kind}") for kind in ("weight", "bias")),
    *((f"ln_post.{kind}", f"post_layernorm.{kind}", f"post_layernorm.{kind}") for kind in ("weight", "bias")),
)
_BLOCK_NAMES = (
    ("ln_1.", "layer_norm1.", "layer_norm1."),
    ("ln_2.", "layer_norm2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.projection.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2.", "mlp.fc2."),
)
_FUSED = re.compile(r"^(?:attn\.in_proj_|self_attn\.qkv\.)(weight|bias)$")
_BLOCK = re.compile(r"^(?:transformer\.resblocks|encoder\.layers)\.(\d+)\.(.+)$")
_THIRDS = ("q_proj", "k_proj", "v_proj")


def to_own(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder in either published layout under our own names. What is unknown keeps its name."""
    own: dict[str, Tensor] = {}
    for key, value in without_buffers(weights).items():
        if key.startswith(_UNUSED):
            continue
        if key.startswith(_TOWER):
            own |= {_TOWER + name: part for name, part in _tower_weight(key[len(_TOWER) :], value)}
        elif key.startswith("ln_vision."):
            own[f"{_TOWER}post_layernorm.{key.rpartition('.')[2]}"] = value
        else:
            name = key.removeprefix("Qformer.bert.")
            own[re.sub(r"\.((?:cross)?attention)\.self\.", r".\1.attention.", name)] = value
    return own


def _tower_weight(key: str, value: Tensor) -> Iterable[tuple[str, Tensor]]:
    for lavis, hub, own in _TOWER_NAMES:
        if key in (lavis, hub, own):
            return [(own, _without_unit_axes(own, value))]
    if (block := _BLOCK.match(key)) is None:
        return [(key, value)]
    number, rest = block.groups()
    layer = f"encoder.layers.{number}."
    if fused := _FUSED.match(rest):
        parts = value.chunk(3)
        return [(f"{layer}self_attn.{name}.{fused[1]}", part) for name, part in zip(_THIRDS, parts, strict=True)]
    for lavis, hub, own in _BLOCK_NAMES:
        for theirs in (lavis, hub):
            if rest.startswith(theirs):
                return [(layer + own + rest[len(theirs) :], value)]
    return [(layer + rest, value)]


def _without_unit_axes(own: str, value: Tensor) -> Tensor:
    return value.flatten() if own.endswith("class_embedding") else value.flatten(0, -2) if value.ndim == 3 else value


def to_hub(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_own`, in the Hub's layout."""
    hub: dict[str, Tensor] = {}
    for key, value in own.items():
        if not key.startswith(_TOWER):
            hub[key] = value
            continue
        name = key[len(_TOWER) :]
        known = next((theirs for _, theirs, ours in _TOWER_NAMES if ours == name), None)
        if known is not None:
            has_unit_axes = "class_embedding" in known or "position_embedding" in known
            hub[_TOWER + known] = value.reshape(1, -1, value.shape[-1]) if has_unit_axes else value
            continue
        block = _BLOCK.match(name)
        assert block is not None
        layer, rest = f"{_TOWER}encoder.layers.{block[1]}.", block[2]
        if rest.startswith("self_attn.q_proj."):
            kind = rest.rpartition(".")[2]
            thirds = [own[f"{layer}self_attn.{third}.{kind}"] for third in _THIRDS]
            hub[f"{layer}self_attn.qkv.{kind}"] = torch.cat(thirds)
        elif not rest.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            theirs, ours = next((theirs, ours) for _, theirs, ours in _BLOCK_NAMES if rest.startswith(ours))
            hub[layer + theirs + rest[len(ours) :]] = value
    return hub


def build_encoder(contents: Contents, name: str) -> SubjectEncoder:
    """The encoder of a file, frozen, in eval mode. Raises LikenessError that names what is missing."""
    weights = of_one_precision(contents.encoder)
    try:
        encoder = SubjectEncoder(weights, contents.sizes)
        missing = [key for key in encoder.state_dict() if key not in weights]
        if missing:
            raise KeyError(missing[0])
        strange = sorted(weights.keys() - encoder.state_dict().keys())
        encoder.load_state_dict({k: v for k, v in weights.items() if k not in strange}, assign=True)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else fault(error)
        raise LikenessError(f"{name!r} is not a complete BLIP-Diffusion file ({why}): download it again.") from error
    if strange:
        log.warning("[likeness] %s: %d unknown weights are not read, such as %s.", name, len(strange), strange[0])
    return encoder.requires_grad_(False).eval()
