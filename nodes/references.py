"""References: the options of an IP-Adapter, its saved encodings, weights over a batch, and images made ready."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.clip_vision import (
    Unconditional,
    check_encoder,
    encode_images,
    encode_unconditional,
)
from ..adapters.effects import MaskResize
from ..adapters.image_prep import Crop, ReferenceNoise, Resampling, add_noise, sharpen, to_rgb, to_square
from ..adapters.ip_adapter.embeds import (
    CombineMode,
    EmbedsScaling,
    ImageEmbeds,
    combine_uncond,
    join_embeds,
    load_embeds,
    write_embeds,
)
from ..adapters.ip_adapter.reference import ReferenceOptions, check_reference_mask
from ..adapters.ip_adapter.schedules import FrameRange, FrameSharing, Timing, parse_weights, schedule
from ..adapters.ip_adapter.weight_types import WeightType
from ..errors import LikenessError
from ..injection.comfy import ComfyClipEncoder
from .adapter_socket import as_managed
from .choices import choices, finite, member, must_exist, named
from .files import Shelf
from .node import Node
from .schema import (
    AdapterSocket,
    EmbedsSocket,
    OptionsSocket,
    advanced,
    any_recogniser_input,
    schema,
    seed_input,
    share_input,
)

CATEGORY = "likeness/references"
AS_TRAINED = "as the adapter was trained"
EMBEDS = Shelf("likeness_embeds", "likeness_embeds", "The saved encoding", (".safetensors", ".ipadpt"))
NO_EMBEDS = "(no saved embeds)"


@dataclass(frozen=True, eq=False)
class Options:
    """What travels on the options socket. reference: the options of one system, None for its defaults."""

    reference: Any = None
    mask_resize: MaskResize = MaskResize.AREA


class IPAdapterOptions(Node):
    """Everything about a reference that most graphs leave at its default."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessIPAdapterOptions",
            display_name="IP-Adapter Options",
            category=CATEGORY,
            description="Plugs into Apply Identity. With its defaults it changes nothing.",
            search_aliases=["IPAdapter Advanced", "IPAdapter Style & Composition", "IPAdapter Mad Scientist", "Tiled"],
            inputs=[
                io.Combo.Input(
                    "weight_type",
                    options=choices(WeightType),
                    default=WeightType.LINEAR.value,
                    tooltip="How the strength is spread over the network. Style and composition types need SD1.5 or "
                    "SDXL; the precise ones push the unwanted half away and need cfg above 1.",
                ),
                io.Float.Input(
                    "weight_composition",
                    default=1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Strength of the composition, for the types that treat it apart.",
                ),
                io.Float.Input(
                    "precise_boost",
                    default=1.0,
                    min=-5.0,
                    max=5.0,
                    step=0.05,
                    tooltip="For the precise types: how hard the unwanted half is pushed away.",
                ),
                io.Combo.Input(
                    "combine_embeds",
                    options=[AS_TRAINED, *choices(CombineMode)],
                    default=AS_TRAINED,
                    tooltip="How several photos make one reference. As trained: FaceID reads their mean, Portrait and "
                    "Plus read each photo.",
                ),
                io.Combo.Input(
                    "embeds_scaling",
                    options=choices(EmbedsScaling),
                    default=EmbedsScaling.V_ONLY.value,
                    tooltip="What the strength multiplies. V only is official; K+mean(V) w/ C penalty keeps detail at "
                    "strengths above 1.",
                ),
                io.Float.Input(
                    "weight_faceidv2",
                    default=1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    display_name="structure",
                    tooltip="FaceID-Plus v2: how much of the photo's facial structure is added to the identity.",
                ),
                io.String.Input(
                    "layer_weights",
                    default="",
                    tooltip='Strength per layer by hand, such as "3:2.5, 6:1" or "input.8:2.5, output.1:1". What is '
                    "not named gets 0. Empty: the weight type decides.",
                ),
                io.Combo.Input(
                    "crop",
                    options=choices(Crop),
                    default=Crop.CENTRE.value,
                    tooltip="How a reference that is not square is made square.",
                ),
                share_input("sharpening", 0.0, "Sharpens the reference after downscaling. 0 is off."),
                advanced(
                    io.Combo.Input(
                        "unconditional",
                        options=choices(Unconditional),
                        default=Unconditional.ZERO_PIXELS.value,
                        tooltip="What stands for 'no image'. Zero pixels is official; black image gives what "
                        "IPAdapter_plus gives.",
                    )
                ),
                io.Boolean.Input(
                    "unfold_batch",
                    default=False,
                    tooltip="Image 1 of the reference for image 1 of the latent batch, and so on.",
                ),
                io.String.Input(
                    "picture_weights",
                    default="",
                    tooltip='A factor for each image of the latent batch, such as "1.0, 0.5", by hand or from Weight '
                    "Schedule. Empty: the same for all.",
                ),
                io.Boolean.Input(
                    "tiled",
                    default=False,
                    tooltip="Cuts the reference into tiles, each for the same part of the image. For references that "
                    "are large or not square.",
                ),
                advanced(
                    io.Int.Input(
                        "detail_tiles",
                        default=1,
                        min=1,
                        max=16,
                        tooltip="Encodes close-ups of the reference as well, n x n of them. 1 is off.",
                    )
                ),
                advanced(
                    share_input("detail_share", 0.5, "How much the whole reference counts against its close-ups.")
                ),
                advanced(
                    io.Combo.Input(
                        "mask_resize",
                        options=choices(MaskResize),
                        default=MaskResize.AREA.value,
                        tooltip="How a mask is resized to the resolution of a layer. Area keeps thin regions; "
                        "bilinear is what IPAdapter_plus does, bicubic what diffusers does.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "expand_style",
                        default=False,
                        tooltip="With a composition image: applies the style in every layer that the composition does "
                        "not use.",
                    )
                ),
                any_recogniser_input("a recogniser that the adapter was not trained on"),
                io.Image.Input("image", optional=True, tooltip="Images to use in place of the identity's face crops."),
                io.Image.Input(
                    "image_negative", optional=True, tooltip="What to keep away from: an image for the negative half."
                ),
                io.Image.Input(
                    "image_composition",
                    optional=True,
                    tooltip="A second reference, for the layout; the first then gives the style. SD1.5 and SDXL.",
                ),
                io.Mask.Input("reference_mask", optional=True, tooltip="Which part of the reference images counts."),
                EmbedsSocket.Input("embeds", optional=True, tooltip="Saved encodings in place of images."),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Apply Identity.")],
        )

    @classmethod
    def execute(
        cls,
        weight_type: str,
        weight_composition: float,
        precise_boost: float,
        combine_embeds: str,
        embeds_scaling: str,
        weight_faceidv2: float,
        layer_weights: str,
        crop: str,
        sharpening: float,
        unconditional: str,
        unfold_batch: bool,
        picture_weights: str,
        tiled: bool,
        detail_tiles: int,
        detail_share: float,
        mask_resize: str,
        expand_style: bool,
        any_recogniser: bool,
        image: torch.Tensor | None = None,
        image_negative: torch.Tensor | None = None,
        image_composition: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        embeds: ImageEmbeds | None = None,
    ) -> io.NodeOutput:
        """Turn words into choices; everything else is checked where it is used."""
        reference = ReferenceOptions(
            weight_type=member(WeightType, weight_type, "weight_type"),
            layer_weights=layer_weights,
            composition_weight=weight_composition,
            style_boost=precise_boost,
            composition_boost=precise_boost,
            expand_style=expand_style,
            scaling=member(EmbedsScaling, embeds_scaling, "embeds_scaling"),
            combine=None if combine_embeds == AS_TRAINED else member(CombineMode, combine_embeds, "combine_embeds"),
            structure=weight_faceidv2,
            images=None if image is None else to_rgb(image, "image"),
            negative=None if image_negative is None else to_rgb(image_negative, "image_negative"),
            composition_images=None if image_composition is None else to_rgb(image_composition, "image_composition"),
            embeds=embeds,
            reference_mask=reference_mask,
            crop=member(Crop, crop, "crop"),
            sharpening=sharpening,
            unconditional=member(Unconditional, unconditional, "unconditional"),
            one_picture_each=unfold_batch,
            picture_weights=parse_weights(picture_weights) if picture_weights.strip() else (),
            tiled=tiled,
            detail_tiles=detail_tiles,
            detail_share=detail_share,
            any_recogniser=any_recogniser,
        )
        return io.NodeOutput(Options(reference, member(MaskResize, mask_resize, "mask_resize")))


