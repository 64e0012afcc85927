"""Prompt edits in a diffusers network: it reads the edited text in the conditioned chunks of its batch.

Where an edit gives values that differ from the keys' states, both travel side by side, see `key_values`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.effects import PromptEdit, PromptStates
from ...errors import LikenessError
from ..key_values import separate_values
from ..plan import Role, fit_rows, repeat_tokens
from .place import Place


class EditedText:
    """Prompt edits of a network. `eject` takes them out again.

    An edit is made once for a text: whoever calls the network with the same tensors again gets the same edited ones.
    """

    def __init__(self, network: nn.Module, edits: Sequence[PromptEdit], place: Place) -> None:
        self.edits = [edit for edit in edits if edit.why_never is None]
        self.place = place
        self._signature = inspect.signature(network.forward)
        self._is_unet = "added_cond_kwargs" in self._signature.parameters
        self._made: tuple[Any, PromptStates] | None = None
        self._entered = ExitStack()
        if self.edits:
            self._entered.callback(network.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            if self._is_unet:
                self._entered.enter_context(separate_values(network))

    def eject(self) -> None:
        """Let the network read the text as it is given."""
        self._entered.close()
        self._made = None

    def _before(self, _network: nn.Module, args: Any, keywords: Any) -> tuple[Any, Any] | None:
        acting = tuple(edit for edit in self.edits if self.place.holds(edit.scope))
        if not acting or Role.COND not in self.place.roles:
            return None
        given = self._signature.bind_partial(*args, **keywords)
        told = given.arguments
        added = told.get("added_cond_kwargs") or {}
        pooled = added.get("text_embeds") if self._is_unet else told.get("pooled_projections")
        text = self._edited(acting, told["encoder_hidden_states"], pooled)
        if self._is_unet:
            wide = text.states if text.values is None else torch.cat([text.states, text.values], dim=-1)
            told["encoder_hidden_states"] = wide
            if text.pooled is not None and "text_embeds" in added:
                told["added_cond_kwargs"] = {**added, "text_embeds": text.pooled}
        else:
            if text.values is not None or text.states.shape != told["encoder_hidden_states"].shape:
                raise LikenessError(
                    "The prompt edit produces another number of tokens, or values that differ from the text's states, "
                    "which a UNet alone can read: apply it to SD1.5, SD2 or SDXL."
                )
            told["encoder_hidden_states"], told["pooled_projections"] = text.states, text.pooled
        return given.args, given.kwargs

    def _edited(self, acting: tuple[PromptEdit, ...], states: Tensor, pooled: Tensor | None) -> PromptStates:
        """The text of a whole batch, (chunks · images, n, dim)."""
        roles, key = self.place.roles, (acting, self.place.roles, states, pooled)
        if self._made is None or not _same(self._made[0], key):
            count = len(roles)
            chunks = states.chunk(count), (None,) * count if pooled is None else pooled.chunk(count)
            texts = [
                _through(acting, PromptStates(own, own_pooled)) if role is Role.COND else PromptStates(own, own_pooled)
                for role, own, own_pooled in zip(roles, *chunks, strict=True)
            ]
            self._made = key, _joined(texts, len(states) // count)
        return self._made[1]


def _same(key: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return key[:2] == other[:2] and all(a is b for a, b in zip(key[2:], other[2:], strict=True))


def _through(edits: Sequence[PromptEdit], text: PromptStates) -> PromptStates:
    for edit in edits:
        changed = edit.edit(text)
        text = PromptStates(changed.states, text.pooled if changed.pooled is None else changed.pooled, changed.values)
    return text


def _joined(texts: Sequence[PromptStates], pictures: int) -> PromptStates:
    """The texts of all chunks in one batch. Shorter ones repeat to a common length, which a softmax does not notice."""
    length = math.lcm(*(text.states.shape[1] for text in texts))
    like = texts[0].states

    def batch(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([repeat_tokens(fit_rows(row.to(like), pictures), length) for row in rows])

    pooled = [fit_rows(text.pooled, pictures) for text in texts if text.pooled is not None]
    apart = any(text.values is not None for text in texts)
    return PromptStates(
        batch([text.states for text in texts]),
        torch.cat([rows.to(pooled[0]) for rows in pooled]) if len(pooled) == len(texts) else None,
        batch([text.states if text.values is None else text.values for text in texts]) if apart else None,
    )
