"""From an identity, reference images and a user's options to tokens, and which sites attend to them.

The steps of one reference: choose what the adapter is shown (crops of the identity, images, or saved encodings),
encode it with CLIP where the adapter reads CLIP, join the recogniser's embedding where it reads one, make tokens, and
spread their strength over the sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ...checks import LARGEST_FACTOR, all_finite, as_mask, check_number, require_painted
from ...errors import LikenessError
from ...faces.identity import Identity
from ...weights.families import TransformerLayout
from ..clip_vision import (
    PUBLISHED,
    ClipEncoder,
    ClipFeatures,
    Unconditional,
    check_encoder,
    encode_enhanced,
    encode_images,
    encode_unconditional,
)
from ..image_prep import CLIP_MEAN, Crop, mask_to_square, overlapping_tiles, share_overlaps, to_rgb
from ..system import require_person
from ..types import IdentityTokens, SiteWeights
from .embeds import CombineMode, EmbedsScaling, ImageEmbeds, combine_uncond, join_embeds, join_tokens, renormalised
from .evidence import Evidence, Variant
from .weight_types import WeightType, layer_weights, style_and_composition

if TYPE_CHECKING:
    from .adapter import IPAdapter


@dataclass(frozen=True, eq=False)
class ReferenceOptions:
    """Everything a user can set about a reference; the defaults are those of the official code.

    Images are (B, H, W, 3) in 0..1. What is None is off, or chosen for the adapter.
    """

    weight_type: WeightType = WeightType.LINEAR
    layer_weights: str = ""  # see site_weights.parse_layer_weights; overrules the weight type
    composition_weight: float | None = None
    style_boost: float | None = None
    composition_boost: float | None = None
    expand_style: bool = False
    scaling: EmbedsScaling = EmbedsScaling.V_ONLY
    combine: CombineMode | None = None  # of several photos; None: the way the adapter was trained
    structure: float = 1.0  # FaceID-Plus v2: how much of the photo's facial structure enters (`s_scale`)
    images: Tensor | None = None  # shown to CLIP in place of the identity's face crops
    negative: Tensor | None = None  # shown to CLIP for the unconditioned half
    composition_images: Tensor | None = None  # a second reference, for the layout
    embeds: ImageEmbeds | None = None  # saved encodings in place of images
    reference_mask: Tensor | None = None  # (m, H, W): which part of the images counts
    crop: Crop = Crop.CENTRE
    sharpening: float = 0.0
    unconditional: Unconditional = Unconditional.ZERO_PIXELS
    one_picture_each: bool = False  # image i of the reference for image i of the latent batch
    picture_weights: tuple[float, ...] = ()  # a factor for every image of the latent batch
    tiled: bool = False  # each part of the reference for the same part of the image
    detail_tiles: int = 1  # close-ups of the reference, n x n, added to its encoding
    detail_share: float = 0.5  # how much the whole counts against the close-ups
    any_recogniser: bool = False  # accept embeddings of a recogniser the adapter was not trained on

    def __post_init__(self) -> None:
        for name, (least, most) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                check_number(value, f"The {name.replace('_', ' ')}", least, most)
        for weight in self.picture_weights:
            check_number(weight, "A weight of an image", *_FACTOR)


_FACTOR, _SHARE = (-LARGEST_FACTOR, LARGEST_FACTOR), (0.0, 1.0)
_NUMBERS = {
    "structure": _FACTOR,
    "sharpening": _SHARE,
    "detail_share": _SHARE,
    "detail_tiles": (1, 16),
    "composition_weight": _FACTOR,
    "style_boost": _FACTOR,
    "composition_boost": _FACTOR,
}


@dataclass(frozen=True, eq=False)
class Reference:
    """One term of the decoupled attention: its tokens, which sites attend to them, and in which part of the image."""

    tokens: IdentityTokens
    site_weights: SiteWeights
    mask: Tensor | None = None  # (1, H, W), of the reference itself (tiles); a user's mask comes on top
    row_weights: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class _Show:
    """The people and tools that every step needs."""

    adapter: IPAdapter
    identity: Identity | None
    encoder: ClipEncoder | None
    options: ReferenceOptions


def references(
    adapter: IPAdapter,
    identity: Identity | None,
    encoder: ClipEncoder | None,
    options: ReferenceOptions,
    layout: TransformerLayout,
    weight: float,
) -> list[Reference]:
    """What is injected for one identity: usually one reference, more for style and composition, and for tiles.

    weight: the strength at every site before the weight type spreads it. Raises LikenessError for everything
    that is missing or does not fit.
    """
    if adapter.id_dim is not None:
        identity = require_person(adapter, identity, adapter.id_dim, options.any_recogniser)
    show = _Show(adapter, identity, encoder, options)
    _check_places(adapter, identity, options)
    spread = partial(_spread, options, layout)
    rows = options.picture_weights or None
    looks = adapter.needs_features or adapter.needs_pooled  # else the options about images are without effect
    if options.composition_images is not None and looks:
        style, composition = style_and_composition(
            layout, weight, _or(options.composition_weight, weight), expand_style=options.expand_style
        )
        other = replace(options, images=options.composition_images, embeds=None, reference_mask=None)
        layout_show = replace(show, options=other)
        return [
            Reference(_tokens(show), style, row_weights=rows),
            Reference(_tokens(layout_show), composition, row_weights=rows),
        ]
    if options.tiled and looks:
        return [
            Reference(_tokens(replace(show, options=part)), spread(weight), mask, rows)
            for part, mask in _tiles(show, options)
        ]
    return [Reference(_tokens(show), spread(weight), row_weights=rows)]


def unused_inputs(adapter: IPAdapter, options: ReferenceOptions) -> list[str]:
    """The options that are set although this adapter, which reads no images, has no use for them."""
    if adapter.needs_features or adapter.needs_pooled:
        return []
    set_by_the_user = {
        "image": options.images is not None,
        "image_negative": options.negative is not None,
        "image_composition": options.composition_images is not None,
        "embeds": options.embeds is not None,
        "reference_mask": options.reference_mask is not None,
        "tiled": options.tiled,
        "detail_tiles": options.detail_tiles > 1,
    }
    return [name for name, is_set in set_by_the_user.items() if is_set]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _spread(options: ReferenceOptions, layout: TransformerLayout, weight: float) -> SiteWeights:
    return layer_weights(
        options.layer_weights,
        options.weight_type,
        layout,
        weight,
        composition_weight=options.composition_weight,
        style_boost=options.style_boost,
        composition_boost=options.composition_boost,
    )


def _tiles(show: _Show, options: ReferenceOptions) -> Iterator[tuple[ReferenceOptions, Tensor]]:
    """The reference's parts as references of their own, each with the mask of the place it belongs to."""
    pictures = _pictures(show)
    if len(pictures) != 1:
        raise LikenessError(f"Tiling needs one reference image, got {len(pictures)}: connect a single one.")
    pictures = _covered(pictures, _reference_mask(options, 1))
    tiles = overlapping_tiles(pictures, options.sharpening)
    height, width = pictures.shape[1:3]
    masks = share_overlaps(tiles.masks(height, width))
    plain = replace(options, tiled=False, sharpening=0.0, embeds=None, reference_mask=None)
    for tile, mask in zip(tiles.images, masks, strict=True):
        yield replace(plain, images=tile.unsqueeze(0)), mask.unsqueeze(0)


