"""Small models for the real ComfyUI, with random weights and no downloads. Loaded once the host can be imported.

Everything is seeded and runs in float32 on the CPU. Layouts named `*_SITES` have exactly the attention sites of the
full nets (16 and 70) at a fraction of their width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy import sd1_clip, sdxl_clip, supported_models_base
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep, TimestepEmbedSequential
from comfy.model_patcher import ModelPatcher
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn

Conditioning = list[list[Any]]

_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
SD15_TINY: dict[str, Any] = {
    **_UNET,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}
SD15_SITES: dict[str, Any] = {
    **SD15_TINY,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 1, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
SDXL_POOLED = 64  # the host projects CLIP-G to its own width
SDXL_TINY: dict[str, Any] = {
    **SD15_TINY,
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
    "context_dim": 128,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": SDXL_POOLED + 6 * 256,
}
SDXL_SITES: dict[str, Any] = {
    **SDXL_TINY,
    "num_res_blocks": [2] * 3,
    "channel_mult": [1, 1, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
FLUX_TINY: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
KREA2_TINY: dict[str, Any] = {
    "image_model": "krea2", "features": 32, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 2,
    "layers": 2, "patch": 2, "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
}  # fmt: skip
FLUX2_TINY: dict[str, Any] = {
    "image_model": "flux2", "in_channels": 128, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 2, "axes_dim": [4, 4, 4, 4], "theta": 2000, "mlp_ratio": 2.0, "guidance_embed": True,
}  # fmt: skip
QWEN_TINY: dict[str, Any] = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
_FLUX2_FIXED: dict[str, Any] = {
    "out_channels": None, "vec_in_dim": None, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
    "ref_index_scale": 10.0,
}  # fmt: skip
_CLIP_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "projection_dim": 64,
}


def init_randomly(module: nn.Module, seed: int) -> None:
    """Give every parameter a value: matrices N(0, 1/fan_in), norm scales near 1, biases near 0.

    The host's layers skip their own initialisation, so that before this call they hold whatever lay in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                value = noise / math.sqrt(parameter[0].numel())
            elif name.endswith("weight"):
                value = 1 + 0.1 * noise
            else:
                value = 0.1 * noise
            parameter.copy_(value)


def _patcher(model: nn.Module) -> ModelPatcher:
    model.eval()
    return ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def dit(name: str, config: dict[str, Any], weights: dict[str, Tensor] | None = None, seed: int = 0) -> ModelPatcher:
    """A MODEL of one of the host's classes that attend to references, "Krea2", "Flux2" or "QwenImage".

    config: the network's arguments. weights: under official keys, None for random ones. Latents of other widths than
    the published ones have no format of their own.
    """
    layout = {**(_FLUX2_FIXED if name == "Flux2" else {}), **config, "dtype": torch.float32}
    if name == "Flux2":
        layout["out_channels"] = layout["out_channels"] or layout["in_channels"]
    settings = getattr(comfy.supported_models, name)(layout)
    settings.set_inference_dtype(torch.float32, None)
    model = getattr(comfy.model_base, name)(settings, device=torch.device("cpu"))
    if weights is None:
        init_randomly(model.diffusion_model, seed)
    else:
        names = {key: key for key in weights}
        if name == "Flux2":
            names = {key: key.replace("_norm.scale", "_norm.weight") for key in weights}
        model.diffusion_model.load_state_dict({names[key]: value for key, value in weights.items()}, strict=True)
    channels = config.get("channels") or config.get("out_channels") or config["in_channels"]
    if channels != model.latent_format.latent_channels:
        model.latent_format = comfy.latent_formats.LatentFormat()
        model.latent_format.latent_channels = channels
    return _patcher(model)


