"""What a system does to a denoiser, as data: a system returns effects, a binding of `injection` applies them.

    AttentionTerm   tokens that every cross-attention site attends to beside the text
    WeightDelta     a low-rank or full change of the denoiser's own weights
    ControlContext  tokens that one ControlNet reads in place of the text
    PromptEdit      a change of the text's states, which rides on the conditioning it was made for

Every effect has a `Scope`: when, where and in which images of a batch it acts. Nothing here knows a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

from ..checks import EMPTY_MASK
from ..weights.lora import LoraPair
from .types import IdentityTokens, KeyValueScaling, SiteWeight, SiteWeights, v_only


class MaskResize(Enum):
    """How a mask is brought to another size; the value is the name an artist chooses."""

    AREA = "area"  # the mean of what a token covers: thin regions keep their share even at 8 x 8 tokens
    BILINEAR = "bilinear"  # as ComfyUI_IPAdapter_plus
    BICUBIC = "bicubic"  # as diffusers; overshoots 0..1 at edges
    NEAREST = "nearest"  # as InstantID's own code at attention sites; edges stay hard


@dataclass(frozen=True, eq=False)
class Scope:
    """When, where and in which images an effect acts.

    start, end: the window of sampling, as a share of the whole (0 = first step, 1 = last). mask: optional
    (1 | images, H, W), 0..1, at any size. image_weights: optional factor per image of the latent batch.
    """

    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    mask_resize: MaskResize = MaskResize.AREA
    image_weights: tuple[float, ...] | None = None

    @property
    def whole_run(self) -> bool:
        """Whether the window is all of the sampling."""
        return self.start <= 0 and self.end >= 1

    @property
    def why_never(self) -> str | None:
        """Why it never acts, in words; None when it can."""
        if self.start >= self.end:
            return f"start {self.start:g} is not before end {self.end:g}"
        if self.mask is not None and not bool(self.mask.any()):
            return f"the mask is empty ({EMPTY_MASK})"
        return None


class Projector(Protocol):
    """The part of an adapter that makes keys and values."""

    name: str

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text)"""
        ...

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, n, dim) -> keys and values, each (rows, n, width)"""
        ...


@dataclass(frozen=True, eq=False)
class AttentionTerm:
    """Tokens of one identity (or one picture of it) that the cross-attention sites attend to beside the text.

    tokens: rows 1, or one row per image of the latent batch. site_weights: one entry per spatial transformer in
    execution order. region: (1, H, W), where these tokens belong whatever the scope says, as a tile of a reference.
    """

    projector: Projector
    tokens: IdentityTokens
    site_weights: SiteWeights
    scaling: KeyValueScaling = v_only
    scope: Scope = field(default_factory=Scope)
    region: Tensor | None = None

    def weight_at(self, transformer: int) -> SiteWeight:
        """How strongly the sites of a spatial transformer attend to the identity."""
        return self.site_weights[transformer]

    @property
    def why_never(self) -> str | None:
        """Why it can never change the picture, in words; None when it can."""
        if all(weight.strength == 0 for weight in self.site_weights):
            return "the strength is 0"
        return self.scope.why_never


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """A change of the denoiser's own weights, the same in every step.

    name: of the file, for messages. id: tells this change from others, whatever the files are called; two effects of
    one id are applied once, with the greater strength, so that several people can use one adapter. changes: LoRA pairs
    or whole differences of the weights, by diffusers' path of the layer, without ".weight".
    """

    name: str
    id: str
    changes: Mapping[str, LoraPair | Tensor]
    strength: float = 1.0

    @property
    def why_never(self) -> str | None:
        """Why it can never change the picture, in words; None when it can."""
        return "the strength is 0" if self.strength == 0 or not self.changes else None


@dataclass(frozen=True, eq=False)
class ControlContext:
    """Tokens that one ControlNet reads in place of the text; every other net keeps reading the text.

    name: of the adapter, for messages. strength: of what the net adds to the denoiser. scope: its window counts steps,
    not noise; its mask is where the net acts.
    """

    name: str
    tokens: IdentityTokens
    strength: float = 1.0
    scope: Scope = field(default_factory=Scope)

    @property
    def why_never(self) -> str | None:
        """Why it can never change the picture, in words; None when it can."""
        return "the strength is 0" if self.strength == 0 else self.scope.why_never


@dataclass(frozen=True)
class PromptStates:
    """A text as the denoiser reads it. states: (batch, n, dim); pooled: (batch, p), None where the family has none."""

    states: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PromptEdit:
    """A change of the text's states. It acts on the conditioning it is applied to, within the scope's window."""

    edit: Callable[[PromptStates], PromptStates]
    scope: Scope = field(default_factory=Scope)

    @property
    def why_never(self) -> str | None:
        """Why it can never change the picture, in words; None when it can."""
        return self.scope.why_never


Effect = AttentionTerm | WeightDelta | ControlContext | PromptEdit
