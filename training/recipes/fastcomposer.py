"""FastComposer: an image encoder, an MLP and a UNet that put people into a prompt (arXiv 2305.10431).

    L = ‖ε - ε_θ(z_t, t, c')‖²  +  λ · mean over layers of (attention beside the subject - attention on it)

c' is the prompt with every marked noun fused with an image of its person, who stands before noise. In half of the
batches only where people are counts in the first term. The second is taken in the middle five blocks of the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...adapters.fastcomposer.networks import TOWER, SubjectEncoder, fuse_marked
from ...adapters.fastcomposer.prompt import LongPrompts, read
from ...adapters.fastcomposer.references import noise, on_background, reference
from ...adapters.networks import FuseModule
from ...adapters.text_encoder import TransformersTextEncoder
from ...adapters.trigger_words import pattern_of, words_in
from ...adapters.whole_file import fault, of_one_precision, without_buffers
from ...errors import LikenessError
from ...weights.checkpoint_layout import below
from ...weights.families import HEAD_WIDTH, SD15
from ...weights.files import read_weights
from ..base.model import BaseModel, Conditioning
from ..config import Group, MethodSettings, Rate, Steps, Weight
from ..data.subject_augment import varied, zoomed
from ..data.subjects import SubjectExample, SubjectPhotos
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..materials import AdapterTrainable, GroupMaterials
from ..objectives.localisation import localisation, subject_error
from ..objectives.reconstruction import squared_error
from ..probe import Grid, sites_around_middle
from ..recipe import Objective, Pass, Phase, Recipe, Recording, Sample, epochs, uniform_timesteps
from .prompts import happens

Share = Field(ge=0, le=1)


class FastComposerSettings(MethodSettings):
    """Defaults are the official script's; the paper leaves the people out of another tenth of the captions."""

    title: ClassVar[str] = "FastComposer"
    kind: Literal["fastcomposer"] = "fastcomposer"
    marker: str = Field(default="img", description="The word behind the noun of everybody who has a mask.")
    steps: Steps = 150_000
    learning_rate: Rate = 1e-5
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, le=1000, description="Largest norm of the gradients.")
    tuned_layers: int = Field(default=2, ge=0, le=100, description="Last layers of the image encoder that are trained.")
    head_width: int = Field(default=HEAD_WIDTH, ge=1, le=1024, description="Of the image encoder's attention.")
    localisation_weight: Weight = 1e-3
    localisation_blocks: int = Field(default=5, ge=1, le=100)
    normalised: bool = Field(default=False, description="Whether every attention map is divided by its maximum.")
    masked_loss: float = Field(default=0.5, ge=0, le=1, description="Share of the batches in which only people count.")
    unconditional: float = Field(default=0.1, ge=0, le=1, description="Share of the samples without any text.")
    text_only: float = Field(default=0.0, ge=0, le=1, description="Share of the samples without images of people.")
    keep_subject: float = Field(default=0.9, ge=0, le=1, description="How often each person's image is shown.")
    most_subjects: int = Field(default=4, ge=1, le=70)
    flip: float = Field(default=0.5, ge=0, le=1)
    augment: bool = Field(default=True, description="Whether the images of people are varied.")
    background_noise: bool = Field(default=True, description="Whether people stand before noise.")

    @property
    def trains_all_weights(self) -> bool:
        return True

    @property
    def idle(self) -> set[str]:
        return {"localisation_blocks", "normalised"} if self.localisation_weight == 0 else set()


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of a sample's people. places: of their nouns among the states; images: (n, 3, S, S) in 0..1;
    masks: (n, H, W) as the sample is mirrored. only_people: whether the rest of its batch's images does not count."""

    places: tuple[int, ...]
    images: Tensor
    masks: Tensor
    only_people: bool