# Evidence -------------------------------------------------------------------------------------------------------------


def _tokens(show: _Show) -> IdentityTokens:
    """Tokens of one reference: all photos in one row (one softmax), or a row for each image of the batch."""
    features, uncond = _features(show)
    ids = _embeddings(show, None if features is None else len(features))
    if ids is not None and features is not None:
        features = features.expand(len(ids), *features.shape[1:]) if len(features) == 1 else features
    made = show.adapter.encode(Evidence(ids, features, uncond), show.options.structure)
    if not all_finite(made.cond) or not all_finite(made.uncond):
        raise LikenessError(
            f"The adapter '{show.adapter.name}' turns this reference into NaN: check the images, the CLIP vision "
            "model and the adapter's file."
        )
    if show.options.one_picture_each:
        return made
    if uncond is None or len(combine_uncond(uncond, CombineMode.CONCAT)) == 1:
        # The unconditioned tokens of all photos are equal: under a softmax one copy says the same.
        return IdentityTokens(join_tokens(made.cond), made.uncond[:1])
    return IdentityTokens(join_tokens(made.cond), join_tokens(made.uncond))


def _embeddings(show: _Show, photos: int | None) -> Tensor | None:
    """What the recogniser says, (rows, id_dim); as many rows as CLIP features where the adapter reads both."""
    adapter, options = show.adapter, show.options
    if not adapter.needs_embedding:
        return None
    identity = show.identity
    assert identity is not None  # checked in `references`
    every = identity.embeddings if adapter.needs_raw_embedding else identity.unit_embeddings
    if options.one_picture_each and photos in (None, len(every)):
        return every
    if adapter.reads_every_photo and options.combine is None:
        return every
    mean = identity.mean_embedding(unit=not adapter.needs_raw_embedding).unsqueeze(0)
    if options.combine in (None, CombineMode.AVERAGE):
        return mean.expand(photos or 1, -1)
    rows = join_embeds(every, options.combine, identity.weights.tolist())
    if options.combine is CombineMode.NORM_AVERAGE and not adapter.needs_raw_embedding:
        rows = renormalised(rows, every)  # a mean of unit vectors is shorter than what the network was trained on
    if photos is not None and len(rows) != photos:  # other images than the photos that were recognised
        rows = rows if len(rows) == 1 else mean
        return rows.expand(photos, -1)
    return rows