class EncodeReference(Node):
    """Images to embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessEncodeReference",
            display_name="Encode Reference",
            category=CATEGORY,
            description="Encodes images once for an adapter, to be combined, saved, or used without the encoder.",
            search_aliases=["IPAdapter Encoder"],
            inputs=[
                AdapterSocket.Input("adapter", tooltip="The adapter that will read them."),
                io.ClipVision.Input("clip_vision", tooltip="The encoder the adapter was trained with."),
                io.Image.Input("image", tooltip="One or more images."),
                io.Float.Input(
                    "weight", default=1.0, min=-1.0, max=3.0, step=0.05, tooltip="How much they count when combined."
                ),
                io.Combo.Input(
                    "crop", options=choices(Crop), default=Crop.CENTRE.value, tooltip="How they are made square."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Which part of the images counts."),
            ],
            outputs=[EmbedsSocket.Output(display_name="embeds", tooltip="For IP-Adapter Options or Save Embeds.")],
        )

    @classmethod
    def execute(
        cls, adapter: Any, clip_vision: Any, image: torch.Tensor, weight: float, crop: str, mask: Any = None
    ) -> io.NodeOutput:
        """Encode in the form the adapter reads, with its unconditioned counterpart."""
        network = as_managed(adapter).adapter
        if not (network.needs_features or network.needs_pooled):
            raise LikenessError(
                f"The adapter {network.name!r} reads no images but a face embedding: save the identity instead."
            )
        finite(weight=weight)
        encoder = ComfyClipEncoder(clip_vision)
        hidden = network.needs_features
        check_encoder(network.feature_dim if hidden else None, None if hidden else network.feature_dim, encoder.size)
        image = to_rgb(image, "image")
        how = member(Crop, crop, "crop")
        mask = None if mask is None else check_reference_mask(mask, len(image), how)
        features = encode_images(encoder, image, how, mask=mask)
        if hidden:
            cond, uncond = features.penultimate, encode_unconditional(encoder).penultimate
        else:
            cond, uncond = features.image_embeds, None
        return io.NodeOutput(ImageEmbeds(cond * weight, uncond, network.variant.value, encoder.size.name))


class CombineEmbeds(Node):
    """Up to five embeds to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessCombineEmbeds",
            display_name="Combine Embeds",
            category=CATEGORY,
            description="Makes one reference of several encodings.",
            search_aliases=["IPAdapter Combine Embeds"],
            inputs=[
                EmbedsSocket.Input("embeds_1", tooltip="The first; subtract takes the others from it."),
                io.Combo.Input(
                    "method",
                    options=choices(CombineMode),
                    default=CombineMode.CONCAT.value,
                    tooltip="Concat keeps each image's own tokens; the others mix them into one.",
                ),
                *(
                    EmbedsSocket.Input(f"embeds_{i}", optional=True, tooltip="Further embeds of the same adapter.")
                    for i in range(2, 6)
                ),
            ],
            outputs=[EmbedsSocket.Output(display_name="embeds", tooltip="For IP-Adapter Options or Save Embeds.")],
        )

    @classmethod
    def execute(cls, embeds_1: ImageEmbeds, method: str, **others: ImageEmbeds) -> io.NodeOutput:
        """Combine rows; all must come from one kind of encoder."""
        every = [embeds_1, *others.values()]
        if len({e.cond.shape[1:] for e in every}) > 1:
            raise LikenessError(
                "The embeds were made for different adapters or encoders: encode all images with the same adapter "
                "and encoder."
            )
        mode = member(CombineMode, method, "method")
        rows = torch.cat([e.cond for e in every])
        empty = [e.uncond for e in every if e.uncond is not None]
        uncond = combine_uncond(torch.cat(empty), mode) if empty else None
        return io.NodeOutput(ImageEmbeds(join_embeds(rows, mode), uncond, embeds_1.adapter, embeds_1.encoder))


