"""DreamBooth: a rare word beside its class becomes one person (Ruiz et al., CVPR 2023, arXiv 2208.12242).

    L = E‖ε − ε_θ(z_t, c)‖² + λ E‖ε' − ε_θ(z'_t', c_pr)‖²

c says "a [identifier] [class]"; c_pr says "a [class]", and its images z' are the frozen model's own. Trained are the
whole denoiser and, if wanted, the text encoders; or a LoRA in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ...errors import LikenessError
from ...weights.lora import LoraPair
from ..base.lora import StartLora, load_lora, trained_pairs
from ..base.model import BaseModel
from ..class_pictures import class_size
from ..config import Group, LoraSettings, MethodSettings, Moment, Rate, RateSchedule, Seen, Steps, Weight
from ..data.dataset import Dataset
from ..data.examples import Example
from ..export import Saved, SavedKind, TrainingRecord, save_checkpoint, save_lora
from ..materials import Materials, Trainable
from ..objectives.prior_preservation import PriorPreservation, prior_preservation
from ..objectives.snr_weighting import min_snr
from ..recipe import Objective, Pass, Phase, Recipe, uniform_timesteps
from . import prompts
from .denoising import Mask, denoising_losses, require_masks, seen_by


class DreamBoothSettings(MethodSettings):
    """Defaults: a LoRA of rank 4 in the denoiser, as diffusers' README has it. For the full model use 5e-6."""

    title: ClassVar[str] = "DreamBooth"
    words: ClassVar[tuple[str, ...]] = ("identifier",)
    loras: ClassVar[tuple[str, ...]] = ("lora",)
    kind: Literal["dreambooth"] = "dreambooth"
    identifier: str = Field(default="ohwx", description="A rare word; 'sks', often seen, is a weapon's name.")
    prompt: str = "a photo of {} person"
    class_prompt: str = "a photo of person"
    captions: bool = Field(
        default=True, description="Use the photos' captions, which must name the identifier, where they have any."
    )
    full: bool = Field(default=False, description="Train all weights instead of a LoRA.")
    lora: LoraSettings = LoraSettings()
    text_encoder: bool = Field(default=False, description="Train the text encoders too.")
    text_until: Moment | None = Field(default=None, description="The step after which the text encoders are frozen.")
    steps: Steps = 500
    learning_rate: Rate = 1e-4
    text_learning_rate: Rate | None = Field(default=None, description="None: that of the denoiser.")
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, le=1e6)
    prior_weight: Weight = Field(default=1.0, description="λ; 0 needs no class images.")
    class_pictures: int = Field(default=100, ge=0, le=10_000)
    mask: Mask = Mask.NONE
    min_snr: float | None = Field(default=None, gt=0, le=1000)
    flip: float = Field(default=0.0, ge=0, le=1, description="Faces with marks on one side are better not mirrored.")

    @property
    def trains_all_weights(self) -> bool:
        return self.full

    @property
    def idle(self) -> set[str]:
        groups = (
            (self.prior_weight == 0, {"class_prompt", "class_pictures"}),
            (self.full, {"lora"}),
            (not self.text_encoder, {"text_learning_rate", "text_until"}),
            (self.captions, {"prompt"}),
        )
        return {name for without_effect, names in groups if without_effect for name in names}

    @property
    def sees(self) -> Seen:
        return seen_by(self.captions, self.mask)

    def templates_of(self, concept: int) -> tuple[str, ...]:
        return (self.prompt,)


def dreambooth(
    base: BaseModel,
    photos: Sequence[Example],
    settings: DreamBoothSettings,
    seed: int = 0,
    class_photos: Sequence[Example] = (),
    start: StartLora | None = None,
) -> Recipe:
    """The recipe, on SD1.x, SD2 and SDXL. class_photos: from `class_pictures`; not needed where λ is 0.

    start: a LoRA that is trained further, with its own layers and ranks. What it changes in a text encoder stays in the
    result where the encoder is not trained.
    """
    said, word = require_trainable(base, photos, settings), settings.identifier
    person = prompts.TaughtConcept(photos, said)
    if settings.prior_weight > 0:
        prompts.require_photos(class_photos, "class image")
        prompts.require_one_size([*photos, *class_photos], "and class images")
        person = prompts.TaughtConcept(photos, said, class_photos, lambda *_: settings.class_prompt)
        terms = partial(preserved, mask=settings.mask, gamma=settings.min_snr)
        objectives = [
            Objective("instance", lambda found: terms(found).instance),
            Objective("prior", lambda found: terms(found).prior, settings.prior_weight),
        ]
    else:
        objectives = [Objective("instance", lambda f: denoising_losses(f, settings.mask, settings.min_snr).mean())]
    tuning = Phase(
        "tuning",
        settings.steps,
        begin=partial(_free, base, settings, start),
        streams=prompts.joint([person], seed, settings.flip),
        objectives=objectives,
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=uniform_timesteps(len(base.schedule)),
        clip=settings.clip,
    )
    return Recipe(settings.title, settings, [tuning], (word,), partial(_save, base, settings))


