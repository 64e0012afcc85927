"""Few-shot tuning of BLIP-Diffusion: one subject from a few photos (arXiv 2305.14720, section 3.4; LAVIS).

    v = mean of the photos' 16 vectors, once                    then a parameter, as what else is trained
    L = ‖ε − ε_θ(z_t, t, c(a [v] dog))‖²                        t uniform, DDPM

The prompt is read without padding: start, a, v, dog, end. The encoder that made the vectors is not needed any more.
Trained are the vectors alone, or the vectors and a LoRA in the UNet, or the vectors and the whole UNet, as officially.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ...errors import LikenessError
from ...weights.embedding_files import TokenEmbedding
from ...weights.families import CLIP_L
from ..base.lora import Reach, trained_pairs
from ..base.model import BaseModel, Conditioning
from ..base.vocabulary import NewToken, Vocabulary
from ..config import Group, LoraSettings, MethodSettings, Moment, Rate, RateSchedule, Seen, Steps
from ..data.dataset import Dataset
from ..data.examples import Example
from ..export import Saved, SavedKind, TrainingRecord, save_tuned_subject
from ..materials import Materials, Trainable
from ..recipe import Objective, Phase, Recipe, uniform_timesteps
from . import prompts
from .denoising import Mask, denoising_losses, require_masks, seen_by

QUERIES = 16  # vectors of a subject, where no encoder makes them
ATTENTION = (Reach.ATTENTION, Reach.CROSS_ATTENTION)  # what the file of a subject can hold as a LoRA


class Tuned(Enum):
    """What is trained; the value is what a user chooses."""

    VECTORS = "vectors"
    LORA = "vectors and LoRA"
    UNET = "vectors and UNet"


# Of the UNet and of the vectors. Official is one of 5e-6 for both.
RATES = {Tuned.VECTORS: (None, 1e-3), Tuned.LORA: (1e-4, 1e-3), Tuned.UNET: (5e-6, 5e-6)}


class BlipDiffusionSettings(MethodSettings):
    """Defaults: a LoRA, which makes a small file. Official are the whole UNet and a batch of 3."""

    title: ClassVar[str] = "BLIP-Diffusion"
    words: ClassVar[tuple[str, ...]] = ("placeholder",)
    loras: ClassVar[tuple[str, ...]] = ("lora",)
    kind: Literal["blip_diffusion"] = "blip_diffusion"
    placeholder: str = "<subject>"
    class_word: str = Field(default="person", description="What the subject is, as prompts name it.")
    tuned: Tuned = Tuned.LORA
    lora: LoraSettings = LoraSettings(rank=8)
    steps: Steps = 40
    learning_rate: Rate | None = Field(default=None, description="Of the UNet; None: 1e-4 for a LoRA, else 5e-6.")
    vector_learning_rate: Rate | None = Field(default=None, description="None: 1e-3, with the whole UNet 5e-6.")
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    captions: bool = Field(default=False, description="Use the photos' captions where they have any.")
    padded: bool = Field(default=False, description="Reads prompts of 77 tokens, as samplers do.")
    mask: Mask = Mask.NONE
    flip: float = Field(default=0.0, ge=0, le=1)

    @property
    def trains_all_weights(self) -> bool:
        return self.tuned is Tuned.UNET

    @property
    def idle(self) -> set[str]:
        groups = (
            (self.tuned is not Tuned.LORA, {"lora"}),
            (self.tuned is Tuned.VECTORS, {"learning_rate"}),
        )
        return {name for without_effect, names in groups if without_effect for name in names}

    @property
    def sees(self) -> Seen:
        return seen_by(self.captions, self.mask)

    def templates_of(self, concept: int) -> tuple[str, ...]:
        return (f"a {{}} {self.class_word}",)


def blip_diffusion(
    base: BaseModel,
    photos: Sequence[Example],
    settings: BlipDiffusionSettings,
    seed: int = 0,
    vectors: Tensor | None = None,
) -> Recipe:
    """The recipe, on SD1.x. vectors: (n, dim), what the subject encoder made of the photos; None: they start from the
    class word. Raises LikenessError for another base model, and for vectors that do not fit it."""
    require_base(base, None if vectors is None else vectors.shape[1])
    prompts.require_photos(photos, "photo")
    require_masks(photos, settings.mask, base.codec.decoder.pixels_per_cell)
    if settings.tuned is Tuned.LORA and settings.lora.reach not in ATTENTION:
        raise LikenessError(
            f"The file of a BLIP-Diffusion subject holds a LoRA of attention layers alone: set lora.reach to "
            f"'{Reach.ATTENTION.value}' or '{Reach.CROSS_ATTENTION.value}', not '{settings.lora.reach.value}'."
        )
    word = settings.placeholder
    said = prompts.from_templates(settings.templates_of(0), word)
    if settings.captions:
        said = prompts.from_captions(photos, word, said)
    start = settings.class_word if vectors is None else TokenEmbedding({CLIP_L.name: vectors})
    count = QUERIES if vectors is None else len(vectors)
    vocabulary = Vocabulary(base, [NewToken(word, count, start)], seed)
    tuning = Phase(
        "tuning",
        settings.steps,
        begin=partial(_free, base, vocabulary, settings),
        streams=[prompts.Photos(photos, said, seed, settings.flip)],
        objectives=[Objective("reconstruction", lambda found: denoising_losses(found, settings.mask).mean())],
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=uniform_timesteps(len(base.schedule)),
        hooks=None if settings.padded else partial(unpadded, base),
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        learned = vocabulary.embedding(word).vectors[CLIP_L.name]
        pairs = trained_pairs(base.unet) if settings.tuned is Tuned.LORA else {}
        whole = base.unet.state_dict() if settings.tuned is Tuned.UNET else {}
        told = {"subject": settings.class_word, "word": word}
        path = save_tuned_subject(learned, pairs, whole, told, folder, name, record)
        return [Saved(path, SavedKind.TUNED_SUBJECT)]

    return Recipe(settings.title, settings, [tuning], (word,), save)


def require_base(base: BaseModel, width: int | None) -> None:
    """LikenessError unless the model has SD1.5's text encoder, which reads vectors of this width; None: of any."""
    kinds = [tower.kind for tower in base.text]
    if kinds != [CLIP_L.name]:
        raise LikenessError(
            f"BLIP-Diffusion is for SD1.5, whose text encoder is clip_l, and this model has {' and '.join(kinds)}: "
            "choose an SD1.5 model."
        )
    read = base.encoders[0].config.hidden_size
    if width not in (None, read):
        raise LikenessError(
            f"The adapter makes vectors of width {width} and the text encoder reads {read}: connect an adapter and a "
            "model that belong together."
        )


