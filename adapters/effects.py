"""What a system does to a denoiser, as data: a system returns effects, a binding of `injection` applies them.

    AttentionTerm   tokens that every cross-attention site attends to beside the text
    BlockTerm       modules that run behind the transformer blocks of a DiT
    WeightDelta     a low-rank or full change of the denoiser's own weights
    ControlContext  tokens that one ControlNet reads in place of the text
    PromptEdit      a change of the text's states, which rides on the conditioning it was made for
    ReferenceTerm   photos whose clean latents a DiT attends to behind its own tokens

Every effect has a `Scope`: when, where and in which images of a batch it acts. Nothing here knows a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

from ..checks import EMPTY_MASK
from ..weights.families import DitBlock
from ..weights.lora import LoraPair
from .types import IdentityTokens, KeyValueScaling, SiteWeight, SiteWeights, v_only


class MaskResize(Enum):
    """How a mask is brought to another size; the value is the name a user chooses."""

    AREA = "area"  # the mean of what a token covers: thin regions keep their share even at 8 x 8 tokens
    BILINEAR = "bilinear"  # as ComfyUI_IPAdapter_plus
    BICUBIC = "bicubic"  # as diffusers; overshoots 0..1 at edges
    NEAREST = "nearest"  # as InstantID's own code at attention sites; edges stay hard


@dataclass(frozen=True, eq=False)
class Scope:
    """When, where and in which images an effect acts.

    start, end: the window of sampling, as a share of the whole (0 = first step, 1 = last). mask: optional
    (1 | images, H, W), 0..1, at any size. image_weights: optional factor per image of the latent batch.

    first_step: number of steps of a run -> the first in which it acts, from 0; where the steps of a run are known it
    stands in for `start`, exactly for every scheduler. start_sigma: the highest noise level at which it acts; it stands
    in for both.
    """

    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    mask_resize: MaskResize = MaskResize.AREA
    image_weights: tuple[float, ...] | None = None
    first_step: Callable[[int], int] | None = None
    start_sigma: float | None = None

    @property
    def whole_run(self) -> bool:
        """Whether the window is all of the sampling."""
        return self.start <= 0 and self.end >= 1 and self.first_step is None and self.start_sigma is None

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


class Merge(Protocol):
    """How the attention to a person joins the attention to the text, at one site."""

    def __call__(self, text: Tensor, identity: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """What is added to `text`, which is left as it is: (batch, L, width).

        text: the site's own attention; identity: that to the person, with the strength in it; queries: all (batch, L,
        width). keys: the person's, (groups, heads, n_tokens, width / heads), where each group serves a run of
        consecutive images. Without a merge `identity` itself is added. Linear in `identity`, so that the strength
        stays one.
        """
        ...


@dataclass(frozen=True, eq=False)
class AttentionTerm:
    """Tokens of one identity (or one image of it) that the cross-attention sites attend to beside the text.

    tokens: rows 1, or one row per image of the latent batch. site_weights: one entry per spatial transformer in
    execution order. region: (1, H, W), where these tokens belong whatever the scope says, as a tile of a reference.
    merge: how their attention joins the text's, None for a sum; it needs as many tokens in both halves.
    """

    projector: Projector
    tokens: IdentityTokens
    site_weights: SiteWeights
    scaling: KeyValueScaling = v_only
    scope: Scope = field(default_factory=Scope)
    region: Tensor | None = None
    merge: Merge | None = None

    def weight_at(self, transformer: int) -> SiteWeight:
        """How strongly the sites of a spatial transformer attend to the identity."""
        return self.site_weights[transformer]

    @property
    def why_never(self) -> str | None:
        """Why it can never change the image, in words; None when it can."""
        if all(weight.strength == 0 for weight in self.site_weights):
            return "the strength is 0"
        return self.scope.why_never


Prepared = tuple[Tensor, ...]  # what a module makes of tokens; each has their rows in front


class BlockModules(Protocol):
    """The part of an adapter that runs behind the transformer blocks of a DiT; its modules have numbers."""

    @property
    def name(self) -> str:
        """The file's, for messages."""
        ...

    @property
    def width(self) -> int:
        """Of the image's tokens that they read."""
        ...

    @property
    def at_every_step(self) -> bool:
        """Whether `residual` reads weights of its own; otherwise what was prepared is all that a step needs."""
        ...

    def prepare(self, number: int, tokens: Tensor) -> Prepared:
        """What a module makes of a person's tokens alone, such as keys and values: (rows, n, dim) -> (rows, ...)"""
        ...

    def residual(self, number: int, images: Tensor, prepared: Prepared) -> Tensor:
        """What a module adds to the image's tokens: (batch, L, width) and (1 | batch, ...) -> (batch, L, width), which
        is the caller's to change."""
        ...


