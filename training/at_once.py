"""Losses whose gradients are computed at once, term by term, so that the memory of one is free before the next begins.

    loss = at_once(terms, parameters)        # runs each term forward and backward
    loss.backward()                          # hands their sum to the parameters, times whatever weighs the loss

Of several terms the peak memory is that of the largest, instead of that of all together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Known(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (outer,) = outputs
        return None, None, *([None] * len(ctx.saved_tensors)), *(outer * grad for grad in ctx.saved_tensors)


def at_once(terms: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of scalar terms, each differentiated as soon as the iterable has made it; its graph is freed then."""
    total: Tensor | None = None
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for term in terms:
        if term.requires_grad:
            found = torch.autograd.grad(term, parameters, allow_unused=True)
            for gradient, more in zip(gradients, found, strict=True):
                if more is not None:
                    gradient += more
        total = term.detach() if total is None else total + term.detach()
        del term
    value = torch.zeros((), device=parameters[0].device) if total is None else total
    result: Any = _Known.apply(value, len(gradients), *gradients, *parameters)
    return result
