"""One sampling run: what is constant during it, and what its evaluations and batches have in common."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...adapters.effects import AttentionTerm, BlockTerm, Prepared, ReferenceTerm, Scope
from ...weights.families import BlockKind, DitBlock
from ..attention import SiteTerm
from ..masks import crop_to_area, crop_to_lines, resize_mask, warn_aspect, warn_larger, warn_tile
from ..plan import KeysValues, Role, fit_rows, project, take_rows
from ..sites import AttentionSite, sites_of_comfy_unet
from ..windows import term_sigmas
from .dit import PLACES, BlockFunction, BlockPatch, ImagePlaces
from .managed import ManagedAdapter, prepared_tokens
from .references import ReferencesOfRun
from .unet import KEY, SitePatch

# Names under which the host's guiders keep their conditionings; every other name is an unconditioned half.
_CONDITIONED = {"positive", "middle"}

Injection = AttentionTerm | BlockTerm | ReferenceTerm
Area = tuple[int, int, int, int]  # height, width, y, x in latent pixels
Size = tuple[int, int]  # height, width in latent pixels


class IdentityStack:
    """All identities of one MODEL, and the run that is under way. Shared by clones of the MODEL, never copied."""

    def __init__(self, injections: tuple[Injection, ...]) -> None:
        self.injections = injections
        self._run: _Run | None = None

    def __deepcopy__(self, memo: dict) -> IdentityStack:
        return self  # the host deep-copies the options of a MODEL on every clone and every run

    def outer_sample(self, executor: Any, *args: Any, **keywords: Any) -> Any:
        """OUTER_SAMPLE: everything that is constant during the run is computed here."""
        outer, guider = self._run, executor.class_obj
        patcher, noise = guider.model_patcher, args[0]
        self._run = _Run(
            self.injections,
            patcher.model,
            patcher.get_model_object("model_sampling"),
            _size(noise),
            guider,
            sigmas_of_run(args) if any(i.scope.first_step is not None for i in self.injections) else (),
        )
        if self._run.references is not None:
            self._run.references.add_to(guider.conds, _size(noise))
        try:
            return executor(*args, **keywords)
        finally:
            self._run = outer

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Sequence[Any], x: Tensor, timestep: Tensor, model_options: dict
    ) -> Any:
        """CALC_COND_BATCH: what is known once per model evaluation."""
        run = self._run
        if run is None:
            return executor(model, conds, x, timestep, model_options)
        run.evaluation = _Evaluation(run.open_at(timestep), *run.chunks_of(conds), _size(x))
        try:
            return executor(model, conds, x, timestep, model_options)
        finally:
            run.evaluation = None

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **keywords: Any,
    ) -> Any:
        """APPLY_MODEL: compose with the patches that are there now, and run."""
        options = {} if transformer_options is None else transformer_options
        run = self._run
        if run is None:  # called outside of a sampling run, by a script or another pack
            model = executor.class_obj
            run = _Run(self.injections, model, model.model_sampling, _size(x))
        evaluation = run.evaluation or _Evaluation(run.open_at(t), {}, {}, _size(x))
        batch = run.batch_of(options, evaluation, x) if evaluation.open or run.references is not None else None
        if batch is not None and evaluation.open:
            options = run.compose(options, batch, x)
        if batch is not None and run.references is not None:
            options, keywords = run.references.in_call(batch, options, keywords, x)
        return executor(x, t, c_concat, c_crossattn, control, options, **keywords)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of the model: facts that hold for all of its batches."""

    open: tuple[int, ...]  # injections whose window holds this sigma
    roles: dict[int, Role]  # index into the sampler's list of conditionings -> half
    areas: dict[tuple[int, Any], Area]  # (index, uuid of the entry) -> area it covers
    latent_size: Size  # of the image, or of the window of it, that conditionings with areas cover parts of


class _Cut(NamedTuple):
    """A context window over one side of the image: only some lines of latents are sampled together."""

    axis: int  # 0 = height, 1 = width
    lines: tuple[int, ...]
    full_size: Size


@dataclass(frozen=True)
class _Batch:
    """One call of the denoiser: what its chunks are, in order."""

    roles: tuple[Role, ...]
    areas: tuple[Area | None, ...]
    pictures: int  # per chunk
    rows: tuple[int, ...] | None  # which images of the whole batch these are, when only some are sampled together
    cut: _Cut | None
    latent_size: Size
    open: tuple[int, ...]


