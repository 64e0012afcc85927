"""LoRA files as the official MagiCapture code numbers them: `unet:<i>:up|down`, in the order of diffusers 0.14.

Nobody but its authors has such files; here they carry the weights of the golden cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from likeness.errors import LikenessError
from likeness.weights.lora import LoraPair
from likeness.weights.lora_files import Component, weighted_layers

_BRANCHES = ("attn1", "ff", "attn2")  # the order in which diffusers 0.14 registered them
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "net")
_RESNET = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
_TEXT_PROJECTIONS = ("k_proj", "v_proj", "q_proj", "out_proj")


def official_unet_order(unet: nn.Module, target_classes: Iterable[str]) -> list[str]:
    """Paths of a UNet's LoRA layers in the order that `unet:<i>:up|down` counts them.

    target_classes: those the file's metadata names under `unet`. The order is that of diffusers 0.14: down, up, middle;
    attentions before residual blocks; the feed-forward between the two attentions.
    """
    classes = set(target_classes)
    wanted = {
        "attn": bool(classes & {"Attention", "CrossAttention"}),
        "ff": "GEGLU" in classes,
        "resnets": "ResnetBlock2D" in classes,
    }
    unknown = classes - {"Attention", "CrossAttention", "GEGLU", "ResnetBlock2D"}
    if unknown:
        raise LikenessError(f"This MagiCapture file changes layers of an unknown kind: {', '.join(sorted(unknown))}.")
    keyed = []
    for path in weighted_layers(unet):
        words = path.split(".")
        if ".resnets." in path and wanted["resnets"]:
            inner = (1, int(words[words.index("resnets") + 1]), 0, 0, _RESNET.index(words[-1]))
        elif (".attn" in path and wanted["attn"]) or (path.endswith(".ff.net.0.proj") and wanted["ff"]):
            at = words.index("transformer_blocks")
            branch = _BRANCHES.index(words[at + 2])
            inner = (0, int(words[at - 1]), int(words[at + 1]), branch, _PROJECTIONS.index(words[at + 3]))
        else:
            continue
        part = ("down_blocks", "up_blocks", "mid_block").index(words[0])
        level = int(words[1]) if part < 2 else 0
        keyed.append(((part, level, *inner), path))
    return [path for _, path in sorted(keyed)]


def official_text_order(encoder: nn.Module) -> list[str]:
    """Paths of a text encoder's LoRA layers in the order of `text_encoder:<i>`: per layer k, v, q, out."""
    paths = [path for path in weighted_layers(encoder) if path.endswith(_TEXT_PROJECTIONS)]
    return sorted(
        paths, key=lambda p: (int(p.split("layers.")[1].split(".")[0]), _TEXT_PROJECTIONS.index(p.split(".")[-1]))
    )


def read_official(weights: Mapping[str, Tensor], component: Component, order: list[str]) -> dict[str, LoraPair]:
    """The LoRA of one model in a MagiCapture (or cloneofsimo/lora) file. It has no alpha.

    Raises LikenessError when the file counts other layers than the model has.
    """
    prefix = f"{component.diffusers}:"
    count = sum(key.startswith(prefix) and key.endswith(":up") for key in weights)
    if count != len(order):
        raise LikenessError(
            f"This MagiCapture file changes {count} layers of the {component.diffusers}, but this model has "
            f"{len(order)}: it was made for another base model (SD1.5 has 144 and 48)."
        )
    return {path: LoraPair(weights[f"{prefix}{i}:down"], weights[f"{prefix}{i}:up"]) for i, path in enumerate(order)}


def official_tokens(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The learned tokens of such a file, (dim,) each, sorted by name."""
    return {name: weights[name] for name in sorted(metadata) if metadata[name] == "<embed>"}


def official_targets(metadata: Mapping[str, Any], component: Component) -> list[str]:
    """The classes of layers that such a file changes."""
    return json.loads(metadata[component.diffusers])
