"""StoryMaker: a character's face, hair, clothes and body, each kept where it belongs (arXiv 2409.12576).

    L = E [ e · (1 + 5 m) ] + 0.1 L_attn,   e = (ε − ε_θ(z_t, t, c_text, T))²,   m: the character's mask

L_attn draws the attention of the character's tokens into the mask and that of the background's out of it. T is made of
the face, aligned, and of the body, cut out by its mask; now and then one of the two is left out, so that each can be
given alone. The person of a sample is often seen in another photo (`another_photo`), in another pose. Of photos with
two or three people all are characters, in random order, so that a place in the list is no place in the image. A
ControlNet, where one is given, says the pose, so that the adapter does not have to; it reads T and stays frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ... import adapters
from ...adapters import IPAdapter, Variant
from ...adapters.clip_vision import check_encoder, encode_unconditional
from ...adapters.image_prep import Crop, normalise, to_square
from ...adapters.storymaker import StoryMaker
from ...adapters.storymaker.body import NOISE, cut_out_character
from ...errors import LikenessError
from ..base.model import BaseModel
from ..config import Group, Weight
from ..data.dataset import Framing
from ..data.people import PersonPhoto, only_fit
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..fast_branch import QueryProbe
from ..materials import AdapterTrainable, PeopleMaterials
from ..objectives.reconstruction import squared_error
from ..objectives.storymaker import attention_loss, masked_error
from ..recipe import Objective, Pass, Recipe, Sample, generator
from ..storymaker import MOST, fresh_storymaker, from_ip_adapter, make_trainable, maps_of, official_weights
from .adapter_training import (
    AdapterSettings,
    DropRates,
    EncodedPhotos,
    LiveTerm,
    PeopleStream,
    Shown,
    adapter_phase,
    fresh_weights,
    shown,
    without,
)
from .instantid import LiveControl, hint_of, identity_net
from .prompts import happens


class StoryMakerSettings(AdapterSettings):
    """Defaults are those of the official trainer."""

    title: ClassVar[str] = "StoryMaker"
    kind: Literal["storymaker"] = "storymaker"
    rank: int = Field(default=128, ge=1, le=1024, description="Of the LoRA.")
    drop: DropRates = DropRates(person=0.05, text=0.20, both=0.05)
    drop_face: float = Field(default=0.1, ge=0, le=1, description="Share of samples without the tokens of the face.")
    drop_body: float = Field(default=0.1, ge=0, le=1, description="The same of the body.")
    mask_weight: Weight = Field(default=5.0, description="How much more the loss counts where the character is.")
    lambda_attention: Weight = 0.1
    clip: float = Field(default=1.0, ge=0, description="Largest norm of the gradients; 0: not clipped.")
    framing: Framing = Framing.SQUARE

    @property
    def together(self) -> int:
        return MOST


def storymaker(base: BaseModel, materials: PeopleMaterials, settings: StoryMakerSettings, seed: int = 0) -> Recipe:
    """The recipe, for every UNet with cross-attention; published files are for SDXL."""
    clip = materials.require_clip(settings.title)
    people = only_fit(materials.people, _why_not)
    adapter = _adapter(base, materials, settings, seed)
    check_encoder(adapter.feature_dim, None, clip.size)
    parameters = make_trainable(adapter, base.unet)
    live, probe = LiveTerm(base.unet, adapter), QueryProbe(base.unet)
    control = _frozen_control(base, materials)
    nothing = encode_unconditional(clip).penultimate.cpu()
    tokens_now: list[Tensor] = []

    def encode(photo: PersonPhoto) -> Mapping[str, Tensor]:
        mask, pixels = photo.example.photo.mask, photo.example.photo.pixels
        assert mask is not None and photo.embedding is not None
        body = torch.from_numpy(cut_out_character(pixels, mask, NOISE))[None].float() / 255
        squares = [to_square(picture, clip.size.image_size, Crop.SQUASH) for picture in (photo.aligned, body)]
        face, body = clip.encode_pixels(normalise(torch.cat(squares))).penultimate
        return {"id": photo.embedding / photo.embedding.norm(), "face": face, "body": body}

    photos = EncodedPhotos(encode)

    def begin() -> list[Group]:
        adapter.to(base.unet.device)
        return [Group("adapter", parameters, settings.learning_rate, settings.weight_decay)]

    def tokens_of(batch: Sequence[Shown]) -> Tensor:
        """(batch, 20 · (1 + P), dim): background and characters."""
        network, device = adapter.image_proj_model, base.unet.device
        casts = [cast_of(person) for person in batch]
        if len({len(cast) for cast in casts}) > 1:
            raise LikenessError(
                "A batch cannot hold images with different numbers of people: set run.batch to 1, and "
                "run.accumulation to what it was."
            )
        seen = photos.of([reference for cast in casts for _, reference in cast], device)
        dropped = [person.dropped for person, cast in zip(batch, casts, strict=True) for _ in cast]
        faces = network.faces(without(seen["id"], dropped), without(seen["face"], dropped, nothing))
        bodies = network.bodies(without(seen["body"], dropped, nothing))
        rows = []
        for person, face, body in zip(batch, faces.split(len(casts[0])), bodies.split(len(casts[0])), strict=True):
            random = generator(person.seed, "parts")
            no_face, no_body = happens(settings.drop_face, random), happens(settings.drop_body, random)
            rows.append(network(face * float(not no_face), body * float(not no_body)))
        return torch.cat(rows)

    def show(samples: Sequence[Sample]) -> None:
        batch = shown(samples)
        tokens = tokens_of(batch)
        live.show(tokens)
        if control is not None:
            control.show(tokens, torch.cat([hint_of(person.target, *person.target.companions) for person in batch]))
        tokens_now[:] = [tokens]
        if settings.lambda_attention:
            probe.start()

    def denoising(found: Pass) -> Tensor:
        masks = masks_of(found)
        inside = masked_error(found.prediction, found.target, masks, settings.mask_weight)
        plain = squared_error(found.prediction, found.target)
        dropped = torch.tensor([person.dropped for person in shown(found.samples)], device=plain.device)
        return torch.where(dropped, plain, inside).mean()

    def attention(found: Pass) -> Tensor:
        height, width = (-(-(side // 2) // 2) for side in found.z0.shape[-2:])
        maps = [
            maps_of(queries, adapter.project(site.slot, tokens_now[0])[0])
            for site, (queries, _) in zip(probe.sites, probe.take(), strict=True)
            if queries.shape[2] == height * width
        ]
        masks = masks_of(found)
        return attention_loss(maps, masks, tokens_now[0].shape[1] // (1 + masks.shape[1])).mean()

    attached: list[Any] = [live.at_work, *([] if control is None else [control.at_work]), probe.attached]
    training = adapter_phase(
        base,
        settings,
        PeopleStream(people, settings.drop, settings.another_photo, seed),
        [
            Objective("reconstruction", denoising),
            Objective("attention", attention, settings.lambda_attention),
        ],
        begin=begin,
        hooks=lambda: photos.kept_with(*attached),
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        about = {"recogniser": people.recogniser or ""}
        path = save_adapter(official_weights(adapter, base.unet), folder, name, record, about)
        return [Saved(path, SavedKind.STORYMAKER)]

    return Recipe(settings.title, settings, [training], (), save)


def _why_not(photo: PersonPhoto) -> str:
    """Why a photo cannot be used; '' where it can."""
    mask = photo.example.photo.mask
    if mask is None:
        stem = Path(photo.name).stem
        return f"it has no mask of the person's figure ({stem}.mask.png beside it, white on the person)"
    return "" if bool((mask > NOISE).any()) else "its mask is empty"


def cast_of(person: Shown) -> list[tuple[PersonPhoto, PersonPhoto]]:
    """The characters of a sample in random order: each as the image shows them, and the photo they are seen in."""
    cast = [(person.target, person.reference), *((other, other) for other in person.target.companions)]
    return [cast[i] for i in torch.randperm(len(cast), generator=generator(person.seed, "order")).tolist()]


def masks_of(found: Pass) -> Tensor:
    """Where each sample's characters are: (batch, P, h, w) at latent size."""
    rows = []
    for person in shown(found.samples):
        masks = [photo.example.face_mask for photo, _ in cast_of(person)]
        rows.append(torch.cat([mask for mask in masks if mask is not None]))
    return F.interpolate(torch.stack(rows), found.z0.shape[-2:], mode="area").to(found.z0.device)


