"""Changes of a network's own weights: merged while their windows are open, and taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from ...adapters.effects import WeightDelta
from ...weights.lora import merged, targets_of
from .place import Place


class MergedDeltas:
    """The deltas of one network; `eject` gives its weights back bit by bit."""

    def __init__(self, network: nn.Module, deltas: Sequence[WeightDelta], place: Place) -> None:
        self.network = network
        self.deltas = _strongest([delta for delta in deltas if delta.why_never is None])
        self.place = place
        for delta in self.deltas:
            targets_of(network, delta.changes)
        self._merged = ExitStack()
        self._open: list[WeightDelta] = []

    def follow(self) -> None:
        """Have exactly the deltas in the weights whose windows are open now."""
        wanted = [delta for delta in self.deltas if self.place.holds(delta.scope)]
        wanted.sort(key=lambda delta: not delta.replaces)  # what takes the weights' place goes first
        if wanted != self._open:
            self.eject()
            for delta in wanted:
                self._merged.enter_context(merged(self.network, delta.changes, delta.strength, delta.replaces))
            self._open = wanted

    def eject(self) -> None:
        """The weights as they were."""
        self._merged.close()
        self._open = []


def _strongest(deltas: Sequence[WeightDelta]) -> list[WeightDelta]:
    """Each change once, with its greatest strength, so that several people can use one adapter; one of the whole run
    and one with a window are two, as in ComfyUI."""
    found: dict[tuple[str, bool], WeightDelta] = {}
    for delta in deltas:
        key = (delta.id, delta.scope.whole_run)
        if key not in found or delta.strength > found[key].strength:
            found[key] = delta
    return list(found.values())
