"""IP-Adapter and FaceID: what is seen of a person or an image as tokens beside the text's (arXiv 2308.06721).

    L = E ‖ε − ε_θ(z_t, t, c_text, c_image)‖²,    Z = Attention(Q, K, V) + Attention(Q, K', V')

Trained are the image projection and K', V' of every cross-attention layer, with FaceID a LoRA on all attention too.
K' and V' begin as the text's own. As published there is no weight by noise level, no clipping and no moving average.
The file has the official layout, or that of the file it goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ... import adapters
from ...adapters import Evidence, IPAdapter, Variant
from ...adapters.clip_vision import check_encoder, encode_images, encode_unconditional
from ...errors import LikenessError
from ..base.model import BaseModel
from ..config import Group
from ..data.people import PersonPhoto
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..ip_adapter import drop_images, fresh_base, fresh_faceid, fresh_plus, make_trainable, official_weights
from ..materials import AdapterTrainable, PeopleMaterials
from ..recipe import Recipe, Sample
from .adapter_training import (
    AdapterSettings,
    EncodedPhotos,
    LiveTerm,
    PeopleStream,
    adapter_phase,
    fresh_weights,
    reconstruction,
    shown,
)


class Layout(Enum):
    """Which of the published layouts is trained; the value is what a user chooses."""

    FACEID = "faceid"  # reads a recogniser's embedding; LoRA
    BASE = "base"  # reads CLIP's pooled embedding
    PLUS = "plus"  # reads CLIP's last but one layer


class Reference(Enum):
    """What the image encoder is shown of a photo."""

    WHOLE = "whole image"  # as the general adapters
    HEAD = "head"  # as plus-face


class IPAdapterSettings(AdapterSettings):
    """Defaults are those of the official trainers."""

    title: ClassVar[str] = "IP-Adapter"
    kind: Literal["ip_adapter"] = "ip_adapter"
    layout: Layout = Field(default=Layout.FACEID, description="Of a new adapter; one that is trained further keeps it.")
    tokens: int = Field(default=0, ge=0, le=1024, description="Of each image; 0: 4, or 16 for plus.")
    rank: int = Field(default=128, ge=1, le=1024, description="Of FaceID's LoRA.")
    reference: Reference = Reference.WHOLE


def ip_adapter(base: BaseModel, materials: PeopleMaterials, settings: IPAdapterSettings, seed: int = 0) -> Recipe:
    """The recipe, for every UNet with cross-attention."""
    adapter = _start(materials.start) if materials.start else _fresh(base, materials, settings, seed)
    parameters = make_trainable(adapter, base.unet)
    evidence = PhotoEvidence(adapter, materials, settings.reference)
    live = LiveTerm(base.unet, adapter)

    def begin() -> list[Group]:
        adapter.to(base.unet.device)
        return [Group("adapter", parameters, settings.learning_rate, settings.weight_decay)]

    def show(samples: Sequence[Sample]) -> None:
        people = shown(samples)
        seen = evidence.of([person.reference for person in people], base.unet.device)
        dropped = torch.tensor([person.dropped for person in people], device=base.unet.device)
        live.show(adapter.tokens(drop_images(seen, dropped)).cond)

    training = adapter_phase(
        base,
        settings,
        PeopleStream(materials.people, settings.drop, settings.another_photo, seed),
        [reconstruction()],
        begin=begin,
        hooks=lambda: evidence.photos.kept_with(live.at_work),
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        about = {"variant": adapter.variant.value, "recogniser": materials.people.recogniser or ""}
        # What tells these apart is not in their tensors.
        if adapter.variant in (Variant.FACEID_PLUS, Variant.FACEID_PLUS_V2):
            about["faceid_plus_version"] = "2" if adapter.variant is Variant.FACEID_PLUS_V2 else "1"
        if adapter.variant is Variant.PORTRAIT_UNNORM and "unnorm" not in name:
            name = f"{name}-portrait-unnorm"
        path = save_adapter(official_weights(adapter, base.unet), folder, name, record, about)
        return [Saved(path, SavedKind.IP_ADAPTER)]

    return Recipe(settings.title, settings, [training], (), save)


def _start(file: Path) -> IPAdapter:
    """The adapter that is trained further."""
    adapter = adapters.load(file)
    if not isinstance(adapter, IPAdapter):
        raise LikenessError(
            f"'{file.name}' is an adapter of {adapter.title}, not an IP-Adapter: write another file into "
            "data.start_from, or choose that method as recipe.kind."
        )
    return adapter


def _fresh(base: BaseModel, materials: PeopleMaterials, settings: IPAdapterSettings, seed: int) -> IPAdapter:
    what = f"The layout '{settings.layout.value}'"
    with fresh_weights(seed):
        if settings.layout is Layout.FACEID:
            width = len(_embedding(materials.people.photos[0]))
            weights = fresh_faceid(base.unet, width, settings.tokens or 4, rank=settings.rank)
        elif settings.layout is Layout.BASE:
            weights = fresh_base(base.unet, materials.require_clip(what).size.embed, settings.tokens or 4)
        else:
            weights = fresh_plus(base.unet, materials.require_clip(what).size.hidden, settings.tokens or 16)
    return adapters.build(weights, f"ip-adapter-{settings.layout.value}")


class PhotoEvidence:
    """What an IP-Adapter is shown of photos."""

    def __init__(self, adapter: IPAdapter, materials: PeopleMaterials, reference: Reference) -> None:
        self._adapter, self._reference = adapter, reference
        reads_images = adapter.needs_features or adapter.needs_pooled
        self._clip = materials.require_clip(f"The adapter {adapter.name!r}") if reads_images else None
        if adapter.needs_embedding:
            self._check_width(materials.people.photos[0])
        if self._clip is not None:
            check_encoder(
                adapter.feature_dim if adapter.needs_features else None,
                adapter.feature_dim if adapter.needs_pooled else None,
                self._clip.size,
            )
        self._nothing = (
            encode_unconditional(self._clip).penultimate.cpu() if self._clip and adapter.needs_features else None
        )
        self.photos = EncodedPhotos(self._encode)

    def of(self, photos: list[PersonPhoto], device: torch.device) -> Evidence:
        """One row per photo."""
        found = self.photos.of(photos, device)
        nothing = None if self._nothing is None else self._nothing.to(device)
        return Evidence(found.get("id"), found.get("features"), nothing)

    def _encode(self, photo: PersonPhoto) -> Mapping[str, Tensor]:
        found, adapter = {}, self._adapter
        if adapter.needs_embedding:
            embedding = _embedding(photo)
            found["id"] = embedding if adapter.needs_raw_embedding else embedding / embedding.norm()
        if self._clip is not None:
            if adapter.needs_embedding:  # FaceID Plus
                picture = photo.aligned
            else:
                picture = photo.whole if self._reference is Reference.WHOLE else photo.head
            features = encode_images(self._clip, picture)
            found["features"] = (features.penultimate if adapter.needs_features else features.image_embeds)[0]
        return found

    def _check_width(self, photo: PersonPhoto) -> None:
        width = len(_embedding(photo))
        if width != self._adapter.id_dim:
            raise LikenessError(
                f"The adapter {self._adapter.name!r} reads embeddings of {self._adapter.id_dim} numbers and the face "
                f"analysis makes {width}: write the analysis it was made for, such as {self._adapter.recogniser}, into "
                "data.faces."
            )


def _embedding(photo: PersonPhoto) -> Tensor:
    if photo.embedding is None:
        raise LikenessError(f"{photo.name} has no embedding: use a face analysis with a recogniser, such as buffalo_l.")
    return photo.embedding


TRAINABLE = AdapterTrainable(IPAdapterSettings, ip_adapter)
