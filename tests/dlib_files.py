"""Small recognisers in dlib's file format, for tests of the reader that need no package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def integer(value: int) -> bytes:
    """An integer as dlib writes it."""
    length = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([length | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(length, "little")


def name(text: str) -> bytes:
    """A name as dlib writes it."""
    return integer(len(text)) + text.encode()


def tensor(values: np.ndarray, rows: int = 0) -> bytes:
    """A tensor of one column, or of `rows` rows."""
    sizes = (rows, values.size // rows, 1, 1) if rows else (values.size, 1, 1, 1)
    return b"".join(map(integer, (2, *sizes))) + values.astype("<f4").tobytes()


def recogniser_bytes(
    widths: Sequence[int] = (4, 8), outputs: int = 128, seed: int = 0, kernel: int = 7
) -> tuple[bytes, list[np.ndarray]]:
    """A stem, for each width a plain block and one that halves, and the last layer; and its tensors in order."""
    random = np.random.default_rng(seed)
    parts, tensors = [integer(1), integer(1), name("loss_metric_2"), integer(2) * 8, name("input_rgb_image_sized")], []

    def add(kind: str, *values: np.ndarray, before: bytes = b"", rows: int = 0) -> None:
        tensors.append(np.concatenate([value.reshape(-1) for value in values]))
        parts.extend([name(kind), before, tensor(tensors[-1], rows), integer(1) * 3])

    def convolution(width_in: int, width: int, side: int) -> None:
        scale = 1 / np.sqrt(width_in * side * side)
        add("con_4", random.standard_normal((width, width_in, side, side)) * scale, random.standard_normal(width) * 0.1)
        add("affine_", random.uniform(0.5, 1.5, width), random.standard_normal(width) * 0.1)

    convolution(3, widths[0], kernel)
    parts += [name("relu_"), name("max_pool_2")]
    width_in = widths[0]
    for width in widths:
        for halves in (True, False):
            convolution(width_in, width, 3)
            parts.append(name("relu_"))
            convolution(width, width, 3)
            parts += [name("avg_pool_2")] * halves + [name("add_prev_"), name("relu_")]
            width_in = width
    parts.append(name("avg_pool_2"))
    last = random.standard_normal((width_in, outputs))
    add("fc_2", last, before=integer(outputs) + integer(width_in), rows=width_in)
    return b"".join(parts), tensors


def write_recogniser(path: Path, **options: int | Sequence[int]) -> list[np.ndarray]:
    """A recogniser in dlib's format; returns its tensors in the file's order."""
    content, tensors = recogniser_bytes(**options)  # type: ignore[arg-type]
    path.write_bytes(content)
    return tensors