def _adapter(base: BaseModel, materials: PeopleMaterials, settings: StoryMakerSettings, seed: int) -> StoryMaker:
    """That of the file it goes on from, or a new one, which may begin with what a FaceID Plus has learned."""
    given = None if materials.start is None else adapters.load(materials.start)
    if isinstance(given, StoryMaker):
        return given
    embedding = materials.people.photos[0].embedding
    if embedding is None:
        raise LikenessError("StoryMaker reads a recogniser's embedding: write buffalo_l into data.faces.")
    with fresh_weights(seed):
        clip = materials.require_clip(settings.title)
        weights = fresh_storymaker(base.unet, len(embedding), clip.size.hidden, settings.rank)
    if isinstance(given, IPAdapter) and given.variant in (Variant.FACEID_PLUS, Variant.FACEID_PLUS_V2):
        lora = {f"ip_adapter.{key}": value for key, value in given._lora.items()}
        weights = from_ip_adapter(weights, {**given.state_dict(), **lora})
    elif given is not None:
        raise LikenessError(
            f"'{given.name}' is an adapter of {given.title}: StoryMaker goes on from its own files, or begins with a "
            "FaceID Plus; write one of these into data.start_from."
        )
    return StoryMaker(weights, "storymaker")


def _frozen_control(base: BaseModel, materials: PeopleMaterials) -> LiveControl | None:
    if materials.control is None:
        return None
    net = identity_net(base, materials.control).requires_grad_(False)
    return LiveControl(base.unet, net.to(base.unet.device))


TRAINABLE = AdapterTrainable(StoryMakerSettings, storymaker)
