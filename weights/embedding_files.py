"""Textual-inversion files: every published form is read, the two that load everywhere are written.

SD1.x, SD2.x   emb_params (n, 768 | 1024)
SDXL           clip_l (n, 768) and clip_g (n, 1280) in one file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LikenessError
from .families import TEXT_ENCODERS, text_encoder_of_width
from .files import read_content

_ENCODERS = tuple(encoder.name for encoder in TEXT_ENCODERS)
_BUNDLE = "bundle_emb."


@dataclass(frozen=True, eq=False)
class TokenEmbedding:
    """The vectors of one learned token, per text encoder (`clip_l`, `clip_g`, `clip_h`), each (n, dim)."""

    vectors: dict[str, Tensor]

    @property
    def count(self) -> int:
        """How many places of a prompt it takes."""
        return len(next(iter(self.vectors.values())))


def read_embedding(content: Mapping[str, Any]) -> TokenEmbedding:
    """The embedding in a loaded file: a safetensors dictionary, or an unpickled A1111 one.

    Raises LikenessError when there is none, or several under different names.
    """
    if "string_to_param" in content:
        content = content["string_to_param"]
    named = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    bundles = {key.split(".", 2)[1] for key in named if key.startswith(_BUNDLE)}
    if bundles:
        if len(bundles) > 1:
            raise LikenessError(
                f"This file bundles several embeddings ({', '.join(sorted(bundles))}): save the one you mean by itself."
            )
        prefix = f"{_BUNDLE}{bundles.pop()}."
        named = {key[len(prefix) :]: value for key, value in named.items() if key.startswith(prefix)}
    per_encoder = {key: _rows(named[key]) for key in _ENCODERS if key in named}
    if per_encoder:
        return TokenEmbedding(per_encoder)
    if len(named) != 1:
        raise LikenessError(
            f"This file is not a textual-inversion embedding ({len(named)} tensors): choose another file."
        )
    rows = _rows(next(iter(named.values())))
    return TokenEmbedding({text_encoder_of_width(rows.shape[1]).name: rows})


def _rows(tensor: Tensor) -> Tensor:
    rows = tensor.detach().unsqueeze(0) if tensor.ndim == 1 else tensor.detach()
    if rows.ndim != 2 or not len(rows):
        raise LikenessError(f"This file is not a textual-inversion embedding (a tensor of {tuple(tensor.shape)}).")
    return rows


def embedding_tensors(embedding: TokenEmbedding) -> dict[str, Tensor]:
    """The tensors of the file to write."""
    if len(embedding.vectors) == 1:
        return {"emb_params": next(iter(embedding.vectors.values()))}
    return dict(embedding.vectors)


def load_embedding(path: Path | str) -> TokenEmbedding:
    """The embedding in a .safetensors, .pt or .bin file. Pickled code is never run."""
    path = Path(path)
    if not path.is_file():
        raise LikenessError(f"The embedding {path.name} is missing: put it into {path.parent}.")
    content, _ = read_content(path)
    if not isinstance(content, dict):
        raise LikenessError(f"{path.name} is not a textual-inversion embedding: choose another file.")
    try:
        return read_embedding(content)
    except LikenessError as error:
        raise LikenessError(f"{path.name}: {error}") from error
