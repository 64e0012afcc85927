"""What a method is given to make its recipe from, whoever asks for it: command line, graph, miniature or test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.clip_vision import ClipEncoder
from ..adapters.eva_clip import FILE as EVA_FILE
from ..adapters.eva_clip import EvaTower
from ..errors import LikenessError
from ..weights.embedding_files import TokenEmbedding
from .base.lora import StartLora, load_lora
from .base.model import BaseModel
from .config import MethodSettings
from .data.dataset import Dataset
from .data.examples import Example
from .data.people import People
from .data.portraits import Detect
from .data.subjects import SubjectPhotos
from .objectives.identity import Measure
from .recipe import Recipe


@dataclass(frozen=True, eq=False)
class ConceptPhotos:
    """The photos of one concept, and what it is called. start: vectors of an earlier training that its word starts
    from."""

    dataset: Dataset
    word: str
    start: TokenEmbedding | None = None


@dataclass(frozen=True, eq=False)
class Materials:
    """What a training is made from, beside base model and settings.

    concepts: in the order in which the method asks for them, without optional ones that were not given. measure: the
    recogniser of an identity loss, where the settings want one; detect: a detector of faces. start_lora: a LoRA's file
    that is trained further. generate: images of a class by the untouched model, from the class prompt, their number
    and size (height, width). complete: whether all steps were made already, so that nothing is left to be learned from
    the class's images. vectors: (n, dim), what an identity adapter made of the first concept's photos.
    """

    concepts: Sequence[ConceptPhotos]
    generate: Callable[[BaseModel, str, int, tuple[int, int]], list[Example]]
    device: torch.device | str = "cpu"
    measure: Measure | None = None
    detect: Detect | None = None
    start_lora: Path | None = None
    complete: bool = False
    vectors: Tensor | None = None

    def lora_for(self, base: BaseModel) -> StartLora | None:
        """The LoRA that is trained further, for the networks of this base model."""
        return None if self.start_lora is None else load_lora(self.start_lora, base.unet, base.encoders)


@dataclass(frozen=True, eq=False)
class PeopleMaterials:
    """What the training of an adapter is made from, beside base model and settings.

    clip, eva: image encoders; encoder: the file of the first, for an adapter that trains it too. parse: labels of
    aligned faces, see `faces.parsing`. measure, detect: a recogniser with gradient and a detector, for an identity
    loss. start: the adapter's file that is trained further; control: the folder or file of a ControlNet; few_step: a
    LoRA with which the base model samples in a few steps. None where the user gave none.
    """

    people: People
    device: torch.device | str = "cpu"
    clip: ClipEncoder | None = None
    eva: EvaTower | None = None
    parse: Callable[[torch.Tensor], torch.Tensor] | None = None
    measure: Measure | None = None
    detect: Detect | None = None
    start: Path | None = None
    control: Path | None = None
    few_step: Path | None = None
    encoder: Path | None = None

    def require_clip(self, what: str) -> ClipEncoder:
        """LikenessError where there is no CLIP image encoder."""
        if self.clip is None:
            raise LikenessError(f"{what} reads images through CLIP: write the image encoder's file into data.encoder.")
        return self.clip

    def require_eva(self) -> EvaTower:
        """LikenessError where there is no EVA02-CLIP."""
        if self.eva is None:
            raise LikenessError(f"PuLID reads faces through EVA02-CLIP: write {EVA_FILE} into data.eva.")
        return self.eva


@dataclass(frozen=True, eq=False)
class GroupMaterials:
    """What an adapter is trained from that learns several people of an image at once. start: the file of an image
    encoder, or of the adapter that is trained further."""

    photos: SubjectPhotos
    start: Path


@dataclass(frozen=True)
class AdapterTrainable:
    """What the recipe of an adapter offers to the registry of methods. make: from the materials of its kind."""

    settings: type[MethodSettings]
    make: Callable[[BaseModel, Any, Any, int], Recipe]


@dataclass(frozen=True)
class Trainable:
    """What a recipe's module offers to the registry of methods.

    settings: the class of its settings. make: the recipe. choose: settings by name for what a graph's node was given
    (values by the node's inputs), where a choice is not a setting itself; the learned words are set by the caller.
    """

    settings: type[MethodSettings]
    make: Callable[[BaseModel, Materials, Any, int], Recipe]
    choose: Callable[[Mapping[str, Any], Sequence[Dataset]], dict[str, Any]] = lambda values, datasets: {}
