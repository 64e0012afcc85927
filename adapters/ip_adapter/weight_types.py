"""How strongly each spatial transformer of the UNet attends to the reference: the weight types of IP-Adapter packs.

A weight type is a small function from a network layout and a weight to one `SiteWeight` per spatial transformer, in
execution order (input, middle, output). Names and numbers follow cubiq/ComfyUI_IPAdapter_plus@9d076a3, so that
workflows carry over; the middle block, which that pack leaves unpatched, gets its weight here.

The "precise" types use the swap of `SiteWeight`: the unwanted half of the reference (its layout, or its style) is
pushed away by guidance. They therefore do nothing at cfg 1, and their strength grows with cfg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from ...checks import LARGEST_FACTOR, check_number
from ...errors import LikenessError
from ...weights import families
from ...weights.families import TransformerLayout
from ..types import SiteWeight, SiteWeights, scale

SD15 = TransformerLayout.of_family(families.SD15)  # and SD2, which has the same
SDXL = TransformerLayout.of_family(families.SDXL)


class WeightType(Enum):
    """How the weight is spread over the network; the value is the name a user chooses."""

    LINEAR = "linear"
    EASE_IN = "ease in"
    EASE_OUT = "ease out"
    EASE_IN_OUT = "ease in-out"
    REVERSE_IN_OUT = "reverse in-out"
    WEAK_INPUT = "weak input"
    WEAK_OUTPUT = "weak output"
    WEAK_MIDDLE = "weak middle"
    STRONG_MIDDLE = "strong middle"
    STYLE_TRANSFER = "style transfer"
    COMPOSITION = "composition"
    STRONG_STYLE_TRANSFER = "strong style transfer"
    STYLE_AND_COMPOSITION = "style and composition"
    STRONG_STYLE_AND_COMPOSITION = "strong style and composition"
    STYLE_TRANSFER_PRECISE = "style transfer precise"
    COMPOSITION_PRECISE = "composition precise"


@dataclass(frozen=True)
class _Roles:
    """What users found the transformers of one base model to carry (transformer indices)."""

    style: frozenset[int]
    composition: Mapping[int, float]  # index -> share of the weight it takes when used alone
    neutral: frozenset[int]  # the rest: neither style nor layout

    def __post_init__(self) -> None:
        assert not (self.style & set(self.composition) or self.style & self.neutral)


_ROLES: dict[TransformerLayout, _Roles] = {
    SD15: _Roles(frozenset({0, 1, 2, 3, *range(9, 16)}), {4: 0.25, 5: 1.0}, frozenset({6, 7, 8})),
    SDXL: _Roles(frozenset({6}), {3: 1.0}, frozenset({0, 1, 2, 4, 5, 7, 8, 9, 10})),
}

_FLOOR = 0.05  # what the weakest end of an ease curve keeps
_WEAK = 0.2
_FAINT = 0.1  # share of the boost that neutral transformers get when style is pushed away


@dataclass(frozen=True)
class _Weights:
    """The numbers a user gives: the weight, the composition's weight, and how hard the unwanted half is pushed."""

    main: float
    composition: float
    style_boost: float
    composition_boost: float


_Spread = Callable[[TransformerLayout, _Weights], SiteWeights]


def _ease(curve: Callable[[float], float]) -> _Spread:
    """Weight times a curve of u = index / count in [0, 1)."""

    def spread(layout: TransformerLayout, w: _Weights) -> SiteWeights:
        count = len(layout)
        return tuple(SiteWeight(w.main * (_FLOOR + (1 - _FLOOR) * curve(t / count))) for t in range(count))

    return spread


def _weak_in(*weak_parts: str) -> _Spread:
    """The full weight everywhere but in the parts named."""

    def spread(layout: TransformerLayout, w: _Weights) -> SiteWeights:
        return tuple(SiteWeight(w.main * (_WEAK if part in weak_parts else 1.0)) for part in layout.parts)

    return spread


