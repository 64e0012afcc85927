"""Prompt edits applied to a conditioning, so that they ride on the text they were made for and on no other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...adapters.effects import Effect, PromptEdit, PromptStates

Conditioning = list[tuple[Any, dict[str, Any]]]  # ComfyUI's: (states (batch, n, dim), options) per entry


def edited(conditioning: Conditioning, effects: Iterable[Effect]) -> Conditioning:
    """A conditioning with the prompt edits among these effects; the given one is left as it is.

    An edit whose window is a part of the sampling splits an entry into the parts before, within and after it. Effects
    of other kinds act on a model and are passed over.
    """
    for effect in effects:
        if isinstance(effect, PromptEdit) and effect.why_never is None:
            conditioning = [part for states, options in conditioning for part in _parts(states, options, effect)]
    return conditioning


def _parts(states: Any, options: dict[str, Any], effect: PromptEdit) -> Conditioning:
    first, last = options.get("start_percent", 0.0), options.get("end_percent", 1.0)
    start, end = max(first, effect.scope.start), min(last, effect.scope.end)
    if start >= end:
        return [(states, options)]
    changed = effect.edit(PromptStates(states, options.get("pooled_output")))
    within = {**options, **({} if changed.pooled is None else {"pooled_output": changed.pooled})}
    if (start, end) == (first, last):
        return [(changed.states, within)]
    windows = [(first, start, states, options), (start, end, changed.states, within), (end, last, states, options)]
    return [
        (text, {**given, "start_percent": begin, "end_percent": stop})
        for begin, stop, text, given in windows
        if begin < stop
    ]
