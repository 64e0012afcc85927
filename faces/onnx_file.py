"""Reading ONNX files without the `onnx` package: only what recognisers and the sorting of model packs need.

An ONNX file is one protocol-buffer message. Field numbers are those of onnx/onnx `onnx.proto`.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LikenessError

_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}  # TensorProto.DataType
_DAMAGE = (  # what reading a file that is no ONNX, or cannot be opened, raises
    *(
        ValueError,
        LookupError,
        struct.error,
        StopIteration,
        AttributeError,
        TypeError,
        OverflowError,
        MemoryError,
        OSError,
    ),
)


@dataclass(frozen=True)
class OnnxNode:
    """One operation: names of its tensors, and its attributes as numbers, strings, lists or arrays."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph. Shapes hold None where a size is open; `inputs` leaves the initializers out."""

    nodes: list[OnnxNode]
    inputs: dict[str, tuple[int | None, ...]]
    outputs: dict[str, tuple[int | None, ...]]
    initializers: dict[str, np.ndarray]


_LONGEST_NUMBER = 10  # bytes: 64 bits, seven at a time
_MOST_STEPS = 500_000  # fields, and numbers written one by one, of one file; the largest face packs have 10,000


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_LONGEST_NUMBER):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise ValueError("a number without end")


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class _Reader:
    """Reads the messages of one file, every byte once, and gives up where no model has so many parts."""

    def __init__(self) -> None:
        self._steps = 0

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ValueError("more parts than any model has")

    def fields(self, data: memoryview) -> Iterator[tuple[int, Any]]:
        """(field number, value) of one message; a value is an int, or the bytes of a nested or fixed-size field."""
        return ((number, value) for number, value, _ in self.parts(data))

    def parts(self, data: memoryview) -> Iterator[tuple[int, Any, memoryview]]:
        """Like `fields`, each with all its bytes: a message is its parts one after the other."""
        at = 0
        while at < len(data):
            self._count(1)
            start = at
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = _varint(data, at)
            else:
                length = {1: 8, 5: 4}.get(wire, -1)
                if wire == 2:
                    length, at = _varint(data, at)
                if length < 0 or at + length > len(data):
                    raise ValueError("not a protocol-buffer message")
                value = data[at : at + length]
                at += length
            yield number, value, data[start:at]

    def integers(self, value: int | memoryview) -> list[int]:
        """A repeated integer field, packed or not."""
        if isinstance(value, int):
            return [_signed(value)]
        numbers, at = [], 0
        while at < len(value):
            self._count(1)
            number, at = _varint(value, at)
            numbers.append(_signed(number))
        return numbers

    def floats(self, value: memoryview) -> list[float]:
        """A repeated float field, packed or not."""
        self._count(len(value) // 4)
        return np.frombuffer(value, np.float32).tolist()

    def tensor(self, data: memoryview) -> tuple[str, np.ndarray]:
        """Name and values of a TensorProto."""
        name, dims, dtype, raw, numbers = "", [], np.float32, None, []
        for number, value in self.fields(data):
            if number == 1:
                dims += self.integers(value)
            elif number == 2:
                if value not in _DTYPES:
                    raise ValueError(f"tensor of type {value}")
                dtype = _DTYPES[value]
            elif number == 4:
                numbers.append(np.frombuffer(value, np.float32))
            elif number == 7:
                numbers.append(np.array(self.integers(value), np.int64))
            elif number == 8:
                name = _text(value)
            elif number == 9:
                raw = np.frombuffer(value, dtype)
            elif number == 13:
                raise ValueError("weights in a second file")
        if min(dims, default=0) < 0:
            raise ValueError("a dimension below zero")
        flat = raw if raw is not None else np.concatenate(numbers or [np.zeros(0)]).astype(dtype)
        return name, flat.reshape(dims).copy()

    def attribute(self, data: memoryview) -> tuple[str, Any]:
        """Name and value of an AttributeProto."""
        name, value = "", None
        listed: list[Any] = []
        for number, content in self.fields(data):
            if number == 1:
                name = _text(content)
            elif number == 2:
                value = struct.unpack("<f", content)[0]
            elif number == 3:
                value = _signed(content)
            elif number == 4:
                value = bytes(content)
            elif number == 5:
                value = self.tensor(content)[1]
            elif number == 7:
                listed += self.floats(content)
            elif number == 8:
                listed += self.integers(content)
        return name, listed or value

    def node(self, data: memoryview) -> OnnxNode:
        """A NodeProto."""
        inputs, outputs, kind, attributes = [], [], "", {}
        for number, value in self.fields(data):
            if number == 1:
                inputs.append(_text(value))
            elif number == 2:
                outputs.append(_text(value))
            elif number == 4:
                kind = _text(value)
            elif number == 5:
                name, content = self.attribute(value)
                attributes[name] = content
        return OnnxNode(kind, tuple(inputs), tuple(outputs), attributes)

    def value_info(self, data: memoryview) -> tuple[str, tuple[int | None, ...]]:
        """Name and shape: ValueInfo.type (2) . tensor_type (1) . shape (2) . dim (1) . dim_value (1)."""
        name, shape = "", []
        for number, value in self.fields(data):
            if number == 1:
                name = _text(value)
            elif number == 2:
                for tensor_type in (v for n, v in self.fields(value) if n == 1):
                    for dims in (v for n, v in self.fields(tensor_type) if n == 2):
                        for dim in (v for n, v in self.fields(dims) if n == 1):
                            sizes = [_signed(v) for n, v in self.fields(dim) if n == 1]
                            shape.append(sizes[0] if sizes and sizes[0] > 0 else None)
        return name, tuple(shape)

    def graph(self, data: memoryview, weights: bool) -> OnnxGraph:
        """A GraphProto."""
        nodes, inputs, outputs, initializers = [], {}, {}, {}
        for number, value in self.fields(data):
            if number == 1:
                nodes.append(self.node(value))
            elif number == 5:
                if weights:
                    name, tensor = self.tensor(value)
                else:
                    name, tensor = _text(next(v for n, v in self.fields(value) if n == 8)), np.zeros(0)
                initializers[name] = tensor
            elif number in (11, 12):
                name, shape = self.value_info(value)
                (inputs if number == 11 else outputs)[name] = shape
        free = {name: shape for name, shape in inputs.items() if name not in initializers}
        return OnnxGraph(nodes, free, outputs, initializers)

    def tidy_graph(self, data: memoryview) -> bytes:
        """A GraphProto without the inputs and initializers that none of its nodes reads, nor inputs it holds itself."""
        graph = self.graph(data, weights=False)
        read = {name for node in graph.nodes for name in node.inputs}
        kept = {5: read | graph.outputs.keys(), 11: read - graph.initializers.keys()}

        def name_of(number: int, value: memoryview) -> str:
            return _text(next(v for n, v in self.fields(value) if n == (8 if number == 5 else 1)))

        return b"".join(
            whole
            for number, value, whole in self.parts(data)
            if number not in kept or name_of(number, value) in kept[number]
        )


def read_graph(path: Path | str, weights: bool = True) -> OnnxGraph:
    """The graph of an .onnx file; with `weights=False` initializers are named but empty, and nothing big is read."""
    path = Path(path)
    reader = _Reader()
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when the last view of it is gone
        for number, value in reader.fields(memoryview(mapped)):
            if number == 7:
                return reader.graph(value, weights)
    except _DAMAGE as error:
        raise LikenessError(f"The file {path.name} cannot be read as ONNX ({error}): download it again.") from None
    raise LikenessError(f"The file {path.name} holds no ONNX graph: download it again.")


def tidy_model(path: Path | str) -> bytes:
    """The model without inputs and initializers that no node of its graph reads.

    Quantised models may still list as inputs the weights that they now unpack themselves; onnxruntime asks for them.
    """
    path = Path(path)
    reader = _Reader()
    try:
        model = memoryview(path.read_bytes())
        return b"".join(
            _field(7, reader.tidy_graph(value)) if number == 7 else bytes(whole)
            for number, value, whole in reader.parts(model)
        )
    except _DAMAGE as error:
        raise LikenessError(f"The file {path.name} cannot be read as ONNX ({error}): download it again.") from None


def _field(number: int, content: bytes) -> bytes:
    """A nested message as a part of another."""
    return _written(number << 3 | 2) + _written(len(content)) + content


def _written(value: int) -> bytes:
    """A number as `_varint` reads it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