def _features(show: _Show) -> tuple[Tensor | None, Tensor | None]:
    """What CLIP says of the reference and of no reference; (None, None) when the adapter does not read CLIP."""
    adapter, options = show.adapter, show.options
    if not (adapter.needs_features or adapter.needs_pooled):
        return None, None
    hidden = adapter.needs_features
    assert adapter.feature_dim is not None
    if options.embeds is not None and options.images is None:
        options.embeds.check_fits(adapter.feature_dim, hidden, f"'{adapter.name}'")
        features, uncond = options.embeds.cond, options.embeds.uncond
        if uncond is None and hidden:
            uncond = _read(encode_unconditional(_encoder(show), options.unconditional), hidden)
    else:
        encoder = _encoder(show)
        features = _read(_encode_pictures(show, encoder), hidden)
        if options.negative is not None:
            uncond = _read(encode_images(encoder, options.negative, options.crop), hidden).mean(0, keepdim=True)
        else:  # the base adapter was trained on zeros, which need no encoder
            uncond = _read(encode_unconditional(encoder, options.unconditional), hidden) if hidden else None
    if options.combine is not None and not options.one_picture_each:
        features = join_embeds(features, options.combine)
    if uncond is not None and len(uncond) != len(features):
        uncond = uncond[:1].expand(len(features), *uncond.shape[1:])
    return features, uncond


def _encode_pictures(show: _Show, encoder: ClipEncoder) -> ClipFeatures:
    options, pictures = show.options, _pictures(show)
    mask = _reference_mask(options, len(pictures))
    if options.detail_tiles > 1:
        return encode_enhanced(
            encoder,
            _covered(pictures, mask),
            options.detail_tiles,
            options.detail_share,
            options.crop,
            options.sharpening,
        )
    return encode_images(encoder, pictures, options.crop, options.sharpening, mask)


def _reference_mask(options: ReferenceOptions, pictures: int) -> Tensor | None:
    if options.reference_mask is None:
        return None
    return check_reference_mask(options.reference_mask, pictures, Crop.PAD if options.tiled else options.crop)


