"""Attention terms in a UNet2DConditionModel, through attention processors.

`inject` and `eject` are a pair. The mathematics is that of `attention`, the same as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.effects import AttentionTerm, Scope
from ..attention import SiteTerm, add_identity, attend
from ..masks import resize_mask
from ..plan import Role, check_fit, fit_rows, placed, project
from ..sites import AttentionSite, sites_of_diffusers_unet
from .place import Place


class IdentityAttnProcessor:
    """Attention processor of one cross-attention layer: text, plus every identity's term, then `to_out`.

    found: the processor it replaces, which runs by itself while no term is open. Identities that are there already, as
    of another `inject`, stay.
    """

    def __init__(self, injected: InjectedUNet, site: AttentionSite, found: Any) -> None:
        self.injected = injected
        self.site = site
        self.found = found

    def terms(self, q: Tensor) -> list[SiteTerm]:
        """All open terms for a batch of queries (batch, L, width)."""
        before = self.found.terms(q) if isinstance(self.found, IdentityAttnProcessor) else []
        return [*before, *self.injected.terms(self.site, q)]

    def is_open(self) -> bool:
        """Whether any identity takes part now."""
        before = isinstance(self.found, IdentityAttnProcessor) and self.found.is_open()
        return before or self.injected.is_open(self.site)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **keywords: Any,
    ) -> Tensor:
        if not self.is_open():
            return self.found(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **keywords)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if attention_mask is None:
            out = attend(q, k, v, attn.heads)
        else:
            out = _attend_masked(attn, q, k, v, attention_mask)
        out = add_identity(out, q, self.terms(q))
        return attn.to_out[1](attn.to_out[0](out))


class InjectedUNet:
    """The identities in one UNet and what their processors need at call time.

    place: the make-up of the batch, and which windows are open. Keys and values are projected once, when the identities
    are injected.

    live: for training; keys and values are projected at every call, with gradient to the adapter and to the tokens.
    Before each step `injections` is set anew, to the same adapters with the step's tokens.
    """

    def __init__(self, unet: Any, injections: Iterable[AttentionTerm], place: Place, live: bool = False) -> None:
        self.place = place
        self.live = live
        self.sites = sites_of_diffusers_unet(unet)
        given = [placed(injection) for injection in injections]
        for injection in given:
            check_fit(injection.projector, self.sites, type(unet).__name__)
        self.injections = [injection for injection in given if injection.why_never is None]
        self._projected = [] if live else [project(i, self.sites, i.tokens) for i in self.injections]
        self._constant: dict[Any, dict[int, tuple[Tensor, Tensor]]] = {}
        self._grids: dict[int, tuple[int, int]] = {}
        self._unet = unet
        self._originals: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def is_open(self, site: AttentionSite) -> bool:
        """Whether any identity takes part at a site now."""
        return any(self._acts(injection, site) for injection in self.injections)

    def _acts(self, injection: AttentionTerm, site: AttentionSite) -> bool:
        return injection.weight_at(site.transformer).strength != 0 and self.place.holds_term(injection.scope)

    def terms(self, site: AttentionSite, q: Tensor) -> Iterable[SiteTerm]:
        """The open terms of a site for a batch of queries (batch, L, width)."""
        roles = self.place.roles
        pictures = len(q) // len(roles)
        for number, injection in enumerate(self.injections):
            if not self._acts(injection, site):
                continue
            if self.live:
                (part,) = project(injection, [site], injection.tokens)
                found = part.of_batch(roles, pictures)
            else:
                found = self._of_batch(number, pictures, q)
            keys, values = found[site.slot]
            factors = factors_of(injection.scope, self._grids[site.transformer], pictures, len(roles))
            yield SiteTerm(keys.to(q), values.to(q), None if factors is None else factors.to(q), injection.merge)

    def _of_batch(self, number: int, pictures: int, q: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """slot -> keys and values of an injection for batches of this make-up: made once, whatever the steps."""
        roles = self.place.roles
        key = (number, roles, pictures, q.device, q.dtype)
        if key not in self._constant:
            parts = [part.to(q.device, q.dtype).of_batch(roles, pictures) for part in self._projected[number]]
            self._constant[key] = {slot: pair for part in parts for slot, pair in part.items()}
        return self._constant[key]

    def attach(self) -> None:
        """Replace the processors of the sites with an identity term, and watch the size of their maps."""
        processors = dict(self._unet.attn_processors)
        transformers: dict[int, nn.Module] = {}
        for site in self.sites:
            if any(injection.weight_at(site.transformer).strength != 0 for injection in self.injections):
                name = f"{site.diffusers_path}.attn2.processor"
                self._originals[name] = processors[name]
                processors[name] = IdentityAttnProcessor(self, site, self._originals[name])
                path = site.diffusers_path.rsplit(".transformer_blocks.", 1)[0]
                transformers[site.transformer] = self._unet.get_submodule(path)
        for index, transformer in transformers.items():
            self._hooks.append(transformer.register_forward_pre_hook(self._grid_recorder(index)))
        self._unet.set_attn_processor(processors)

    def eject(self) -> None:
        """Put the former processors back."""
        self._unet.set_attn_processor({**self._unet.attn_processors, **self._originals})
        for hook in self._hooks:
            hook.remove()
        self._originals, self._hooks = {}, []

    def _grid_recorder(self, transformer: int):
        def record(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._grids[transformer] = tuple(args[0].shape[-2:])  # type: ignore[assignment]

        return record


def inject(
    unet: Any,
    injections: Iterable[AttentionTerm],
    roles: Sequence[Role] = (Role.UNCOND, Role.COND),
    live: bool = False,
) -> InjectedUNet:
    """Put identities into a diffusers UNet; call `eject` on what is returned to take them out again.

    They act whatever their windows say: `apply_effects` opens and closes those. live: project at every call, with
    gradient, for training; see `InjectedUNet`.
    """
    injected = InjectedUNet(unet, injections, Place(roles), live)
    injected.attach()
    return injected


def factors_of(scope: Scope, grid: tuple[int, int], pictures: int, chunks: int) -> Tensor | None:
    """Mask and weights per image, multiplied: (1 | chunks·images, L | 1, 1), or None where all is 1."""
    factors = None
    if scope.mask is not None:
        factors = resize_mask(scope.mask, grid, scope.mask_resize).flatten(1).unsqueeze(-1)
    if scope.image_weights is not None:
        weights = fit_rows(torch.tensor(scope.image_weights).view(-1, 1, 1), pictures)
        factors = weights if factors is None else weights * fit_rows(factors, pictures)
    if factors is None or len(factors) == 1:
        return factors
    return fit_rows(factors, pictures).repeat(chunks, 1, 1)


def _attend_masked(attn: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attn.prepare_attention_mask(attention_mask, k.shape[1], len(q))
    mask = mask.unflatten(0, (len(q), attn.heads))
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
