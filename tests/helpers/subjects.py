"""A subject of SeFi-IDE with random tokens, for the small text encoders."""

from __future__ import annotations

import torch

from likeness.adapters.sefi_ide.file import Subject

WIDTH = 64  # of the tokens of `tiny_clip`


def subject(word: str = "<ann>", seed: int = 0, stages: int = 5, towers: tuple[str, ...] = ("clip_l",)) -> Subject:
    """Called so in prompts; somebody else for each seed."""
    random = torch.Generator().manual_seed(seed)
    return Subject(word, "person", {name: torch.randn(stages, 2, WIDTH, generator=random) for name in towers})
