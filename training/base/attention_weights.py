"""Cross-attention's own weights as parameters of a training, and the stop of gradient at a prompt's first token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_KEYS_VALUES = ("to_k.weight", "to_v.weight")
_ALL = ("to_q.weight", *_KEYS_VALUES, "to_out.0.weight", "to_out.0.bias")


def free_attention(unet: nn.Module, queries: bool) -> dict[str, nn.Parameter]:
    """Keys and values of every cross-attention, float32 whatever the network is in, by name; queries: queries and
    output too."""
    parameters = {}
    for path, module in unet.named_modules():
        if path.endswith("attn2"):
            for name in _ALL if queries else _KEYS_VALUES:
                layer = module.get_submodule(name.rpartition(".")[0]).float()
                parameters[f"{path}.{name}"] = layer.get_parameter(name.rpartition(".")[2])
    return parameters


@contextmanager
def no_gradient_at_start(unet: nn.Module) -> Iterator[None]:
    """Within it, keys and values of position 0 count as constants in every cross-attention: all prompts share the
    start token, and what is learned there would change every image. What is computed stays the same."""
    hooks = []
    for path, module in unet.named_modules():
        if path.endswith("attn2"):
            attention: Any = module
            hooks += [layer.register_forward_hook(_stop) for layer in (attention.to_k, attention.to_v)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stop(_layer: nn.Module, _given: tuple[Tensor, ...], out: Tensor) -> None:
    if out.requires_grad:
        out.register_hook(lambda grad: torch.cat([torch.zeros_like(grad[:, :1]), grad[:, 1:]], 1))
