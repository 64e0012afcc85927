"""Custom Diffusion: new words, and keys and values of cross-attention for them (Kumari et al., CVPR 2023, arXiv
2212.04488).

    min_{W_k, W_v, v*} Σ m ‖ε − ε_θ(z_t, t, c(y(v*)))‖² / Σ m  +  λ E‖ε' − ε_θ(z'_t', c_pr)‖²

y says "photo of a <new1> cat", v* is the word's row in the text encoder's table, m where an augmented image lies on
its canvas. c_pr is what ordinary images of the class are called, each by its own caption. Everything else is frozen,
and so are keys and values of a prompt's first token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ...errors import LikenessError, logger
from ...weights.concepts import Concept, Layout, base_signature, is_changeable
from ...weights.embedding_files import TokenEmbedding
from ..base.attention_weights import free_attention, no_gradient_at_start
from ..base.model import BaseModel
from ..base.vocabulary import NewToken, Vocabulary, require_one_token
from ..config import Group, MethodSettings, Moment, Rate, RateSchedule, Seen, Steps, Weight
from ..data.captions import fill_template, names
from ..data.class_folder import class_examples, cropped, folder_digest
from ..data.dataset import Dataset, DatasetKind
from ..data.examples import Example
from ..data.zoom import Draw, Zoom, squared, zoomed
from ..export import Saved, SavedKind, TrainingRecord, save_concept, save_embedding
from ..materials import Materials, Trainable
from ..objectives.custom_diffusion import target_loss
from ..objectives.reconstruction import squared_error
from ..recipe import Objective, Pass, Phase, Recipe, Sample, uniform_timesteps
from . import prompts
from .denoising import Mask, require_masks

log = logger(__name__)

PHOTO, STYLE = "photo of a {}", "painting in the style of {}"
FEW = 5  # photos, below which queries and output learn the photos themselves


class Layers(Enum):
    """What of cross-attention is trained; the value is what a user chooses."""

    KEYS_VALUES = "keys and values"
    ALL = "keys, values, queries and output"  # closer to a face; has no closed form for merging


class TrainingPreset(Enum):
    """Settings for a purpose; what is written beside it counts more."""

    NONE = "none"
    FACE = "face"


_FACE: dict[str, Any] = {
    "layers": Layers.ALL,
    "learning_rate": 5e-6,
    "steps": 1000,
    "zoom": Zoom.NONE,
    "face_mask": True,
    "flip": 0.0,
}


class CustomDiffusionSettings(MethodSettings):
    """Defaults: 1e-5 times 2 for the class images of every batch, 500 steps, as adobe's trainer on one GPU."""

    title: ClassVar[str] = "Custom Diffusion"
    words: ClassVar[tuple[str, ...]] = ("modifier", "modifier_2", "modifier_3")
    kind: Literal["custom_diffusion"] = "custom_diffusion"
    preset: TrainingPreset = Field(
        default=TrainingPreset.NONE, description="face: for portraits; sets the defaults of the other entries."
    )
    modifier: str = "<new1>"
    modifier_2: str = Field(default="<new2>", description="Of a second concept that is learned with the first.")
    modifier_3: str = "<new3>"
    new_words: bool = Field(default=True, description="False: the words exist already, and only weights are trained.")
    start: tuple[str, ...] = Field(
        default=("ktn", "pll", "ucd"),
        description="Tokens from which the words are initialised, in turn; by default rare ones.",
    )
    class_words: tuple[str, ...] = Field(default=("person",), description="Of each concept; '' for a style.")
    prompt: str = PHOTO
    captions: bool = Field(default=True, description="Use the photos' captions where they have any.")
    layers: Layers = Layers.KEYS_VALUES
    zoom: Zoom = Field(default=Zoom.ADOBE, description="Far away and close up, said in the caption; none for faces.")
    face_mask: bool = Field(default=False, description="Whether only the face is learned.")
    steps: Steps = 500
    learning_rate: Rate = 2e-5
    text_learning_rate: Rate | None = Field(default=None, description="Of the words; None: that of the weights.")
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up: Moment = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, le=1e6)
    prior_weight: Weight = Field(default=1.0, description="λ; 0 needs no class images.")
    class_pictures: int = Field(default=200, ge=0, le=10_000, description="That the untouched model generates.")
    class_folder: str = Field(default="", description="Images of the class, with captions or without, instead.")
    class_files: str = Field(default="", description="Fingerprint of that folder; filled in.")
    flip: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("preset") in (TrainingPreset.FACE, TrainingPreset.FACE.value):
            given = {**_FACE, **given}
        if given.get("class_folder") and "class_files" not in given:
            given = {**given, "class_files": folder_digest(Path(str(given["class_folder"])))}
        return given

    @property
    def idle(self) -> set[str]:
        groups = (
            (True, {"preset", "class_folder"}),  # what they stand for tells runs apart
            (self.prior_weight == 0, {"class_pictures", "class_files"}),
            (bool(self.class_folder), {"class_pictures"}),
            (not self.new_words, {"start", "text_learning_rate"}),
        )
        return {name for without_effect, group in groups if without_effect for name in group}

    @property
    def sees(self) -> Seen:
        return (Seen.CAPTIONS if self.captions else Seen(0)) | (Seen.MASKS if self.face_mask else Seen(0))

    def templates_of(self, concept: int) -> tuple[str, ...]:
        return (fill_template(self.prompt, self.phrase("{}", concept)),)

    def class_word(self, concept: int) -> str:
        """Of a concept; the last one's, where there are fewer."""
        return self.class_words[min(concept, len(self.class_words) - 1)] if self.class_words else ""

    def phrase(self, word: str, concept: int) -> str:
        """What prompts call a concept."""
        return f"{word} {self.class_word(concept)}".strip()

    def class_prompt(self, concept: int) -> str:
        """What the images of its class are called that the model generates."""
        return fill_template(self.prompt, self.class_word(concept)) if self.class_word(concept) else "a painting"


