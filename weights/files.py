"""Reading weight files: safetensors, pickles with `weights_only=True`, and a sentence for everything else."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LikenessError
from .pickles import check_pickle

_PICKLES = (b"PK", b"\x80")  # torch.save's archive, and the plain pickle it wrote before version 1.6
_LONGEST_HEADER = 32 << 20  # bytes; SDXL's has 0.3 million
_DEEPEST, _MOST_BRANCHES = 20, 10_000  # of dictionaries
_SMALL = 1 << 20  # bytes of a tensor that may be one value many times
_MAPPED = 64 << 20  # bytes; smaller files are read whole, and may be replaced while they are in use
_SMALLEST = 1024  # no weight file is smaller; a Git LFS pointer or an error page saved by a browser is


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a weight file under flat, dot-joined keys, and its metadata.

    `.bin` files nest dictionaries; they are flattened, and the numbers in them are their metadata, under such keys as
    well. Raises LikenessError naming the file when it cannot be read.
    """
    content, metadata = read_content(path)
    try:
        return flatten(content), metadata or _numbers(content)
    except ValueError as error:
        raise _unreadable(path, error) from error


def read_content(path: Path) -> tuple[Any, dict[str, str]]:
    """What a weight file holds, as it was saved: the tensors of a safetensors file, or whatever a pickle is of.

    Which of them it is, the content tells and not its name. No code of the file's runs, and the time and memory it
    takes are bounded. Beside it comes the metadata (empty for pickles). Raises LikenessError naming the file.
    """
    try:
        if not path.is_file():
            raise LikenessError(
                f"The weight file '{path.name}' does not exist: choose a file from the list, or download it."
            )
        with path.open("rb") as file:
            head = file.read(_SMALLEST)
    except OSError as error:
        raise LikenessError(f"'{path.name}' cannot be read ({error.strerror}): allow reading it.") from error
    if head.startswith(b"version https://git-lfs"):
        raise LikenessError(
            f"'{path.name}' is a Git LFS pointer, not the weights: download the file itself from the repository's page."
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise LikenessError(f"'{path.name}' is a web page, not a weight file: delete it and download the file again.")
    try:
        if _looks_like_safetensors(head):
            return _read_safetensors(path)
        if not head.startswith(_PICKLES):
            raise ValueError("neither safetensors nor a pickle")
        check_pickle(path)
        mapped = path.stat().st_size > _MAPPED and zipfile.is_zipfile(path)
        with _words_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if isinstance(content, Tensor):
            _plain(content)
        elif isinstance(content, dict):
            flatten(content)  # raises where it holds no plain tensors
        return content, {}
    except LikenessError:
        raise
    except pickle.UnpicklingError as error:  # a whole pickle, but one that asks for more than tensors
        raise LikenessError(
            f"'{path.name}' holds program code besides weights and was not opened: get a .safetensors file of it."
        ) from error
    except Exception as error:  # every reader has its own, and a damaged file reaches many; for the user they are one
        raise _unreadable(path, error) from error


class _Word(str):
    """A member of an enumeration in the settings that peft saves beside weights; its value is all that is read."""


_ENUMERATIONS = ("peft.utils.peft_types.PeftType", "peft.utils.peft_types.TaskType")


def _words_allowed() -> AbstractContextManager[Any]:
    """Within it, a pickle may hold words of these enumerations."""
    allow = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return nullcontext() if allow is None else allow([(_Word, name) for name in _ENUMERATIONS])


def _numbers(tree: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """The numbers of nested dictionaries that `flatten` has taken, as metadata are written."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = str(value)
    return found


def _unreadable(path: Path, error: Exception) -> LikenessError:
    size = path.stat().st_size / 1e6
    return LikenessError(
        f"'{path.name}' ({size:.1f} MB) is damaged, truncated or not a weight file ({type(error).__name__}): "
        "download it again."
    )


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] < _LONGEST_HEADER


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(str(error)) from error


def flatten(tree: Any, lists: bool = False) -> dict[str, Tensor]:
    """The tensors of nested dictionaries under dot-joined keys. lists: those in lists too, by their place.

    Raises ValueError for a dictionary inside itself, and for a tensor that is larger than the bytes behind it.
    """
    if not isinstance(tree, dict):
        raise ValueError("the file is not a dictionary of tensors")
    flat: dict[str, Tensor] = {}
    waiting, seen = [("", tree, 0)], 0
    while waiting:
        prefix, branch, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_BRANCHES:
            raise ValueError("dictionaries nested too deeply")
        below = []
        for key, value in branch.items():
            if isinstance(value, Tensor):
                flat[f"{prefix}{key}"] = _plain(value)
            elif isinstance(value, dict):
                below.append((f"{prefix}{key}.", value, depth + 1))
            elif lists and isinstance(value, (list, tuple)):
                below.append((f"{prefix}{key}.", dict(enumerate(value)), depth + 1))
        waiting += reversed(below)
    return flat


def _plain(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"a tensor of the kind {tensor.layout} on {tensor.device}")
    size = tensor.numel() * tensor.element_size()
    if size > max(tensor.untyped_storage().nbytes(), _SMALL):
        raise ValueError("a tensor that is larger than its bytes")
    return tensor