class People:
    """A stream of images with their people: each image once per epoch, from 0 to `most_subjects` of its people."""

    def __init__(self, photos: SubjectPhotos, settings: FastComposerSettings, size: int, base: BaseModel, seed: int):
        """size: of the images that the encoder reads."""
        self.photos, self.settings, self.size, self.seed = photos, settings, size, seed
        self._words = words_in(settings.marker)
        tower = base.text[0]
        self._encoder = TransformersTextEncoder([(tower.kind, tower.tokenizer, tower.encoder)])
        self._places = lru_cache(4096)(self._read)

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        settings, recurs = self.settings, self.photos.stay
        example: SubjectExample = self.photos[epochs(len(self.photos), self.seed, n)]
        only_people, flipped = happens(settings.masked_loss, random), happens(settings.flip, random)
        chance = float(torch.rand((), generator=random))
        kept = [subject for subject in range(len(example.subjects)) if happens(settings.keep_subject, random)]
        prompt, places = self._places(example.caption, len(example.subjects))
        if chance < settings.unconditional:
            prompt, kept = "", []
        elif chance < settings.unconditional + settings.text_only:
            kept = []
        kept = [k for k in kept if bool(example.subjects[k].shown.any())]
        kept = kept[: settings.most_subjects]
        height, width = example.size
        masks = torch.zeros(0, height, width)
        images = torch.zeros(0, 3, self.size, self.size)
        if kept:
            masks = torch.stack([example.subjects[k].shown for k in kept])
            images = torch.cat([self._image(example, k, random) for k in kept])
        shown = Shown(tuple(places[k] for k in kept), images, masks.flip(-1) if flipped else masks, only_people)
        return Sample(example, prompt, flipped, shown, recurs)

    def _image(self, example: SubjectExample, number: int, random: torch.Generator) -> Tensor:
        subject, settings = example.subjects[number], self.settings
        image = subject.image
        if settings.background_noise:
            image = on_background(image, subject.mask, noise(*image.shape[1:3], random))
        if settings.augment:
            image = zoomed(image, random)
        image = reference(image, self.size)
        return varied(image, random) if settings.augment else image

    def _read(self, caption: str, people: int) -> tuple[str, tuple[int, ...]]:
        """A caption without its markers, and where each person's noun stands."""
        text = read(self._encoder, caption, self._words, people, long_prompts=LongPrompts.WINDOWS)
        return " ".join(pattern_of(self._words).sub(" ", caption).split()), tuple(text.places)


