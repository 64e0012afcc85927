"""Families of base models: the one table of what is known of each, and how models and files are told to be of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple


@dataclass(frozen=True)
class TextEncoderLayout:
    """A CLIP text encoder. name: what the host and embedding files call it. open_clip: whether checkpoints hold it
    under OpenCLIP's names instead of transformers'."""

    name: str
    width: int
    open_clip: bool


CLIP_L = TextEncoderLayout("clip_l", 768, open_clip=False)
CLIP_G = TextEncoderLayout("clip_g", 1280, open_clip=True)
CLIP_H = TextEncoderLayout("clip_h", 1024, open_clip=True)
TEXT_ENCODERS = (CLIP_L, CLIP_G, CLIP_H)
HEAD_WIDTH = 64  # of every CLIP, and of the UNets that have no fixed number of heads


@dataclass(frozen=True)
class Family:
    """One family.

    title: what users call it. host: ComfyUI's names of its configurations, for families that are not a UNet.

    Its UNet: text_width: channels of the text. sites: cross-attention layers. site_width: channels of a site where all
    have the same, else None. inputs, outputs: ComfyUI's numbers of the blocks that hold spatial transformers; a middle
    one lies between them. heads: how many each attention has, None where they are `HEAD_WIDTH` wide.

    Its files: texts: prefix and kind of each text encoder in a checkpoint. text_skip: last layers of it that are not
    read. latent_side, latent_scale: of the images it was made for. kohya, modelspec: its names in metadata.
    """

    title: str
    host: tuple[str, ...] = ()
    text_width: int | None = None
    sites: int = 0
    site_width: int | None = None
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    heads: int | None = None
    texts: tuple[tuple[str, TextEncoderLayout], ...] = ()
    text_skip: int = 0
    latent_side: int = 0
    latent_scale: float = 1.0
    kohya: str = ""
    modelspec: str = ""


_SD15_INPUTS, _SD15_OUTPUTS = (1, 2, 4, 5, 7, 8), (3, 4, 5, 6, 7, 8, 9, 10, 11)

SD15 = Family(
    "SD1.5",
    text_width=CLIP_L.width,
    sites=16,
    inputs=_SD15_INPUTS,
    outputs=_SD15_OUTPUTS,
    heads=8,
    texts=(("cond_stage_model.transformer.", CLIP_L),),
    latent_side=64,
    latent_scale=0.18215,
    kohya="sd_v1",
    modelspec="stable-diffusion-v1",
)
SD2 = Family(
    "SD2",
    text_width=CLIP_H.width,
    sites=16,
    inputs=_SD15_INPUTS,
    outputs=_SD15_OUTPUTS,
    texts=(("cond_stage_model.model.", CLIP_H),),
    text_skip=1,
    latent_side=96,
    latent_scale=0.18215,
    kohya="sd_v2",
    modelspec="stable-diffusion-v2",
)
SDXL = Family(
    "SDXL",
    text_width=CLIP_L.width + CLIP_G.width,
    sites=70,
    inputs=(4, 5, 7, 8),
    outputs=(0, 1, 2, 3, 4, 5),
    texts=(("conditioner.embedders.0.transformer.", CLIP_L), ("conditioner.embedders.1.model.", CLIP_G)),
    latent_side=128,
    latent_scale=0.13025,
    kohya="sdxl_base_v1-0",
    modelspec="stable-diffusion-xl-v1-base",
)
FLUX = Family("FLUX", host=("Flux", "FluxInpaint", "FluxSchnell"), text_width=4096)
KREA2 = Family("Krea 2", host=("Krea2",))
FLUX2 = Family("FLUX.2", host=("Flux2",))
QWEN_IMAGE = Family("Qwen-Image", host=("QwenImage",))
MINIATURE = Family("the miniature", text_width=128, sites=7, site_width=128)
OTHER = Family("another model")

TRAINABLE = (SD15, SD2, SDXL)
FAMILIES = (*TRAINABLE, FLUX, KREA2, FLUX2, QWEN_IMAGE, MINIATURE)


def of_text_width(width: int) -> Family:
    """By the channels of the text alone: an adapter's or a LoRA's family, whatever was pruned from the model."""
    return next((family for family in (*TRAINABLE, MINIATURE) if family.text_width == width), OTHER)


def of_sites(shapes: Sequence[tuple[int, int]]) -> Family:
    """By (width of the site, width of the text) of every cross-attention layer of a model; OTHER for pruned ones."""
    for family in FAMILIES:
        if family.sites == len(shapes) > 0 and all(_is_site_of(family, *shape) for shape in shapes):
            return family
    return OTHER


def _is_site_of(family: Family, width: int, text_width: int) -> bool:
    return text_width == family.text_width and family.site_width in (None, width)


def of_adapter(shapes: Sequence[tuple[int, int]]) -> Family:
    """By the sites an adapter was made for; one whose model was pruned is of its text's family."""
    family = of_sites(shapes)
    if family is not OTHER:
        return family
    return next((one for one in TRAINABLE if one.text_width == shapes[0][1]), OTHER)  # nobody prunes the miniature