class _Run:
    """One sampling run: what is constant during it, and what its evaluations have in common."""

    def __init__(
        self,
        injections: tuple[Injection, ...],
        model: Any,
        model_sampling: Any,
        latent_size: Size,
        guider: Any = None,
        sigmas: Sequence[float] = (),
    ) -> None:
        self.injections = injections
        self.latent_size = latent_size  # of the whole image
        self.guider = guider
        self.evaluation: _Evaluation | None = None
        self.sites = sites_of_comfy_unet(model.diffusion_model)
        self.windows = [term_sigmas(injection.scope, model_sampling, sigmas) for injection in injections]
        self.dtype = compute_dtype(model)
        self.projected = [
            _project_once(injection, self.sites, self.dtype) if isinstance(injection, AttentionTerm) else []
            for injection in injections
        ]
        self.merges = [i.merge if isinstance(i, AttentionTerm) else None for i in injections]
        self.patch_size = getattr(model.diffusion_model, "patch_size", 1)  # latent pixels on a side of a DiT's token
        terms = {i: t for i, t in enumerate(injections) if isinstance(t, ReferenceTerm) and t.why_never is None}
        self.references = ReferencesOfRun(terms, model, _factors) if terms else None
        self._devices: dict[torch.device, _OnDevice] = {}
        self._lock = threading.Lock()

    def on(self, device: torch.device) -> _OnDevice:
        """What the run keeps on a device. The host may split the chunks of a step over several, a thread for each."""
        with self._lock:
            if device not in self._devices:
                self._devices[device] = _OnDevice(self, device)
            return self._devices[device]

    def open_at(self, sigma: Tensor) -> tuple[int, ...]:
        """The injections whose window holds this sigma. Reads it from the device only if any window is limited."""
        if all(window is None for window in self.windows):
            return tuple(range(len(self.injections)))
        now = float(sigma.flatten()[0])
        return tuple(i for i, w in enumerate(self.windows) if w is None or w[1] <= now <= w[0])

    def chunks_of(self, conds: Sequence[Any]) -> tuple[dict[int, Role], dict[tuple[int, Any], Area]]:
        """Half and areas of the conditionings in the sampler's list, which may be in any order and number.

        The guider keeps its lists by name. A list it does not know, as of another pack's guider, is judged by its
        place; but alone it is an extra prompt that a node brings, and those are negative (Perp-Neg's empty prompt).
        """
        named = getattr(self.guider, "conds", None) or {}
        roles: dict[int, Role] = {}
        areas: dict[tuple[int, Any], Area] = {}
        for index, entries in enumerate(conds):
            name = _name_of(entries, named)
            if name is not None:
                roles[index] = Role.COND if name in _CONDITIONED else Role.UNCOND
            elif len(conds) == 1 and named:
                roles[index] = Role.UNCOND
            for entry in entries or ():
                if entry.get("area") is not None:
                    areas[index, entry.get("uuid")] = tuple(entry["area"])
        return roles, areas

    def batch_of(self, options: dict, evaluation: _Evaluation, x: Tensor) -> _Batch:
        """What the chunks of one call are."""
        numbers = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(numbers)
        pictures = len(x) // len(numbers)
        rows, cut = self._window(options, pictures, evaluation.latent_size)
        batch = _Batch(
            roles=tuple(evaluation.roles.get(n, Role.COND if n == 0 else Role.UNCOND) for n in numbers),
            areas=tuple(evaluation.areas.get((n, u)) for n, u in zip(numbers, uuids, strict=True)),
            pictures=pictures,
            rows=rows,
            cut=cut,
            latent_size=evaluation.latent_size,
            open=evaluation.open,
        )
        self._warn_of_tiles(batch, _size(x))
        return batch

    def compose(self, options: dict, batch: _Batch, x: Tensor) -> dict:
        """Transformer options in which every site with an identity term has our function, around the one found."""
        patches = options.get("patches_replace", {})
        here = self.on(x.device)
        replaced = {"attn2": here.patched(batch.open, patches.get("attn2", {}))}
        places = {}
        if blocks := [b for i in batch.open for b in getattr(self.injections[i], "numbers", ())]:
            replaced["dit"] = here.patched_blocks(blocks, patches.get("dit", {}))
            places = {PLACES: ImagePlaces(_grid(_size(x), self.patch_size))}
        return {**options, "patches_replace": {**patches, **replaced}, KEY: here.call(batch), **places}

    def _window(self, options: dict, pictures: int, size: Size) -> tuple[tuple[int, ...] | None, _Cut | None]:
        """Which images of the batch, or which lines of each, a context window takes; None for all of them."""
        window = context_window(options)
        if window is None:
            return None, None
        dim, indices = window
        if dim == 0 and len(indices) == pictures:
            return indices, None
        axis = dim - 2
        if axis in (0, 1) and len(indices) == size[axis] and max(indices) < self.latent_size[axis]:
            full = (self.latent_size[0], size[1]) if axis == 0 else (size[0], self.latent_size[1])
            return None, _Cut(axis, indices, full)
        return None, None

    def _warn_of_tiles(self, batch: _Batch, size: Size) -> None:
        """A pack that cuts the image into tiles below the sampler does not say where a tile lies."""
        if all(self.injections[i].scope.mask is None for i in batch.open):
            return
        height, width = batch.latent_size
        for area in batch.areas:
            expected = batch.latent_size if area is None else (min(area[0], height), min(area[1], width))
            if size[0] < expected[0] or size[1] < expected[1]:
                warn_tile()


