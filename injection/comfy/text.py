"""Prompt edits applied to a conditioning, so that they ride on the text they were made for and on no other.

An entry of the conditioning carries what of it the host has no place for: the exact borders of its window, and values
that differ from the states. They act in a MODEL that has a `TextRider`; without one the host's own time range stands in
for the borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import Effect, PromptEdit, PromptStates
from ..windows import END, START, Window, WindowEnd
from .run import sigmas_of_run

KEY = "likeness_text"  # of our wrapper, and of our entry in the options of a conditioning

ConditioningEntries = list[tuple[Any, dict[str, Any]]]  # ComfyUI's: (states (batch, n, dim), options) per entry


@dataclass(frozen=True, eq=False)
class Riding:
    """What rides on an entry beside the host's own options. values: (batch, n, dim), see `PromptStates`."""

    window: Window
    values: Tensor | None = None


def edited(conditioning: ConditioningEntries, effects: Iterable[Effect]) -> ConditioningEntries:
    """A conditioning with the prompt edits among these effects; the given one is left as it is.

    An edit whose window is a part of the sampling splits an entry into the parts before, within and after it. Effects
    of other kinds act on a model and are passed over.
    """
    for effect in effects:
        if isinstance(effect, PromptEdit) and effect.why_never is None:
            conditioning = [part for states, options in conditioning for part in _parts(states, options, effect)]
    return conditioning


def needs_rider(conditioning: ConditioningEntries) -> bool:
    """Whether the conditioning says something that only a MODEL with a rider understands in full."""
    return any(_riding(options).values is not None for _, options in conditioning)


def _riding(options: dict[str, Any]) -> Riding:
    """What rides on an entry; its window is the host's where nothing of ours says another."""
    start, end = options.get("start_percent", START.share), options.get("end_percent", END.share)
    return options.get(KEY) or Riding(Window(WindowEnd(start), WindowEnd(end)))


def _parts(states: Any, options: dict[str, Any], effect: PromptEdit) -> ConditioningEntries:
    given = _riding(options)
    first, last = given.window.start, given.window.end
    wanted = Window.of(effect.scope)
    starts_later = wanted.start.share > first.share or wanted.start.is_exact
    start = wanted.start if starts_later else first
    end = wanted.end if wanted.end.share < last.share else last
    if start.share >= end.share:
        return [(states, options)]
    changed = effect.edit(PromptStates(states, options.get("pooled_output"), given.values))
    before = (states, options, given.values)
    within = {**options, **({} if changed.pooled is None else {"pooled_output": changed.pooled})}
    pieces = [
        (Window(first, start), *before),
        (Window(start, end), changed.states, within, changed.values),
        (Window(end, last), *before),
    ]
    kept = [piece for piece in pieces if piece[0].start != piece[0].end]
    return [(text, _with(told, Riding(window, values))) for window, text, told, values in kept]


def _with(options: dict[str, Any], riding: Riding) -> dict[str, Any]:
    """The options of an entry with what rides on it, and the host's own range for MODELs that have no rider."""
    if riding.window == Window() and riding.values is None:
        return {key: value for key, value in options.items() if key not in (KEY, "start_percent", "end_percent")}
    window = riding.window
    if window == Window():
        return {**options, KEY: riding}
    return {**options, KEY: riding, "start_percent": window.start.share, "end_percent": window.end.share}


# --- in the MODEL


def carry(model: Any) -> None:
    """Let a MODEL understand what rides on conditionings, in place."""
    from comfy.patcher_extension import WrappersMP

    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calc_cond_batch)


def outer_sample(executor: Any, *args: Any, **keywords: Any) -> Any:
    """OUTER_SAMPLE: the borders of all entries get their sigmas, and values find their rows."""
    guider = executor.class_obj
    sampling, sigmas = guider.model_patcher.get_model_object("model_sampling"), sigmas_of_run(args)
    for name, entries in guider.conds.items():
        guider.conds[name] = [_placed(entry, sampling, sigmas) for entry in entries]
    values = {
        entry["uuid"]: _values_of(entry)
        for entries in guider.conds.values()
        for entry in entries
        if (entry.get(KEY) or Riding(Window())).values is not None
    }
    if values:
        options = guider.model_options["transformer_options"]
        patches = options.get("patches", {})
        before = list(patches.get("attn2_patch", []))
        options["patches"] = {**patches, "attn2_patch": [*before, ValuesPatch(values)]}
    return executor(*args, **keywords)


def calc_cond_batch(
    executor: Any, model: Any, conds: Sequence[Any], x: Tensor, timestep: Tensor, model_options: dict
) -> Any:
    """CALC_COND_BATCH: values stay with their own text, and every row reads what belongs to its own noise level.

    The host opens and closes entries for the whole batch, by its first row, and waits for the GPU at every border.
    Here the levels are read once. Where rows differ in what is open to them, the batch is run once for each of these
    sets of entries, and every row is taken from the run of its own.
    """
    patches = model_options.get("transformer_options", {}).get("patches", {})
    for patch in patches.get("attn2_patch", ()):
        if isinstance(patch, ValuesPatch):
            patch.strangers = {
                (index, entry["uuid"])
                for index, entries in enumerate(conds)
                for entry in entries or ()
                if entry.get("uuid") in patch.values and _reads_another(entry, entries)
            }
    # Some context windows of ComfyUI pass the levels of all frames beside some frames.
    parts = _rows_by_conds(conds, timestep if len(timestep) == len(x) else timestep[:1])
    if len(parts) == 1:
        return executor(model, parts[0][0], x, timestep, model_options)
    outputs = [torch.empty_like(x) for _ in conds]
    for open_conds, rows in parts:
        for output, found in zip(outputs, executor(model, open_conds, x, timestep, model_options), strict=True):
            output[rows] = found[rows]
    return outputs


