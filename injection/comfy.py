"""The ComfyUI binding: identities enter a MODEL by late binding.

No replace patch is ever registered. Wrappers act at call time instead:

    OUTER_SAMPLE      once per sampling run: what the run needs; keys and values are projected on the first run only
    CALC_COND_BATCH   once per model evaluation: which windows are open, which half and area each conditioning is
    APPLY_MODEL       once per batch of chunks: compose our term with whatever patch is on a site at that moment

So packs compose in any order, the projection weights may leave the GPU while sampling, and a site costs two small
products and no host synchronisation.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..adapters import build
from ..adapters.ip_adapter import Evidence, IPAdapter
from ..adapters.site_weights import scale
from ..adapters.types import IdentityTokens
from ..errors import LikenessError
from .attention import SiteTerm, add_identity
from .masks import crop_to_area, resize_mask, warn_aspect
from .plan import Injection, Role, RolePair, check_fit, fit_rows, project_site, stack_roles
from .sites import AttentionSite, sites_of_comfy_unet

log = logging.getLogger("likeness")

KEY = "likeness"  # of our wrappers, of our entry in transformer_options, of our attachment

# Names under which the host's guiders keep their conditionings; every other name is an unconditioned half.
_CONDITIONED = {"positive", "middle"}

Area = tuple[int, int, int, int]  # height, width, y, x in latent pixels


class ManagedAdapter:
    """An adapter whose weights ComfyUI's memory manager loads, offloads and frees."""

    def __init__(self, adapter: IPAdapter) -> None:
        import comfy.model_management as mm
        from comfy.model_patcher import ModelPatcher

        device = mm.get_torch_device()
        if mm.is_device_cpu(device):
            adapter = adapter.float()  # half precision is slow or missing on CPUs
        self.adapter = adapter
        self.patcher = ModelPatcher(adapter, load_device=device, offload_device=mm.unet_offload_device())

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.adapter.name

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text)"""
        return self.adapter.site_shapes

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a site; see `IPAdapter.project`."""
        return self.adapter.project(slot, tokens)

    @torch.no_grad()
    def encode(self, evidence: Evidence, structure: float = 1.0) -> IdentityTokens:
        """Image tokens on the CPU; see `IPAdapter.encode`. Runs where ComfyUI computes."""
        where = self.load()
        return self.adapter.encode(evidence.to(*where), structure).to("cpu", torch.float32)

    def load(self) -> tuple[torch.device, torch.dtype]:
        """Bring the weights to the compute device; returns it and their precision."""
        import comfy.model_management as mm

        mm.load_models_gpu([self.patcher])
        weight = next(self.adapter.parameters())
        return weight.device, weight.dtype


def as_managed(value: Any) -> ManagedAdapter:
    """Our own adapter, or what the IPADAPTER socket of the leading pack carries: weights in groups, in two forms.

    Raises LikenessError for anything else.
    """
    if isinstance(value, ManagedAdapter):
        return value
    groups = value if isinstance(value, dict) else {}
    if "ipadapter" in groups:
        groups = (groups["ipadapter"] or {}).get("model") or {}
    if not {"image_proj", "ip_adapter"} <= set(groups):
        raise LikenessError("The adapter input holds no IP-Adapter: connect Load Identity Adapter.")
    weights = {f"{group}.{key}": t for group in ("image_proj", "ip_adapter") for key, t in groups[group].items()}
    name = "unnorm adapter" if groups.get("portraitunnorm") else "adapter from another pack"
    return ManagedAdapter(build(weights, name, 2 if groups.get("faceidplusv2") else 1))


def sites_of(model: Any) -> tuple[AttentionSite, ...]:
    """The cross-attention sites of a MODEL; empty when it is no UNet."""
    return sites_of_comfy_unet(model.model.diffusion_model)


def model_name(model: Any) -> str:
    """What the host takes the MODEL for, as in 'SDXL' or 'Flux'."""
    return type(model.model.model_config).__name__


def apply_identity(model: Any, injections: Iterable[Injection]) -> Any:
    """A clone of the MODEL (ModelPatcher) in which these identities take part. The given one is left as it is.

    Raises LikenessError when an adapter does not fit the model.
    """
    injections = tuple(injections)
    for injection in injections:
        check_fit(injection.projector, sites_of(model), model_name(model))
    patched = model.clone()
    heard = tuple(injection for injection in injections if not injection.silent)
    if heard:
        before = stack_of(model)
        _attach(patched, IdentityStack((*(before.injections if before else ()), *heard)))
    return patched