class _OnDevice:
    """What one run keeps on one device, each thing made when it is first asked for.

    A device belongs to one thread of the host.
    """

    def __init__(self, run: _Run, device: torch.device) -> None:
        self.run = run
        self.device = device
        self._projected: dict[int, list[KeysValues]] = {}
        self._calls: dict[_Batch, _Call] = {}
        self._patches: dict[tuple[str, int, int], SitePatch] = {}
        self._block_patches: dict[DitBlock, BlockPatch] = {}
        self._prepared: dict[Any, Prepared] = {}

    def projected(self, i: int) -> list[KeysValues]:
        """Keys and values of an injection, on the device from its first open step on."""
        if i not in self._projected:
            self._projected[i] = [part.to(self.device) for part in self.run.projected[i]]
        return self._projected[i]

    def call(self, batch: _Batch) -> _Call:
        """What is added to batches of this make-up."""
        if batch not in self._calls:
            self._calls[batch] = _Call(self, batch)
        return self._calls[batch]

    def patched(self, heard: tuple[int, ...], found: Mapping[Any, Callable[..., Tensor]]) -> dict:
        """The replace patches that were found, with our function around that of every site with an identity term."""
        patches = dict(found)
        slots = {slot for i in heard for part in self.run.projected[i] for slot in part.slots}
        for site in self.run.sites:
            if site.slot in slots:
                patches[site.key] = self._patch(site, found.get(site.key) or found.get(site.block))
        return patches

    def patched_blocks(self, blocks: Iterable[DitBlock], found: Mapping[Any, BlockFunction]) -> dict:
        """The replace patches that were found, with our function around these blocks and around the first double one,
        which tells how long the text is."""
        patches = dict(found)
        for block in {*blocks, DitBlock(BlockKind.DOUBLE, 0)}:
            key = (block.kind.value, block.index)
            patch = self._block_patches.get(block)
            if patch is None or patch.found is not found.get(key):
                patch = self._block_patches[block] = BlockPatch(block, found.get(key))
            patches[key] = patch
        return patches

    def prepared(self, i: int, number: int, role: Role, dtype: torch.dtype) -> Prepared:
        """What a module has made of one half's tokens: beside its weights where it reads those at every step, else
        here, where the host has brought it unless this is a further device or a model of no known precision."""
        term = self.run.injections[i]
        assert isinstance(term, BlockTerm)
        made = prepared_tokens(term, self.run.dtype).module.of(number, role)
        if term.modules.at_every_step or all(t.device == self.device and t.dtype == dtype for t in made):
            return made
        key = (i, number, role, dtype)
        if key not in self._prepared:
            self._prepared[key] = tuple(t.to(self.device, dtype) for t in made)
        return self._prepared[key]

    def _patch(self, site: AttentionSite, base: Callable[..., Tensor] | None) -> SitePatch:
        patch = self._patches.get(site.key)
        if patch is None or patch.found is not base:
            patch = self._patches[site.key] = SitePatch(site, base)
        return patch


