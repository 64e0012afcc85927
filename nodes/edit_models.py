"""Edit models: an identity's photos as reference images, and the prompt that is shown to the encoder with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..adapters.edit_models import (
    LORAS,
    NUMBERED,
    SCHEMES,
    EncodedPhotos,
    Picture,
    Reach,
    ReferenceAdapter,
    ReferenceOptions,
    Scheme,
    titled,
)
from ..errors import LikenessError
from .adapters import CATEGORY
from .choices import choices, member, must_exist, named, one_of
from .files import Shelf
from .node import Node
from .schema import AdapterSocket, advanced, schema

BY_MODEL = "by LoRA or model"
NO_LORA = "none"
LORA_FILES = Shelf("loras", "loras", "The LoRA")
MOST_PHOTOS = 6


def _find_lora(name: str) -> Path | None:
    return None if name == NO_LORA else LORA_FILES.find_or_explain(name)


@must_exist(lora_name=_find_lora)
class ReferenceAdapterNode(Node):
    """A VAE and a scheme to an adapter for Apply Identity."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessReferenceAdapter",
            display_name="Reference Adapter",
            category=CATEGORY,
            description="Shows an edit model (Krea 2, FLUX.2, Qwen-Image-Edit, FLUX.1 Kontext) the photos of a person "
            "as reference images. Takes the place of Load Identity Adapter: connect it to Apply Identity, and to "
            "Identity Prompt.",
            search_aliases=["Reference Latent", "Krea 2 Identity Edit", "FLUX.2", "Klein", "Qwen Image Edit", "ReID"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that belongs to the MODEL; it encodes the photos."),
                io.Combo.Input(
                    "lora_name",
                    options=[NO_LORA, *LORA_FILES.names()],
                    default=NO_LORA,
                    tooltip="The LoRA that the MODEL has, only to know how it was trained: a published one is told by "
                    "its checksum. Load it with Load LoRA at strength 1; it is not loaded here.",
                ),
                io.Combo.Input(
                    "scheme",
                    options=[BY_MODEL, *(scheme.title for scheme in SCHEMES)],
                    default=BY_MODEL,
                    tooltip="How the model, or its LoRA, was trained to read references. The wrong one gives a weak "
                    "likeness and no error. FLUX.2 needs no choice; Krea 2 needs one for LoRAs that are not known.",
                ),
                io.Combo.Input(
                    "picture",
                    options=choices(Picture),
                    default=Picture.HEAD.value,
                    tooltip="'head': hair and neck included, little of the clothes. 'portrait': turned upright. "
                    "'sheet': up to four heads as one image, for Krea 2 Identity Edit v1.2.",
                ),
                io.Int.Input(
                    "most_photos",
                    default=4,
                    min=1,
                    max=MOST_PHOTOS,
                    tooltip="At most this many photos of the person, the best first. Models that were trained on one "
                    "use one. Each photo makes every step slower.",
                ),
                io.Combo.Input(
                    "reach",
                    options=choices(Reach),
                    default=Reach.WHOLE.value,
                    tooltip="What the strength of Apply Identity counts for: 'face only' leaves hair, clothes and "
                    "background of the photo at strength 1.",
                ),
                advanced(
                    io.Boolean.Input(
                        "separate",
                        default=False,
                        tooltip="Photos do not attend to each other. Slightly less mixing of several people; no model "
                        "was trained with it.",
                    )
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Images to use as they are, in place of the identity's crops. The original photo is "
                    "sharper than a crop where the target is large.",
                ),
            ],
            outputs=[AdapterSocket.Output(display_name="adapter", tooltip="For Apply Identity and Identity Prompt.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = NO_LORA, **others: Any) -> Any:
        """Changes when the LoRA's file does."""
        return LORA_FILES.fingerprint(lora_name)

    @classmethod
    def execute(
        cls,
        vae: Any,
        lora_name: str,
        scheme: str,
        picture: str,
        most_photos: int,
        reach: str,
        separate: bool,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        """Find the scheme, check the VAE, and wait for the person."""
        from ..injection.comfy import BareAdapter

        if not callable(getattr(vae, "encode", None)):
            raise LikenessError("The input 'vae' holds no VAE: connect Load VAE.")
        options = ReferenceOptions(
            member(Picture, picture, "picture"), int(most_photos), member(Reach, reach, "reach"), bool(separate)
        )
        known = None if named(lora_name, "lora_name") == NO_LORA else scheme_of_lora(lora_name)
        chosen = titled(one_of([BY_MODEL, *(one.title for one in SCHEMES)], scheme, "scheme"))
        if known is not None and chosen is not None and known is not chosen:
            raise LikenessError(
                f"The LoRA {lora_name!r} was trained for the scheme {known.title!r}, and {chosen.title!r} is chosen: "
                f"choose {BY_MODEL!r}."
            )
        if lora_name != NO_LORA and known is None and chosen is None:
            raise LikenessError(
                f"The LoRA {lora_name!r} is not a published one, and its file does not say how it was trained: choose "
                "the scheme in Reference Adapter."
            )
        form = (int(vae.latent_channels), getattr(vae, "latent_dim", 2) == 3)
        return io.NodeOutput(
            BareAdapter(ReferenceAdapter(vae.encode, known or chosen, options, images, form, name="Reference Adapter"))
        )


def scheme_of_lora(name: str) -> Scheme | None:
    """The scheme of a published LoRA in models/loras; None of any other. LikenessError when there is no such file."""
    path = LORA_FILES.find_or_explain(name)
    stat = path.stat()
    known = LORAS.get(stat.st_size)
    return known.get(_digest(path, stat.st_mtime_ns)) if known else None


@lru_cache(maxsize=16)
def _digest(path: Path, modified: int) -> str:
    from ..models.content import sha256

    return sha256(path)


# --- the prompt


@dataclass(frozen=True)
class Grounded:
    """A prompt with the people of a MODEL. positive, negative: CONDITIONING."""

    positive: Any
    negative: Any
    report: str


def grounded(clip: Any, model: Any, text: str, longest: int, scene: Tensor | None = None) -> Grounded:
    """The prompt, and an empty one with the same images, as the MODEL's scheme was trained to read them.

    longest: side of an image in pixels, 0 for as it is. scene: an image that comes before the people.
    """
    terms = people_of(model)
    if not terms:
        raise LikenessError(
            "The MODEL carries no reference images, which Identity Prompt would show to the text encoder: connect the "
            "MODEL of Apply Identity."
        )
    scheme = terms[0].photos.scheme
    images = [photo.image for term in terms for photo in term.photos.photos]
    if scene is not None:
        images = [scene[:1, ..., :3].float(), *images]
    form, notes = scheme.text, ""
    if NUMBERED.search(text) and (form is None or not form.labelled):
        notes = f" {scheme.title} does not know images by number: describe them instead."
    if form is None:
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(words)) for words in (text, ""))
        return Grounded(positive, negative, f"{scheme.title}: the text encoder reads text alone.{notes}")
    _check_encoder(clip, scheme)
    shown = [_seen(image, form.seen((image.shape[1], image.shape[2]), longest)) for image in images]
    positive, negative = (
        clip.encode_from_tokens_scheduled(
            clip.tokenize(form.turn(words, len(shown)), images=shown, llama_template=form.template)
        )
        for words in (text, "")
    )
    tokens = sum(form.tokens_of((image.shape[1], image.shape[2]), longest) for image in images)
    numbers = "numbered" if form.labelled else "without numbers"
    report = f"{scheme.title}: the text encoder sees {len(shown)} images ({numbers}, {tokens} tokens).{notes}"
    return Grounded(positive, negative, report)


def people_of(model: Any) -> list[Any]:
    """The reference terms of a MODEL, in order of frames."""
    from ..adapters.effects import ReferenceTerm
    from ..injection.comfy import stack_of

    stack = stack_of(model)
    injections = stack.injections if stack else ()
    return [one for one in injections if isinstance(one, ReferenceTerm) and isinstance(one.photos, EncodedPhotos)]


def _check_encoder(clip: Any, scheme: Scheme) -> None:
    form = scheme.text
    assert form is not None
    encoder = getattr(clip.cond_stage_model, form.encoder, None)
    if encoder is None or not hasattr(encoder.transformer, "visual"):
        raise LikenessError(
            f"The CLIP cannot see images as {scheme.title} needs: load {form.encoder} with its vision part, by Load "
            f"CLIP with the type of {scheme.base.title}."
        )


def _seen(image: Tensor, size: tuple[int, int]) -> Tensor:
    """What the encoder is given: an area filter, as where the models were trained."""
    if tuple(image.shape[1:3]) == size:
        return image
    return torch.nn.functional.interpolate(image.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


NODES = [ReferenceAdapterNode]
