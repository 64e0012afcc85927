"""References in the host's DiTs: their latents join the conditionings, their ids and weights are set call by call.

    OUTER_SAMPLE   the target's size is known and nothing is loaded: photos are fitted, encoded by the VAE, and appended
                   to `reference_latents` of every conditioning, so that the host counts them when it makes room
    APPLY_MODEL    people whose window is closed are taken out; a `post_input` patch sets position ids, an attention
                   override the weights, around whatever override is there

References of other nodes come first and keep weight 1. No forward is replaced. Where references see only themselves at
timestep 0, their keys and values are constants of the run: the first call keeps them, and later ones have no tokens of
references in their sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapters.effects import Cells, ReferenceTerm
from ...errors import LikenessError, logger
from ..references import Sequences, Sight, Weight, attend, key_weights, target_bias

log = logger("likeness")

LATENTS, METHOD = "reference_latents", "reference_latents_method"  # in a conditioning
OVERRIDE = "optimized_attention_override"
TIMESTEP_ZERO = "index_timestep_zero"
MANY = 3.0  # times the target's tokens: more is slow, and worth a word

Constants = dict[Any, tuple[Tensor, Tensor]]  # block -> keys and values of the references, one row each

Factors = Callable[[ReferenceTerm, Cells, Any], Tensor]  # of the target's tokens in a batch: (1 | batch, T | 1, 1)


@dataclass(frozen=True)
class Base:
    """A host's DiT that attends to references.

    name: of its class in comfy.model_base. pixels: on a side of a latent cell; tokens have so many cells on a side.
    frames: its latents have an axis of frames. own_attention: its text has an attention of its own,
    that is told by a missing block number.
    """

    name: str
    pixels: int
    patch: int
    frames: bool = False
    own_attention: bool = False


BASES = {
    base.name: base
    for base in (
        Base("Krea2", 8, 2, frames=True, own_attention=True),
        Base("Flux2", 16, 1),
        Base("QwenImage", 8, 2, frames=True),
        Base("Flux", 8, 2),
    )
}


def base_of(model: Any) -> Base | None:
    """What a MODEL is among them; None for every other."""
    return BASES.get(type(model.model).__name__)


def check_host(model: Any, term: ReferenceTerm) -> Base:
    """Raise LikenessError unless this MODEL, in this host, attends to references and nothing else replaces how."""
    base = base_of(model)
    if base is None:
        raise LikenessError(
            f"The reference {term.name!r} needs a MODEL that attends to reference images, and the connected MODEL is "
            f"{type(model.model).__name__}: choose Krea 2, FLUX.2, Qwen-Image-Edit or FLUX.1 Kontext."
        )
    wrappers = model.model_options.get("transformer_options", {}).get("wrappers", {})
    if any("krea2_edit" in kinds for kinds in (*wrappers.values(), *model.wrappers.values())):
        raise LikenessError(
            "Another node (krea2edit) already gives the MODEL references in its own way: remove it, or this Apply "
            "Identity."
        )
    return base


class ReferencesOfRun:
    """The people of one sampling run. terms: by their number in the stack, in order of frames."""

    def __init__(self, terms: Mapping[int, ReferenceTerm], model: Any, factors: Factors) -> None:
        self.terms = terms
        self.base = BASES[type(model).__name__]
        self.channels: int = model.latent_format.latent_channels
        self.factors = factors
        self.sight = Sight(any(t.isolated for t in terms.values()), any(t.separate for t in terms.values()))
        self.first = next(iter(terms.values()))
        self.model = model
        self.repeats = _repeats(model.diffusion_model)
        self.is_constant = self.sight.isolated and self.first.method == TIMESTEP_ZERO
        self._kept: dict[Any, Constants] = {}
        self._photos: dict[int, list[Any]] = {}
        self._ids: dict[Any, tuple[Tensor, Tensor]] = {}
        self._bias: dict[Any, Tensor | None] = {}
        self._said = False

    def add_to(self, conds: dict[str, list[dict[str, Any]]], target: Cells) -> None:
        """Append the people to every conditioning of a guider, whose lists are its own for this run."""
        native = max((len(entry.get(LATENTS) or ()) for entries in conds.values() for entry in entries), default=0)
        count = native + sum(len(term.photos) for term in self.terms.values())
        self._photos = {i: list(term.photos.encoded(target, count)) for i, term in self.terms.items()}
        latents = [self._formed(photo.latent) for photos in self._photos.values() for photo in photos]
        self._warn(target, [entry for entries in conds.values() for entry in entries])
        for name, entries in conds.items():
            conds[name] = [self._with(entry, latents) for entry in entries]

    def _warn(self, target: Cells, entries: Sequence[Mapping[str, Any]]) -> None:
        """What the model computes all the same, but not as it was trained."""
        height, width = (side * self.base.pixels for side in target)
        if any(side % self.base.patch for side in target):
            log.warning(
                "[likeness] The image is %d x %d pixels, and ComfyUI fills up the last half tokens from the opposite "
                "edge: use sides that are multiples of %d.",
                width, height, self.base.pixels * self.base.patch,
            )  # fmt: skip
        if any(entry.get("area") is not None for entry in entries):
            log.warning(
                "[likeness] A prompt is limited to an area, which references are not cut to: limit it by a mask "
                "(Conditioning Set Mask) instead."
            )

    def _with(self, entry: dict[str, Any], latents: list[Tensor]) -> dict[str, Any]:
        self._check_method(entry)
        present = [self._one(latent) for latent in entry.get(LATENTS) or ()]
        return {**entry, LATENTS: [*present, *latents], METHOD: self.first.method}

    def _check_method(self, entry: Mapping[str, Any]) -> None:
        if entry.get(METHOD, self.first.method) != self.first.method:
            raise LikenessError(
                f"The conditioning asks for the reference method {entry[METHOD]!r}, and {self.first.scheme} was "
                f"trained with {self.first.method!r}: remove Edit Model Reference Method, or set it to that."
            )

    def _formed(self, latent: Tensor) -> Tensor:
        """A latent of ours as the host wants it: one with an axis of frames where the model has one."""
        if latent.shape[1] != self.channels:
            raise LikenessError(
                f"The VAE of {self.first.name!r} makes latents of {latent.shape[1]} channels, and the MODEL reads "
                f"{self.channels}: connect the VAE that belongs to the MODEL."
            )
        return latent.unsqueeze(2) if self.base.frames and latent.ndim == 4 else latent

    def _one(self, latent: Tensor) -> Tensor:
        """A latent of another node. Without an axis of frames the latent format would make sixteen of it, and of a
        batch all but the first are passed over in silence."""
        if latent.shape[0] > 1:
            log.warning(
                "[likeness] A reference latent of another node holds %d images, of which the model reads the first: "
                "give each a Reference Latent of its own.",
                latent.shape[0],
            )
        return latent.unsqueeze(2) if self.base.frames and latent.ndim == 4 else latent

    def in_call(self, batch: Any, options: dict, keywords: dict[str, Any], x: Tensor) -> tuple[dict, dict[str, Any]]:
        """Options and keyword arguments of one call of the denoiser."""
        latents = list(keywords.get("ref_latents") or ())
        counts = {i: len(photos) for i, photos in self._photos.items()}
        native = len(latents) - sum(counts.values())
        if not self._photos or native < 0:
            return options, keywords  # called outside of a run, or for a conditioning that another pack made during it
        owners: list[int | None] = [None] * native + [i for i, count in counts.items() for _ in range(count)]
        kept = [place for place, owner in enumerate(owners) if owner is None or owner in batch.open]
        if not kept:
            return options, _without_references(keywords)
        keywords = {**keywords, "ref_latents": [latents[place] for place in kept]}
        call = _Call(self, batch, x, latents, owners, kept)
        self._say(call)
        hooks = getattr(self.model.current_patcher, "current_hooks", None)  # they change weights during a run
        if self.is_constant and hooks is None:
            call.constants = self._kept.setdefault((call.all_cells, tuple(kept), x.device), {})
            call.is_first = not call.constants
            if not call.is_first:
                keywords = _without_references(keywords)
        patches = options.get("patches", {})
        options = {**options, "patches": {**patches, "post_input": [*patches.get("post_input", ()), call.post_input]}}
        if call.is_weighted:
            options[OVERRIDE] = partial(call.attention, options.get(OVERRIDE))
        return options, keywords

    def _say(self, call: _Call) -> None:
        if self._said:
            return
        self._said = True
        tokens, factor = call.references, call.references / call.target
        log.info(
            "[likeness] %d references are seen (%s, %s): %d tokens beside the image's %d.",
            len(call.kept), self.first.scheme, self.first.method, tokens, call.target,
        )  # fmt: skip
        if factor > MANY:
            log.warning(
                "[likeness] The references have %.1f times as many tokens as the image, so that each step takes much "
                "longer: use heads, fewer images, or smaller ones.",
                factor,
            )

    def ids(self, text: int, target: Cells, references: tuple[Cells, ...], device: torch.device) -> Any:
        """Position ids of a call with all people, once per run."""
        key = (text, target, references, device)
        if key not in self._ids:
            words, image = self.first.placement(text, target, references)
            self._ids[key] = words.to(device), image.to(device)
        return self._ids[key]

    def bias(self, call: _Call, parts: Sequences, like: Tensor) -> Tensor | None:
        """log W of the target's rows in calls of one make-up, once per run."""
        key = (call.batch, tuple(call.kept), parts, like.dtype, like.device)
        if key not in self._bias:
            bias = target_bias(parts, call.weights())
            self._bias[key] = None if bias is None else bias.to(like)
        return self._bias[key]

    def weight(self, i: int, photo: int, batch: Any, grid: Cells, tokens: Cells) -> Weight:
        """Of one photo of a person."""
        term = self.terms[i]
        masked = term.scope.mask is not None or term.scope.image_weights is not None
        rows = self.factors(term, grid, batch).squeeze(-1) if masked else None
        if rows is not None and rows.shape[1] == 1:
            rows = rows.expand(-1, math.prod(grid))
        return Weight(rows, key_weights(term.strength, tokens, self._photos[i][photo].face))


