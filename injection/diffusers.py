"""The diffusers binding: identities enter a UNet2DConditionModel through attention processors.

`inject` and `eject` are a pair; `control_residuals` is what a ControlNet with a context of its own adds. The
mathematics is that of `attention` and `control`, the same as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.effects import AttentionTerm, ControlContext, Scope
from ..adapters.ip_adapter.adapter import IPAdapter
from ..weights.lora import merged
from .attention import SiteTerm, add_identity, attend
from .control import open_at_step, residual_mask
from .masks import resize_mask
from .plan import Role, check_fit, fit_rows, placed, project
from .sites import AttentionSite, diffusers_layers, sites_of_diffusers_unet


class IdentityAttnProcessor:
    """Attention processor of one cross-attention layer: text, plus every identity's term, then `to_out`."""

    def __init__(self, injected: InjectedUNet, site: AttentionSite) -> None:
        self.injected = injected
        self.site = site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *_args: Any,
        **_keywords: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if attention_mask is None:
            out = attend(q, k, v, attn.heads)
        else:
            out = _attend_masked(attn, q, k, v, attention_mask)
        out = add_identity(out, q, self.injected.terms(self.site, q))
        return attn.to_out[1](attn.to_out[0](out))


class InjectedUNet:
    """The identities in one UNet and what their processors need at call time.

    roles: one per chunk of the batch, (UNCOND, COND) for a guided pipeline's batch; set it when the batch's make-up
    changes. Keys and values are projected once, when the identities are injected. A UNet knows nothing of sampling, so
    the caller applies `start` and `end` of an injection: eject when its window closes.

    live: for training; keys and values are projected at every call, with gradient to the adapter and to the tokens.
    Before each step `injections` is set anew, to the same adapters with the step's tokens.
    """

    def __init__(
        self, unet: Any, injections: Iterable[AttentionTerm], roles: Sequence[Role], live: bool = False
    ) -> None:
        self.roles = tuple(roles)
        self.live = live
        self.sites = sites_of_diffusers_unet(unet)
        self.injections = [placed(injection) for injection in injections if injection.why_never is None]
        for injection in self.injections:
            check_fit(injection.projector, self.sites, type(unet).__name__)
        self._projected = [] if live else [project(i, self.sites, i.tokens) for i in self.injections]
        self._constant: dict[Any, dict[int, tuple[Tensor, Tensor]]] = {}
        self._grids: dict[int, tuple[int, int]] = {}
        self._unet = unet
        self._originals: dict[str, Any] = {}
        self._hooks: list[Any] = []

    def terms(self, site: AttentionSite, q: Tensor) -> Iterable[SiteTerm]:
        """The active terms of a site for a batch of queries (batch, L, width)."""
        pictures = len(q) // len(self.roles)
        for number, injection in enumerate(self.injections):
            if injection.weight_at(site.transformer).strength == 0:
                continue
            if self.live:
                (part,) = project(injection, [site], injection.tokens)
                found = part.of_batch(self.roles, pictures)
            else:
                found = self._of_batch(number, pictures, q)
            keys, values = found[site.slot]
            factors = factors_of(injection.scope, self._grids[site.transformer], pictures, len(self.roles))
            yield SiteTerm(keys.to(q), values.to(q), None if factors is None else factors.to(q), injection.merge)

    def _of_batch(self, number: int, pictures: int, q: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """slot -> keys and values of an injection for batches of this make-up: made once, whatever the steps."""
        key = (number, self.roles, pictures, q.device, q.dtype)
        if key not in self._constant:
            parts = [part.to(q.device, q.dtype).of_batch(self.roles, pictures) for part in self._projected[number]]
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
                processors[name] = IdentityAttnProcessor(self, site)
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

    live: project at every call, with gradient, for training; see `InjectedUNet`.
    """
    injected = InjectedUNet(unet, injections, roles, live)
    injected.attach()
    return injected


def control_residuals(
    net: Any,
    control: ControlContext,
    sample: Tensor,
    timestep: Tensor | float,
    picture: Tensor,
    *,
    step: int,
    steps: int,
    roles: Sequence[Role] = (Role.UNCOND, Role.COND),
    **given: Any,
) -> tuple[list[Tensor], Tensor] | None:
    """What a diffusers ControlNet that reads the effect's tokens adds to a UNet: its down and mid residuals.

    sample: (chunks·images, 4, h, w), one chunk per role; picture: (1 | images, 3, H, W) in 0..1. None outside the
    window. The caller adds up the residuals of several nets, and passes what else the net needs as `given`.
    """
    if control.why_never is not None or not open_at_step(control.scope, step, steps):
        return None
    images = len(sample) // len(roles)
    halves = {Role.COND: control.tokens.cond, Role.UNCOND: control.tokens.uncond}
    context = torch.cat([fit_rows(halves[role], images) for role in roles]).to(sample)
    hint = torch.cat([fit_rows(picture, images)] * len(roles)).to(sample)
    down, middle = net(
        sample,
        timestep,
        encoder_hidden_states=context,
        controlnet_cond=hint,
        conditioning_scale=control.strength,
        return_dict=False,
        **given,
    )
    *down, middle = (_within(control, residual, images, len(roles)) for residual in (*down, middle))
    return down, middle


def _within(control: ControlContext, residual: Tensor, images: int, chunks: int) -> Tensor:
    height, width = residual.shape[-2:]
    mask = residual_mask(control.scope, (height, width), images, chunks)
    return residual if mask is None else residual * mask.to(residual)


def factors_of(scope: Scope, grid: tuple[int, int], pictures: int, chunks: int) -> Tensor | None:
    """Mask and weights per picture, multiplied: (1 | chunks·pictures, L | 1, 1), or None where all is 1."""
    factors = None
    if scope.mask is not None:
        factors = resize_mask(scope.mask, grid, scope.mask_resize).flatten(1).unsqueeze(-1)
    if scope.image_weights is not None:
        weights = fit_rows(torch.tensor(scope.image_weights).view(-1, 1, 1), pictures)
        factors = weights if factors is None else weights * fit_rows(factors, pictures)
    if factors is None or len(factors) == 1:
        return factors
    return fit_rows(factors, pictures).repeat(chunks, 1, 1)


def merged_lora(unet: nn.Module, adapter: IPAdapter, strength: float):
    """The UNet with the LoRA of a FaceID file added to its own weights, restored on leaving.

    Raises LikenessError when the adapter was made for another UNet.
    """
    sites = sites_of_diffusers_unet(unet)
    check_fit(adapter, sites, type(unet).__name__)
    delta = adapter.lora(diffusers_layers(sites), strength)
    return nullcontext(unet) if delta is None else merged(unet, delta.changes, delta.strength)


def _attend_masked(attn: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attn.prepare_attention_mask(attention_mask, k.shape[1], len(q))
    mask = mask.unflatten(0, (len(q), attn.heads))
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
