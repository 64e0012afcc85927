"""References as an adapter: an identity's photos become reference latents of the MODEL's scheme.

There are no weights to load. What a person is, is the latents that the VAE makes of the photos once the size of the
target is known; how they are attended to is `injection.references`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ...errors import LikenessError
from ...weights.families import OTHER
from ..effects import Cells, Effect, ReferencePhoto, ReferenceTerm
from ..system import Needs, Request
from .schemes import FLUX2_PLAIN, KREA2_REID, QWEN_2511, Scheme, of_model
from .sizes import LEAST_SIDE, Fitted

KEPT_SIZES = 2  # targets whose latents are kept, so that a second pass does not undo the first
SHEET = 4  # photos of a sheet
NUMBERED = re.compile(r"\b(?:image|picture|photo)\s*\d", re.IGNORECASE)


class Picture(Enum):
    """Which image of each photo is the reference; the value is the name a user chooses."""

    HEAD = "head"  # upright, twice the face: hair and neck, little of the clothes
    PORTRAIT = "portrait"  # turned upright, grey where the photo ends
    SHEET = "sheet"  # up to four heads as one image


class Reach(Enum):
    """What of a reference the strength counts for; the value is the name a user chooses."""

    WHOLE = "whole image"
    FACE = "face only"


@dataclass(frozen=True, eq=False)
class Photo:
    """One reference before its size is known. image: (1, H, W, 3), 0..1. face: (1, H, W, 1), where it is known."""

    image: Tensor
    face: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]


class EncodedPhotos:
    """The photos of one person in the sizes that targets ask for.

    encode: (1, h, w, 3), 0..1 -> what the VAE returns.
    """

    def __init__(self, photos: Sequence[Photo], scheme: Scheme, encode: Callable[[Tensor], Tensor]) -> None:
        self.photos, self.scheme, self.encode = tuple(photos), scheme, encode
        self._kept: dict[tuple[int, Fitted], ReferencePhoto] = {}

    def __len__(self) -> int:
        return len(self.photos)

    def encoded(self, target: Cells, references: int) -> list[ReferencePhoto]:
        """See `effects.Photos`. The same size is encoded once."""
        pixels = (target[0] * self.scheme.pixels, target[1] * self.scheme.pixels)
        found = []
        for number, photo in enumerate(self.photos):
            fitted = self.scheme.fit(photo.size, pixels, references)
            key = (number, fitted)
            if key not in self._kept:
                self._kept[key] = self._made(photo, fitted)
            found.append(self._kept[key])
        while len(self._kept) > KEPT_SIZES * len(self.photos):
            del self._kept[next(iter(self._kept))]
        return found

    def _made(self, photo: Photo, fitted: Fitted) -> ReferencePhoto:
        latent = self.encode(fitted.apply(photo.image)).cpu()
        face = None if photo.face is None else fitted.apply(photo.face)[..., 0]
        return ReferencePhoto(latent, face)


@dataclass(frozen=True)
class ReferenceOptions:
    """How an identity becomes references. most: photos of one person. separate: people do not see each other."""

    picture: Picture = Picture.HEAD
    most: int = 4
    reach: Reach = Reach.WHOLE
    separate: bool = False


class ReferenceAdapter:
    """Photos as references. scheme: None for the one of the MODEL. images: (n, H, W, c), in place of an identity's.

    encode: the VAE; `latents` (channels, has an axis of frames) of it, where that is known.
    """

    title = "reference images"
    site_shapes: Mapping[int, tuple[int, int]] = {}

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        scheme: Scheme | None = None,
        options: ReferenceOptions | None = None,
        images: Tensor | None = None,
        latents: tuple[int, bool] | None = None,
        name: str = "Reference Adapter",
    ) -> None:
        self.name, self.encode, self.scheme = name, encode, scheme
        self.options, self.images, self.latents = options or ReferenceOptions(), images, latents

    @property
    def needs(self) -> Needs:
        """Only a MODEL that attends to references; which, the scheme says."""
        return Needs(self.scheme.base if self.scheme else OTHER, grounded=True)

    def scheme_for(self, request: Request) -> Scheme:
        """The chosen scheme, or the MODEL's."""
        scheme = self.scheme or of_model(request.family, request.timestep_zero)
        if self.latents is not None and self.latents != (scheme.channels, scheme.has_frames):
            raise LikenessError(
                f"The VAE belongs to another model (its latents have {self.latents[0]} channels, and {scheme.title} "
                f"reads {scheme.channels}{' of the Qwen-Image VAE' if scheme.has_frames else ''}): connect the VAE of "
                f"{scheme.base.title}."
            )
        return scheme

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """One term of all photos of the person."""
        request.options_of(ReferenceOptions, "Reference Adapter")
        if request.strength < 0:
            raise LikenessError(
                f"The strength is {request.strength:g}, and references have none below 0: enter 0 to leave the person "
                "out, 1 for the official strength."
            )
        scheme = self.scheme_for(request)
        photos = self._photos(request, scheme)
        return (
            ReferenceTerm(
                self.name,
                scheme.title,
                EncodedPhotos(photos, scheme, self.encode),
                scheme.placement,
                scheme.method,
                scheme.isolated,
                self.options.separate,
                request.strength,
                request.scope,
            ),
        )

    def notes(self, request: Request) -> list[str]:
        """What of the request is without effect, or was trained otherwise."""
        scheme = self.scheme_for(request)
        given, used = self._count(request, scheme)
        notes = []
        if given > used:
            notes.append(f"{used} of {given} images are used, as {scheme.title} was trained.")
        if request.references + used > scheme.trained:
            notes.append(
                f"The MODEL has {request.references + used} references, and {scheme.title} was trained on at most "
                f"{scheme.trained}: expect people to mix."
            )
        if scheme is QWEN_2511 and not request.timestep_zero:
            notes.append("The MODEL's file does not say that it is 2511; its references get timestep 0 all the same.")
        if scheme in (KREA2_REID, FLUX2_PLAIN) and self.options.reach is Reach.FACE:
            notes.append(f"{scheme.title} was trained without a strength for the face alone.")
        return notes

    def _count(self, request: Request, scheme: Scheme) -> tuple[int, int]:
        """How many images there are, and how many are used."""
        if self.images is not None:
            given = len(self.images)
        else:
            given = len(request.identity) if request.identity is not None else 0
        if self.images is None and self.options.picture is Picture.SHEET:
            return given, min(given, SHEET)
        room = max(1, scheme.trained - request.references)
        return given, min(given, self.options.most, room if scheme.several else 1)

    def _photos(self, request: Request, scheme: Scheme) -> list[Photo]:
        """The person's best photos, or the given images."""
        _, used = self._count(request, scheme)
        if self.images is not None:
            if self.options.reach is Reach.FACE:
                raise LikenessError(
                    "Reference Adapter cannot tell where the face is in images of your own: choose 'whole image', or "
                    "disconnect images and use the identity's heads."
                )
            photos = [Photo(_rgb(image)) for image in self.images[:used]]
        else:
            photos = self._of_identity(request, used)
        for photo in photos:
            if min(photo.size) < LEAST_SIDE:
                raise LikenessError(
                    f"A reference image is {photo.size[1]} x {photo.size[0]} pixels: choose one with at least "
                    f"{LEAST_SIDE} on each side."
                )
            scheme.fit(photo.size, (1024, 1024), used)
        return photos

    def _of_identity(self, request: Request, used: int) -> list[Photo]:
        identity, picture = request.identity, self.options.picture
        if identity is None:
            raise LikenessError(
                f"{self.name!r} needs a person: connect an identity from Identity from Photos or Load Identity, or "
                "images to Reference Adapter."
            )
        crops = identity.portraits if picture is Picture.PORTRAIT else identity.heads
        if not len(crops):
            raise LikenessError(
                f"The identity {identity.name!r} holds no {'portraits' if picture is Picture.PORTRAIT else 'heads'} "
                "that a model could look at: make it again with Identity from Photos, or connect images to Reference "
                "Adapter."
            )
        best = identity.weights.argsort(descending=True, stable=True)[:used].tolist()
        if picture is Picture.SHEET:
            return [Photo(_sheet([_rgb(crops[row]) for row in best]))]
        reaches_face = self.options.reach is Reach.FACE
        return [Photo(_rgb(crops[row]), _middle(crops.shape[1:3]) if reaches_face else None) for row in best]


def _rgb(image: Tensor) -> Tensor:
    """An image (H, W, c) of any depth as (1, H, W, 3), 0..1; without its transparency."""
    image = image.float() / 255 if image.dtype is torch.uint8 else image.float()
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, 3)
    return image.unsqueeze(0).clamp(0, 1)


def _middle(size: Sequence[int]) -> Tensor:
    """The face of a head crop, whose side is twice the face's box: (1, H, W, 1)."""
    height, width = size
    face = torch.zeros(1, height, width, 1)
    face[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1.0
    return face


def _sheet(images: Sequence[Tensor]) -> Tensor:
    """Up to four images of one size in two columns; a place that is left over repeats the first."""
    columns = min(2, len(images))
    rows = math.ceil(len(images) / columns)
    filled = [*images, *[images[0]] * (rows * columns - len(images))]
    return torch.cat([torch.cat(filled[r * columns : (r + 1) * columns], dim=2) for r in range(rows)], dim=1)
