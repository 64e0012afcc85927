"""Effects onto a diffusers network, and out of it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ...adapters.effects import AttentionTerm, BlockTerm, ControlContext, Effect, PromptEdit, ReferenceTerm, WeightDelta
from ...errors import LikenessError
from ..plan import Role
from .control import Controlled, ControlNet
from .dit import InjectedDit
from .place import Place, SamplingRun
from .text import EditedText
from .unet import InjectedUNet
from .weights import MergedDeltas


class Applied:
    """Effects at work in a network. Use it in a `with`, or `eject` it; of several, the last one first."""

    def __init__(self, network: nn.Module, place: Place, deltas: MergedDeltas, entered: ExitStack) -> None:
        self.network = network
        self._place, self._deltas, self._entered = place, deltas, entered

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_error: object) -> None:
        self.eject()

    def eject(self) -> None:
        """Leave the network as it was, bit by bit."""
        self._entered.close()

    @property
    def roles(self) -> tuple[Role, ...]:
        """One per chunk of the batch; set it when the batch's make-up changes."""
        return self._place.roles

    @roles.setter
    def roles(self, roles: Sequence[Role]) -> None:
        self._place.roles = tuple(roles)

    def at_step(self, step: int) -> None:
        """Before the call at the scheduler's timestep of this number, from 0: windows open and close."""
        if self._place.run is None:
            return  # every effect acts in the whole of it
        self.at_sigma(self._place.run.evaluations[step])

    def at_sigma(self, sigma: float) -> None:
        """The same by the noise level, for samplers of one's own."""
        self._place.sigma = sigma
        self._deltas.follow()


def apply_effects(
    network: Any,
    effects: Iterable[Effect],
    roles: Sequence[Role] = (Role.UNCOND, Role.COND),
    *,
    run: SamplingRun | None = None,
    grid: tuple[int, int] | None = None,
    controls: Sequence[ControlNet] = (),
) -> Applied:
    """Have effects act in a UNet2DConditionModel or FluxTransformer2DModel, until what is returned is ejected.

    roles: one per chunk of the batch; prompt edits act on the conditioned ones. run: the sampling that is to come, at
    its first step; `at_step` moves on. grid: rows and columns of a DiT's image tokens. controls: the nets that
    read the contexts of ControlNets among the effects, one each in their order; with none at all, contexts are passed
    over. Raises LikenessError when an effect does not fit the network, which then is as it was.
    """
    terms, blocks, deltas, contexts, edits = [], [], [], [], []
    for effect in effects:
        if run is None and effect.why_never is None and not effect.scope.whole_run:
            raise LikenessError(
                f"An effect has a window, from {effect.scope.start:g} to {effect.scope.end:g} of the sampling: pass "
                "run=SamplingRun.of(scheduler), and advance it with at_step."
            )
        match effect:
            case AttentionTerm():
                terms.append(effect)
            case BlockTerm():
                blocks.append(effect)
            case WeightDelta():
                deltas.append(effect)
            case ControlContext():
                contexts.append(effect)
            case PromptEdit():
                edits.append(effect)
            case ReferenceTerm():
                raise LikenessError(
                    "Reference images are part of each call in diffusers: give them to `references.velocity`."
                )
    if controls and len(controls) != len(contexts):
        raise LikenessError(
            f"There are {len(contexts)} contexts of ControlNets among the effects and {len(controls)} nets: give one "
            "net for each, in their order."
        )
    if blocks and grid is None:
        raise LikenessError("Effects behind a DiT's blocks need the rows and columns of its tokens: give grid.")
    place = Place(roles, run)
    with ExitStack() as entered:
        if terms:
            unet = InjectedUNet(network, terms, place)
            entered.callback(unet.eject)
            unet.attach()
        if blocks and grid is not None:
            entered.callback(InjectedDit(network, blocks, place, grid).eject)
        if controls:
            entered.callback(Controlled(network, list(zip(contexts, controls, strict=True)), place).eject)
        if edits:
            entered.callback(EditedText(network, edits, place).eject)
        merged = MergedDeltas(network, deltas, place)
        entered.callback(merged.eject)
        merged.follow()
        return Applied(network, place, merged, entered.pop_all())
