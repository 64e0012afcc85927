"""Where cross-attention sits in a UNet: one table per model, enumerated from the model itself.

An `AttentionSite` carries all spellings of the same place: the official IP-Adapter slot, ComfyUI's (block, number,
index) and `transformer_index`, ComfyUI's and diffusers' module paths. Nothing here knows SD1.5 or SDXL by number, so
pruned and test-sized variants enumerate like the full ones.

Slots count every attention processor (self, then cross) in diffusers' registration order: down blocks, up blocks, the
middle block last. ComfyUI runs the middle block between them and names it ("middle", 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class AttentionSite:
    """One cross-attention layer of a UNet."""

    slot: int  # odd; the self-attention of the same transformer block is slot - 1
    block: tuple[str, int]  # ComfyUI: ("input", 4)
    index: int  # transformer block within its spatial transformer
    transformer: int  # ComfyUI's transformer_index, in execution order
    comfy_path: str  # transformer block below `diffusion_model`: "input_blocks.4.1.transformer_blocks.0"
    diffusers_path: str  # the same block in diffusers: "down_blocks.1.attentions.0.transformer_blocks.0"
    width: int  # channels of the queries
    context_dim: int  # channels of the text
    heads: int

    @property
    def key(self) -> tuple[str, int, int]:
        """ComfyUI's key for replace patches."""
        return (*self.block, self.index)


def diffusers_layers(sites: Iterable[AttentionSite]) -> dict[int, str]:
    """slot -> path of the attention layer in diffusers, self-attention included."""
    return {
        site.slot - 1 + i: f"{site.diffusers_path}.{name}"
        for site in sites
        for i, name in enumerate(("attn1", "attn2"))
    }


@dataclass(frozen=True)
class _SpatialTransformer:
    block: tuple[str, int]
    comfy_path: str
    diffusers_path: str
    module: Any


def sites_of_comfy_unet(unet: nn.Module) -> tuple[AttentionSite, ...]:
    """All cross-attention sites of a ComfyUI UNetModel (`model.model.diffusion_model`), in slot order.

    Empty when the network is not such a UNet.
    """
    if not all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return ()
    return _in_slot_order(
        inputs=list(_comfy_transformers(unet, "input")),
        middle=list(_comfy_transformers(unet, "middle")),
        outputs=list(_comfy_transformers(unet, "output")),
        heads=lambda transformer_block: transformer_block.n_heads,
    )


def sites_of_diffusers_unet(unet: nn.Module) -> tuple[AttentionSite, ...]:
    """All cross-attention sites of a diffusers UNet2DConditionModel, in slot order.

    Empty when the network is not such a UNet.
    """
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        return ()
    layers = [len(block.resnets) for block in unet.down_blocks]  # type: ignore[union-attr, arg-type]
    inputs, outputs, number = [], [], 1
    for i, (block, count) in enumerate(zip(unet.down_blocks, layers, strict=True)):  # type: ignore[arg-type]
        for j, transformer in enumerate(getattr(block, "attentions", ())):
            comfy = f"input_blocks.{number + j}.1"
            inputs.append(
                _SpatialTransformer(("input", number + j), comfy, f"down_blocks.{i}.attentions.{j}", transformer)
            )
        number += count + 1  # the down-sampler takes a number as well
    number = 0
    for i, block in enumerate(unet.up_blocks):  # type: ignore[arg-type]
        for j, transformer in enumerate(getattr(block, "attentions", ())):
            comfy = f"output_blocks.{number + j}.1"
            outputs.append(
                _SpatialTransformer(("output", number + j), comfy, f"up_blocks.{i}.attentions.{j}", transformer)
            )
        number += len(block.resnets)  # type: ignore[arg-type]
    middle = [
        _SpatialTransformer(("middle", 0), f"middle_block.{2 * j + 1}", f"mid_block.attentions.{j}", transformer)
        for j, transformer in enumerate(getattr(unet.mid_block, "attentions", ()))
    ]
    return _in_slot_order(inputs, middle, outputs, heads=lambda transformer_block: transformer_block.attn2.heads)


def _comfy_transformers(unet: Any, part: str) -> Iterator[_SpatialTransformer]:
    blocks = [unet.middle_block] if part == "middle" else getattr(unet, f"{part}_blocks")
    if blocks[0] is None:
        return
    # Residual blocks per level; an input level also holds its down-sampler, and input block 0 is the first convolution.
    per_level = list(unet.num_res_blocks)
    if part == "output":
        per_level = [n + 1 for n in reversed(per_level)]
    for number, block in enumerate(blocks):
        for position, module in enumerate(block):
            if not hasattr(module, "transformer_blocks"):
                continue
            if part == "middle":
                comfy, diffusers = f"middle_block.{position}", "mid_block.attentions.0"
            else:
                level, place = _level_of(number - (part == "input"), [n + (part == "input") for n in per_level])
                comfy = f"{part}_blocks.{number}.{position}"
                diffusers = f"{'down' if part == 'input' else 'up'}_blocks.{level}.attentions.{place}"
            yield _SpatialTransformer((part, number), comfy, diffusers, module)


def _level_of(number: int, per_level: list[int]) -> tuple[int, int]:
    """Which level a running number falls into, and its place there."""
    for level, count in enumerate(per_level):
        if number < count:
            return level, number
        number -= count
    raise IndexError(number)


def _in_slot_order(inputs, middle, outputs, heads) -> tuple[AttentionSite, ...]:
    execution = {id(t): i for i, t in enumerate([*inputs, *middle, *outputs])}
    sites: list[AttentionSite] = []
    for transformer in [*inputs, *outputs, *middle]:
        for index, transformer_block in enumerate(transformer.module.transformer_blocks):
            cross = transformer_block.attn2
            if cross is None:
                continue
            sites.append(
                AttentionSite(
                    slot=2 * len(sites) + 1,
                    block=transformer.block,
                    index=index,
                    transformer=execution[id(transformer)],
                    comfy_path=f"{transformer.comfy_path}.transformer_blocks.{index}",
                    diffusers_path=f"{transformer.diffusers_path}.transformer_blocks.{index}",
                    width=cross.to_q.weight.shape[0],
                    context_dim=cross.to_k.weight.shape[1],
                    heads=heads(transformer_block),
                )
            )
    return tuple(sites)