def _free(base: BaseModel, vocabulary: Vocabulary, settings: BlipDiffusionSettings) -> list[Group]:
    """What is trained, each with its own learning rate."""
    rate, vector_rate = RATES[settings.tuned]
    rate, vector_rate = settings.learning_rate or rate, settings.vector_learning_rate or vector_rate
    groups = [Group("vectors", vocabulary.rows, vector_rate or 0.0, settings.weight_decay)]
    if settings.tuned is not Tuned.VECTORS:
        whole = settings.tuned is Tuned.UNET
        parameters = dict(base.unet.float().named_parameters()) if whole else settings.lora.add_to(base.unet)
        groups.append(Group("unet", parameters, rate or 0.0, settings.weight_decay))
    return groups


@contextmanager
def unpadded(base: BaseModel) -> Iterator[None]:
    """Within it, the base model reads prompts up to their end token, and each of a batch once."""
    tower = base.text[0]
    end = tower.tokenizer.eos_token_id

    def read(prompts: Sequence[str], t: Tensor) -> Conditioning:
        found: dict[str, Conditioning] = {}
        for prompt in dict.fromkeys(prompts):
            ids = tower.chunks(base.spell(prompt))
            if len(ids) == 1:
                ids = ids[:, : int((ids[0] == end).int().argmax()) + 1]
            found[prompt] = base.encode_ids([[ids]])
        return Conditioning.joined([found[prompt] for prompt in prompts])

    before, base.staged = base.staged, read
    try:
        yield
    finally:
        base.staged = before


# In the registry of methods -------------------------------------------------------------------------------------------


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    chosen: dict[str, Any] = {"class_word": datasets[0].class_word}
    for name in ("learning_rate", "vector_learning_rate"):
        if values[name] > 0:
            chosen[name] = values[name]
    return chosen


def make(base: BaseModel, materials: Materials, settings: BlipDiffusionSettings, seed: int) -> Recipe:
    (subject,) = materials.concepts
    photos = subject.dataset.called(subject.word).examples()
    return blip_diffusion(base, photos, settings, seed, materials.vectors)


TRAINABLE = Trainable(BlipDiffusionSettings, make, choose)
