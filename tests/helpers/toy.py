"""A whole system in a few lines: tokens, a change of weights and a prompt edit. What a new system has to bring.

out = text attention + Σ attention to the person's tokens;   W + up @ down;   states + the person's word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from likeness.adapters.effects import AttentionTerm, Effect, PromptEdit, PromptStates, WeightDelta
from likeness.adapters.system import Kind, Needs, Request, Sureness, WeightFile
from likeness.adapters.types import IdentityTokens, SiteWeight
from likeness.errors import LikenessError
from likeness.weights.families import OTHER
from likeness.weights.lora import LoraPair

Shapes = Sequence[tuple[int, int]]  # (width of the site, width of the text), in slot order


class Toy(nn.Module):
    """An adapter of the toy system. Keys: `toy.<slot>.{key,value,up,down}` and `toy.word`."""

    title = "Toy"

    def __init__(self, file: WeightFile) -> None:
        super().__init__()
        self.name = file.name
        self.given = nn.ParameterDict({k.replace(".", "/"): nn.Parameter(v, False) for k, v in file.weights.items()})

    @property
    def needs(self) -> Needs:
        return Needs(OTHER, recogniser="buffalo_l")

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        keys = [key for key in self.given if key.endswith("/key")]
        return {int(key.split("/")[1]): tuple(self.given[key].shape) for key in keys}  # type: ignore[misc]

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens @ self.given[f"toy/{slot}/key"].T, tokens @ self.given[f"toy/{slot}/value"].T

    def effects(self, request: Request) -> tuple[Effect, ...]:
        if request.identity is None:
            raise LikenessError(f"The adapter {self.name!r} needs an identity: connect Identity from Photos.")
        person = request.seen_by(request.identity, "buffalo_l").mean_embedding()
        word = person[:2].sum() * self.given["toy/word"].cpu()
        tokens = IdentityTokens(
            word.expand(1, 4, -1) + torch.arange(4.0).view(1, 4, 1), word.new_zeros(1, 4, len(word))
        )
        count = len(request.layout.names)
        term = AttentionTerm(self, tokens, (SiteWeight(request.strength),) * count, scope=request.scope)
        pairs = {
            f"{request.attention[slot]}.to_q": LoraPair(self.given[f"toy/{slot}/down"], self.given[f"toy/{slot}/up"])
            for slot in self.site_shapes
        }
        delta = WeightDelta(self.name, self.name, pairs, request.weight_strength if term.why_never is None else 0.0)
        edit = PromptEdit(lambda text: PromptStates(text.states + request.strength * word, text.pooled), request.scope)
        return term, delta, edit

    def notes(self, request: Request) -> list[str]:
        return []


def recognise(file: WeightFile) -> Sureness:
    return Sureness.YES if file.has("toy.word") else Sureness.NO


SYSTEM = Kind("Toy", recognise, ("toys",), Toy)


def weights(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    """A file's content for a model of these sites."""
    random = torch.Generator().manual_seed(seed)
    made = {"toy.word": torch.randn(shapes[0][1], generator=random)}
    for number, (width, text) in enumerate(shapes):
        slot = 2 * number + 1
        for name, size in (("key", (width, text)), ("value", (width, text)), ("up", (width, 2)), ("down", (2, width))):
            made[f"toy.{slot}.{name}"] = torch.randn(*size, generator=random) / size[1] ** 0.5
    return made
