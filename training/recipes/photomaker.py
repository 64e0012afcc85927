"""PhotoMaker: photos of a person stacked into the word that names them (arXiv 2312.04461).

    L = E ‖M ⊙ (ε − ε_θ(z_t, t, c*))‖²     c*: the caption's states, its class word repeated once for each ID token
                                           and fused with it; M: the person in half of the batches, else everything

Trained are the last layers of CLIP's tower, the projections, the fuse module, and a LoRA on the UNet's attention. The
references are one to four photos of the person, the target among them only where there is no other, with noise in place
of their background. There is no official training code; what the paper leaves open is decided in the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ... import adapters
from ...adapters.image_prep import pixel_values
from ...adapters.photomaker import PhotoMaker
from ...adapters.trigger_words import pattern_of
from ...errors import LikenessError
from ...faces.align import head_crop
from ..base.model import BaseModel, Conditioning
from ..config import Group, Rate
from ..data.examples import Example
from ..data.people import People, PersonPhoto, only_fit
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..materials import AdapterTrainable, PeopleMaterials
from ..objectives.break_a_scene import union_error
from ..objectives.reconstruction import squared_error
from ..photomaker import fresh_photomaker, official_weights, train_lora, trainable_encoder
from ..recipe import Objective, Pass, Recipe, Sample, epochs, generator
from .adapter_training import AdapterSettings, DropRates, EncodedPhotos, adapter_phase, fresh_weights
from .prompts import happens

# Class words, and what of them stands in the caption: one token each in CLIP's vocabulary.
SINGULAR = {
    "man": "man", "men": "man", "woman": "woman", "women": "woman", "boy": "boy", "boys": "boy", "girl": "girl",
    "girls": "girl", "person": "person", "people": "person", "persons": "person", "child": "child",
    "children": "child", "lady": "lady", "ladies": "lady", "guy": "guy", "guys": "guy", "gentleman": "gentleman",
    "baby": "baby", "human": "human",
}  # fmt: skip
UNCAPTIONED = "a photo of a {}"


class Version(Enum):
    """Of a new adapter; the value is what a user chooses."""

    V1 = "v1"  # reads photos
    V2 = "v2"  # reads photos and a recogniser's embeddings


class PhotoMakerSettings(AdapterSettings):
    """Defaults are the paper's."""

    title: ClassVar[str] = "PhotoMaker"
    kind: Literal["photomaker"] = "photomaker"
    version: Version = Field(default=Version.V1, description="Of a new adapter; one that goes on keeps its own.")
    rank: int = Field(default=64, ge=1, le=1024, description="Of a new adapter's LoRA.")
    learning_rate: Rate = 1e-4
    encoder_rate: Rate = Field(default=1e-5, description="Of all but the LoRA.")
    encoder_layers: int = Field(
        default=4, ge=0, le=100, description="How many last layers of CLIP's tower are trained."
    )
    most_references: int = Field(default=4, ge=1, le=16)
    drop: DropRates = DropRates(person=0.0, text=0.0, both=0.10)
    masked_share: float = Field(default=0.5, ge=0, le=1, description="Share of batches whose loss sees the mask alone.")
    noise_background: bool = Field(default=True, description="Noise outside of the mask of a reference.")
    smallest_face: int = Field(default=256, ge=0, le=10_000, description="Pixels of a photo's face, at least.")
    class_word: str = Field(default="person", description="In captions that have no class word.")

    @property
    def trains_encoder(self) -> bool:
        return True


class ClassWords:
    """The class words that are one token of a model, and where captions say them.

    Raises LikenessError where `usual`, which stands for all others, is none.
    """

    def __init__(self, base: BaseModel, usual: str) -> None:
        self.usual = usual
        self._base = base
        if not self._is_one_token(usual):
            raise LikenessError(
                f"The class word {usual!r} is not one token of this model: write another one, such as person, into "
                "recipe.class_word."
            )
        self._singular = {word: one for word, one in SINGULAR.items() if self._is_one_token(one)}
        self._singular.setdefault(usual.lower(), usual)
        self._pattern = pattern_of(self._singular)

    def marked(self, caption: str, count: int) -> tuple[str, str]:
        """A caption with its first class word, in the singular, `count` times; and that word. One without gets the
        usual one."""
        found = self._pattern.search(caption)
        if found is None:
            caption = f"{UNCAPTIONED.format(self.usual)}, {caption}" if caption else UNCAPTIONED.format(self.usual)
            found = self._pattern.search(caption)
            assert found is not None
        word = self._singular[found[0].lower()]
        return f"{caption[: found.start()]}{' '.join([word] * count)}{caption[found.end() :]}", word

    def token(self, word: str) -> int:
        """Its id in the first text encoder."""
        return self._base.text[0].tokenizer(word, add_special_tokens=False).input_ids[0]

    def _is_one_token(self, word: str) -> bool:
        return all(len(tower.tokenizer(word, add_special_tokens=False).input_ids) == 1 for tower in self._base.text)