def start_of(base: BaseModel, settings: DreamBoothSettings, file: Path | None) -> StartLora | None:
    """The LoRA in a file, to be trained further; None for no file. Raises LikenessError before hours are spent."""
    if file is None:
        return None
    if settings.full:
        raise LikenessError(
            "All weights cannot be trained further from a LoRA: load it onto the model and train without start_from, "
            "or train a LoRA."
        )
    return load_lora(file, base.unet, base.encoders)


def require_trainable(base: BaseModel, photos: Sequence[Example], settings: DreamBoothSettings) -> prompts.Prompts:
    """What is said of the photos. Raises LikenessError for whatever cannot be trained: to be asked before the class
    images are generated, which takes longest."""
    prompts.require_photos(photos, "photo")
    require_masks(photos, settings.mask, base.codec.decoder.pixels_per_cell)
    if settings.full:
        base.require_vae()
    said = prompts.from_templates([settings.prompt], settings.identifier)
    return prompts.from_captions(photos, settings.identifier, said) if settings.captions else said


def preserved(found: Pass, mask: Mask = Mask.NONE, gamma: float | None = None) -> PriorPreservation:
    """Both terms, of a batch with the person's photos in its first half. Class images get no min-SNR weight."""
    losses = denoising_losses(found, mask)
    if gamma is None:
        return prior_preservation(losses, 1.0)
    mine = found.t.chunk(2)[0]
    return prior_preservation(losses, 1.0, min_snr(found.schedule.snr(mine), gamma, found.schedule.prediction))


def _free(base: BaseModel, settings: DreamBoothSettings, start: StartLora | None) -> list[Group]:
    """What is trained: the denoiser, then the text encoders, each with its own learning rate."""
    lora = settings.lora if start is None else settings.lora.model_copy(update={"rank": start.rank})
    given = start or StartLora({}, ({},) * len(base.text))

    def trainable(network: Any, pairs: Mapping[str, LoraPair]) -> dict[str, torch.nn.Parameter]:
        return dict(network.float().named_parameters()) if settings.full else lora.add_to(network, pairs)

    text_rate = settings.text_learning_rate or settings.learning_rate
    groups = [Group("unet", trainable(base.unet, given.unet), settings.learning_rate, settings.weight_decay)]
    for tower, pairs in zip(base.text, given.encoders, strict=True):
        parameters = trainable(tower.encoder, pairs) if settings.text_encoder or pairs else {}
        if settings.text_encoder:
            groups.append(Group(tower.kind, parameters, text_rate, settings.weight_decay, settings.text_until))
    return groups


def _save(
    base: BaseModel, settings: DreamBoothSettings, folder: Path, name: str, record: TrainingRecord
) -> list[Saved]:
    if settings.full:
        assert base.codec.in_checkpoints is not None  # require_vae
        path = save_checkpoint(base.unet, base.codec.in_checkpoints(), base.encoders, folder, name, record)
        return [Saved(path, SavedKind.CHECKPOINT)]
    pairs = [trained_pairs(encoder) for encoder in base.encoders]
    path = save_lora(base.unet, trained_pairs(base.unet), folder, name, record, base.encoders, pairs)
    return [Saved(path, SavedKind.LORA)]


# In the registry of methods -------------------------------------------------------------------------------------------


class TunedWeights(Enum):
    """What is trained: a LoRA beside the weights, or these. The value is what a user chooses."""

    LORA = "LoRA"
    ALL = "all weights (checkpoint)"


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    return {
        "full": TunedWeights(values["tuned"]) is TunedWeights.ALL,
        "class_prompt": f"a photo of a {datasets[0].class_word}",
        "captions": True,
    }


def make(base: BaseModel, materials: Materials, settings: DreamBoothSettings, seed: int) -> Recipe:
    """Whatever cannot be trained is refused before the class images are generated."""
    (person,) = materials.concepts
    photos = person.dataset.called(person.word).examples()
    start = start_of(base, settings, materials.start_lora)
    require_trainable(base, photos, settings)
    others: Sequence[Example] = ()
    if settings.prior_weight > 0:
        size = class_size(photos)
        others = photos  # in their place, where nothing is left to be learned from them
        if not materials.complete:
            others = materials.generate(base, settings.class_prompt, settings.class_pictures, size)
    return dreambooth(base, photos, settings, seed, others, start)


TRAINABLE = Trainable(DreamBoothSettings, make, choose)
