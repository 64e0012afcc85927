"""DreamBooth: a rare word beside its class becomes one person (Ruiz et al., CVPR 2023, arXiv 2208.12242).

    L = E‖ε − ε_θ(z_t, c)‖² + λ E‖ε' − ε_θ(z'_t', c_pr)‖²

c says "a [identifier] [class]"; c_pr says "a [class]", and its pictures z' are the frozen model's own. Trained are the
whole denoiser and, if wanted, the text encoders; or a LoRA in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...errors import LikenessError, logger
from ...faces import read_photo
from ...storage import set_aside, write_whole
from ...weights.lora import LoraPair
from ..base.lora import StartLora, load_lora, trained_pairs
from ..base.model import BaseModel
from ..config import Group, LoraSettings, Moment, Rate, RateSchedule, Seen, Settings, Steps, Weight
from ..data.examples import Example
from ..export import TrainingRecord, save_checkpoint, save_lora
from ..objectives.prior_preservation import PriorPreservation, prior_preservation
from ..objectives.snr_weighting import min_snr
from ..previews import sample_pictures
from ..recipe import Objective, Pass, Phase, Recipe, uniform_timesteps
from . import prompts
from .denoising import Mask, denoising_losses, require_masks, seen_by

if TYPE_CHECKING:
    from PIL.Image import Image

log = logger(__name__)


class DreamBoothSettings(Settings):
    """Defaults: a LoRA of rank 4 in the denoiser, as diffusers' README has it. For the full model use 5e-6."""

    title: ClassVar[str] = "DreamBooth"
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
    text_until: Moment | None = Field(default=None, description="The step after which the text encoders rest.")
    steps: Steps = 500
    learning_rate: Rate = 1e-4
    text_learning_rate: Rate | None = Field(default=None, description="None: that of the denoiser.")
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, le=1e6)
    prior_weight: Weight = Field(default=1.0, description="λ; 0 needs no class pictures.")
    class_pictures: int = Field(default=100, ge=0, le=10_000)
    mask: Mask = Mask.NONE
    min_snr: float | None = Field(default=None, gt=0, le=1000)
    flip: float = Field(default=0.0, ge=0, le=1, description="Faces with marks on one side are better not mirrored.")

    @property
    def trains_all_weights(self) -> bool:
        return self.full

    @property
    def steps_of_phases(self) -> dict[str, int]:
        return {"steps": self.steps}

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
    streams = [prompts.Photos(photos, said, seed, settings.flip)]
    if settings.prior_weight > 0:
        prompts.require_photos(class_photos, "class picture")
        prompts.require_one_size([*photos, *class_photos], "and class pictures")
        streams.append(prompts.Photos(class_photos, lambda *_: settings.class_prompt, seed, settings.flip))
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
        streams=streams,
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
            "All weights cannot be trained further from a LoRA: load it onto the model and start from nothing, or "
            "train a LoRA."
        )
    return load_lora(file, base.unet, base.encoders)


def require_trainable(base: BaseModel, photos: Sequence[Example], settings: DreamBoothSettings) -> prompts.Prompts:
    """What is said of the photos. Raises LikenessError for whatever cannot be trained: to be asked before the class
    pictures are painted, which takes longest."""
    prompts.require_photos(photos, "photo")
    require_masks(photos, settings.mask, base.codec.decoder.pixels_per_cell)
    if settings.full:
        require_vae(base)
    said = prompts.from_templates([settings.prompt], settings.identifier)
    return prompts.from_captions(photos, settings.identifier, said) if settings.captions else said


def preserved(found: Pass, mask: Mask = Mask.NONE, gamma: float | None = None) -> PriorPreservation:
    """Both terms, of a batch with the person's photos in its first half. Class pictures get no min-SNR weight."""
    losses = denoising_losses(found, mask)
    if gamma is None:
        return prior_preservation(losses, 1.0)
    mine = found.t.chunk(2)[0]
    return prior_preservation(losses, 1.0, min_snr(found.schedule.snr(mine), gamma, found.schedule.prediction))


def require_vae(base: BaseModel) -> None:
    """A full model is saved as a checkpoint, which has a VAE in it: raises LikenessError before hours are spent."""
    if base.codec.in_checkpoints is None:
        raise LikenessError(
            "Training all weights needs a model whose VAE a checkpoint can hold: take an SD1.5, SD2 or SDXL model with "
            "its own VAE, or train a LoRA."
        )


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


def _save(base: BaseModel, settings: DreamBoothSettings, folder: Path, name: str, record: TrainingRecord) -> list[Path]:
    if settings.full:
        assert base.codec.in_checkpoints is not None  # require_vae
        return [save_checkpoint(base.unet, base.codec.in_checkpoints(), base.encoders, folder, name, record)]
    pairs = [trained_pairs(encoder) for encoder in base.encoders]
    return [save_lora(base.unet, trained_pairs(base.unet), folder, name, record, base.encoders, pairs)]


def class_size(photos: Sequence[Example]) -> tuple[int, int]:
    """(height, width) of the class pictures: that of the photos, which share every batch with them.

    Raises LikenessError where the photos have several, before any picture is made.
    """
    prompts.require_photos(photos, "photo")
    return prompts.require_one_size(photos, "of the person", ", or set the prior's weight to 0")


def class_pictures(
    base: BaseModel,
    prompt: str,
    count: int,
    folder: Path,
    size: tuple[int, int],
    after_each: Callable[[], None] = lambda: None,
) -> list[Example]:
    """`count` pictures of the class by the untouched model, (height, width) in pixels; those in the folder are reused.

    One that cannot be read is set aside and painted again. Raises LikenessError when the folder cannot be written to,
    and when the model paints what is not a picture.
    """
    found = []
    for number in range(count):
        path = folder / f"class_{number:05d}.png"
        try:
            picture = _kept(path)
            if picture is None:
                folder.mkdir(parents=True, exist_ok=True)
                picture = _painted(base, prompt, number, size)
                write_whole(path, partial(picture.save, format="png"))
        except OSError as error:
            raise LikenessError(
                f"The class picture '{path}' could not be made or read ({error}): free some space, or delete it."
            ) from error
        pixels = np.asarray(picture.resize((size[1], size[0])), np.float32)
        found.append(Example(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous(), prompt))
        after_each()
    return found


def _kept(path: Path) -> Image | None:
    """A class picture that was painted earlier, None where there is none."""
    from PIL import Image

    if not path.exists():
        return None
    try:
        return Image.fromarray(read_photo(path))
    except LikenessError as error:
        log.warning("%s It is now %s, and painted again.", error, set_aside(path).name)
        return None


def _painted(base: BaseModel, prompt: str, number: int, size: tuple[int, int]) -> Image:
    from PIL import Image

    picture = sample_pictures(base, [prompt], size, seed=number)[0]
    if not bool(torch.isfinite(picture).all()):
        raise LikenessError(
            "The model paints its class pictures with values that are not numbers: choose another precision (bf16 or "
            "float32), or another model."
        )
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