def _linear(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    return tuple(SiteWeight(w.main) for _ in range(len(layout)))


def _roles_of(layout: TransformerLayout) -> _Roles:
    if layout not in _ROLES:
        raise LikenessError(
            f"style and composition are known for SD1.5 and SDXL only, and this model has {len(layout)} attention "
            "blocks in other places: choose linear, an ease, weak or strong weight type, or write layer weights."
        )
    return _ROLES[layout]


def _listed(
    layout: TransformerLayout, strengths: Mapping[int, float], swaps: Mapping[int, float] | None = None
) -> SiteWeights:
    """Named transformers get their strength, those in `swaps` theirs with the halves swapped, all others nothing."""
    swaps = swaps or {}
    return tuple(SiteWeight.of(strengths.get(t, swaps.get(t, 0.0)), t in swaps) for t in range(len(layout)))


def _style(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    return _listed(layout, dict.fromkeys(_roles_of(layout).style, w.main))


def _composition(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    return _listed(layout, {t: share * w.main for t, share in _roles_of(layout).composition.items()})


def _strong_style(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    roles = _roles_of(layout)
    return _listed(layout, dict.fromkeys(roles.style | roles.neutral, w.main))


def _style_and_composition(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    roles = _roles_of(layout)
    composition = {t: share * w.composition for t, share in roles.composition.items()}
    return _listed(layout, dict.fromkeys(roles.style, w.main) | composition)


def _strong_style_and_composition(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    roles = _roles_of(layout)
    style = dict.fromkeys(roles.style | roles.neutral, w.main)
    return _listed(layout, style | dict.fromkeys(roles.composition, w.composition))


def _style_precise(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    roles = _roles_of(layout)
    pushed_away = {t: share * w.style_boost for t, share in roles.composition.items()}
    return _listed(layout, dict.fromkeys(roles.style, w.main), pushed_away)


def _composition_precise(layout: TransformerLayout, w: _Weights) -> SiteWeights:
    roles = _roles_of(layout)
    pushed_away = dict.fromkeys(roles.style, w.composition_boost)
    pushed_away |= dict.fromkeys(roles.neutral, _FAINT * w.composition_boost)
    return _listed(layout, {t: share * w.main for t, share in roles.composition.items()}, pushed_away)


_SPREADS: dict[WeightType, _Spread] = {
    WeightType.LINEAR: _linear,
    WeightType.EASE_IN: _ease(lambda u: 1 - u),
    WeightType.EASE_OUT: _ease(lambda u: u),
    WeightType.EASE_IN_OUT: _ease(lambda u: 1 - abs(2 * u - 1)),
    WeightType.REVERSE_IN_OUT: _ease(lambda u: abs(2 * u - 1)),
    WeightType.WEAK_INPUT: _weak_in("input"),
    WeightType.WEAK_OUTPUT: _weak_in("output"),
    WeightType.WEAK_MIDDLE: _weak_in("middle"),
    WeightType.STRONG_MIDDLE: _weak_in("input", "output"),
    WeightType.STYLE_TRANSFER: _style,
    WeightType.COMPOSITION: _composition,
    WeightType.STRONG_STYLE_TRANSFER: _strong_style,
    WeightType.STYLE_AND_COMPOSITION: _style_and_composition,
    WeightType.STRONG_STYLE_AND_COMPOSITION: _strong_style_and_composition,
    WeightType.STYLE_TRANSFER_PRECISE: _style_precise,
    WeightType.COMPOSITION_PRECISE: _composition_precise,
}


def site_weights(
    kind: WeightType,
    layout: TransformerLayout,
    weight: float,
    *,
    composition_weight: float | None = None,
    style_boost: float | None = None,
    composition_boost: float | None = None,
) -> SiteWeights:
    """One `SiteWeight` per spatial transformer of `layout`.

    composition_weight, style_boost and composition_boost default to `weight`; they matter to the types that name them.
    Raises LikenessError for a weight that is not a number, and for style and composition types on an unknown layout.
    """

    def given(value: float | None, name: str) -> float:
        return _finite(weight if value is None else value, name)

    weights = _Weights(
        main=_finite(weight, "weight"),
        composition=given(composition_weight, "composition weight"),
        style_boost=given(style_boost, "style boost"),
        composition_boost=given(composition_boost, "composition boost"),
    )
    return _SPREADS[kind](layout, weights)


def style_and_composition(
    layout: TransformerLayout, style_weight: float, composition_weight: float, *, expand_style: bool = False
) -> tuple[SiteWeights, SiteWeights]:
    """Site weights for two references at once: the first gives the style, the second the composition.

    No site attends to both. `expand_style` lets the style into every site the composition does not use.
    """
    kind = WeightType.STRONG_STYLE_AND_COMPOSITION if expand_style else WeightType.STYLE_AND_COMPOSITION
    both = site_weights(kind, layout, style_weight, composition_weight=composition_weight)
    layout_sites = _roles_of(layout).composition
    off = SiteWeight(0.0)
    style = tuple(off if t in layout_sites else site for t, site in enumerate(both))
    composition = tuple(site if t in layout_sites else off for t, site in enumerate(both))
    return style, composition


def parse_layer_weights(text: str, layout: TransformerLayout) -> SiteWeights:
    """Layer weights written by hand: "3:2.5, 6:1" or "input.8:2.5, output.1:1"; a layer that is not named gets 0.

    Entries are separated by commas, semicolons or line breaks; blanks and a trailing comma are harmless. Indices count
    the spatial transformers in execution order. Raises LikenessError naming the first entry that cannot be understood.
    """
    entries = _entries(text)
    if not entries:
        raise LikenessError('layer weights: the text is empty, write pairs such as "3:2.5, 6:1.0".')
    strengths: dict[int, float] = {}
    for entry in entries:
        where, colon, value = (part.strip() for part in entry.partition(":"))
        if not colon:
            raise LikenessError(f'layer weights: "{entry}" is not a pair, write it as layer:strength, such as "6:1.0".')
        index = _layer_index(where, entry, layout)
        if index in strengths:
            raise LikenessError(f'layer weights: "{entry}" names layer {index} a second time, keep one of the two.')
        strengths[index] = _strength(value, entry)
    return _listed(layout, strengths)


def layer_weights(
    text: str,
    kind: WeightType,
    layout: TransformerLayout,
    weight: float,
    *,
    composition_weight: float | None = None,
    style_boost: float | None = None,
    composition_boost: float | None = None,
) -> SiteWeights:
    """Hand-written layer weights times `weight`; when the text is blank, the spread of `kind` as in `site_weights`.

    With a "precise" kind the sites it swaps stay swapped, at the strength the text gives them.
    """
    if not _entries(text):
        return site_weights(
            kind,
            layout,
            weight,
            composition_weight=composition_weight,
            style_boost=style_boost,
            composition_boost=composition_boost,
        )
    written = scale(parse_layer_weights(text, layout), weight)
    if kind not in (WeightType.STYLE_TRANSFER_PRECISE, WeightType.COMPOSITION_PRECISE):
        return written
    model = site_weights(kind, layout, 1.0)
    return tuple(SiteWeight.of(site.strength, like.swapped) for site, like in zip(written, model, strict=True))


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.replace(";", ",").replace("\n", ",").split(",") if entry.strip()]


def _layer_index(where: str, entry: str, layout: TransformerLayout) -> int:
    name = where.lower()
    if name == "middle":
        name = "middle.0"
    if name in layout.names:
        return layout.names.index(name)
    if name.isdecimal() and int(name) < len(layout):
        return int(name)
    raise LikenessError(
        f'layer weights: "{entry}" names no layer of this model, use 0 to {len(layout) - 1} or one of '
        f"{', '.join(layout.names)}."
    )


def _strength(value: str, entry: str) -> float:
    try:
        strength = float(value)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= LARGEST_FACTOR:
        raise LikenessError(
            f"layer weights: the strength in {entry[:40]!r} is not a number up to {LARGEST_FACTOR:g}: write one such "
            "as 1.0."
        )
    return strength


def _finite(value: float, name: str) -> float:
    return float(check_number(value, f"The {name}", -LARGEST_FACTOR, LARGEST_FACTOR))
