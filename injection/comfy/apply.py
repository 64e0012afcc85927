"""Effects onto a MODEL: the given one is left as it is, a clone of it has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from ...adapters.effects import (
    AttentionTerm,
    BlockTerm,
    ControlContext,
    Effect,
    PromptEdit,
    ReferenceTerm,
    Scope,
    WeightDelta,
)
from ...adapters.types import scale
from ...errors import LikenessError
from ...weights.families import FLUX, DitLayout, TransformerLayout, of_host
from ..plan import check_blocks, check_fit, layout_of, placed
from ..sites import AttentionSite, diffusers_layers, sites_of_comfy_unet
from .managed import Managed, prepared_tokens
from .references import check_host
from .run import IdentityStack, Injection, compute_dtype, with_scope
from .text import carry
from .unet import KEY
from .weights import add_delta, add_windowed_delta, has_elsewhere


def sites_of(model: Any) -> tuple[AttentionSite, ...]:
    """The cross-attention sites of a MODEL; empty when it is not a UNet."""
    return sites_of_comfy_unet(model.model.diffusion_model)


def dit_of(model: Any) -> DitLayout | None:
    """The blocks of a MODEL that is FLUX; None for every other."""
    if of_host(model_name(model)) is not FLUX:
        return None
    net = model.model.diffusion_model
    return DitLayout(len(net.double_blocks), len(net.single_blocks), net.hidden_size)


def model_name(model: Any) -> str:
    """What the host takes the MODEL for, as in 'SDXL' or 'Flux'."""
    return type(model.model.model_config).__name__


class Applied(NamedTuple):
    """A MODEL with effects in it. changed: how many of its weights; present: deltas that other nodes had put there."""

    model: Any
    changed: int
    present: tuple[WeightDelta, ...]


def apply_effects(model: Any, effects: Iterable[Effect]) -> Applied:
    """A clone of the MODEL (ModelPatcher) in which these effects act. The given one is left as it is.

    Prompt edits and contexts of ControlNets ride on a CONDITIONING and are applied there, by `text.edited` and
    `control.controlled`; the MODEL learns to understand the edits. Raises LikenessError when an adapter does not fit
    the model.
    """
    patched, terms, changed, present = model.clone(), [], 0, []
    for effect in effects:
        match effect:
            case AttentionTerm():
                check_fit(effect.projector, sites_of(model), model_name(model))
                terms.append(placed(effect))
            case BlockTerm():
                check_blocks(effect, dit_of(model), model_name(model))
                terms.append(effect)
            case ReferenceTerm():
                check_references(model, effect)
                terms.append(effect)
            case WeightDelta() if effect.why_never is not None:
                pass
            case WeightDelta() if has_elsewhere(patched, effect):
                present.append(effect)
            case WeightDelta() if effect.scope.whole_run:
                changed += add_delta(patched, effect)
            case WeightDelta():
                patched, count = add_windowed_delta(patched, effect)
                changed += count
            case PromptEdit():
                carry(patched)
            case ControlContext():
                pass
    acting = [term for term in terms if term.why_never is None]
    if acting:
        before = stack_of(model)
        _attach(patched, IdentityStack((*(before.injections if before else ()), *acting)))
        _load_along(patched, acting)
    return Applied(patched, changed, tuple(present))


def apply_identity(model: Any, injections: Iterable[AttentionTerm]) -> Any:
    """`apply_effects` of attention terms alone; returns the MODEL."""
    return apply_effects(model, injections).model


def request_layout(model: Any) -> tuple[TransformerLayout, dict[int, str]]:
    """What a `Request` says of a MODEL: where its transformers sit, and slot -> diffusers' path of every attention."""
    sites = sites_of(model)
    return layout_of(sites), diffusers_layers(sites)


def stack_of(model: Any) -> IdentityStack | None:
    """The identities a MODEL carries, None if it carries none."""
    from comfy.patcher_extension import WrappersMP

    wrappers = model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(KEY, [])
    return wrappers[0].__self__ if wrappers else None


def rescale(model: Any, factor: float) -> Any:
    """A clone of the MODEL in which all identities have their strength multiplied by `factor`."""
    patched, stack = model.clone(), stack_of(model)
    if stack:
        _attach(patched, IdentityStack(tuple(_scaled(injection, factor) for injection in stack.injections)))
    return patched


def with_scopes(model: Any, place: Callable[[Scope], Scope]) -> Any:
    """A clone of the MODEL whose identities act within other scopes: `place` makes them from their own."""
    patched, stack = model.clone(), stack_of(model)
    if stack:
        _attach(patched, IdentityStack(tuple(with_scope(one, place(one.scope)) for one in stack.injections)))
    return patched


def count_references(model: Any) -> int:
    """How many reference images the people of a MODEL have in all."""
    stack = stack_of(model)
    return sum(len(one.photos) for one in stack.injections if isinstance(one, ReferenceTerm)) if stack else 0


def has_timestep_zero(model: Any) -> bool | None:
    """Whether a MODEL's own references have the timestep 0, as far as its file says; None where it cannot."""
    method = getattr(model.model.diffusion_model, "default_ref_method", None)
    return None if method is None else method == "index_timestep_zero"


def check_references(model: Any, term: ReferenceTerm) -> None:
    """Raise LikenessError when a MODEL cannot have these references, or has some of another scheme."""
    check_host(model, term)
    stack = stack_of(model)
    for other in stack.injections if stack else ():
        if isinstance(other, ReferenceTerm) and other.scheme != term.scheme:
            raise LikenessError(
                f"The MODEL has references of the scheme {other.scheme!r}, and {term.name!r} has {term.scheme!r}: give "
                "every person of one MODEL the same scheme."
            )


def _scaled(injection: Injection, factor: float) -> Injection:
    if isinstance(injection, BlockTerm | ReferenceTerm):
        return replace(injection, strength=injection.strength * factor)
    return replace(injection, site_weights=scale(injection.site_weights, factor))


def _load_along(model: Any, injections: Iterable[Injection]) -> None:
    """Have the host load what a step reads beside the MODEL whenever it loads that, and free both together."""
    known = model.get_additional_models_with_key(KEY)
    found: list[Managed] = []
    for term in (injection for injection in injections if isinstance(injection, BlockTerm)):
        found.append(prepared_tokens(term, compute_dtype(model.model)))
        if isinstance(term.modules, Managed) and term.modules.at_every_step:
            found.append(term.modules)
    new = {id(managed.module): managed.patcher for managed in found}
    new = [p for p in new.values() if not any(p.model is other.model for other in known)]
    if new:
        model.set_additional_models(KEY, [*known, *new])


def _attach(model: Any, stack: IdentityStack) -> None:
    from comfy.patcher_extension import WrappersMP

    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, stack.outer_sample),
        (WrappersMP.CALC_COND_BATCH, stack.calc_cond_batch),
        (WrappersMP.APPLY_MODEL, stack.apply_model),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
