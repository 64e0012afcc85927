"""PhotoVerse: adapters that make words and a second branch of cross-attention of any face (arXiv 2309.05793).

    L = ‖ε − ε_θ(z_t, t, p, f)‖² + λ_face L_face + λ_rt mean |p_f| + λ_rv mean_layers mean |V_S|

Trained are both adapters, the image branch's keys and values, and a LoRA on those of the text. What is denoised is a
crop of about three times the face box, what CLIP is shown of it 1.3 times, black around the face. For every sample one
draw, the same for all layers, says which branches it sees (`fusion.Branches`); another, whether its person or its text
is left out for guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ... import adapters
from ...adapters.image_prep import pixel_values
from ...adapters.photoverse import PhotoVerse
from ...adapters.photoverse.face import SCALE, FaceMask, Parse, face_crop
from ...adapters.photoverse.fusion import R1, R2, Branches, Fusion, drawn
from ...adapters.photoverse.networks import LAYERS, AdapterKind
from ...adapters.photoverse.prompt import insert
from ...adapters.trigger_words import pattern_of
from ...errors import LikenessError
from ...injection.sites import sites_of_diffusers_unet
from ..base.model import BaseModel, Conditioning
from ..config import Group, Moment, Steps, Weight
from ..data.captions import fill_template, parse_templates
from ..data.people import PersonPhoto
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..materials import AdapterTrainable, PeopleMaterials
from ..objectives import photoverse as losses
from ..objectives.identity import LikenessTarget, Measure, below_cap, identity_of_latents
from ..photoverse import fresh_photoverse, make_trainable, our_file
from ..recipe import Objective, Pass, Recipe, Sample, generator
from .adapter_training import (
    AdapterSettings,
    EncodedPhotos,
    LiveTerm,
    PeopleStream,
    Shown,
    adapter_phase,
    fresh_weights,
    reconstruction,
    shown,
    without,
)
from .prompts import random_choice

PLACEHOLDER = "<face>"  # of the prompts; whoever uses the file chooses another


class PhotoVerseSettings(AdapterSettings):
    """The paper's values; optimiser, warm-up, clipping and the LoRA's rank are the unofficial code's."""

    title: ClassVar[str] = "PhotoVerse"
    kind: Literal["photoverse"] = "photoverse"
    steps: Steps = 60_000
    warm_up: Moment = 500
    clip: float = Field(default=1.0, ge=0, description="Largest norm of the gradients; 0: not clipped.")
    another_photo: float = Field(
        default=0.0, ge=0, le=1, description="Share of samples that are conditioned on another photo of the person."
    )
    maps: int = Field(
        default=5, ge=1, le=len(LAYERS), description="Feature maps of CLIP, and words of a person, of a new adapter."
    )
    adapter: AdapterKind = Field(default=AdapterKind.ELITE, description="Of a new adapter.")
    hidden: int | None = Field(default=None, ge=1, le=8192, description="Width of a new adapter; None: CLIP's.")
    rank: int = Field(default=8, ge=1, le=1024, description="Of a new adapter's LoRA on the text's keys and values.")
    only_text_below: float = Field(default=R1, ge=0, le=1, description="r1 of the random fusion.")
    only_image_above: float = Field(default=R2, ge=0, le=1, description="r2 of the random fusion.")
    lambda_face: Weight = losses.FACE_WEIGHT
    lambda_text: Weight = losses.TEXT_WEIGHT
    lambda_visual: Weight = losses.VISUAL_WEIGHT
    last_face_timestep: int = Field(default=losses.LAST_TIMESTEP, ge=0, le=1000)
    mask: FaceMask = Field(default=FaceMask.FACE, description="What CLIP sees; the face alone needs data.parser.")
    crop: float = Field(default=SCALE, ge=1, le=2, description="Side of what CLIP sees, in face boxes.")
    templates: tuple[str, ...] = ("a photo of {}",)

    @property
    def idle(self) -> set[str]:
        return {"last_face_timestep"} if self.lambda_face == 0 else set()

    @property
    def measures_identity(self) -> bool:
        return self.lambda_face > 0


@dataclass(frozen=True)
class Faces(PeopleStream):
    """The stream of photos, each with a sentence about its person."""

    templates: tuple[str, ...] = ()
    caption: Callable[[PersonPhoto], str] = lambda photo: PLACEHOLDER

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        sample = super().__call__(n, random)
        if not sample.prompt:
            return sample
        return replace(sample, prompt=fill_template(random_choice(self.templates, random), PLACEHOLDER))