def fastcomposer(
    base: BaseModel, photos: SubjectPhotos, networks: SubjectEncoder, settings: FastComposerSettings, seed: int = 0
) -> Recipe:
    """The recipe, on SD1.x. networks: the encoder to start from, which becomes the trained one."""
    dim = networks.postfuse_module.dim
    width = base.unet.config.cross_attention_dim
    if base.is_sdxl or dim != width:
        raise LikenessError(
            f"FastComposer's training starts from an encoder for text of width {dim}, but the base model reads "
            f"{'SDXL' if base.is_sdxl else width}: choose an {SD15.title} checkpoint and CLIP ViT-L/14."
        )
    people = People(photos, settings, networks.image_encoder.vision_model.image_size, base, seed)

    def begin() -> Sequence[Group]:
        networks.to(base.unet.device).float()
        layers = list(networks.image_encoder.vision_model.encoder.layers)  # type: ignore[arg-type]
        tuned = layers[len(layers) - settings.tuned_layers :] if settings.tuned_layers else []
        parts: dict[str, nn.Module] = {"postfuse": networks.postfuse_module, "unet": base.unet}
        parts |= {f"vision{number}": layer for number, layer in enumerate(tuned)}
        networks.requires_grad_(False)
        rate, decay = settings.learning_rate, settings.weight_decay
        return [Group(name, dict(part.named_parameters()), rate, decay) for name, part in parts.items()]

    def fuse(samples: Sequence[Sample], text: Conditioning) -> Conditioning:
        """c': the prompts with their people in them."""
        counts = [len(sample.about.places) for sample in samples]
        if not any(counts):
            return text
        states = text.states
        images = _padded([sample.about.images for sample in samples]).to(states.device)
        marks = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, sample in enumerate(samples):
            marks[row, list(sample.about.places)] = True
        subjects = networks.image_encoder(images)
        given = marks.to(states.device), subjects, torch.tensor(counts, device=states.device)
        return Conditioning(fuse_marked(networks.postfuse_module, states, *given), text.pooled, text.mask)

    def reconstruction(found: Pass) -> Tensor:
        if not found.samples[0].about.only_people:  # once for a batch, as the official code draws it
            return squared_error(found.prediction, found.target).mean()
        masks = _padded([sample.about.masks for sample in found.samples]).to(found.z0.device)
        return subject_error(found.prediction, found.target, masks).mean()

    @lru_cache(16)
    def grids(latent: Grid) -> list[Grid]:
        return [grid for _, grid in sites_around_middle(base.unet, latent, settings.localisation_blocks)]

    def looks(found: Pass) -> Tensor:
        masks = _padded([sample.about.masks for sample in found.samples]).to(found.z0.device)
        counts = torch.tensor([len(sample.about.places) for sample in found.samples], device=masks.device)
        there = torch.arange(masks.shape[1], device=masks.device) < counts[:, None]
        latent = found.z0.shape[-2], found.z0.shape[-1]
        return localisation(found.maps, masks, there, grids(latent), settings.normalised).mean()

    def positions(samples: Sequence[Sample]) -> Tensor:
        most = max(1, *(len(sample.about.places) for sample in samples))
        rows = [[*sample.about.places, *[0] * (most - len(sample.about.places))] for sample in samples]
        return torch.tensor(rows, device=base.unet.device)

    recording = None
    if settings.localisation_weight > 0:
        sites = [site for site, _ in sites_around_middle(base.unet, (64, 64), settings.localisation_blocks)]
        recording = Recording(sites, positions)
    phase = Phase(
        "composing",
        settings.steps,
        begin=begin,
        streams=[people],
        objectives=[
            Objective("reconstruction", reconstruction),
            Objective("localisation", looks, settings.localisation_weight),
        ],
        factor=lambda step: 1.0,
        timestep=uniform_timesteps(len(base.schedule)),
        clip=settings.clip,
        recording=recording,
        fuse=fuse,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        weights = dict(networks.state_dict()) | {f"unet.{key}": v for key, v in base.unet.state_dict().items()}
        return [Saved(save_adapter(weights, folder, name, record, dtype=torch.float32), SavedKind.FASTCOMPOSER)]

    return Recipe(settings.title, settings, [phase], (settings.marker,), save)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (n, ...) of several n as one batch, filled up with zeros; at least one each."""
    most = max(1, *(len(row) for row in rows))
    return torch.stack([torch.cat([row, row.new_zeros(most - len(row), *row.shape[1:])]) for row in rows])


# What it starts from --------------------------------------------------------------------------------------------------


def load_start(file: Path, base: BaseModel, head_width: int = HEAD_WIDTH, seed: int = 0) -> SubjectEncoder:
    """The networks to start from: those of a FastComposer file, whose UNet becomes the base model's, or CLIP's image
    encoder with a fresh MLP. LikenessError for any other file."""
    weights, _ = read_weights(file)
    own = without_buffers({k: v for k, v in weights.items() if k.startswith(("image_encoder.", "postfuse_module."))})
    if not own:
        own = _from_clip(file, weights, seed)
    elif unet := below(weights, "unet."):
        try:
            base.unet.load_state_dict(unet)
        except RuntimeError as error:
            raise LikenessError(
                f"The UNet in {file.name!r} does not fit the base model ({fault(error)}): choose an SD1.5 checkpoint."
            ) from error
    try:
        return SubjectEncoder(of_one_precision(own), head_width)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise LikenessError(
            f"{file.name!r} is not a complete image encoder ({fault(error)}): choose CLIP ViT-L/14's weights or a "
            "FastComposer file."
        ) from error


def _from_clip(file: Path, weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    kept = without_buffers(weights)
    vision = {key: value for key, value in kept.items() if key.startswith((TOWER, "visual_projection."))}
    if "visual_projection.weight" not in vision:
        raise LikenessError(
            f"{file.name!r} is neither CLIP's image encoder nor a FastComposer file: choose CLIP ViT-L/14's weights."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fuse = FuseModule(vision["visual_projection.weight"].shape[0])
    fresh = {f"postfuse_module.{key}": value.detach() for key, value in fuse.state_dict().items()}
    return {**{f"image_encoder.{key}": value.float() for key, value in vision.items()}, **fresh}


# In the registry of methods -------------------------------------------------------------------------------------------


def make(base: BaseModel, materials: GroupMaterials, settings: FastComposerSettings, seed: int) -> Recipe:
    networks = load_start(materials.start, base, settings.head_width, seed)
    return fastcomposer(base, materials.photos, networks, settings, seed)


TRAINABLE = AdapterTrainable(FastComposerSettings, make)
