"""A recogniser from the .onnx file that users already have, as a frozen, differentiable torch module.

The export of an iresnet holds six kinds of nodes (convolutions with the BatchNorm behind them folded in); two more
occur in old exports that normalise their input themselves. The graph is walked in the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LikenessError
from .onnx_file import OnnxNode, read_graph

Tensor = torch.Tensor


def _conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    spatial = weight.ndim - 2
    pads = attributes.get("pads", [0] * 2 * spatial)
    if pads[:spatial] != pads[spatial:]:
        # F.pad counts from the last axis, ONNX from the first
        x = F.pad(x, [pads[side * spatial + axis] for axis in reversed(range(spatial)) for side in (0, 1)])
        pads = [0] * 2 * spatial
    return F.conv2d(
        x,
        weight,
        bias,
        attributes.get("strides", [1] * spatial),
        pads[:spatial],
        attributes.get("dilations", [1] * spatial),
        attributes.get("group") or 1,
    )


def _prelu(_: dict[str, Any], x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.flatten())


def _batch_norm(
    attributes: dict[str, Any], x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, attributes.get("epsilon") or 1e-5)


def _flatten(attributes: dict[str, Any], x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    return x.flatten(1) if axis == 1 else x.reshape(x.shape[:axis].numel(), -1)


def _gemm(attributes: dict[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.mT if attributes.get("transA") else a
    b = b.mT if attributes.get("transB") else b
    product = _or_one(attributes.get("alpha")) * (a @ b)
    return product if c is None else product + _or_one(attributes.get("beta")) * c


def _or_one(factor: float | None) -> float:
    return 1.0 if factor is None else factor


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "PRelu": _prelu,
    "BatchNormalization": _batch_norm,
    "Add": lambda _, a, b: a + b,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
}


class OnnxIResNet(nn.Module):
    """Aligned crops (B, 3, 112, 112) to raw embeddings (B, D); input as the file wants it, usually RGB -1..1."""

    def __init__(self, nodes: list[OnnxNode], weights: dict[str, Tensor], source: str, target: str):
        super().__init__()
        unknown = sorted({node.kind for node in nodes} - set(OPERATIONS))
        if unknown:
            raise LikenessError(
                f"The recogniser file has operations that cannot be differentiated here ({', '.join(unknown)}): use an "
                "iresnet file such as w600k_r50.onnx or glintr100.onnx."
            )
        self._nodes, self._source, self._target = nodes, source, target
        # Buffers, not parameters: no optimiser finds them. Their names hold dots and slashes in the file.
        self._places = {name: f"weight_{number}" for number, name in enumerate(weights)}
        for name, place in self._places.items():
            self.register_buffer(place, weights[name])

    def forward(self, x: Tensor) -> Tensor:
        values = {name: getattr(self, place) for name, place in self._places.items()} | {self._source: x}
        for node in self._nodes:
            operands = [values[name] if name else None for name in node.inputs]
            values[node.outputs[0]] = OPERATIONS[node.kind](node.attributes, *operands)
        return values[self._target]


def onnx_iresnet(path: Path | str) -> OnnxIResNet:
    """The module of an .onnx recogniser, float32; `LikenessError` for a graph with other operations."""
    graph = read_graph(path)
    weights = {name: torch.from_numpy(array) for name, array in graph.initializers.items()}
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return OnnxIResNet(graph.nodes, weights, next(iter(graph.inputs)), next(iter(graph.outputs)))