def apply_lora(model: Any, adapter: IPAdapter, strength: float) -> int:
    """Add the LoRA of a FaceID file to a MODEL's own weights, in place; returns the number of weights it changes.

    A LoRA that the model already has from the same adapter is raised to the greater of both strengths, not added
    twice, so that several people can use one adapter. One that another node has put there is left as it is.
    """
    import comfy.lora

    key = adapter.lora_id if adapter.has_lora else None
    if key is None or has_companion_lora(model, adapter):
        return 0
    applied: dict[str, float] = dict(model.attachments.get(f"{KEY}_lora", {}))
    missing = strength - applied.get(key, 0.0)
    if missing == 0 or (key in applied and missing < 0):
        return 0
    lora, targets, weights = {}, {}, _lora_targets(model)
    for pair in adapter.lora_pairs():
        name = f"{pair.slot}.{pair.layer}"
        lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"] = pair.up, pair.down
        targets[name] = f"{weights[pair.slot]}.{pair.layer}.weight"
    changed = model.add_patches(comfy.lora.load_lora(lora, targets), missing)
    model.attachments[f"{KEY}_lora"] = {**applied, key: strength}
    return len(changed)


def has_companion_lora(model: Any, adapter: IPAdapter) -> bool:
    """Whether another node has loaded this adapter's LoRA onto the MODEL, from the file that is published beside it."""
    if not adapter.has_lora or adapter.lora_id in model.attachments.get(f"{KEY}_lora", {}):
        return False
    pair = next(adapter.lora_pairs())
    patches = model.patches.get(f"{_lora_targets(model)[pair.slot]}.{pair.layer}.weight", [])
    ups = [getattr(patch[1], "weights", [None])[0] for patch in patches]
    return any(isinstance(up, Tensor) and torch.equal(up.to("cpu", pair.up.dtype), pair.up.cpu()) for up in ups)


def _lora_targets(model: Any) -> dict[int, str]:
    """slot -> path of the attention layer, self-attention included."""
    targets = {}
    for site in sites_of(model):
        targets[site.slot - 1] = f"diffusion_model.{site.comfy_path}.attn1"
        targets[site.slot] = f"diffusion_model.{site.comfy_path}.attn2"
    return targets


def stack_of(model: Any) -> IdentityStack | None:
    """The identities a MODEL carries, None if it carries none."""
    from comfy.patcher_extension import WrappersMP

    wrappers = model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(KEY, [])
    return wrappers[0].__self__ if wrappers else None


def rescale(model: Any, factor: float) -> Any:
    """A clone of the MODEL in which all identities have their strength multiplied by `factor`."""
    patched, stack = model.clone(), stack_of(model)
    if stack:
        scaled = (replace(i, site_weights=scale(i.site_weights, factor)) for i in stack.injections)
        _attach(patched, IdentityStack(tuple(scaled)))
    return patched