def photoverse(base: BaseModel, materials: PeopleMaterials, settings: PhotoVerseSettings, seed: int = 0) -> Recipe:
    """The recipe, on SD1.x and SD2. Raises LikenessError for whatever is missing or does not fit."""
    _check(base, materials, settings)
    adapter = _adapter(base, materials, settings, seed)
    maps = adapter.text_adapter.sizes.maps
    parts = make_trainable(adapter, base.unet, settings.rank)
    photos = EncodedPhotos(partial(_seen, materials=materials, settings=settings, maps=maps))
    live, reader = LiveTerm(base.unet, adapter), Reader(base)
    sites = sites_of_diffusers_unet(base.unet)
    now: dict[str, Tensor] = {}

    def begin() -> list[Group]:
        adapter.to(base.unet.device)
        return [Group(name, own, settings.learning_rate, settings.weight_decay) for name, own in parts.items()]

    def show(samples: Sequence[Sample]) -> None:
        """Whom the next passes attend to, and which branches each of them sees."""
        people = shown(samples)
        seen = photos.of([person.reference for person in people], base.unet.device)
        states = [seen[f"map_{i}"].float() for i in range(maps)]
        assert adapter.image_adapter is not None
        words, tokens = adapter.text_adapter(states).float(), adapter.image_adapter(states).float()
        now.update(words=words, tokens=tokens, **({"face": seen["face"]} if "face" in seen else {}))
        live.show(without(tokens, [person.dropped for person in people]), fusion_of(people, settings, tokens.device))

    def staged(given: Sequence[str], _t: Tensor) -> Conditioning:
        return reader.read(given, now["words"])

    @contextmanager
    def at_work() -> Iterator[None]:
        base.staged = staged
        try:
            with photos.kept_with(live.at_work):
                yield
        finally:
            base.staged = None
            now.clear()

    def visual(_found: Pass) -> Tensor:
        return losses.visual_regulariser(adapter.project(site.slot, now["tokens"])[1] for site in sites)

    def face(found: Pass) -> Tensor:
        assert materials.measure is not None
        return resemble(found, now["face"], base, settings.last_face_timestep, materials.measure)

    training = adapter_phase(
        base,
        settings,
        Faces(materials.people, settings.drop, settings.another_photo, seed, templates=settings.templates),
        [
            reconstruction(),
            Objective("text", lambda found: losses.text_regulariser(now["words"]), settings.lambda_text),
            Objective("visual", visual, settings.lambda_visual),
            Objective("face", face, settings.lambda_face),
        ],
        begin=begin,
        hooks=at_work,
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        tensors, about = our_file(adapter, base.unet, base.family.title)
        return [Saved(save_adapter(tensors, folder, name, record, about), SavedKind.PHOTOVERSE)]

    return Recipe(settings.title, settings, [training], (), save)


def branches_of(person: Shown, settings: PhotoVerseSettings) -> Branches:
    """Which branches a sample sees: one draw for all layers."""
    u = float(torch.rand((), generator=generator(person.seed, "fusion")))
    return drawn(u, settings.only_text_below, settings.only_image_above)


def fusion_of(people: Sequence[Shown], settings: PhotoVerseSettings, device: torch.device) -> Fusion:
    """gamma and sigma of a batch."""
    factors = torch.tensor([branches_of(person, settings).value for person in people], device=device)
    gamma, sigma = factors.view(-1, 2, 1, 1).unbind(1)
    return Fusion(gamma, sigma)


def resemble(found: Pass, faces: Tensor, base: BaseModel, last: int, measure: Measure) -> Tensor:
    """L_face: the mean over the samples that are not too noisy; 0 where there is none. faces: (batch, d)."""
    z0, device = found.z0_estimate, found.z0.device
    targets: list[LikenessTarget | None] = [
        LikenessTarget(person.target.keypoints.to(device), face)
        for person, face in zip(shown(found.samples), faces, strict=True)
    ]
    targets = below_cap(targets, found.t, last + 1)
    each = identity_of_latents(z0, targets, base.codec.decoder, measure)
    return each.sum() / max(1, sum(target is not None for target in targets))


# What CLIP and the recogniser say of a photo --------------------------------------------------------------------------


def _seen(
    photo: PersonPhoto, materials: PeopleMaterials, settings: PhotoVerseSettings, maps: int
) -> Mapping[str, Tensor]:
    """CLIP's hidden states of the face, each (1 + patches, width), and, for the face loss, its embedding."""
    clip = materials.require_clip("PhotoVerse")
    pixels = pixel_values(_crop(photo, settings, materials.parse), clip.size.image_size)
    states = clip.hidden_states(pixels, LAYERS[:maps])
    found = {f"map_{i}": one[0] for i, one in enumerate(states)}
    if settings.measures_identity and materials.measure is not None:
        picture = photo.whole.movedim(-1, 1).to(materials.device)
        found["face"] = materials.measure(picture, photo.keypoints[None].to(materials.device))[0].detach()
    return found


def _crop(photo: PersonPhoto, settings: PhotoVerseSettings, parse: Parse | None) -> Tensor:
    crop = face_crop(
        photo.example.photo.pixels,
        photo.face.box,
        settings.crop,
        parse if settings.mask is FaceMask.FACE else None,
    )
    if crop is None:
        raise LikenessError(
            f"The face parsing network finds no face in {photo.name}: leave it out, or set recipe.mask to "
            f"{FaceMask.NONE.value!r}."
        )
    return crop


# Words among the text -------------------------------------------------------------------------------------------------


class Reader:
    """Reads prompts with people's words in place of the placeholder: one window, and what is beyond it is cut."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._pattern = pattern_of([PLACEHOLDER])

    def read(self, prompts: Sequence[str], words: Tensor) -> Conditioning:
        """words: (batch, m, dim), with gradient."""
        tower = self.base.text[0]
        rows, places = zip(*(self._ids(prompt) for prompt in prompts), strict=True)
        ids = torch.tensor(rows, device=tower.encoder.device)
        named = [i for i, place in enumerate(places) if place is not None]

        def put(_module: Any, _given: Any, out: Tensor) -> Tensor:
            changed = out.clone()
            changed[named] = insert(out[named], [places[i] for i in named], words[named].to(out))
            return changed

        hook = tower.encoder.get_input_embeddings().register_forward_hook(put) if named else None
        try:
            return Conditioning(tower.last(ids, self.base.clip_skip))
        finally:
            if hook is not None:
                hook.remove()

    def _ids(self, prompt: str) -> tuple[list[int], int | None]:
        """Token ids of one window, and where the placeholder stands in it; None where it does not."""
        tokenizer, encoder = self.base.text[0].tokenizer, self.base.text[0].encoder
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        before, *after = (
            tokenizer(part, add_special_tokens=False, truncation=False, verbose=False).input_ids if part.strip() else []
            for part in self._pattern.split(prompt, maxsplit=1)
        )
        body = [*before, *(token for part in after for token in (tokenizer.eos_token_id, *part))]
        ids = [tokenizer.bos_token_id, *body, tokenizer.eos_token_id][:length]
        place = 1 + len(before)
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        return ids, place if after and place < length else None


# What it starts from --------------------------------------------------------------------------------------------------


def _adapter(base: BaseModel, materials: PeopleMaterials, settings: PhotoVerseSettings, seed: int) -> PhotoVerse:
    """That of the file it goes on from, or a new one."""
    clip = materials.require_clip("PhotoVerse")
    if materials.start is None:
        with fresh_weights(seed):
            content = fresh_photoverse(base.unet, clip.size.hidden, settings.maps, settings.adapter, settings.hidden)
        return PhotoVerse(content, "photoverse")
    adapter = adapters.load(materials.start)
    if not isinstance(adapter, PhotoVerse) or adapter.image_adapter is None:
        raise LikenessError(
            f"'{materials.start.name}' is an adapter of {adapter.title}, not of PhotoVerse with both of its branches: "
            "write another file into data.start_from."
        )
    adapter.check_clip(clip.size)
    return adapter


def _check(base: BaseModel, materials: PeopleMaterials, settings: PhotoVerseSettings) -> None:
    """Raises LikenessError when something is lacking."""
    if base.is_sdxl:
        raise LikenessError("PhotoVerse is for SD1.5, and the base model is SDXL: choose an SD1.5 checkpoint.")
    if settings.mask is FaceMask.FACE and materials.parse is None:
        raise LikenessError(
            "What is around the faces is masked by a face parsing network: write its file into data.parser, or set "
            f"recipe.mask to {FaceMask.NONE.value!r}."
        )
    if settings.measures_identity and materials.measure is None:
        raise LikenessError("The face loss needs a face recogniser: load one, or set recipe.lambda_face to 0.")
    if settings.only_text_below > settings.only_image_above:
        raise LikenessError(
            f"recipe.only_text_below is {settings.only_text_below:g} and only_image_above "
            f"{settings.only_image_above:g}: enter a first one that is not above the second."
        )
    if not settings.templates:
        raise LikenessError("There is no template: write at least one, such as 'a photo of {}', into recipe.templates.")
    parse_templates("\n".join(settings.templates))
    width = sites_of_diffusers_unet(base.unet)[0].context_dim
    if settings.adapter is AdapterKind.LITERAL and settings.hidden not in (None, width):
        raise LikenessError(
            f"Literal adapters are as wide as the text, {width}, and recipe.hidden is {settings.hidden}: remove it."
        )


TRAINABLE = AdapterTrainable(PhotoVerseSettings, photoverse)
