"""A concept with random weights for a MODEL of the host's."""

from __future__ import annotations

from typing import Any

import torch

from likeness.weights.concepts import Concept, Layout, base_signature, is_changeable
from likeness.weights.embedding_files import TokenEmbedding

WIDTH = 64  # of the text of `tiny_sd15`


def concept(model: Any, word: str = "<new1>", seed: int = 0, size: float = 0.3, queries: bool = False) -> Concept:
    """Every key and value of the MODEL moved by a share of its deviation, and a word; queries: those and output too."""
    from likeness.injection.comfy.weights import base_weights

    base = base_weights(model, lambda n: is_changeable(n) and (queries or n.endswith(("to_k.weight", "to_v.weight"))))
    random = torch.Generator().manual_seed(seed)
    weights = {n: w + size * w.std() * torch.randn(w.shape, generator=random) for n, w in base.items()}
    token = TokenEmbedding({"clip_l": torch.randn(1, WIDTH, generator=random) / 8})
    return Concept(
        f"{word}.bin", (Layout.DELTA,), weights, {word: token}, metadata={"ss_base_weights": base_signature(base)}
    )
