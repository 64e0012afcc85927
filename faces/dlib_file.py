"""Reading dlib's recogniser, `dlib_face_recognition_resnet_model_v1.dat`, without dlib.

The file is dlib's own stream (davisking/dlib, `serialize.h` and `dnn/layers.h`): every layer, the one next to the
image first, as its name and then its parameters. An integer is a byte that counts its bytes (the top bit is the sign)
and then these, least first; a name is its length and its letters; a tensor is the number 2, four sizes and float32
values. What stands between (training states, sizes that the values tell as well) is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import LikenessError

TENSOR_VERSION = 2
LARGEST_FILE = 512 * 1024**2  # bytes; the released one has 22 million
_LAYER = re.compile(
    rb"\x01\x05(con)_\d|\x01\x07(affine)_|\x01\x04(fc)_\d|\x01\x05(relu)_|\x01\x0a(max_pool)_\d|\x01\x0a(avg_pool)_\d"
    rb"|\x01\x09(add_prev)_"
)
_NUMBERS_BEFORE = {"con": 0, "affine": 0, "fc": 2}  # the parameters' tensor


@dataclass(frozen=True)
class Layer:
    """One layer: its kind, and its parameters in one row, empty for those that have none."""

    kind: str  # con, affine, fc, relu, max_pool, avg_pool, add_prev
    values: np.ndarray  # (n,) float32
    outputs: int = 0  # of a fully connected layer


def read_dlib(path: Path | str) -> list[Layer]:
    """The layers of a recogniser, the one next to the image first; LikenessError for any other or a damaged file."""
    path = Path(path)
    if not path.is_file():
        raise LikenessError(f"The recogniser {path.name} is missing: put it into {path.parent}.")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("too large")
        data = path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        raise LikenessError(f"The recogniser {path.name} cannot be read ({error}): download it again.") from None
    if b"loss_metric_" not in data[:64]:
        raise LikenessError(
            f"The file {path.name} is not a recogniser of dlib's: choose dlib_face_recognition_resnet_model_v1.dat."
        )
    try:
        return _layers(data)
    except (ValueError, IndexError, MemoryError):
        raise LikenessError(f"The recogniser {path.name} is damaged or cut short: download it again.") from None


def _layers(data: bytes) -> list[Layer]:
    layers, at = [], 0
    while found := _LAYER.search(data, at):
        kind, at = next(name for name in found.groups() if name).decode(), found.end()
        if kind not in _NUMBERS_BEFORE:
            layers.append(Layer(kind, np.zeros(0, np.float32)))
            continue
        numbers = []
        for _ in range(_NUMBERS_BEFORE[kind]):
            number, at = _integer(data, at)
            numbers.append(number)
        values, at = _tensor(data, at)
        layers.append(Layer(kind, values, *numbers[:1]))
    return layers


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where what follows begins."""
    length = data[at] & 0x7F
    end = at + 1 + length
    if not 1 <= length <= 8 or end > len(data):
        raise ValueError("not a number")
    value = int.from_bytes(data[at + 1 : end], "little")
    return (-value if data[at] & 0x80 else value), end


def _tensor(data: bytes, at: int) -> tuple[np.ndarray, int]:
    """A tensor's values in one row, and where what follows begins."""
    version, at = _integer(data, at)
    count = 1
    for _ in range(4):
        size, at = _integer(data, at)
        count *= size
    end = at + 4 * count
    if version != TENSOR_VERSION or count < 0 or end > len(data):
        raise ValueError("not a tensor")
    return np.frombuffer(data, "<f4", count, at).astype(np.float32), end