def check_reference_mask(mask: Tensor, pictures: int, crop: Crop) -> Tensor:
    """A mask of the reference as (1 | images, H, W).

    LikenessError when it is not a mask, does not have as many rows as images, or lets nothing through:
    in it, or in what the crop leaves of it. The encoder would read its mean colour, and the reference would be lost
    without a word.
    """
    mask = as_mask(mask, "The reference mask")
    if len(mask) not in (1, pictures):
        raise LikenessError(
            f"There are {len(mask)} reference masks for {pictures} reference images: connect one mask, or one for "
            "each image."
        )
    require_painted(mask, "The reference mask")
    seen = mask_to_square(mask, crop=crop)
    if not bool((seen > 0).flatten(1).any(1).all()):
        raise LikenessError(
            f"The crop '{crop.value}' removes everything that the reference mask keeps: choose another crop, such as "
            "'pad', or paint inside it."
        )
    return mask


def _covered(pictures: Tensor, mask: Tensor | None) -> Tensor:
    """Images (B, H, W, 3) in which what does not count has CLIP's mean colour, which the encoder sees as zero."""
    if mask is None:
        return pictures
    share = F.interpolate(mask.float().clamp(0, 1).unsqueeze(1), pictures.shape[1:3], mode="bilinear", antialias=True)
    return torch.lerp(pictures.new_tensor(CLIP_MEAN).expand_as(pictures), pictures, share.movedim(1, -1).to(pictures))


def _read(features: ClipFeatures, hidden: bool) -> Tensor:
    return features.penultimate if hidden else features.image_embeds


def _encoder(show: _Show) -> ClipEncoder:
    adapter = show.adapter
    if show.encoder is None:
        widths = {n: size.hidden if adapter.needs_features else size.embed for n, size in PUBLISHED.items()}
        wanted = next((name for name, width in widths.items() if width == adapter.feature_dim), "its encoder")
        raise LikenessError(
            f"The adapter '{adapter.name}' reads the face through CLIP, and no CLIP vision model is connected: "
            f"connect {wanted} to clip_vision (Load CLIP Vision; `likeness models list` names the file)."
        )
    if adapter.needs_features:
        check_encoder(adapter.feature_dim, None, show.encoder.size)
    else:
        check_encoder(None, adapter.feature_dim, show.encoder.size)
    return show.encoder


def _pictures(show: _Show) -> Tensor:
    """What CLIP is shown: the reference images, else the crops of the identity the adapter was trained on."""
    if show.options.images is not None:
        return to_rgb(show.options.images, "reference image")
    identity = show.identity
    if identity is None:
        raise LikenessError(
            f"The adapter '{show.adapter.name}' has no image to read: connect an identity, or a reference image "
            "through IP-Adapter Options."
        )
    aligned = show.adapter.variant in (Variant.FACEID_PLUS, Variant.FACEID_PLUS_V2)
    crops = identity.aligned if aligned else identity.heads
    if not len(crops):
        raise LikenessError(
            f"The identity '{identity.name}' has no aligned face, because its detector gave no keypoints: make it with "
            "a face analysis that does, for example buffalo_l, OpenCV or MTCNN."
        )
    return crops.float() / 255


def _check_places(adapter: IPAdapter, identity: Identity | None, options: ReferenceOptions) -> None:
    """Image i of the batch gets photo i; where a photo before it has no row, it would get the next one's face."""
    shown = options.images is None and options.embeds is None and (adapter.needs_features or adapter.needs_pooled)
    if not options.one_picture_each or identity is None or not (adapter.needs_embedding or shown):
        return
    if identity.left_out:
        several = len(identity.left_out) > 1
        photos = f"photo{'s' if several else ''} {', '.join(map(str, identity.left_out))}"
        raise LikenessError(
            f"Of the {len(identity.kept)} photos of the identity '{identity.name}', {photos} "
            f"{'were' if several else 'was'} left out, so unfold_batch would shift the following images to the next "
            "photo's face: make the identity of the other photos only, or turn unfold_batch off."
        )