def custom_diffusion(
    base: BaseModel,
    photos: Sequence[Sequence[Example]],
    settings: CustomDiffusionSettings,
    seed: int = 0,
    class_photos: Sequence[Sequence[Example]] = (),
    starts: Sequence[TokenEmbedding | None] = (),
) -> Recipe:
    """The recipe, on SD1.x, SD2 and SDXL (both encoders), of one concept or of several together.

    photos, class_photos: of each concept; without class images λ is 0, and that is warned of. starts: vectors of
    earlier trainings that the words start from instead.
    """
    words = settings.learned_words[: len(photos)]
    concepts = [require_trainable(base, found, settings, number) for number, found in enumerate(photos)]
    sides = {example.size for found in concepts for example in found}
    if len(sides) > 1:
        raise LikenessError(
            "The photos of a Custom Diffusion training have different sizes "
            f"({', '.join(f'{w}x{h}' for h, w in sorted(sides))}): crop them all to one."
        )
    (size,) = sides
    with_class = settings.prior_weight > 0 and any(class_photos)
    if settings.prior_weight > 0 and not with_class:
        log.warning(
            "[likeness] There are no class images, so the prior's weight is 0: the class will drift towards the "
            "subject. Name a folder of class images, or let the model generate some."
        )
    signature = base_signature({name: value for name, value in base.unet.state_dict().items() if is_changeable(name)})
    vocabulary = _vocabulary(base, words, settings, seed, starts) if settings.new_words else None
    parts = []
    for number, (found, word) in enumerate(zip(concepts, words, strict=True)):
        others = class_photos[number] if with_class else ()
        parts.append(
            prompts.TaughtConcept(found, _said(found, word, settings, number), others, _class_said if others else None)
        )
    targets, *classes = prompts.joint(parts, seed, settings.flip)
    cell = base.codec.decoder.pixels_per_cell
    streams: list[Any] = [Targets(targets, settings.zoom, settings.face_mask, cell)]
    streams += [ClassPictures(replace(stream, flip=0.0), size) for stream in classes]
    count = 2 if classes else 1

    def instance(found: Pass) -> Tensor:
        mine = slice(0, len(found.samples) // count)
        masks = torch.stack([sample.about for sample in found.samples[mine]]).to(found.prediction.device)
        return target_loss(found.prediction[mine], found.target[mine], masks).mean()

    def prior(found: Pass) -> Tensor:
        others = slice(len(found.samples) // count, None)
        return squared_error(found.prediction[others], found.target[others]).mean()

    trained: dict[str, torch.nn.Parameter] = {}

    def begin() -> list[Group]:
        trained.update(free_attention(base.unet, settings.layers is Layers.ALL))
        groups = [Group("attention", trained, settings.learning_rate, settings.weight_decay)]
        if vocabulary is not None:
            rate = settings.text_learning_rate or settings.learning_rate
            groups.append(Group("rows", vocabulary.rows, rate, settings.weight_decay))
        return groups

    tuning = Phase(
        "tuning",
        settings.steps,
        begin=begin,
        streams=streams,
        objectives=[
            Objective("instance", instance),
            *([Objective("prior", prior, settings.prior_weight)] if classes else []),
        ],
        factor=settings.schedule.factor(settings.steps, settings.warm_up),
        timestep=uniform_timesteps(len(base.schedule)),
        clip=settings.clip,
        hooks=partial(no_gradient_at_start, base.unet),
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        tokens = {} if vocabulary is None else {word: vocabulary.embedding(word) for word in words}
        weights = {key: value.detach().cpu().clone() for key, value in trained.items()}
        about = {
            "ss_class_word": ", ".join(settings.class_word(number) for number in range(len(words))),
            "ss_prompt": settings.prompt,
            "ss_base_weights": signature,
        }
        concept = Concept(name, (Layout.PROCESSORS,), weights, tokens, metadata=about)
        saved = [Saved(save_concept(concept, folder, name, record), SavedKind.CONCEPT)]
        for word, token in tokens.items():
            path = save_embedding(token, folder, f"{name}-{word.strip('<>')}", record)
            saved.append(Saved(path, SavedKind.EMBEDDING))
        return saved

    return Recipe(settings.title, settings, [tuning], tuple(words), save)


def require_trainable(
    base: BaseModel, photos: Sequence[Example], settings: CustomDiffusionSettings, concept: int
) -> list[Example]:
    """The photos, square. Raises LikenessError for whatever cannot be trained: to be asked before class images are
    generated."""
    prompts.require_photos(photos, "photo")
    prompts.from_templates(settings.templates_of(concept), settings.learned_words[concept])
    if settings.face_mask:
        require_masks(photos, Mask.FACE, base.codec.decoder.pixels_per_cell)
    if settings.layers is Layers.ALL and len(photos) < FEW:
        log.warning(
            "[likeness] %d photos are few for %s, which then memorise the photos: use %d or more, or '%s'.",
            len(photos), settings.layers.value, FEW, Layers.KEYS_VALUES.value,
        )  # fmt: skip
    return [_squared(photo) for photo in photos]


def _squared(photo: Example) -> Example:
    height, width = photo.size
    if height == width:
        return photo
    mask = None if photo.face_mask is None else squared(photo.face_mask).contiguous()
    return replace(photo, pixels=squared(photo.pixels).contiguous(), face_mask=mask)


def _vocabulary(
    base: BaseModel,
    words: Sequence[str],
    settings: CustomDiffusionSettings,
    seed: int,
    starts: Sequence[TokenEmbedding | None],
) -> Vocabulary:
    """The words, each a row that starts from a token of its own, or from vectors of an earlier training."""
    if len({word.lower() for word in words}) < len(words):
        raise LikenessError(f"Two concepts have the same word ({', '.join(words)}): give each a word of its own.")
    given = [*starts, *[None] * len(words)]
    tokens = []
    for number, word in enumerate(words):
        start = given[number]
        if start is None and number >= len(settings.start):
            raise LikenessError(
                f"{len(words)} words need as many to start from, and there are {len(settings.start)} "
                f"({', '.join(settings.start)}): name one for each."
            )
        tokens.append(NewToken(word, 1, start or _one_token(base, word, settings.start[number])))
    return Vocabulary(base, tokens, seed)


def _one_token(base: BaseModel, word: str, start: str) -> str:
    """The word to start from. LikenessError listing its tokens where it is not one."""
    require_one_token(base, start, f"The word {start!r} that {word} should start from")
    return start


def _said(photos: Sequence[Example], word: str, settings: CustomDiffusionSettings, concept: int) -> prompts.Prompts:
    """A photo's caption, or the prompt."""
    prompt = fill_template(settings.templates_of(concept)[0], word)
    if not settings.captions:
        return lambda photo, random: prompt
    lacking = [
        photo.name or str(n) for n, photo in enumerate(photos, 1) if photo.caption and not names(photo.caption, word)
    ]
    if lacking:
        log.warning(
            "[likeness] The captions of %s do not say %s, so it learns nothing from them.",
            ", ".join(lacking[:5]),
            word,
        )
    return lambda photo, random: photo.caption or prompt


def _class_said(photo: Example, _random: torch.Generator) -> str:
    return photo.caption


# Samples --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """The stream of photos: each as chance zooms it, its caption saying so, `about` being where the loss counts,
    (1, h, w). cell: pixels of a latent."""

    photos: prompts.Photos
    zoom: Zoom
    face_mask: bool
    cell: int

    @property
    def examples(self) -> Sequence[Example]:
        return self.photos.examples

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        sample = self.photos(n, random)
        example, face = sample.example, sample.example.face_mask if self.face_mask else None
        pixels = example.pixels
        if self.zoom is not Zoom.NONE and sample.flipped:
            pixels, face = pixels.flip(-1), None if face is None else face.flip(-1)
        found = zoomed(pixels, Draw.at_random(example.size[0], self.zoom, random), self.zoom, face, self.cell)
        mask = found.mask
        if found.face is not None:
            mask = mask * (F.interpolate(found.face[None], mask.shape[-2:], mode="area")[0] > 0.5)
        if self.zoom is Zoom.NONE:  # the same pixels every time
            return replace(sample, about=mask.flip(-1) if sample.flipped and found.face is not None else mask)
        shown = replace(example, pixels=found.pixels.contiguous())
        return Sample(shown, found.prefix + sample.prompt, about=mask, recurs=False)


@dataclass(frozen=True)
class ClassPictures:
    """The stream of class images, cut to the photos' size (height, width) where they are larger."""

    photos: prompts.Photos
    size: tuple[int, int]

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        sample = self.photos(n, random)
        if sample.example.size == self.size:
            return sample
        return replace(sample, example=cropped(sample.example, random), recurs=False)


# In the registry of methods -------------------------------------------------------------------------------------------


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    starts = values["start_words"].split()
    styles = [dataset.kind is DatasetKind.STYLE for dataset in datasets]
    chosen: dict[str, Any] = {
        "captions": True,
        "class_words": tuple(
            "" if style else dataset.class_word for dataset, style in zip(datasets, styles, strict=True)
        ),
        "prompt": STYLE if all(styles) else PHOTO,
    }
    if starts:
        chosen["start"] = tuple(starts)
    if not values["new_word"]:
        chosen |= {
            name: dataset.trigger for name, dataset in zip(CustomDiffusionSettings.words, datasets, strict=False)
        }
    return chosen


def make(base: BaseModel, materials: Materials, settings: CustomDiffusionSettings, seed: int) -> Recipe:
    """Whatever cannot be trained is refused before the class images are generated."""
    photos = [concept.dataset.called(concept.word).examples() for concept in materials.concepts]
    square = [require_trainable(base, found, settings, number) for number, found in enumerate(photos)]
    others = [_class_photos(base, materials, settings, number, square[number]) for number in range(len(photos))]
    return custom_diffusion(base, photos, settings, seed, others, [concept.start for concept in materials.concepts])


def _class_photos(
    base: BaseModel, materials: Materials, settings: CustomDiffusionSettings, number: int, photos: Sequence[Example]
) -> Sequence[Example]:
    """Of one concept: of the folder, or generated; the photos in their place where nothing is left to be learned."""
    if settings.prior_weight == 0 or not (settings.class_folder or settings.class_pictures):
        return ()
    if materials.complete:
        return photos
    size = prompts.require_one_size(photos, "of a concept")
    prompt = settings.class_prompt(number)
    if settings.class_folder:
        if number:
            return ()  # one folder for all
        return class_examples(Path(settings.class_folder), size[0], prompt)
    if number and prompt in {settings.class_prompt(earlier) for earlier in range(number)}:
        return ()  # generated for an earlier concept of the class already
    return materials.generate(base, prompt, settings.class_pictures, size)


TRAINABLE = Trainable(CustomDiffusionSettings, make, choose)
