"""MODELs whose weights are quantised, in any way that this host knows, and what their weights stand for."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import torch
from torch import Tensor, nn

MIXED = ["float8_e4m3fn", "int8_tensorwise", "nvfp4", "nvfp4 with scaled inputs"]  # layouts of comfy-kitchen
FLOAT8 = {"unscaled", "scaled_fp8", "float8_e4m3fn"}
FORMATS = ["unscaled", *(MIXED if importlib.util.find_spec("comfy_kitchen") else ["scaled_fp8"])]


def layers_of(module: nn.Module, kind: str) -> list[str]:
    """Names of the linear layers that files quantise: all, or those of the blocks."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return names if kind == "scaled_fp8" else [name for name in names if re.search(r"attn|\.ff\.|mlp", name)]


def quantised(state: dict[str, Tensor], layers: list[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict in a format of files, and what it stands for."""
    if kind == "unscaled":
        return state, {name: value.to(torch.float8_e4m3fn).float() for name, value in state.items()}
    stored, means = dict(state), dict(state)
    for layer in layers:
        weight = state[f"{layer}.weight"]
        if kind == "scaled_fp8":
            stored[f"{layer}.scale_weight"] = scale = weight.abs().max() / 448
            stored[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            means[f"{layer}.weight"] = stored[f"{layer}.weight"].float() * scale
            if f"{layer}.bias" in state:
                means[f"{layer}.bias"] = state[f"{layer}.bias"].to(torch.float8_e4m3fn).float()
            continue
        from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

        format, _, scaled = kind.partition(" ")
        options = {} if format == "int8_tensorwise" else {"scale": "recalculate"}
        found = QuantizedTensor.from_float(weight, QUANT_ALGOS[format]["comfy_tensor_layout"], **options)
        del stored[f"{layer}.weight"]
        stored |= found.state_dict(f"{layer}.weight")
        stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)
        means[f"{layer}.weight"] = found.dequantize()
        if scaled:
            stored[f"{layer}.pre_quant_scale"] = scale = torch.linspace(0.5, 2, weight.shape[1])
            means[f"{layer}.weight"] = means[f"{layer}.weight"] * scale
    return stored, means


def quantised_model(recipes: Any, kind: str, sdxl: bool = False) -> tuple[Any, dict[str, Tensor], list[str]]:
    """A MODEL, what its weights stand for, and its quantised layers."""
    return quantised_copy(recipes, recipes.tiny_sdxl() if sdxl else recipes.tiny_sd15(), kind)


def quantised_copy(recipes: Any, plain: Any, kind: str) -> tuple[Any, dict[str, Tensor], list[str]]:
    """The same of a MODEL, whose configuration then is the quantised one's."""
    net, config = plain.model.diffusion_model, plain.model.model_config
    layers = layers_of(net, kind)
    stored, means = quantised(net.state_dict(), layers, kind)
    config.set_inference_dtype(torch.float8_e4m3fn if kind == "unscaled" else torch.float32, torch.float32)
    if kind in MIXED:
        config.quant_config = {"mixed_ops": True}
    elif kind == "scaled_fp8":
        config.scaled_fp8 = torch.float8_e4m3fn
    model = type(plain.model)(config, device=torch.device("cpu"))
    model.diffusion_model.load_state_dict(stored, strict=False)
    return recipes._patcher(model), means, layers