def unet(
    config: dict[str, Any],
    *,
    num_heads: int = 4,
    num_head_channels: int = -1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ModelPatcher:
    """A MODEL from a UNet configuration in the host's own terms; SDXL's class where `adm_in_channels` says so.

    One of `num_heads` and `num_head_channels` is -1. `dtype` is that of the weights: with float16 the host computes in
    float32 on a CPU (`manual_cast_dtype`).
    """
    is_sdxl = config.get("adm_in_channels") is not None
    family = comfy.supported_models.SDXL if is_sdxl else comfy.supported_models.SD15
    settings = family({**config, "dtype": dtype})
    settings.unet_config.update(num_heads=num_heads, num_head_channels=num_head_channels)  # overwritten by `family`
    settings.set_inference_dtype(dtype, None if dtype is torch.float32 else torch.float32)
    build = comfy.model_base.SDXL if is_sdxl else comfy.model_base.BaseModel
    model = build(settings, device=torch.device("cpu"))
    init_randomly(model.diffusion_model, seed)
    return _patcher(model)


def tiny_sd15(seed: int = 0, **changes: Any) -> ModelPatcher:
    """1.1 M parameters, 7 cross-attention layers, context width 64."""
    return unet({**SD15_TINY, **changes}, seed=seed)


def tiny_sdxl(seed: int = 0, **changes: Any) -> ModelPatcher:
    """Two levels, depth 2 in the deeper one and in the middle, context width 128, pooled width `SDXL_POOLED`."""
    return unet({**SDXL_TINY, **changes}, seed=seed)


def _flux_layout(changes: dict[str, Any]) -> dict[str, Any]:
    layout = {**FLUX_TINY, **changes}
    if "txt_ids_dims" in FluxParams.__dataclass_fields__:  # required of hosts that know Flux 2, where it is not empty
        layout.setdefault("txt_ids_dims", [])
    return layout


def tiny_flux(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> ModelPatcher:
    """Two double and three single blocks; conditioning needs a pooled output of width 32 and a `guidance`.

    `dtype` is that of the weights, and of the computation.
    """
    settings = comfy.supported_models.Flux({**_flux_layout(changes), "dtype": dtype})
    settings.set_inference_dtype(dtype, None)
    model = comfy.model_base.Flux(settings, device=torch.device("cpu"))
    init_randomly(model.diffusion_model, seed)
    return _patcher(model)


def tiny_clip(
    seed: int = 0, *, sdxl: bool = False, sd2: bool = False, dtype: torch.dtype = torch.float32
) -> comfy.sd.CLIP:
    """The real tokenizer with a text encoder of four layers; its width 64 (SDXL: 64 + 64) fits the tiny models."""
    sizes: dict[str, Any] = {"clip_l_model_config": _CLIP_TINY, "dtype": dtype}
    if sd2:
        from comfy.text_encoders import sd2_clip

        sizes["clip_h_model_config"] = _CLIP_TINY
        target = supported_models_base.ClipTarget(sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel)
    elif sdxl:
        sizes["clip_g_model_config"] = _CLIP_TINY
        target = supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    else:
        target = supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(target, model_options=sizes)
    init_randomly(clip.cond_stage_model, seed)
    return clip


def clip_from_transformers(config: dict[str, Any], weights: dict[str, Tensor]) -> comfy.sd.CLIP:
    """A CLIP that computes what transformers' `CLIPTextModel` of this configuration computes with `weights`.

    The host's vocabulary and its 77 positions are fixed, so that both tables are made anew.
    """
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    sizes = {"clip_l_model_config": {name: config[name] for name in names}, "dtype": torch.float32}
    target = supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(target, model_options=sizes)
    net = clip.cond_stage_model.clip_l.transformer
    init_randomly(net, 0)
    tables = net.text_model.embeddings
    for name, rows in (("token", config["vocab_size"]), ("position", config["max_position_embeddings"])):
        kind = type(getattr(tables, f"{name}_embedding"))
        setattr(tables, f"{name}_embedding", kind(rows, config["hidden_size"], dtype=torch.float32))
    named = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in weights.items()}
    missing, strange = net.load_state_dict(named, strict=False)
    assert not strange and all(name.startswith("text_projection") for name in missing)
    return clip


def tiny_vae(seed: int = 0, channels: int = 4) -> comfy.sd.VAE:
    """TAESD with random weights: exactly a factor 8, and less saturated than a random KL autoencoder.

    channels: of the latents, 16 for FLUX.
    """
    return comfy.sd.VAE(sd=taesd_weights(seed, channels))


def taesd_weights(seed: int = 0, channels: int = 4) -> dict[str, Tensor]:
    """A whole TAESD state dictionary."""
    net = TAESD(latent_channels=channels)
    init_randomly(net, seed)
    return {**net.state_dict(), "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}


def conditioning(
    width: int, *, pooled: int | None = None, tokens: int = 77, seed: int = 0, **extra: Any
) -> Conditioning:
    """One entry of random text states, (1, tokens, width); `extra` goes into its dictionary."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, tokens, width, generator=generator)
    options = dict(extra)
    if pooled is not None:
        options["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[states, options]]


def sample(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    *,
    shape: tuple[int, int, int, int] = (1, 4, 16, 16),
    steps: int = 3,
    cfg: float = 7.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    seed: int = 1,
    **options: Any,
) -> Tensor:
    """What KSampler returns for an empty latent of `shape`; `options` go to `comfy.sample.sample` (a callback, say)."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        result = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            torch.zeros(shape),
            disable_pbar=True,
            seed=seed,
            **options,
        )
    return result.clone()


class _Times:
    """A multiple of the host's that is no whole number: times `one`, it is `whole`."""

    def __init__(self, whole: int, one: int) -> None:
        self.whole, self.one = whole, one

    def __mul__(self, channels: int) -> int:
        assert channels == self.one
        return self.whole

    __rmul__ = __mul__


def _times(whole: int, one: int) -> Any:
    return _Times(whole, one) if whole % one else whole // one


def ldm_config_from_diffusers(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """The host's UNet configuration and its head numbers, `{"num_heads", "num_head_channels"}`, for a diffusers one.

    `attention_head_dim` is diffusers' historic name: one number is the number of heads, a list holds the number of
    heads per level. The host has one width per head for all levels: where they differ, see `_split_heads`.
    """
    channels = list(config["block_out_channels"])
    layers = config["layers_per_block"]
    per_block = config.get("transformer_layers_per_block", 1)
    per_block = [per_block] * len(channels) if isinstance(per_block, int) else list(per_block)
    has_attention = ["CrossAttn" in name for name in config["down_block_types"]]
    depth = [d if attends else 0 for d, attends in zip(per_block, has_attention, strict=True)]
    head_dim = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if isinstance(head_dim, int):
        heads = {"num_heads": head_dim, "num_head_channels": -1}
    else:
        width = channels[-1] // head_dim[-1]
        one_width = not any(channel % width for channel in channels)
        heads = (
            {"num_heads": -1, "num_head_channels": width} if one_width else {"num_heads": 1, "num_head_channels": -1}
        )
    ldm: dict[str, Any] = {
        **_UNET,
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "model_channels": channels[0],
        "channel_mult": [_times(channel, channels[0]) for channel in channels],
        "num_res_blocks": [layers] * len(channels),
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)],
        "transformer_depth_middle": per_block[-1],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        "adm_in_channels": None,
    }
    if config.get("addition_embed_type") == "text_time":
        ldm["num_classes"] = "sequential"
        ldm["adm_in_channels"] = config["projection_class_embeddings_input_dim"]
    return ldm, heads


