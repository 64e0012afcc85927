"""FLUX in diffusers, of weights under the names that Black Forest Labs and ComfyUI give them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PARTS = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}


def network(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A FluxTransformer2DModel that computes what BFL's `Flux(FluxParams(**config))` computes with `weights`."""
    from diffusers.models.attention import FeedForward
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformer2DModel

    width, heads, ratio = config["hidden_size"], config["num_heads"], config["mlp_ratio"]
    net = FluxTransformer2DModel(
        in_channels=config["in_channels"], num_layers=config["depth"],
        num_single_layers=config["depth_single_blocks"], attention_head_dim=width // heads, num_attention_heads=heads,
        joint_attention_dim=config["context_in_dim"], pooled_projection_dim=config["vec_in_dim"],
        guidance_embeds=config["guidance_embed"], axes_dims_rope=tuple(config["axes_dim"]),
    )  # fmt: skip
    net.pos_embed.theta = config["theta"]
    for block in net.transformer_blocks:  # diffusers' own are always four times as wide
        block.ff, block.ff_context = (
            FeedForward(width, width, mult=ratio, activation_fn="gelu-approximate") for _ in range(2)
        )
    net.single_transformer_blocks = nn.ModuleList(
        FluxSingleTransformerBlock(width, heads, width // heads, mlp_ratio=ratio)
        for _ in range(config["depth_single_blocks"])
    )
    net.load_state_dict(renamed(weights, width))
    return net.eval()


def renamed(weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The same weights under diffusers' names."""
    found: dict[str, Tensor] = {}

    def split(key: str, names: list[str], end: str) -> None:
        sizes = [width] * 3 + ([len(weights[key]) - 3 * width] if len(names) > 3 else [])
        for name, part in zip(names, weights[key].split(sizes), strict=True):
            found[f"{name}.{end}"] = part

    for key, value in weights.items():
        name, _, end = key.rpartition(".")
        kind, _, rest = name.partition(".")
        if kind == "double_blocks":
            number, _, part = rest.partition(".")
            block = f"transformer_blocks.{number}"
            if part.endswith("attn.qkv"):
                own = ["to_q", "to_k", "to_v"] if part.startswith("img") else ["add_q_proj", "add_k_proj", "add_v_proj"]
                split(key, [f"{block}.attn.{layer}" for layer in own], end)
            elif part in _DOUBLE_NORMS:
                found[f"{block}.{_DOUBLE_NORMS[part]}.weight"] = value
            else:
                found[f"{block}.{_DOUBLE[part]}.{end}"] = value
        elif kind == "single_blocks":
            number, _, part = rest.partition(".")
            block = f"single_transformer_blocks.{number}"
            if part == "linear1":
                split(key, [f"{block}.{layer}" for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")], end)
            elif part.startswith("norm."):
                found[f"{block}.attn.norm_{part.removeprefix('norm.')[0]}.weight"] = value
            else:
                found[f"{block}.{'proj_out' if part == 'linear2' else 'norm.linear'}.{end}"] = value
        elif name == "final_layer.adaLN_modulation.1":
            found[f"norm_out.linear.{end}"] = torch.cat(value.chunk(2)[::-1])  # scale and shift the other way round
        else:
            found[f"{_PARTS[name]}.{end}"] = value
    return found