class SaveEmbeds(Node):
    """Embeds to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessSaveEmbeds",
            display_name="Save Embeds",
            category=CATEGORY,
            description="Writes encodings to models/likeness_embeds, with the adapter and the encoder they fit. Never "
            "replaces a file. Encodings of a face are personal data.",
            search_aliases=["IPAdapter Save Embeds"],
            is_output_node=True,
            inputs=[
                EmbedsSocket.Input("embeds", tooltip="From Encode Reference or Combine Embeds."),
                io.String.Input(
                    "filename", default="reference", tooltip="A file name; a number is added if it is taken."
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name under which Load Embeds lists it.")],
        )

    @classmethod
    def execute(cls, embeds: ImageEmbeds, filename: str) -> io.NodeOutput:
        """Write under a free name."""
        return io.NodeOutput(EMBEDS.save(filename, partial(write_embeds, embeds)))


def find_embeds(name: str) -> Path:
    """The file of this name; LikenessError when it is not there."""
    if name == NO_EMBEDS:
        raise LikenessError("There are no saved embeds yet: use Save Embeds, then reload the page.")
    return EMBEDS.find_or_explain(name)


@must_exist(file=find_embeds)
class LoadEmbeds(Node):
    """A file to embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadEmbeds",
            display_name="Load Embeds",
            category=CATEGORY,
            description="Reads encodings from models/likeness_embeds; .ipadpt files of IPAdapter_plus work as well.",
            search_aliases=["IPAdapter Load Embeds"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=EMBEDS.names() or [NO_EMBEDS],
                    tooltip="A file in models/likeness_embeds.",
                )
            ],
            outputs=[EmbedsSocket.Output(display_name="embeds", tooltip="For IP-Adapter Options.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        """Changes when the file does."""
        return EMBEDS.fingerprint(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Read and check."""
        return io.NodeOutput(load_embeds(find_embeds(named(file, "file"))))


class WeightSchedule(Node):
    """Weights over the frames of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessWeightSchedule",
            display_name="Weight Schedule",
            category=CATEGORY,
            description="A weight for every image of a batch, along a curve, and the two reference images each one "
            "lies between.",
            search_aliases=["IPAdapter Weights"],
            inputs=[
                io.String.Input(
                    "weights",
                    default="1.0, 0.0",
                    multiline=True,
                    tooltip="The curve runs from the first to the last; custom uses them as they are.",
                ),
                io.Combo.Input(
                    "timing", options=choices(Timing), default=Timing.LINEAR.value, tooltip="The shape of the curve."
                ),
                io.Int.Input("frames", default=16, min=1, max=9999, tooltip="How many images the batch has."),
                io.Int.Input(
                    "start_frame", default=0, min=0, max=9999, tooltip="Up to this frame the first weight is held."
                ),
                io.Int.Input(
                    "end_frame", default=9999, min=0, max=9999, tooltip="From this frame on the last weight is held."
                ),
                io.Int.Input(
                    "add_starting_frames", default=0, min=0, max=9999, tooltip="Holds the first frame longer."
                ),
                io.Int.Input("add_ending_frames", default=0, min=0, max=9999, tooltip="Holds the last frame longer."),
                io.Combo.Input(
                    "method",
                    options=choices(FrameSharing),
                    default=FrameSharing.FULL_BATCH.value,
                    tooltip="Full batch: one curve. Shift and alternate: one curve between each pair of images.",
                ),
                seed_input("Seed for random timing."),
                io.Image.Input("image", optional=True, tooltip="The reference images that share the frames."),
            ],
            outputs=[
                io.String.Output(display_name="weights", tooltip="For picture_weights of IP-Adapter Options."),
                io.String.Output(display_name="weights inverted", tooltip="The same backwards, for the other image."),
                io.Int.Output(display_name="frames", tooltip="Number of frames in total."),
                io.Image.Output(display_name="image 1", tooltip="The first image of every frame."),
                io.Image.Output(display_name="image 2", tooltip="The second image of every frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        weights: str,
        timing: str,
        frames: int,
        start_frame: int,
        end_frame: int,
        add_starting_frames: int,
        add_ending_frames: int,
        method: str,
        seed: int,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Lay the curve; without images the image outputs are empty."""
        plan = schedule(
            parse_weights(weights),
            member(Timing, timing, "timing"),
            FrameRange(frames, start_frame, end_frame, add_starting_frames, add_ending_frames),
            member(FrameSharing, method, "method"),
            0 if image is None else len(image),
            torch.Generator().manual_seed(seed % 2**63),
        )

        def text(values: tuple[float, ...]) -> str:
            return ", ".join(f"{value:.6g}" for value in values)

        def pick(numbers: tuple[int, ...]) -> torch.Tensor | None:
            return None if image is None or not numbers else image[list(numbers)]

        first, second = pick(plan.image_1), pick(plan.image_2)
        return io.NodeOutput(text(plan.weights), text(plan.inverted), len(plan.weights), first, second)


@must_exist(interpolation=partial(member, Resampling, name="interpolation"))
class PrepareReference(Node):
    """A reference image as the encoder will see it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPrepareReference",
            display_name="Prepare Reference",
            category=CATEGORY,
            description="Makes images square the way an image encoder reads them, so that the crop can be seen.",
            search_aliases=["Prep Image For ClipVision"],
            inputs=[
                io.Image.Input("image", tooltip="One or more images."),
                io.Combo.Input("crop", options=choices(Crop), default=Crop.CENTRE.value, tooltip="What is kept."),
                io.Combo.Input(
                    "interpolation",
                    options=choices(Resampling),
                    default=Resampling.LANCZOS.value,
                    tooltip="Filter for downscaling.",
                ),
                share_input("sharpening", 0.0, "Sharpening after downscaling; 0 is off."),
                io.Int.Input("size", default=224, min=64, max=1024, step=8, tooltip="Side in pixels."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Square images.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, crop: str, interpolation: str, sharpening: float, size: int) -> io.NodeOutput:
        """Resize, cut, sharpen."""
        square = to_square(
            to_rgb(image, "image"), size, member(Crop, crop, "crop"), member(Resampling, interpolation, "interpolation")
        )
        return io.NodeOutput(sharpen(square, sharpening) if sharpening else square)


class ReferenceNoiseNode(Node):
    """An image for the negative half."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessReferenceNoise",
            display_name="Reference Noise",
            category=CATEGORY,
            description="Noise for image_negative of IP-Adapter Options: what the result should keep away from.",
            search_aliases=["IPAdapter Noise"],
            inputs=[
                io.Image.Input("image", tooltip="The reference the noise is made of."),
                io.Combo.Input(
                    "kind",
                    options=choices(ReferenceNoise),
                    default=ReferenceNoise.FADE.value,
                    tooltip="Shuffle keeps the colours and loses the shapes.",
                ),
                share_input("strength", 1.0, "0 leaves the image unchanged."),
                io.Int.Input("blur", default=0, min=0, max=32, tooltip="Radius in pixels."),
                seed_input("The same seed gives the same noise."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The noisy image.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, kind: str, strength: float, blur: int, seed: int) -> io.NodeOutput:
        """Random numbers come from the seed alone."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        finite(strength=strength)
        noise = member(ReferenceNoise, kind, "kind")
        return io.NodeOutput(add_noise(to_rgb(image, "image"), noise, strength, generator, blur))


NODES = [
    IPAdapterOptions,
    EncodeReference,
    CombineEmbeds,
    SaveEmbeds,
    LoadEmbeds,
    WeightSchedule,
    PrepareReference,
    ReferenceNoiseNode,
]