@contextmanager
def _groups(count: int) -> Iterator[None]:
    """The host's group norms have 32 groups; while this lasts, those that are made have so many."""
    plain = nn.GroupNorm.__init__

    def init(self: nn.GroupNorm, num_groups: int, *arguments: Any, **keywords: Any) -> None:
        plain(self, count, *arguments, **keywords)

    nn.GroupNorm.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = plain  # type: ignore[method-assign]


def _split_heads(net: nn.Module, config: dict[str, Any]) -> None:
    """Give every attention of a network as many heads as a diffusers configuration says of its level."""
    given = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    count = len(config["block_out_channels"])
    per_level = [given] * count if isinstance(given, int) else list(given)
    layers = config["layers_per_block"]
    parts: Any = net
    levels = [(block, max(i - 1, 0) // (layers + 1)) for i, block in enumerate(parts.input_blocks)]
    levels += [(parts.middle_block, count - 1)]
    levels += [(block, count - 1 - i // (layers + 1)) for i, block in enumerate(getattr(net, "output_blocks", ()))]
    for part, level in levels:
        for block in (module for module in part.modules() if hasattr(module, "attn2")):
            block.n_heads, block.d_head = per_level[level], block.attn1.heads * block.attn1.dim_head // per_level[level]
            for attention in (block.attn1, block.attn2):
                attention.heads, attention.dim_head = block.n_heads, block.d_head


def unet_from_diffusers(config: dict[str, Any], weights: dict[str, Tensor]) -> ModelPatcher:
    """A MODEL that computes what diffusers' `UNet2DConditionModel(**config)` computes with `weights`, to about 3e-6."""
    ldm, heads = ldm_config_from_diffusers(config)
    with _groups(config.get("norm_num_groups", 32)):
        patcher = unet(ldm, num_heads=heads["num_heads"], num_head_channels=heads["num_head_channels"])
    net = patcher.model.diffusion_model
    to_ldm = comfy.utils.unet_to_diffusers(ldm)
    net.load_state_dict({to_ldm[key]: value.float() for key, value in weights.items()}, strict=True)
    _split_heads(net, config)
    if ldm["adm_in_channels"] is not None:
        patcher.model.embedder = Timestep(config["addition_time_embed_dim"])  # the host's is always 256
    return patcher


_HINT_CHANNELS = (16, 32, 96, 256)  # of the layers that read a ControlNet's image, in published nets


def controlnet(
    config: dict[str, Any],
    *,
    num_heads: int = 4,
    num_head_channels: int = -1,
    hint_channels: Sequence[int] = _HINT_CHANNELS,
    seed: int = 0,
) -> comfy.controlnet.ControlNet:
    """What Load ControlNet Model gives, for a UNet of this configuration (see `unet`), with random weights."""
    settings = {key: value for key, value in config.items() if key not in ("out_channels", "transformer_depth_output")}
    net = comfy.cldm.cldm.ControlNet(
        **settings,
        hint_channels=3,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    if tuple(hint_channels) != _HINT_CHANNELS:
        net.input_hint_block = _hint_block(hint_channels, settings["model_channels"])
    init_randomly(net, seed)
    return comfy.controlnet.ControlNet(net.eval(), load_device=comfy.model_management.get_torch_device())


def flux_controlnet(seed: int = 0, **changes: Any) -> comfy.controlnet.ControlNet:
    """One for `tiny_flux` that reads the image itself, as XLabs' do, with random weights."""
    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        dtype=torch.float32, device=torch.device("cpu"), operations=comfy.ops.disable_weight_init,
        **_flux_layout({"depth": 2, "depth_single_blocks": 0, **changes}),
    )  # fmt: skip
    init_randomly(net, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(net.eval(), load_device=device, extra_conds=["y", "guidance"])


def _hint_block(channels: Sequence[int], out: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
    for narrow, wide in itertools.pairwise(channels):
        layers += [nn.SiLU(), nn.Conv2d(narrow, narrow, 3, padding=1)]
        layers += [nn.SiLU(), nn.Conv2d(narrow, wide, 3, padding=1, stride=2)]
    return TimestepEmbedSequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], out, 3, padding=1))


def controlnet_from_diffusers(config: dict[str, Any], weights: dict[str, Tensor]) -> comfy.controlnet.ControlNet:
    """A ControlNet that computes what diffusers' `ControlNetModel(**config)` computes with `weights`."""
    ldm, heads = ldm_config_from_diffusers(config)
    with _groups(config.get("norm_num_groups", 32)):
        control = controlnet(ldm, **heads, hint_channels=config["conditioning_embedding_out_channels"])
    net = control.control_model
    names = dict(comfy.utils.unet_to_diffusers(ldm))
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    hints = ["conv_in", *(f"blocks.{i}" for i in range(blocks)), "conv_out"]
    for half in ("weight", "bias"):
        names[f"controlnet_mid_block.{half}"] = f"middle_block_out.0.{half}"
        names |= {f"controlnet_down_blocks.{i}.{half}": f"zero_convs.{i}.0.{half}" for i in range(len(net.zero_convs))}
        names |= {
            f"controlnet_cond_embedding.{name}.{half}": f"input_hint_block.{2 * i}.{half}"
            for i, name in enumerate(hints)
        }
    net.load_state_dict({names[key]: value.float() for key, value in weights.items()}, strict=True)
    _split_heads(net, config)
    return control