def of_host(name: str) -> Family:
    """By the name of ComfyUI's configuration, as in 'FluxSchnell'; OTHER for UNets, which their sites tell apart."""
    return next((family for family in FAMILIES if name in family.host), OTHER)


def of_checkpoint(keys: Iterable[str]) -> Family | None:
    """By the text encoders among the keys of a checkpoint; None when no family's are all there."""
    keys = list(keys)

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in keys)

    most_encoders_first = sorted(TRAINABLE, key=lambda family: -len(family.texts))
    return next((f for f in most_encoders_first if all(has(prefix) for prefix, _ in f.texts)), None)


def of_text_encoders(names: Sequence[str]) -> Family:
    """By the kinds of a model's text encoders: any two are SDXL's, one that is not OpenCLIP's is SD1.5's."""
    if len(names) > 1:
        return SDXL
    return SD2 if names[0] == CLIP_H.name else SD15


def text_encoder_of_width(width: int) -> TextEncoderLayout:
    """By the width of its vectors; CLIP-L for any that is not published, as of models made for tests."""
    return next((encoder for encoder in TEXT_ENCODERS if encoder.width == width), CLIP_L)


def listed(families: Iterable[Family], last: str = "and") -> str:
    """Their titles in a sentence: 'SD1.5, SD2 and SDXL'."""
    *first, end = [family.title for family in families]
    return f"{', '.join(first)} {last} {end}" if first else end


@dataclass(frozen=True)
class TransformerLayout:
    """Where a UNet keeps its spatial transformers: ComfyUI's block numbers, in execution order."""

    inputs: tuple[int, ...]
    has_middle: bool
    outputs: tuple[int, ...]

    @classmethod
    def of_blocks(cls, blocks: Iterable[tuple[str, int]]) -> TransformerLayout:
        """From ComfyUI's (name, number) of every spatial transformer, in execution order."""
        blocks = list(blocks)
        return cls(
            inputs=tuple(number for name, number in blocks if name == "input"),
            has_middle=any(name == "middle" for name, _ in blocks),
            outputs=tuple(number for name, number in blocks if name == "output"),
        )

    @classmethod
    def of_family(cls, family: Family) -> TransformerLayout:
        """That of a family's full UNet."""
        return cls(family.inputs, True, family.outputs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per transformer index, such as "input.8", "middle.0", "output.1"."""
        return (
            *(f"input.{number}" for number in self.inputs),
            *(["middle.0"] if self.has_middle else []),
            *(f"output.{number}" for number in self.outputs),
        )

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """One part per transformer index: "input", "middle" or "output"."""
        return tuple(name.partition(".")[0] for name in self.names)

    def __len__(self) -> int:
        return len(self.names)


class BlockKind(Enum):
    """The two kinds of a DiT's transformer blocks; the value is ComfyUI's name."""

    DOUBLE = "double_block"  # image and text apart
    SINGLE = "single_block"  # image and text in one sequence


class DitBlock(NamedTuple):
    """One transformer block of a DiT."""

    kind: BlockKind
    index: int


@dataclass(frozen=True)
class DitLayout:
    """How many transformer blocks of each kind a DiT has, and the width of its tokens."""

    double: int
    single: int
    width: int

    @property
    def blocks(self) -> tuple[DitBlock, ...]:
        """All of them, in execution order."""
        return (
            *(DitBlock(BlockKind.DOUBLE, i) for i in range(self.double)),
            *(DitBlock(BlockKind.SINGLE, i) for i in range(self.single)),
        )

    def every(self, double: int, single: int) -> dict[DitBlock, int]:
        """Consecutive numbers for every so-manieth block of each kind, the first included (PuLID: 2 and 4)."""
        step = {BlockKind.DOUBLE: double, BlockKind.SINGLE: single}
        chosen = [block for block in self.blocks if block.index % step[block.kind] == 0]
        return {block: number for number, block in enumerate(chosen)}
