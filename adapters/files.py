"""Reading weight files: safetensors, pickles with `weights_only=True`, and a sentence for everything else."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LikenessError

_PICKLES = (b"PK", b"\x80")  # torch.save's archive, and the plain pickle it wrote before version 1.6
_SMALLEST = 1024  # no weight file is smaller; a Git LFS pointer or an error page saved by a browser is


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a weight file under flat, dot-joined keys, and its metadata (empty for pickles).

    `.bin` files nest dictionaries; they are flattened. Raises LikenessError naming the file when it cannot be read.
    """
    if not path.is_file():
        raise LikenessError(
            f"The weight file '{path.name}' does not exist: choose a file from the list, or download it."
        )
    with path.open("rb") as file:
        head = file.read(_SMALLEST)
    if head.startswith(b"version https://git-lfs"):
        raise LikenessError(
            f"'{path.name}' is a Git LFS pointer, not the weights: download the file itself from the repository's page."
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise LikenessError(f"'{path.name}' is a web page, not a weight file: delete it and download the file again.")
    try:
        if _looks_like_safetensors(head):
            return _read_safetensors(path)
        return _flatten(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))), {}
    except pickle.UnpicklingError as error:
        if head.startswith(_PICKLES):  # a whole pickle, but one that asks for more than tensors
            raise LikenessError(
                f"'{path.name}' holds program code besides weights and was not opened: get a .safetensors file of it."
            ) from error
        raise _unreadable(path, error) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LikenessError:
    size = path.stat().st_size / 1e6
    return LikenessError(
        f"'{path.name}' ({size:.1f} MB) is damaged, cut short or no weight file ({type(error).__name__}): "
        "download it again."
    )


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] > 0


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(str(error)) from error


def _flatten(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    if not isinstance(tree, dict):
        raise ValueError("the file holds no dictionary of tensors")
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