@dataclass(frozen=True, eq=False)
class Stacked:
    """What a sample is conditioned on. word: the class word, where its caption has it repeated; empty: nobody."""

    target: PersonPhoto
    references: tuple[PersonPhoto, ...]
    word: str
    seed: int


@dataclass(frozen=True)
class References:
    """A stream of photos, each with captions in which its person's class word stands once for each ID token."""

    people: People
    settings: PhotoMakerSettings
    words: ClassWords
    tokens_each: int
    seed: int

    @property
    def examples(self) -> list[Example]:
        """All that may be shown."""
        return [photo.example for photo in self.people.photos]

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        target = self.people.photos[epochs(len(self.people), self.seed, n)]
        no_person, no_text = self.settings.drop.draw(random)
        others = [photo for photo in self.people.of_person[target.person] if photo is not target] or [target]
        count = 1 + int(torch.randint(self.settings.most_references, (), generator=random))
        chosen = tuple(others[i] for i in torch.randperm(len(others), generator=random)[:count].tolist())
        seed = int(torch.randint(2**62, (), generator=random))
        prompt, word = self.words.marked(target.example.caption, len(chosen) * self.tokens_each)
        if no_text:
            prompt, word = "", ""
        elif no_person:
            prompt, word = target.example.caption, ""
        return Sample(target.example, prompt, about=Stacked(target, chosen, word, seed))


