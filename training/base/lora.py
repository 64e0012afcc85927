"""Low-rank changes of a model's weights: W + strength · (α / r) · up @ down (LoRA, arXiv 2106.09685).

While training they are peft's layers; on disk and between formats they are `LoraPair`s under the module paths of
diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import LikenessError
from ...weights.files import read_weights
from ...weights.lora import LoraPair, check_fits
from ...weights.lora_files import SDXL_TEXT_1, SDXL_TEXT_2, TEXT, UNET, read_lora, text_spellings, unet_spellings

ADAPTER = "likeness"  # peft's name for our layers


class Reach(Enum):
    """Which layers of a denoiser or text encoder a LoRA changes; the value is what a user chooses."""

    CROSS_ATTENTION = "cross-attention"
    ATTENTION = "attention"
    ATTENTION_AND_GEGLU = "attention and GEGLU"
    TRANSFORMER = "transformer"
    EVERYTHING = "transformer and convolutions"


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
_TRANSFORMER = (*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
_CROSS = tuple(f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))
_ENDINGS = {
    Reach.CROSS_ATTENTION: _CROSS,
    Reach.ATTENTION: _ATTENTION,
    Reach.ATTENTION_AND_GEGLU: (*_ATTENTION, "ff.net.0.proj"),
    Reach.TRANSFORMER: _TRANSFORMER,
    Reach.EVERYTHING: _TRANSFORMER + _CONVOLUTIONS,
}


def lora_targets(model: nn.Module, reach: Reach) -> list[str]:
    """Paths of the layers a LoRA of this reach changes, in the model's order. A text encoder, which attends to itself
    alone, has no cross-attention: its attention is taken there."""
    layers = [path for path, module in model.named_modules() if _changeable(module)]
    if reach is Reach.CROSS_ATTENTION and not any(".attn2." in path for path in layers):
        reach = Reach.ATTENTION
    endings = tuple(f".{ending}" for ending in _ENDINGS[reach])
    return [path for path in layers if path.endswith(endings)]


def _changeable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def add_lora(
    model: nn.Module, targets: Iterable[str], rank: int, alpha: float | None = None, dropout: float = 0.0
) -> list[nn.Parameter]:
    """Give the target layers a trainable LoRA that changes nothing yet, and return its parameters.

    alpha None means alpha = rank. down ~ N(0, 1/r²), up = 0, both float32. The model's own parameters are frozen.
    """
    paths = list(targets)
    if rank < 1 or not paths:
        raise LikenessError("A LoRA needs a rank of at least 1 and a network with layers that it can change.")
    _inject(model, dict.fromkeys(paths, rank), alpha, dropout)
    return list(lora_parameters(model).values())


def continue_lora(model: nn.Module, pairs: Mapping[str, LoraPair], dropout: float = 0.0) -> None:
    """Give a model's layers the LoRA of an earlier training, with its ranks and strengths, to be trained further.

    Raises LikenessError when it does not fit the model, or is of a kind that has no such layers.
    """
    for path, pair in pairs.items():
        check_fits(path, pair, model.get_submodule(path).weight)  # type: ignore[arg-type]
        if pair.mid is not None:
            raise LikenessError(
                f"This LoRA has three matrices for {path} (LoCon), and only two can be trained further: choose another."
            )
    _inject(model, {path: pair.rank for path, pair in pairs.items()}, None, dropout)
    fill_lora(model, pairs)


def _inject(model: nn.Module, ranks: Mapping[str, int], alpha: float | None, dropout: float) -> None:
    """New layers at these paths, of these ranks; everything else is frozen. alpha None: that of each is its rank."""
    from peft import LoraConfig, inject_adapter_in_model

    usual = max(ranks.values())
    own = {path: rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(ranks),
        rank_pattern=own,
        alpha_pattern=own if alpha is None else {},
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, ADAPTER)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained halves of a model's LoRA layers, `<path>.down` and `<path>.up`, float32."""
    parameters = {}
    for path, layer in _lora_layers(model):
        parameters[f"{path}.down"] = layer.lora_A[ADAPTER].float().weight
        parameters[f"{path}.up"] = layer.lora_B[ADAPTER].float().weight
    return parameters


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield path, module


def trained_pairs(model: nn.Module) -> dict[str, LoraPair]:
    """The LoRA of a model as it is now, by module path."""
    return {
        path: LoraPair(
            layer.lora_A[ADAPTER].weight.detach().clone(),
            layer.lora_B[ADAPTER].weight.detach().clone(),
            layer.scaling[ADAPTER] * layer.r[ADAPTER],
        )
        for path, layer in _lora_layers(model)
    }


@torch.no_grad()
def fill_lora(model: nn.Module, pairs: Mapping[str, LoraPair]) -> None:
    """Give a model's LoRA layers (of `add_lora`) these values, to go on training from them."""
    layers = dict(_lora_layers(model))
    if set(layers) != set(pairs):
        raise LikenessError(
            f"This LoRA changes {len(pairs)} layers and the training {len(layers)}, not the same ones: "
            "continue with the settings it was trained with."
        )
    for path, pair in pairs.items():
        layer = layers[path]
        if layer.r[ADAPTER] != pair.rank:
            raise LikenessError(
                f"This LoRA has rank {pair.rank} and the training rank {layer.r[ADAPTER]}: set them equal."
            )
        for half, values in ((layer.lora_A, pair.down), (layer.lora_B, pair.up)):
            half[ADAPTER].weight.copy_(values.reshape(half[ADAPTER].weight.shape))  # 1x1 kernels may be matrices
        layer.scaling[ADAPTER] = pair.scale


@dataclass(frozen=True, eq=False)
class StartLora:
    """A LoRA that is trained further: what it changes in the denoiser and in every text encoder, nothing in some."""

    unet: Mapping[str, LoraPair]
    encoders: tuple[Mapping[str, LoraPair], ...]

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(pair.rank for pairs in (self.unet, *self.encoders) for pair in pairs.values())


def load_lora(file: Path, unet: nn.Module, encoders: Sequence[nn.Module]) -> StartLora:
    """The LoRA in a file, of whatever spelling, for these networks.

    Raises LikenessError naming the file when it is not a LoRA, is not finite, or is of another model in any part: what
    could not be trained further would be lost in the new file.
    """
    weights, metadata = read_weights(file)
    if broken := next((key for key, value in weights.items() if not bool(torch.isfinite(value).all())), ""):
        raise LikenessError(
            f"The LoRA '{file.name}' holds values that are not numbers ({broken}): choose another file."
        )
    components = (SDXL_TEXT_1, SDXL_TEXT_2) if len(encoders) > 1 else (TEXT,)
    try:
        found = [read_lora(weights, unet_spellings(unet), UNET, metadata)]
        for encoder, component in zip(encoders, components, strict=True):
            found.append(read_lora(weights, text_spellings(encoder, component), component, metadata))
    except LikenessError as error:
        raise LikenessError(f"'{file.name}' cannot be trained further: {error}") from error
    unknown = [key for key in weights if all(key in part.others for part in found)]
    if unknown or not any(part.pairs for part in found):
        first = f"{len(unknown)} entries fit none of its layers, such as {unknown[0]!r}" if unknown else "it is empty"
        raise LikenessError(
            f"'{file.name}' is not a LoRA of this model, or is of a kind that cannot be trained further ({first}): "
            "choose one that was made for it."
        )
    return StartLora(found[0].pairs, tuple(part.pairs for part in found[1:]))
