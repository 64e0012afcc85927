"""Cross-attention whose keys and values are projected from different states:

    K = W_k c^K    V = W_v c^V    out = softmax(Q K^T / sqrt(d)) V

Both travel side by side in one tensor (batch, tokens, 2 dim), so nothing is remembered between calls: a block that is
run again in the backward pass (gradient checkpointing) finds what it found in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def separate_values(unet: nn.Module) -> Iterator[None]:
    """Within it, cross-attention takes states of twice its width: the first half for keys, the second for values.

    States of its own width are read as ever. To be entered once the layers are what they will be (LoRA and all).
    """
    hooks = []
    for path, module in unet.named_modules():
        if path.endswith("attn2"):
            attention: Any = module
            hooks.append(attention.to_k.register_forward_pre_hook(_half_of(attention.to_k.in_features, 0)))
            hooks.append(attention.to_v.register_forward_pre_hook(_half_of(attention.to_v.in_features, 1)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _half_of(width: int, half: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
    def take(_module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        states, *others = given
        if states.shape[-1] != 2 * width:
            return None
        return states[..., half * width : (half + 1) * width], *others

    return take