class _Call:
    """What every open injection adds to batches of one make-up. Made at the first step that has it, then only read."""

    def __init__(self, here: _OnDevice, batch: _Batch) -> None:
        self.here = here
        self.batch = batch
        self._terms: dict[Any, tuple[SiteTerm, ...]] = {}
        self._keys_values: dict[torch.dtype, list[dict[int, tuple[Tensor, Tensor]]]] = {}
        self._masks: dict[Any, Tensor | None] = {}

    def terms(self, site: AttentionSite, q: Tensor, grid: tuple[int, int]) -> tuple[SiteTerm, ...]:
        """The terms of a site, for queries (batch, L, width) on a grid of L = h·w places."""
        if q.device != self.here.device:
            return self.here.run.on(q.device).call(self.batch).terms(site, q, grid)
        key = (site.slot, grid, q.dtype)
        if key not in self._terms:
            self._terms[key] = tuple(
                SiteTerm(*found[site.slot], self._mask(i, grid, q.dtype), self.here.run.merges[i])
                for i, found in zip(self.batch.open, self._of_batch(q.dtype), strict=True)
                if site.slot in found
            )
        return self._terms[key]

    def residual(self, block: DitBlock, images: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """What all open terms add behind a block; see `dit.Residuals`. Each of them reads the block's own output."""
        if images.device != self.here.device:
            return self.here.run.on(images.device).call(self.batch).residual(block, images, grid)
        total = None
        for i in self.batch.open:
            term = self.here.run.injections[i]
            if not isinstance(term, BlockTerm) or block not in term.numbers:
                continue
            number, parts = term.numbers[block], []
            for role, chunk in _runs(self.batch.roles, images, self.batch.pictures):
                prepared = self._rows(self.here.prepared(i, number, role, images.dtype), len(chunk))
                parts.append(term.modules.residual(number, chunk.to(prepared[0]), prepared).to(images))
            added = parts[0] if len(parts) == 1 else torch.cat(parts)
            if term.strength != 1:
                added *= term.strength
            mask = self._mask(i, grid, images.dtype)
            if mask is not None:
                added *= mask
            total = added if total is None else total + added
        return total

    def _rows(self, prepared: Prepared, images: int) -> Prepared:
        """One row for all images, or one for each of them."""
        if len(prepared[0]) == 1:
            return prepared
        rows = (fit_rows(take_rows(t, self.batch.rows), self.batch.pictures) for t in prepared)
        return tuple(t.repeat(images // self.batch.pictures, *[1] * (t.ndim - 1)) for t in rows)

    def _of_batch(self, dtype: torch.dtype) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """For every open injection: slot -> keys and values."""
        if dtype not in self._keys_values:
            batch = self.batch
            self._keys_values[dtype] = [
                {
                    slot: pair
                    for part in self.here.projected(i)
                    for slot, pair in part.to(self.here.device, dtype)
                    .of_batch(batch.roles, batch.pictures, batch.rows)
                    .items()
                }
                for i in batch.open
            ]
        return self._keys_values[dtype]

    def _mask(self, i: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
        """Factors per query, (1 | batch, L | 1, 1), the same for every site of a size."""
        injection = self.here.run.injections[i]
        if injection.scope.mask is None and injection.scope.image_weights is None:
            return None
        key = (i, grid, dtype)
        if key not in self._masks:
            self._masks[key] = _factors(injection, grid, self.batch).to(self.here.device, dtype)
        return self._masks[key]


def compute_dtype(model: Any) -> torch.dtype:
    """In which a host's model computes; bfloat16 where its weights are packed in a way that only their layers know."""
    dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype if dtype in (torch.float32, torch.float16) else torch.bfloat16


def _runs(roles: Sequence[Role], images: Tensor, pictures: int) -> Iterator[tuple[Role, Tensor]]:
    """The batch in runs of chunks that are of the same half."""
    start = 0
    for role, group in itertools.groupby(roles):
        end = start + pictures * len(list(group))
        yield role, images[start:end]
        start = end


# Keys and values wait here between runs, on the CPU, as long as a MODEL carries the identity: a graph that is queued
# again needs neither the projections nor their weights on the GPU.
_projections: WeakKeyDictionary[AttentionTerm, dict[Any, list[KeysValues]]] = WeakKeyDictionary()


def _project_once(injection: AttentionTerm, sites: Sequence[AttentionSite], dtype: torch.dtype) -> list[KeysValues]:
    """Keys and values of every site with an identity term, on the CPU."""
    known = _projections.setdefault(injection, {})
    key = (dtype, tuple(site.heads for site in sites))
    if key not in known:
        projector = injection.projector
        where = projector.load() if isinstance(projector, ManagedAdapter) else (torch.device("cpu"), torch.float32)
        with torch.no_grad():
            known[key] = [part.to("cpu", dtype) for part in project(injection, sites, injection.tokens.to(*where))]
    return known[key]


def with_scope(injection: Injection, scope: Scope) -> Injection:
    """The same injection within another scope. What has been projected of it serves both."""
    other = replace(injection, scope=scope)
    if isinstance(injection, AttentionTerm) and isinstance(other, AttentionTerm):
        _projections[other] = _projections.setdefault(injection, {})
    return other


def sigmas_of_run(arguments: Sequence[Any]) -> list[float]:
    """The sigmas among the arguments of OUTER_SAMPLE: (noise, latent image, sampler, sigmas, …)."""
    return [float(sigma) for sigma in arguments[3]]


def _name_of(entries: Any, named: Mapping[str, Sequence[dict]]) -> str | None:
    """Which of the guider's lists of conditioning entries this is, or was made from; None for a foreign list.

    Context windows, and guiders with a second model, hand on copies. Those keep the `uuid` of their entries; where the
    host has copied an area from one list into another, so that two lists hold one `uuid`, the text tells them apart.
    """
    if entries is None:
        return None
    for name, known in named.items():
        if known is entries:
            return name
    for same in (_same_text, _same_uuid):
        for entry in entries:
            names = [name for name, known in named.items() if any(same(entry, other) for other in known)]
            if len(names) == 1:
                return names[0]
    return None


def _same_text(entry: dict, other: dict) -> bool:
    text = (entry.get("model_conds") or {}).get("c_crossattn")
    same = text is not None and text is (other.get("model_conds") or {}).get("c_crossattn")
    return same and _same_uuid(entry, other)


def _same_uuid(entry: dict, other: dict) -> bool:
    return entry.get("uuid") is not None and entry["uuid"] == other.get("uuid")


def context_window(options: dict) -> tuple[int, tuple[int, ...]] | None:
    """(dimension, indices into it) of the context window that is being sampled, of AnimateDiff or of the host.

    The host may put the frame before a window in front of it, and drops its result afterwards (since 0.21).
    """
    indices = (options.get("ad_params") or {}).get("sub_idxs")
    if indices is not None:
        return 0, tuple(indices)
    window = options.get("context_window")
    if window is None or not hasattr(window, "index_list"):
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    before = () if anchor is None or anchor < 0 else (anchor,)
    return getattr(window, "dim", 0), (*before, *window.index_list)


def _grid(size: Size, patch_size: int) -> tuple[int, int]:
    """Rows and columns of a DiT's tokens, as the host counts them."""
    return (size[0] + patch_size // 2) // patch_size, (size[1] + patch_size // 2) // patch_size


def _size(latents: Tensor) -> Size:
    return latents.shape[-2], latents.shape[-1]


def _factors(injection: Injection, grid: tuple[int, int], batch: _Batch) -> Tensor:
    """Mask and weights per image, multiplied: (1 | chunks·images, L | 1, 1)."""
    chunks = []
    for area in batch.areas:
        factors = torch.ones(1, 1, 1)
        if injection.scope.mask is not None:
            mask, full_size = injection.scope.mask, batch.cut.full_size if batch.cut else batch.latent_size
            height, width = mask.shape[1:]
            warn_aspect((height, width), full_size)
            warn_larger((height, width), full_size)
            if batch.cut:
                mask = crop_to_lines(mask, batch.cut.axis, batch.cut.lines, full_size)
            if area is not None:
                mask = crop_to_area(mask, area, batch.latent_size)
            factors = resize_mask(mask, grid, injection.scope.mask_resize).flatten(1).unsqueeze(-1)
            factors = take_rows(factors, batch.rows)
        if injection.scope.image_weights is not None:
            weights = torch.tensor(injection.scope.image_weights).view(-1, 1, 1)
            weights = take_rows(weights, batch.rows)
            factors = fit_rows(factors, batch.pictures) * fit_rows(weights, batch.pictures)
        chunks.append(factors)
    if all(chunk.shape[0] == 1 and torch.equal(chunk, chunks[0]) for chunk in chunks):
        return chunks[0]
    return torch.cat([fit_rows(chunk, batch.pictures) for chunk in chunks])