def _without_references(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if name not in ("ref_latents", "ref_latents_method")}


def _repeats(network: Any) -> int:
    """How often a network repeats each head of its keys before it attends (Krea 2: 4)."""
    attention: Any = getattr(next(iter(getattr(network, "blocks", ())), None), "attn", None)
    return attention.heads // attention.kvheads if hasattr(attention, "kvheads") else 1


class _Call:
    """One call of the denoiser: which tokens are whose.

    constants: keys and values of the references; the first call fills them, others read them. None: computed each time.
    """

    constants: Constants | None = None
    is_first = True

    def __init__(
        self,
        run: ReferencesOfRun,
        batch: Any,
        x: Tensor,
        latents: Sequence[Tensor],
        owners: Sequence[int | None],
        kept: Sequence[int],
    ) -> None:
        self.run, self.batch, self.owners, self.kept = run, batch, owners, kept
        self.cells: Cells = (x.shape[-2], x.shape[-1])
        self.all_cells = tuple((latent.shape[-2], latent.shape[-1]) for latent in latents)
        self.grid = self._tokens(self.cells)
        self.target = math.prod(self.grid)
        self.counts = tuple(math.prod(self._tokens(self.all_cells[place])) for place in kept)
        self.references = sum(self.counts)

    def _tokens(self, cells: Cells) -> Cells:
        patch = self.run.base.patch
        return -(-cells[0] // patch), -(-cells[1] // patch)

    @property
    def is_weighted(self) -> bool:
        """Whether any row does not simply see everything."""
        terms = [self.run.terms[owner] for place in self.kept if (owner := self.owners[place]) is not None]
        sight = self.run.sight
        return (
            sight.isolated
            or sight.separate
            or any(t.strength != 1 or t.scope.mask is not None or t.scope.image_weights is not None for t in terms)
        )

    def weights(self) -> list[Weight]:
        """Of the references in this call."""
        found, numbers = [], dict.fromkeys(self.run.terms, 0)
        for place, owner in enumerate(self.owners):
            if owner is not None:
                photo, numbers[owner] = numbers[owner], numbers[owner] + 1
            if place not in self.kept:
                continue
            tokens = self._tokens(self.all_cells[place])
            found.append(Weight() if owner is None else self.run.weight(owner, photo, self.batch, self.grid, tokens))
        return found

    def post_input(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Set the position ids. People keep their frames while the window of another is closed."""
        ids = inputs["img_ids"]
        if ids is None:
            return inputs
        words, image = self.run.ids(inputs["txt"].shape[1], self.cells, self.all_cells, ids.device)
        counts = [self.target, *(math.prod(self._tokens(cells)) for cells in self.all_cells)]
        grids = image.split(counts)
        kept = self.kept if self.is_first else ()
        image = torch.cat([grids[0], *(grids[1 + place] for place in kept)])
        batch = ids.shape[0]
        return {
            **inputs,
            "img_ids": image.to(ids).expand(batch, -1, -1),
            "txt_ids": words.to(ids).expand(batch, -1, -1),
        }

    def attention(self, found: Callable[..., Tensor] | None, func: Any, *args: Any, **keywords: Any) -> Tensor:
        """An attention override around the one that was found: the weights, by rows."""
        inner = func if found is None else partial(found, func)
        q, k, v, heads, *more = args
        axis = 2 if keywords.get("skip_reshape") else 1
        text = k.shape[axis] - self.target - (self.references if self.is_first else 0)
        of_text = self.run.base.own_attention and "block_index" not in keywords.get("transformer_options", {})
        if of_text or text < 0 or q.shape[axis] not in (k.shape[axis], text + self.target):
            return inner(*args, **keywords)
        mask = more.pop(0) if more else keywords.pop("mask", None)
        if self.constants is not None:
            k, v = self._with_constants(self.constants, k, v, keywords["transformer_options"])
            if mask is not None and mask.shape[-1] < k.shape[axis]:
                mask = F.pad(mask, (0, self.references), value=mask.dtype is torch.bool)
        parts = Sequences(text, self.target, self.counts)

        def part(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            return inner(q, k, v, heads, bias, *more, **keywords)

        out_axis = 2 if keywords.get("skip_output_reshape") else 1
        bias = self.run.bias(self, parts, q)
        return attend(q, k, v, parts, bias, self.run.sight, part, mask, (axis, out_axis))

    def _with_constants(self, constants: Constants, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, n, d) with those of the references, which are kept once."""
        block, every = (options.get("block_type"), options["block_index"]), self.run.repeats
        if self.is_first:
            rows = (t[:1, ::every, -self.references :].clone() for t in (k, v))
            constants[block] = (next(rows), next(rows))
            return k, v
        kept = (t.repeat_interleave(every, dim=1).expand(len(k), -1, -1, -1) for t in constants[block])
        return torch.cat([k, next(kept)], dim=2), torch.cat([v, next(kept)], dim=2)
