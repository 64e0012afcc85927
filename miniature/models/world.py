"""The miniature world in one value: all that makes a portrait of a drawn person, and all that judges one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...adapters.effects import Effect
from ...adapters.ip_adapter.adapter import IPAdapter
from ...faces.analysis import FaceAnalysis
from ...injection.sites import diffusers_layers, sites_of_diffusers_unet
from ..drawing.captions import parse
from ..drawing.people import Person, draw_people
from ..drawing.renderer import render
from ..drawing.shots import Clothing, Colour, Expression, Scene, Style, draw_shots
from .backend import miniature_analysis, miniature_judge
from .generate import GUIDANCE, STEPS, Progress, generate_latents, identity_injection, pictures_of
from .latents import PatchCodec, load_codec
from .networks import QUESTIONS, Observer, build_tokenizer, halve
from .weights import FOLDER, load_adapter, load_observer, load_text_encoder, load_unet

PHOTO_SIZE = 128
# What counts as obeying a prompt; whether a face smiles is reported apart, because it is the hardest.
ATTRIBUTES = ("style", "scene", "glasses", "beard", "hat", "clothing_colour")
_KINDS = {"style": Style, "scene": Scene, "expression": Expression, "clothing": Clothing, "clothing_colour": Colour}


@dataclass(frozen=True, eq=False)
class World:
    """The shipped networks, or those of a folder of one's own training."""

    unet: Any
    text_encoder: Any
    tokenizer: Any
    codec: PatchCodec
    adapter: IPAdapter
    analysis: FaceAnalysis  # its recogniser conditions
    judge: FaceAnalysis  # its recogniser judges
    observer: Observer

    def portraits(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int],
        embeddings: Tensor | None = None,
        strength: float = 1.0,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, 128, 128, 3), RGB 0..1: of the persons with these embeddings (1 | B, 512), or of anybody."""
        effects: list[Effect] = []
        if embeddings is not None and strength:
            effects.append(identity_injection(self.unet, self.adapter, embeddings, strength))
            lora = self.adapter.lora(diffusers_layers(sites_of_diffusers_unet(self.unet)), strength)
            effects += [lora] if lora else []
        latents = generate_latents(
            self.unet, self.text_encoder, self.tokenizer, prompts, seeds,
            steps=steps, guidance=guidance, effects=effects, progress=progress,
        )  # fmt: skip
        return pictures_of(self.codec, latents)

    def read(self, images: Tensor) -> list[dict[str, str]]:
        """What images (B, H, W, 3) show, in the observer's eyes: an answer to each of `QUESTIONS`."""
        answers, _, _ = self.observer(halve(images.permute(0, 3, 1, 2)))
        chosen = {name: logits.argmax(1).tolist() for name, logits in answers.items()}
        return [{name: answer_of(name, chosen[name][row]) for name in QUESTIONS} for row in range(len(images))]

    def observer_features(self, images: Tensor) -> Tensor:
        """How the observer sees whole images (B, H, W, 3): (B, 128), for how much images differ."""
        return self.observer.features(halve(images.permute(0, 3, 1, 2)))


def load_world(folder: Path = FOLDER) -> World:
    """LikenessError for a weight file that is missing or damaged."""
    return World(
        unet=load_unet(folder),
        text_encoder=load_text_encoder(folder),
        tokenizer=build_tokenizer(),
        codec=load_codec(),
        adapter=load_adapter(folder),
        analysis=miniature_analysis(folder),
        judge=miniature_judge(folder),
        observer=load_observer(folder),
    )


def photos_of(person: Person | int, count: int, first: int = 0, size: int = PHOTO_SIZE) -> np.ndarray:
    """Photos (count, size, size, 3) uint8 of one person in other poses, lights, places and clothes each."""
    seed = person if isinstance(person, int) else person.seed
    shots = draw_shots(seed * 1000 + 500 + np.arange(first, first + count)).with_style(Style.PHOTO)
    return (render(draw_people([seed] * count), shots, size).rgb * 255 + 0.5).byte().numpy()


def wanted(prompt: str) -> dict[str, str]:
    """What a prompt asks for, in the words of `World.read`: what it names, and no more."""
    wish = parse(prompt)
    asked: dict[str, str] = {}
    for name in ("style", "scene", "clothing", "clothing_colour", "expression"):
        value = getattr(wish, name)
        if value is not None:
            asked[name] = answer_of(name, int(value))
    asked["glasses"] = answer_of("glasses", int(wish.glasses))
    asked["beard"] = answer_of("beard", int(wish.beard))
    asked["hat"] = answer_of("hat", len(Colour) if wish.hat is None else int(wish.hat))
    return asked


def answer_of(question: str, number: int) -> str:
    """An answer in words: "forest", "yes", "none"."""
    if question in _KINDS:
        return _KINDS[question](number).name.lower()
    if question == "hat":
        return "none" if number == len(Colour) else Colour(number).name.lower()
    return "yes" if number else "no"