def _attach(model: Any, stack: IdentityStack) -> None:
    from comfy.patcher_extension import WrappersMP

    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, stack.outer_sample),
        (WrappersMP.CALC_COND_BATCH, stack.calc_cond_batch),
        (WrappersMP.APPLY_MODEL, stack.apply_model),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)


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
        patcher = guider.model_patcher
        self._run = _Run(
            self.injections, patcher.model, patcher.load_device, patcher.get_model_object("model_sampling")
        )
        self._run.guider = guider
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
        run.evaluation = _Evaluation(run.open_at(timestep), *run.chunks_of(conds), (x.shape[-2], x.shape[-1]))
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
            run = _Run(self.injections, model, x.device, model.model_sampling)
        evaluation = run.evaluation or _Evaluation(run.open_at(t), {}, {}, (x.shape[-2], x.shape[-1]))
        if evaluation.open:
            options = run.compose(options, evaluation, len(x))
        return executor(x, t, c_concat, c_crossattn, control, options, **keywords)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation of the model: facts that hold for all of its batches."""

    open: tuple[int, ...]  # injections whose window holds this sigma
    roles: dict[int, Role]  # index into the sampler's list of conditionings -> half
    areas: dict[tuple[int, Any], Area]  # (index, uuid of the entry) -> area it covers
    latent_size: tuple[int, int]  # of the whole picture, when conditionings cover parts of it


@dataclass(frozen=True)
class _Batch:
    """One call of the denoiser: what its chunks are, in order."""

    roles: tuple[Role, ...]
    areas: tuple[Area | None, ...]
    pictures: int  # per chunk
    rows: tuple[int, ...] | None  # which pictures of the whole batch these are, when only some are sampled together
    latent_size: tuple[int, int]
    open: tuple[int, ...]


@dataclass
class _Run:
    """One sampling run: keys and values of every site, and everything derived from them that later steps reuse."""

    injections: tuple[Injection, ...]
    model: Any
    device: torch.device
    model_sampling: Any
    guider: Any = None
    evaluation: _Evaluation | None = None
    _pairs: dict[int, dict[int, RolePair]] = field(default_factory=dict)
    _stacked: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)
    _patches: dict[tuple[str, int, int], SitePatch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = sites_of_comfy_unet(self.model.diffusion_model)
        self.dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        self.windows = [_sigma_window(injection, self.model_sampling) for injection in self.injections]
        self._projected = [_project_once(injection, self.sites, self.dtype) for injection in self.injections]

    def pairs(self, i: int) -> dict[int, RolePair]:
        """slot -> keys and values of an injection, on the device from its first open step on."""
        if i not in self._pairs:
            self._pairs[i] = {slot: pair.to(self.device) for slot, pair in self._projected[i].items()}
        return self._pairs[i]

    def open_at(self, sigma: Tensor) -> tuple[int, ...]:
        """The injections whose window holds this sigma. Reads it from the device only if any window is limited."""
        if all(window is None for window in self.windows):
            return tuple(range(len(self.injections)))
        now = float(sigma.flatten()[0])
        return tuple(i for i, w in enumerate(self.windows) if w is None or w[1] <= now <= w[0])

    def chunks_of(self, conds: Sequence[Any]) -> tuple[dict[int, Role], dict[tuple[int, Any], Area]]:
        """Half and areas of the conditionings in the sampler's list, which may be in any order and number.

        The guider knows its lists by name, and hands the same objects on; an unknown list is judged by its place.
        """
        named = getattr(self.guider, "conds", None) or {}
        roles: dict[int, Role] = {}
        areas: dict[tuple[int, Any], Area] = {}
        for index, entries in enumerate(conds):
            name = next((name for name, known in named.items() if known is entries), None)
            if name is not None:
                roles[index] = Role.COND if name in _CONDITIONED else Role.UNCOND
            for entry in entries or ():
                if entry.get("area") is not None:
                    areas[index, entry.get("uuid")] = tuple(entry["area"])
        return roles, areas

    def compose(self, options: dict, evaluation: _Evaluation, batch_size: int) -> dict:
        """Transformer options in which every site that hears someone has our function, around what was there."""
        numbers = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(numbers)
        batch = _Batch(
            roles=tuple(evaluation.roles.get(n, Role.COND if n == 0 else Role.UNCOND) for n in numbers),
            areas=tuple(evaluation.areas.get((n, u)) for n, u in zip(numbers, uuids, strict=True)),
            pictures=batch_size // len(numbers),
            rows=_rows_of_window(options),
            latent_size=evaluation.latent_size,
            open=evaluation.open,
        )
        heard = [self.pairs(i) for i in evaluation.open]
        patches = options.get("patches_replace", {})
        attn2 = dict(patches.get("attn2", {}))
        for site in self.sites:
            if any(site.slot in pairs for pairs in heard):
                base = attn2.get(site.key) or attn2.get(site.block)
                attn2[site.key] = self._patch(site, base)
        return {**options, "patches_replace": {**patches, "attn2": attn2}, KEY: batch}

    def _patch(self, site: AttentionSite, base: Callable[..., Tensor] | None) -> SitePatch:
        patch = self._patches.get(site.key)
        if patch is None or patch.found is not base:
            patch = self._patches[site.key] = SitePatch(self, site, base)
        return patch

    def terms(self, site: AttentionSite, q: Tensor, grid: tuple[int, int], batch: _Batch) -> Iterable[SiteTerm]:
        """What every open injection adds at a site, for queries (batch, L, width) on a grid of L = h·w places."""
        for i in batch.open:
            pair = self.pairs(i).get(site.slot)
            if pair is not None:
                yield SiteTerm(*self._keys_values(i, site, pair, batch, q.dtype), self._mask(i, grid, batch, q))

    def _keys_values(
        self, i: int, site: AttentionSite, pair: RolePair, batch: _Batch, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        key = (i, site.slot, batch.roles, batch.pictures, batch.rows, dtype)
        found = self._stacked.get(key)
        if found is None:
            if batch.rows and max(pair.cond[0].shape[0], pair.uncond[0].shape[0]) > 1:
                pair = RolePair(*((_take(k, batch.rows), _take(v, batch.rows)) for k, v in pair))
            keys, values = stack_roles(pair, batch.roles, batch.pictures)
            found = self._stacked[key] = (keys.to(dtype), values.to(dtype))
        return found

    def _mask(self, i: int, grid: tuple[int, int], batch: _Batch, q: Tensor) -> Tensor | None:
        """Factors per query, (1 | batch, L | 1, 1), made once per run for every size a site can have."""
        injection = self.injections[i]
        if injection.mask is None and injection.row_weights is None:
            return None
        key = (i, grid, batch.roles, batch.areas, batch.pictures, batch.rows, q.dtype)
        if key not in self._masks:
            self._masks[key] = _factors(injection, grid, batch).to(q)
        return self._masks[key]


# Keys and values wait here between runs, on the CPU, as long as a MODEL carries the identity: a graph that is queued
# again needs neither the projections nor their weights on the GPU.
_projections: WeakKeyDictionary[Injection, dict[torch.dtype, dict[int, RolePair]]] = WeakKeyDictionary()


def _project_once(injection: Injection, sites: Sequence[AttentionSite], dtype: torch.dtype) -> dict[int, RolePair]:
    """slot -> keys and values of every site that hears the identity, on the CPU."""
    known = _projections.setdefault(injection, {})
    if dtype not in known:
        projector = injection.projector
        where = projector.load() if isinstance(projector, ManagedAdapter) else (torch.device("cpu"), torch.float32)
        tokens = injection.tokens.to(*where)
        heard = [site for site in sites if injection.weight_at(site).strength != 0]
        with torch.no_grad():
            known[dtype] = {s.slot: project_site(injection, s, tokens).to("cpu", dtype) for s in heard}
    return known[dtype]


class SitePatch:
    """What runs at one attention site: the function that was there, plus our terms. Called after to_q, to_k, to_v."""

    def __init__(self, run: _Run, site: AttentionSite, base: Callable[..., Tensor] | None) -> None:
        self.run = run
        self.site = site
        self.found = base
        self.base = base or _plain_attention()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out = self.base(q, k, v, extra_options)
        batch: _Batch = extra_options[KEY]
        grid = tuple(extra_options["activations_shape"][-2:])
        return add_identity(out, q, self.run.terms(self.site, q, grid, batch), extra_options["n_heads"])


@cache
def _plain_attention() -> Callable[..., Tensor]:
    """The host's own attention, called the way its blocks call it."""
    from comfy.ldm.modules.attention import optimized_attention

    parameters = inspect.signature(optimized_attention).parameters.values()
    passes_options = any(p.name == "transformer_options" or p.kind is p.VAR_KEYWORD for p in parameters)

    def attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        extra = {"transformer_options": extra_options} if passes_options else {}
        return optimized_attention(
            q, k, v, extra_options["n_heads"], attn_precision=extra_options.get("attn_precision"), **extra
        )

    return attention