def photomaker(base: BaseModel, materials: PeopleMaterials, settings: PhotoMakerSettings, seed: int = 0) -> Recipe:
    """The recipe, for every UNet with cross-attention; published files are for SDXL."""
    words = ClassWords(base, settings.class_word)
    people = only_fit(materials.people, lambda photo: _why_not(photo, settings))
    adapter = _adapter(base, materials, settings, seed)
    encoder = adapter.id_encoder
    trained, frozen = trainable_encoder(encoder, settings.encoder_layers)
    lora = train_lora(adapter, base.unet)
    now: list[Stacked] = []

    def encode(photo: PersonPhoto) -> Mapping[str, Tensor]:
        """What the frozen layers make of a photo, and in version 2 its embedding."""
        weight = next(encoder.parameters())
        pixels = pixel_values(reference_crop(photo, settings.noise_background), encoder.vision_model.image_size)
        found = {"states": encoder.vision_model.first(pixels.to(weight), frozen)[0]}
        if adapter.version == 2:
            assert photo.embedding is not None
            found["id"] = photo.embedding
        return found

    photos = EncodedPhotos(encode)

    def staged(prompts: Sequence[str], _t: Tensor) -> Conditioning:
        """The prompts with the batch's people fused into their class words."""
        with torch.no_grad():
            text = base.encode(prompts)
        ids, rows = base.ids(prompts), list(text.states)
        for number, stacked in enumerate(now):
            if not stacked.word:
                continue
            seen = photos.of(stacked.references, text.states.device)
            states = encoder.vision_model.rest(seen["states"], frozen)
            tokens = encoder.tokens_of(states, seen.get("id")).flatten(0, 1)
            places = run_of(ids[number], words.token(stacked.word), len(tokens))
            rows[number] = encoder.fuse_module.into(rows[number][None].float(), places, tokens[None])[0]
        return Conditioning(torch.stack([row.to(text.states) for row in rows]), text.pooled, text.mask)

    def begin() -> list[Group]:
        adapter.to(base.unet.device)
        return [
            Group("lora", lora, settings.learning_rate, settings.weight_decay),
            Group("encoder", trained, settings.encoder_rate, settings.weight_decay),
        ]

    def show(samples: Sequence[Sample]) -> None:
        now[:] = [sample.about for sample in samples]

    @contextmanager
    def at_work() -> Iterator[None]:
        base.staged = staged
        try:
            with photos.kept():
                yield
        finally:
            base.staged = None

    def denoising(found: Pass) -> Tensor:
        if not happens(settings.masked_share, generator(now[0].seed, "mask")):
            return squared_error(found.prediction, found.target).mean()
        masks = torch.cat([_mask_of(sample) for sample in found.samples]).to(found.z0.device)
        return union_error(found.prediction, found.target, masks).mean()

    training = adapter_phase(
        base,
        settings,
        References(people, settings, words, adapter.tokens_per_photo, seed),
        [Objective("reconstruction", denoising)],
        begin=begin,
        hooks=at_work,
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        path = save_adapter(official_weights(adapter, base.unet), folder, name, record)
        return [Saved(path, SavedKind.PHOTOMAKER)]

    return Recipe(settings.title, settings, [training], (), save)


def _adapter(base: BaseModel, materials: PeopleMaterials, settings: PhotoMakerSettings, seed: int) -> PhotoMaker:
    """That of the file it goes on from, or a new one around CLIP's image encoder."""
    if materials.start is not None:
        adapter = adapters.load(materials.start)
        if not isinstance(adapter, PhotoMaker):
            raise LikenessError(
                f"'{materials.start.name}' is an adapter of {adapter.title}, not of PhotoMaker: write another file "
                "into data.start_from."
            )
        return adapter
    if materials.encoder is None:
        raise LikenessError(
            "PhotoMaker trains an image encoder: write CLIP ViT-L/14's file into data.encoder, or a PhotoMaker file "
            "into data.start_from."
        )
    width = None
    if settings.version is Version.V2:
        embedding = materials.people.photos[0].embedding
        if embedding is None:
            raise LikenessError("PhotoMaker v2 reads a recogniser's embedding: write buffalo_l into data.faces.")
        width = len(embedding)
    with fresh_weights(seed):
        weights = fresh_photomaker(base.unet, materials.encoder, settings.rank, width)
    return PhotoMaker(weights, "photomaker")


# Captions and pictures ------------------------------------------------------------------------------------------------


def run_of(ids: Tensor, token: int, count: int) -> Tensor:
    """Where a token stands `count` times in a row, or as often as the longest row has it: (count,)."""
    same = (ids == token).tolist()
    runs = [(start, length) for start, length in _runs(same) if length >= count]
    if not runs:
        raise LikenessError(
            f"A prompt has no room for the {count} ID tokens of its person: shorten the captions, or lower "
            "recipe.most_references."
        )
    return torch.arange(count, device=ids.device) + runs[0][0]


def _runs(same: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start = None
    for place, value in enumerate([*same, False]):
        if value and start is None:
            start = place
        elif not value and start is not None:
            yield start, place - start
            start = None


def _why_not(photo: PersonPhoto, settings: PhotoMakerSettings) -> str:
    """Why a photo is not trained on; '' where it is."""
    width, height = photo.face.sides
    if min(width, height) < settings.smallest_face:
        return (
            f"its face is too small ({width:.0f}x{height:.0f} pixels, {settings.smallest_face} are needed: "
            "recipe.smallest_face)"
        )
    return ""


def reference_crop(photo: PersonPhoto, noise_background: bool) -> Tensor:
    """The head as the encoder sees it, (1, 512, 512, 3), 0..1: with noise outside of the mask, where there is one."""
    pixels, mask = photo.head, photo.example.photo.mask
    if mask is None or not noise_background:
        return pixels
    three = np.repeat(mask[..., None], 3, axis=2)
    inside = torch.from_numpy(head_crop(three, photo.face.box))[None].float() / 255
    noise = torch.rand(pixels.shape, generator=generator(photo.digest, "background"))
    return torch.where(inside > 0.5, pixels, noise)


def _mask_of(sample: Sample) -> Tensor:
    """Where the person is, (1, 1, H, W); everywhere in a photo without a mask."""
    mask = sample.example.face_mask
    return torch.ones(1, 1, *sample.example.size) if mask is None else (mask[None] > 0.5).float()


TRAINABLE = AdapterTrainable(PhotoMakerSettings, photomaker)