def _rows_by_conds(conds: Sequence[Any], timestep: Tensor) -> list[tuple[list[Any], list[int]]]:
    """The conditionings with those of our windows alone that are open, without borders, and the rows they are open to.

    timestep: the sigma of each row. Windows of other nodes are left to the host.
    """
    windowed = [entry for entries in conds for entry in entries or () if _has_borders(entry)]
    if not windowed:
        return [(list(conds), [])]
    rows: dict[frozenset[int], list[int]] = {}
    for row, sigma in enumerate(timestep.tolist()):
        closed = frozenset(
            id(entry)
            for entry in windowed
            if not entry.get("timestep_end", -math.inf) <= sigma <= entry.get("timestep_start", math.inf)
        )
        rows.setdefault(closed, []).append(row)
    return [([_opened(entries, closed) for entries in conds], members) for closed, members in rows.items()]


def _has_borders(entry: dict[str, Any]) -> bool:
    return KEY in entry and ("timestep_start" in entry or "timestep_end" in entry)


def _opened(entries: Any, closed: frozenset[int]) -> Any:
    """A list of conditioning entries without the closed ones, by id; the host looks for no borders at what is left."""
    return entries and [
        {key: value for key, value in entry.items() if key not in ("timestep_start", "timestep_end")}
        if _has_borders(entry)
        else entry
        for entry in entries
        if id(entry) not in closed
    ]


def _reads_another(entry: dict[str, Any], entries: Sequence[dict[str, Any]]) -> bool:
    """Whether an entry has the text of another one of its list.

    Where only one half of guidance has a prompt for an area, the host gives the other half a copy of that entry, uuid
    and all, with the text of an entry that is there.
    """
    text = entry["model_conds"].get("c_crossattn")
    if text is None or text.cond is entry.get("cross_attn"):
        return False
    return any(text is other["model_conds"].get("c_crossattn") for other in entries if other is not entry)


def _placed(entry: dict[str, Any], model_sampling: Any, sigmas: Sequence[float]) -> dict[str, Any]:
    """The entry with its window as sigmas. A range that another node has set since then narrows it."""
    riding: Riding | None = entry.get(KEY)
    if riding is None or riding.window == Window():
        return entry
    high, low = riding.window.sigmas(model_sampling, sigmas)
    for name, border, inwards in (("start_percent", riding.window.start, min), ("end_percent", riding.window.end, max)):
        theirs = entry.get(name, border.share)
        if theirs != border.share:
            limit = WindowEnd(theirs).sigma(model_sampling, ())
            high, low = (inwards(high, limit), low) if inwards is min else (high, inwards(low, limit))
    kept = {key: value for key, value in entry.items() if key not in ("start_percent", "end_percent")}
    if high < math.inf:
        kept["timestep_start"] = high
    if low > -math.inf:
        kept["timestep_end"] = low
    return kept


def _values_of(entry: dict[str, Any]) -> Tensor:
    """An entry's values, as long as its text: what other nodes have joined to it has the same keys and values."""
    values, text = entry[KEY].values, entry["cross_attn"]
    return torch.cat([values.to(text), text[: len(values), values.shape[1] :]], dim=1)


class ValuesPatch:
    """An attn2 patch: the rows of an entry whose values differ from its states get their own. Called in every block."""

    def __init__(self, values: dict[Any, Tensor]) -> None:
        self.values = values  # uuid of an entry -> (1 | batch, n, dim)
        self.strangers: set[tuple[int, Any]] = set()  # (index, uuid) of what has an entry's uuid and another text
        self._made: tuple[Any, Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: dict) -> ValuesPatch:
        return self  # the host deep-copies options

    def __call__(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict) -> tuple[Tensor, Tensor, Tensor]:
        uuids = tuple(extra_options.get("uuids") or ())
        numbers = extra_options.get("cond_or_uncond") or (0,) * len(uuids)
        owners = tuple(None if pair in self.strangers else pair[1] for pair in zip(numbers, uuids, strict=True))
        if not any(uuid in self.values for uuid in owners):
            return n, context, value
        made = self._made
        if made is None or made[0] != owners or made[1] is not value:
            made = self._made = (owners, value, self._with_own_rows(value, owners))
        return n, context, made[2]

    def _with_own_rows(self, value: Tensor, uuids: Sequence[Any]) -> Tensor:
        """value: (chunks · images, n, dim). The host repeats texts to a common length, and so are ours."""
        chunks = list(value.chunk(len(uuids)))
        for place, uuid in enumerate(uuids):
            own = self.values.get(uuid)
            if own is not None:
                times = value.shape[1] // own.shape[1]
                rows = own.to(value).repeat(1, times, 1)
                chunks[place] = rows.expand(len(chunks[place]), -1, -1) if len(rows) == 1 else rows
        return torch.cat(chunks)