def _sigma_window(injection: Injection, model_sampling: Any) -> tuple[float, float] | None:
    """(highest, lowest) sigma of the window, None when it is the whole run."""
    if injection.start <= 0 and injection.end >= 1:
        return None
    return float(model_sampling.percent_to_sigma(injection.start)), float(
        model_sampling.percent_to_sigma(injection.end)
    )


def _rows_of_window(options: dict) -> tuple[int, ...] | None:
    """Which pictures of the batch are sampled now, when a context window (of the host or of AnimateDiff) takes some."""
    indices = (options.get("ad_params") or {}).get("sub_idxs")
    window = options.get("context_window")
    if indices is None and window is not None and getattr(window, "dim", 0) == 0:
        indices = window.index_list
    return None if indices is None else tuple(indices)


def _take(t: Tensor, rows: Sequence[int]) -> Tensor:
    return t if t.shape[0] == 1 else t[[min(row, t.shape[0] - 1) for row in rows]]


def _factors(injection: Injection, grid: tuple[int, int], batch: _Batch) -> Tensor:
    """Mask and weights per picture, multiplied: (1 | chunks·pictures, L | 1, 1)."""
    chunks = []
    for area in batch.areas:
        factors = torch.ones(1, 1, 1)
        if injection.mask is not None:
            height, width = injection.mask.shape[1:]
            warn_aspect((height, width), batch.latent_size)
            mask = injection.mask if area is None else crop_to_area(injection.mask, area, batch.latent_size)
            factors = resize_mask(mask, grid, injection.mask_resize).flatten(1).unsqueeze(-1)
            factors = _take(factors, batch.rows) if batch.rows else factors
        if injection.row_weights is not None:
            weights = torch.tensor(injection.row_weights).view(-1, 1, 1)
            weights = _take(weights, batch.rows) if batch.rows else weights
            factors = fit_rows(factors, batch.pictures) * fit_rows(weights, batch.pictures)
        chunks.append(factors)
    if all(chunk.shape[0] == 1 and torch.equal(chunk, chunks[0]) for chunk in chunks):
        return chunks[0]
    return torch.cat([fit_rows(chunk, batch.pictures) for chunk in chunks])