@dataclass(frozen=True, eq=False)
class BlockTerm:
    """Modules of one person behind the transformer blocks of a DiT: images + strength · residual(images, tokens).

    numbers: which block has which module behind it; a module may serve several. tokens: rows 1, or one row per image of
    the latent batch, and as many in both halves. All terms of a block read its own output, so that people commute.
    """

    modules: BlockModules
    numbers: Mapping[DitBlock, int]
    tokens: IdentityTokens
    strength: float = 1.0
    scope: Scope = field(default_factory=Scope)

    @property
    def why_never(self) -> str | None:
        """Why it can never change the image, in words; None when it can."""
        if self.strength == 0 or not self.numbers:
            return "the strength is 0" if self.numbers else "the MODEL has no block it acts on"
        return self.scope.why_never


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """A change of the denoiser's own weights, in the steps of its scope's window.

    name: of the file, for messages. id: tells this change from others, whatever the files are called; two effects of
    one id are applied once, with the greater strength, so that several people can use one adapter. changes: LoRA pairs
    or whole differences of the weights, by diffusers' path of the layer, without ".weight"; of a bias by its whole
    name. A weight is the same for the whole image, so that of the scope only the window counts.

    replaces: the changes are all the weights of another denoiser, towards which the model's own move: 1 puts them in
    their place, whatever was there. What other changes add is added to the result, in any order. In the whole run
    alone.
    """

    name: str
    id: str
    changes: Mapping[str, LoraPair | Tensor]
    strength: float = 1.0
    scope: Scope = field(default_factory=Scope)
    replaces: bool = False

    @property
    def why_never(self) -> str | None:
        """Why it can never change the image, in words; None when it can."""
        return "the strength is 0" if self.strength == 0 or not self.changes else self.scope.why_never


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
        """Why it can never change the image, in words; None when it can."""
        return "the strength is 0" if self.strength == 0 else self.scope.why_never


@dataclass(frozen=True)
class PromptStates:
    """A text as the denoiser reads it. states: (batch, n, dim); pooled: (batch, p), None where the family has none.

    values: (batch, n, dim), of which the values of every cross-attention are made; None: of the states, as its keys.
    """

    states: Tensor
    pooled: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PromptEdit:
    """A change of the text's states. It acts on the conditioning it is applied to, within the scope's window."""

    edit: Callable[[PromptStates], PromptStates]
    scope: Scope = field(default_factory=Scope)

    @property
    def why_never(self) -> str | None:
        """Why it can never change the image, in words; None when it can."""
        return self.scope.why_never


Cells = tuple[int, int]  # height, width in latent cells

# Tokens of text, the target's cells and each reference's -> position ids of the text (L, axes), and of the image
# (T + R, axes), the target's first. A tuple of them in this order.
Placement = Callable[[int, Cells, Sequence[Cells]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ReferencePhoto:
    """A photo as a model attends to it. latent: (1, C, h, w), as the VAE returns it. face: (1, H, W), 0..1, over all of
    it; where there is one, the strength counts in the face alone."""

    latent: Tensor
    face: Tensor | None = None


class Photos(Protocol):
    """The photos of one person, which have to wait for the size of the target."""

    def __len__(self) -> int: ...

    def encoded(self, target: Cells, references: int) -> Sequence[ReferencePhoto]:
        """One for each, for a target of this size in latent cells beside `references` in all. Loads the VAE."""
        ...


@dataclass(frozen=True, eq=False)
class ReferenceTerm:
    """Photos of one person that a DiT attends to as clean latents, in the order in which people are applied.

    name: of the adapter, for messages. scheme: what the model was trained on, in a user's words; a MODEL has one.
    placement: of all references of a call. method: ComfyUI's name of it, with the timestep of references in it.
    isolated: references do not see text and target; separate: nor each other. strength: the factor on the weight of
    their tokens for the target's, 1 is official; 0 leaves them out. The scope's mask is where the person may appear.
    """

    name: str
    scheme: str
    photos: Photos
    placement: Placement
    method: str = "index"
    isolated: bool = False
    separate: bool = False
    strength: float = 1.0
    scope: Scope = field(default_factory=Scope)

    @property
    def why_never(self) -> str | None:
        """Why it can never change the image, in words; None when it can."""
        return "the strength is 0" if self.strength == 0 else self.scope.why_never


Effect = AttentionTerm | BlockTerm | WeightDelta | ControlContext | PromptEdit | ReferenceTerm
