"""Graphs made for ComfyUI_IPAdapter_plus, where that pack is gone: which node of ours takes the place of which.

Newer hosts ask for this when they open a graph with nodes that nobody has. Two nodes are for such graphs alone, because
one node can take the place of one: `Apply Reference` is Apply Identity and IP-Adapter Options together, and
`Load Adapter Preset` finds by preset what three loaders find by file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.clip_vision import Unconditional
from ..adapters.effects import MaskResize
from ..adapters.image_prep import to_rgb
from ..adapters.ip_adapter.embeds import CombineMode, EmbedsScaling
from ..adapters.ip_adapter.reference import ReferenceOptions
from ..adapters.ip_adapter.weight_types import WeightType
from ..errors import LikenessError, logger
from ..faces import Choice, Identity, Provider, adopt_analysis, load_pack, to_photos
from ..faces.found import Rule, find_faces, identity_of
from ..injection.comfy import ManagedAdapter, apply_effects, request_layout, sites_of
from ..models_download import find_file, find_insightface_pack, select
from ..weights.families import SD15, SDXL, of_text_width
from .adapter_socket import as_managed
from .adapters import CATEGORY, ApplyIdentity
from .choices import choices, finite, member, must_exist
from .node import Node
from .progress import counter
from .references import IPAdapterOptions, Options
from .schema import AdapterSocket, FaceAnalysisSocket, lora_strength_input, schema

log = logger(__name__)

# Words of its simple node for weight types that have another name here.
SIMPLE_WORDS = {"standard": WeightType.LINEAR, "prompt is more important": WeightType.EASE_OUT}


# --- one node for one of its apply nodes


def _widgets(node: type[io.ComfyNode], *names: str) -> list[Any]:
    """Inputs of another node, as they are described there."""
    found = {widget.id: widget for widget in node.define_schema().inputs}
    return [found[name] for name in names]


class ApplyReference(Node):
    """What Apply Identity and IP-Adapter Options do, with the inputs and the defaults of IPAdapter_plus."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessApplyReference",
            display_name="Apply Reference",
            category=CATEGORY,
            description="An image as the reference of an adapter, in one node: for graphs made for IPAdapter_plus, "
            "whose apply nodes it replaces. New graphs are clearer with Apply Identity.",
            search_aliases=["IPAdapter", "IPAdapter Advanced"],
            is_dev_only=True,
            inputs=[
                *_widgets(ApplyIdentity, "model", "adapter"),
                io.Image.Input(
                    "image",
                    tooltip="The reference; for FaceID, photos of the person. With image_composition, the style.",
                ),
                *_widgets(ApplyIdentity, "weight", "start_at", "end_at"),
                io.Combo.Input(
                    "weight_type",
                    options=[*choices(WeightType), *SIMPLE_WORDS],
                    default=WeightType.LINEAR.value,
                    tooltip="How the strength is spread over the network. 'standard' is linear, 'prompt is more "
                    "important' is ease out.",
                ),
                io.Combo.Input(
                    "combine_embeds",
                    options=choices(CombineMode),
                    default=CombineMode.CONCAT.value,
                    tooltip="How several images make one reference.",
                ),
                *_widgets(IPAdapterOptions, "embeds_scaling", "weight_faceidv2", "weight_composition", "expand_style"),
                io.Boolean.Input(
                    "own_boost",
                    default=False,
                    tooltip="For the precise types: on, precise_boost sets how strongly the unwanted half is pushed "
                    "away; off, the strength does.",
                ),
                *_widgets(IPAdapterOptions, "precise_boost", "layer_weights", "sharpening", "unfold_batch", "tiled"),
                *_widgets(IPAdapterOptions, "detail_tiles", "detail_share"),
                *_widgets(IPAdapterOptions, "image_composition", "image_negative"),
                *_widgets(ApplyIdentity, "attn_mask", "clip_vision"),
                FaceAnalysisSocket.Input(
                    "face_analysis", optional=True, tooltip="Finds the face for FaceID. Load Adapter Preset brings one."
                ),
            ],
            outputs=[
                *ApplyIdentity.define_schema().outputs,
                io.Image.Output(display_name="face", tooltip="For FaceID the faces that were found, else the image."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: Any,
        image: torch.Tensor,
        weight: float,
        start_at: float,
        end_at: float,
        weight_type: str,
        combine_embeds: str,
        embeds_scaling: str,
        weight_faceidv2: float,
        weight_composition: float,
        expand_style: bool,
        own_boost: bool,
        precise_boost: float,
        layer_weights: str,
        sharpening: float,
        unfold_batch: bool,
        tiled: bool,
        detail_tiles: int,
        detail_share: float,
        image_composition: torch.Tensor | None = None,
        image_negative: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        clip_vision: Any = None,
        face_analysis: Any = None,
    ) -> io.NodeOutput:
        """The person from the images where the adapter reads faces, the images themselves where it does not."""
        adapter = as_managed(adapter)
        image = to_rgb(image, "image")
        person = _person(image, adapter, face_analysis) if adapter.adapter.needs.recogniser else None
        boost = precise_boost if own_boost else None
        reference = ReferenceOptions(
            weight_type=SIMPLE_WORDS.get(weight_type) or member(WeightType, weight_type, "weight_type"),
            layer_weights=layer_weights,
            composition_weight=weight_composition,
            style_boost=boost,
            composition_boost=boost,
            expand_style=expand_style,
            scaling=member(EmbedsScaling, embeds_scaling, "embeds_scaling"),
            combine=member(CombineMode, combine_embeds, "combine_embeds"),
            structure=weight_faceidv2,
            images=image if person is None else None,
            negative=None if image_negative is None else to_rgb(image_negative, "image_negative"),
            composition_images=None if image_composition is None else to_rgb(image_composition, "image_composition"),
            sharpening=sharpening,
            unconditional=Unconditional.BLACK_IMAGE,
            one_picture_each=unfold_batch,
            tiled=tiled,
            detail_tiles=detail_tiles,
            detail_share=detail_share,
        )
        encoder = clip_vision if clip_vision is not None else getattr(adapter, "clip_vision", None)
        options = Options(reference, MaskResize.BILINEAR)
        lora = 0.0  # such graphs load the LoRA of a FaceID file by a node of its own
        applied = ApplyIdentity.execute(
            model, adapter, weight, start_at, end_at, lora, person, encoder, attn_mask, options
        )
        face = image if person is None else person.portraits.float() / 255
        return io.NodeOutput(*applied.result, face)


def _person(photos: torch.Tensor, adapter: ManagedAdapter, face_analysis: Any) -> Identity:
    """Whom the photos show, by the most certain face of each."""
    analysis = face_analysis if face_analysis is not None else getattr(adapter, "face_analysis", None)
    if analysis is None:
        raise LikenessError(
            f"The adapter {adapter.name!r} reads a face: connect Load Face Analysis to face_analysis, with buffalo_l."
        )
    found = find_faces(adopt_analysis(analysis), to_photos(photos), Rule(Choice.SCORE), counter(len(photos)))
    identity, _ = identity_of(found, "the reference", -1.0, leave_out=False)
    return identity


# --- one node for its unified loaders


@dataclass(frozen=True)
class _Preset:
    """Files of a preset, by their names in our registry; the first that is there is taken. None: there are none."""

    sd15: tuple[str, ...] = ()
    sdxl: tuple[str, ...] = ()
    encoder: str = "clip-vit-h"


PRESETS = {
    "LIGHT - SD1.5 only (low strength)": _Preset(("ip-adapter_sd15_light_v11", "ip-adapter_sd15_light")),
    "STANDARD (medium strength)": _Preset(("ip-adapter_sd15",), ("ip-adapter_sdxl_vit-h",)),
    "VIT-G (medium strength)": _Preset(("ip-adapter_sd15_vit-G",), ("ip-adapter_sdxl",), "clip-vit-bigg"),
    "PLUS (high strength)": _Preset(("ip-adapter-plus_sd15",), ("ip-adapter-plus_sdxl_vit-h",)),
    "PLUS FACE (portraits)": _Preset(("ip-adapter-plus-face_sd15",), ("ip-adapter-plus-face_sdxl_vit-h",)),
    "FULL FACE - SD1.5 only (portraits stronger)": _Preset(("ip-adapter-full-face_sd15",)),
    "FACEID": _Preset(("ip-adapter-faceid_sd15",), ("ip-adapter-faceid_sdxl",)),
    "FACEID PLUS - SD1.5 only": _Preset(("ip-adapter-faceid-plus_sd15",)),
    "FACEID PLUS V2": _Preset(("ip-adapter-faceid-plusv2_sd15",), ("ip-adapter-faceid-plusv2_sdxl",)),
    "FACEID PORTRAIT (style transfer)": _Preset(
        ("ip-adapter-faceid-portrait-v11_sd15", "ip-adapter-faceid-portrait_sd15"), ("ip-adapter-faceid-portrait_sdxl",)
    ),
    "FACEID PORTRAIT UNNORM - SDXL only (strong)": _Preset((), ("ip-adapter-faceid-portrait_sdxl_unnorm",)),
    "Composition": _Preset(("ip_plus_composition_sd15",), ("ip_plus_composition_sdxl",)),
}


class EquippedAdapter(ManagedAdapter):
    """An adapter, with the encoder and the face analysis that it reads through."""

    def __init__(self, adapter: Any, clip_vision: Any, face_analysis: Any) -> None:
        super().__init__(adapter)
        self.clip_vision, self.face_analysis = clip_vision, face_analysis


@must_exist(provider=partial(member, Provider, name="provider"))
class LoadAdapterPreset(Node):
    """What the unified loaders of IPAdapter_plus do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadAdapterPreset",
            display_name="Load Adapter Preset",
            category=CATEGORY,
            description="Finds an adapter, its image encoder and its face analysis by the presets of IPAdapter_plus, "
            "for graphs made for that pack. New graphs are clearer with Load Identity Adapter, which takes any file.",
            search_aliases=["IPAdapter Unified Loader", "IPAdapter Unified Loader FaceID"],
            is_dev_only=True,
            inputs=[
                io.Model.Input("model", tooltip="Decides whether the files for SD1.5 or for SDXL are loaded."),
                io.Combo.Input("preset", options=list(PRESETS), tooltip="Which adapter. FACEID ones read faces."),
                lora_strength_input(
                    0.6, "Strength of the LoRA in FaceID files, which changes the MODEL itself. Other files have none."
                ),
                io.Combo.Input(
                    "provider",
                    options=choices(Provider),
                    default=Provider.AUTO.value,
                    tooltip="Where buffalo_l runs, which FaceID needs.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL, with the LoRA of FaceID files."),
                AdapterSocket.Output(
                    display_name="adapter", tooltip="For Apply Reference, which needs no encoder and no analysis then."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, preset: str, lora_strength: float = 0.6, provider: str = "auto") -> io.NodeOutput:
        """Find, load, and put the LoRA onto the MODEL."""
        from comfy.clip_vision import load as load_encoder

        from ..adapters import load

        finite(lora_strength=lora_strength)
        chosen = PRESETS.get(preset)
        if chosen is None:
            raise LikenessError(f"{preset!r} is not a preset: choose one of {', '.join(PRESETS)}.")
        adapter = load(_file_of(preset, chosen, model))
        needs, analysis, encoder = adapter.needs, None, None
        if needs.recogniser is not None:
            where = member(Provider, provider, "provider")
            analysis = load_pack(find_insightface_pack(needs.recogniser), where)
        if needs.encoder_width is not None:
            encoder = load_encoder(str(_registered(chosen.encoder)))
        equipped = EquippedAdapter(adapter, encoder, analysis)
        lora = getattr(adapter, "lora", None)
        delta = lora(request_layout(model)[1], lora_strength) if lora is not None else None
        tuned = model if delta is None else apply_effects(model, [delta]).model
        return io.NodeOutput(tuned, equipped)


def _file_of(preset: str, chosen: _Preset, model: Any) -> Path:
    """The first of the preset's files for this base model that is there; LikenessError that says how to get one."""
    offered = {SD15: chosen.sd15, SDXL: chosen.sdxl}
    widths = [site.context_dim for site in sites_of(model)]
    names = offered.get(of_text_width(widths[0]), ()) if widths else ()
    if not names:
        others = " or ".join(family.title for family, some in offered.items() if some)
        raise LikenessError(
            f"The preset {preset!r} has no adapter for this MODEL: choose another preset, or a checkpoint of {others}."
        )
    missing = None
    for name in names:
        try:
            return _registered(name)
        except LikenessError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _registered(name: str) -> Path:
    [entry] = select(name)
    return find_file(entry.kind, entry.within_kind)


# --- what newer hosts are told


@dataclass(frozen=True)
class Replacement:
    """A node of ours for a node of that pack.

    widgets: the old node's, in the order of their values in a graph. inputs: our input -> the old one. values: what
    our inputs are set to. outputs: place of the old output -> place of ours.
    """

    new: str
    widgets: tuple[str, ...]
    inputs: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[int, int] = field(default_factory=lambda: {0: 0})


def _applied(*widgets: str, links: Mapping[str, str] | None = None, outputs: Any = None, **values: Any) -> Replacement:
    """Apply Reference in the place of an apply node. Widgets keep their names, but for those that `links` renames."""
    renamed = {"adapter": "ipadapter", "image": "image", **(links or {})}
    given = {"model": "model", **renamed, **{n: n for n in ("image_negative", "attn_mask", "clip_vision")}}
    old = set(renamed.values())
    given |= {widget: widget for widget in widgets if widget not in old and widget not in values and widget != _UNUSED}
    return Replacement("LikenessApplyReference", widgets, given, values, outputs or {0: 0})


_UNUSED = "encode_batch_size"  # of no influence on the result


def replacements() -> dict[str, Replacement]:
    """Ours for each node of IPAdapter_plus that has one: where the result is the same but for what
    docs/from-ipadapter-plus.md says."""
    window, scaling = ("start_at", "end_at"), "embeds_scaling"
    usual = ("weight", "weight_type", "combine_embeds", *window, scaling)
    batch = ("weight", "weight_type", *window, scaling)
    face = ("weight", "weight_faceidv2", "weight_type", "combine_embeds", *window, scaling)
    analysis = {"face_analysis": "insightface"}
    styles = {"image": "image_style", "image_composition": "image_composition", "weight": "weight_style"}
    both = ("weight_style", "weight_composition", "expand_style")
    tiles = {"detail_tiles": "enhance_tiles", "detail_share": "enhance_ratio"}
    found = {
        "IPAdapter": _applied("weight", *window, "weight_type"),
        "IPAdapterAdvanced": _applied(*usual),
        "IPAdapterBatch": _applied(*batch, _UNUSED, unfold_batch=True),
        "IPAdapterFaceID": _applied(*face, links=analysis, outputs={0: 0, 1: 2}),
        "IPAAdapterFaceIDBatch": _applied(*face, links=analysis, outputs={0: 0, 1: 2}, unfold_batch=True),
        "IPAdapterStyleComposition": _applied(*both, "combine_embeds", *window, scaling, links=styles),
        "IPAdapterStyleCompositionBatch": _applied(*both, *window, scaling, links=styles, unfold_batch=True),
        "IPAdapterMS": _applied(*face, "layer_weights", links=analysis),
        "IPAdapterClipVisionEnhancer": _applied(*usual, "enhance_tiles", "enhance_ratio", links=tiles),
        "IPAdapterClipVisionEnhancerBatch": _applied(
            *(*batch, "enhance_tiles", "enhance_ratio", _UNUSED), links=tiles, unfold_batch=True
        ),
        "IPAdapterTiled": _applied(
            *("weight", "weight_type", "combine_embeds", *window, "sharpening", scaling), tiled=True
        ),
    }
    for name, boost, kind in (
        ("IPAdapterPreciseStyleTransfer", "style_boost", WeightType.STYLE_TRANSFER_PRECISE),
        ("IPAdapterPreciseComposition", "composition_boost", WeightType.COMPOSITION_PRECISE),
    ):
        widgets = ("weight", boost, "combine_embeds", *window, scaling)
        set_to = {"weight_type": kind.value, "own_boost": True}
        found[name] = _applied(*widgets, links={"precise_boost": boost}, **set_to)
        found[f"{name}Batch"] = _applied(*widgets, links={"precise_boost": boost}, **set_to, unfold_batch=True)

    preset = {"model": "model", "preset": "preset"}
    loaded, loader = {0: 0, 1: 1}, "LikenessLoadAdapterPreset"
    found |= {
        "IPAdapterUnifiedLoader": Replacement(loader, ("preset",), preset, outputs=loaded),
        "IPAdapterUnifiedLoaderCommunity": Replacement(loader, ("preset",), preset, outputs=loaded),
        "IPAdapterUnifiedLoaderFaceID": Replacement(
            loader,
            ("preset", "lora_strength", "provider"),
            {**preset, "lora_strength": "lora_strength", "provider": "provider"},
            outputs=loaded,
        ),
        "IPAdapterModelLoader": Replacement(
            "LikenessLoadIdentityAdapter", ("ipadapter_file",), {"adapter_file": "ipadapter_file"}
        ),
        "IPAdapterInsightFaceLoader": Replacement(
            "LikenessLoadFaceAnalysis", ("provider", "model_name"), {"model": "model_name", "provider": "provider"}
        ),
        "PrepImageForClipVision": Replacement(
            "LikenessPrepareReference",
            ("interpolation", "crop_position", "sharpening"),
            {"image": "image", "crop": "crop_position", "interpolation": "interpolation", "sharpening": "sharpening"},
        ),
        "IPAdapterNoise": Replacement(
            "LikenessReferenceNoise",
            ("type", "strength", "blur"),
            {"image": "image_optional", "kind": "type", "strength": "strength", "blur": "blur"},
        ),
        "IPAdapterEncoder": Replacement(
            "LikenessEncodeReference",
            ("weight",),
            {"adapter": "ipadapter", **{name: name for name in ("clip_vision", "image", "weight", "mask")}},
        ),
        "IPAdapterCombineEmbeds": Replacement(
            "LikenessCombineEmbeds",
            ("method",),
            {"method": "method", **{f"embeds_{number}": f"embed{number}" for number in range(1, 6)}},
        ),
        "IPAdapterSaveEmbeds": Replacement(
            "LikenessSaveEmbeds",
            ("filename_prefix",),
            {"embeds": "embeds", "filename": "filename_prefix"},
            outputs={},
        ),
        "IPAdapterLoadEmbeds": Replacement("LikenessLoadEmbeds", ("embeds",), {"file": "embeds"}),
    }
    return found


async def register() -> None:
    """Tell the host, where it knows of replacements."""
    declaration = getattr(io, "NodeReplace", None)
    if declaration is None:
        return
    try:
        from comfy_api.latest import ComfyAPI

        registry, kind = ComfyAPI().node_replacement, _for_browsers(declaration)
        for old, replacement in replacements().items():
            await registry.register(_declared(kind, old, replacement))
    except Exception as error:  # an API that is still moving must not take the pack with it
        log.debug("[likeness] Replacements for IPAdapter_plus could not be registered: %s", error)


def _declared(kind: type, old: str, replacement: Replacement) -> Any:
    inputs = [{"new_id": new, "old_id": given} for new, given in replacement.inputs.items()]
    inputs += [{"new_id": new, "set_value": value} for new, value in replacement.values.items()]
    outputs = [{"old_idx": before, "new_idx": now} for before, now in replacement.outputs.items()]
    return kind(replacement.new, old, list(replacement.widgets), inputs, outputs)


def _for_browsers(declaration: type) -> type:
    """The host's declaration, for browsers alone.

    The server replaces nodes of API prompts by itself and expects every input that is mapped: one that a graph leaves
    open (a mask, say) is a KeyError there, and the user reads "500" in the place of the missing node's name. It leaves
    alone what it has no node for.
    """

    class ForBrowsers(declaration):
        def __init__(self, new: str, *rest: Any) -> None:
            super().__init__("", *rest)
            self.offered = new

        def as_dict(self) -> dict[str, Any]:
            return {**super().as_dict(), "new_node_id": self.offered}

    return ForBrowsers


NODES: list[type[io.ComfyNode]] = [ApplyReference, LoadAdapterPreset]
