"""StoryMaker: one to three people, and people with places of their own. SDXL only, as its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

SILENT = ("StoryMaker, outside its window",)  # but for its LoRA, which is left out here
TESTS = Path(__file__).resolve().parents[2] / "tests"
CLIP_TOKENS, CLIP_HIDDEN = 257, 1280
RANK = 128


class _Encoder:
    """CLIP's hidden states at their true size, with random numbers: only sampling is measured."""

    def __init__(self) -> None:
        from likeness.adapters.clip_vision import EncoderSize

        self.size = EncoderSize(CLIP_HIDDEN, 1024, 224)
        self.random = torch.Generator().manual_seed(2)

    def encode_pixels(self, pixels: torch.Tensor) -> Any:
        from likeness.adapters.clip_vision import ClipFeatures

        hidden = torch.randn(len(pixels), CLIP_TOKENS, CLIP_HIDDEN, generator=self.random)
        return ClipFeatures(hidden.mean(1), hidden)


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter; none for a model of another family."""
    from likeness.adapters.effects import Scope
    from likeness.adapters.storymaker import StoryMaker
    from likeness.adapters.storymaker.cast import Cast, Character
    from likeness.adapters.system import Request
    from likeness.faces import Identity
    from likeness.injection.comfy import ManagedAdapter, apply_effects, request_layout, sites_of
    from likeness.weights.families import SDXL

    sites = sites_of(model)
    if sites[0].context_dim != SDXL.text_width:
        return {}
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from helpers import storymaker

    shapes = [(site.width, site.context_dim) for site in sites]
    adapter = ManagedAdapter(StoryMaker(storymaker.weights(shapes, rank=RANK), "mask.bin"))
    layout, attention = request_layout(model)
    random = torch.Generator().manual_seed(1)

    def crops(side: int) -> torch.Tensor:
        return torch.zeros(1, side, side, 3, dtype=torch.uint8)

    def character(region: torch.Tensor | None = None) -> Character:
        person = Identity(
            name="person", recogniser="buffalo_l", embeddings=torch.randn(1, 512, generator=random),
            weights=torch.ones(1), aligned=crops(224), portraits=crops(512), heads=crops(512),
            keypoints=torch.zeros(1, 5, 2), boxes=torch.zeros(1, 4), photo_sizes=torch.full((1, 2), 512),
        )  # fmt: skip
        return Character(person, (crops(224)[0],), region=region)

    def applied(*cast: Character, lora: float = 0.8, **scope: Any) -> Any:
        request = Request(
            layout, attention, 0.8, Scope(**scope), encoder=_Encoder(), options=Cast(cast), weight_strength=lora
        )
        return apply_effects(model, adapter.effects(request)).model

    half = torch.zeros(1, 256, 256)
    half[:, :, :128] = 1
    return {
        "StoryMaker, one person": applied(character()),
        "StoryMaker, one person, no LoRA": applied(character(), lora=0.0),
        "StoryMaker, two people": applied(character(), character()),
        "StoryMaker, three people": applied(character(), character(), character()),
        "StoryMaker, two people in regions": applied(character(half), character(1 - half)),
        "StoryMaker, outside its window": applied(character(), lora=0.0, start=0.999),
    }
