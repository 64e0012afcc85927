"""A prompt in which words stand for SeFi-IDE's subjects.

    K = W_k c_s^K     V = W_v c_s^V      s = floor(t S / T)

c_s^K and c_s^V are the text with the subject's word replaced by the tokens of stage s, one for keys and one for values;
the text itself, and its pooled vector, name the class word there. One prompt edit acts in each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ...errors import LikenessError
from ..effects import PromptEdit, PromptStates, Scope
from ..text_encoder import TextEncoder, Token, Tokens, encode_tokens
from ..trigger_words import pattern_of, with_stand_ins
from .file import Subject
from .networks import TIMESTEPS, stage_of


@dataclass(frozen=True)
class Shares:
    """How much of the subject each stage reads, the rest being the class word: 1 all, 0 nothing.

    From the first steps to the last; one number stands for all stages.
    """

    keys: tuple[float, ...] = (1.0,)
    values: tuple[float, ...] = (1.0,)

    def at(self, stage: int, stages: int) -> tuple[float, float]:
        """(keys, values) at a stage; 0 is the one of the last steps."""
        keys, values = (part[0] if len(part) == 1 else part[stages - 1 - stage] for part in (self.keys, self.values))
        return keys, values


@dataclass(frozen=True, eq=False)
class SubjectPrompt:
    """plain: the text with the class words. edits: one for each part of the sampling. missing: placeholders that the
    text does not hold. stages: timesteps (low, high) of each edit, from the first steps to the last."""

    plain: PromptStates
    edits: tuple[PromptEdit, ...]
    missing: tuple[str, ...]
    stages: tuple[tuple[int, int], ...]


def subject_prompt(
    encoder: TextEncoder, text: str, subjects: Sequence[Subject], shares: Shares | None = None
) -> SubjectPrompt:
    """The prompt of a text and its subjects, encoded. Raises LikenessError when the text encoder is of another family,
    two subjects have one placeholder, a class word is several tokens, or the shares are not one or one per stage."""
    shares = shares or Shares()
    _must_fit(encoder, subjects)
    _must_differ(subjects)
    used = [subject for subject in subjects if pattern_of([subject.placeholder]).search(text)]
    missing = tuple(subject.placeholder for subject in subjects if subject not in used)
    _must_be_one_or_all(shares, used)
    text, stand_ins = with_stand_ins(encoder, text, [subject.placeholder for subject in used])
    tokens = encoder.tokenize(text)
    plain = encode_tokens(encoder, _replaced(tokens, stand_ins, lambda i, name: _class_token(encoder, used[i], name)))
    edits, stages = [], []
    for low, high in parts_of([subject.stages for subject in used]):

        def encoded(kind: int, share: float, low: int = low) -> Tensor:
            """The states that keys (0) or values (1) are made of."""
            if share == 0:
                return plain.states
            table = [_vectors(subject, low, kind) for subject in used]
            own = encode_tokens(encoder, _replaced(tokens, stand_ins, lambda i, name: table[i][name])).states
            return own if share == 1 else torch.lerp(plain.states.to(own), own, share)

        keys, values = shares.at(_stage(used[0], low), used[0].stages)
        if keys or values:
            edits.append(reading(encoded(0, keys), encoded(1, values), low, high))
            stages.append((low, high))
    return SubjectPrompt(plain, tuple(edits), missing, tuple(stages))


def reading(keys: Tensor, values: Tensor, low: int, high: int) -> PromptEdit:
    """The edit by which a prompt has these states, for keys and for values, at timesteps low to high, both
    inclusive."""
    return PromptEdit(lambda text: PromptStates(keys, text.pooled, values), Scope(_share(high + 1), _share(low)))


def _share(timestep: int) -> float:
    """The share of the sampling at the border below a timestep: half-way to the one before, so that each side is whole
    for hosts that round a noise level to the nearest timestep."""
    return 1 - (timestep - 0.5) / (TIMESTEPS - 1)


def parts_of(stages: Sequence[int]) -> list[tuple[int, int]]:
    """Timesteps (low, high), both inclusive, within which no subject changes its stage; high noise first.

    stages: how many each subject has.
    """
    borders = {0, TIMESTEPS}
    for count in stages:
        for stage in range(1, count):
            borders.add(-(-stage * TIMESTEPS // count))
    ordered = sorted(borders)
    return [(low, high - 1) for low, high in pairwise(ordered)][::-1] if stages else []


def _stage(subject: Subject, timestep: int) -> int:
    """The subject's stage at a timestep of the sampling."""
    return int(stage_of(torch.tensor(timestep), subject.stages))


def _vectors(subject: Subject, timestep: int, kind: int) -> dict[str, Tensor]:
    stage = _stage(subject, timestep)
    return {name: table[stage, kind] for name, table in subject.tables.items()}


# --- tokens


def _class_token(encoder: TextEncoder, subject: Subject, tower: str) -> int | Tensor:
    tokens = encoder.tokenize(subject.class_word)[tower]
    if len(tokens) != 1:
        pieces = ", ".join(repr(token.word) for token in tokens)
        raise LikenessError(
            f"The class word {subject.class_word!r} of {subject.placeholder!r} is {len(tokens)} tokens of this text "
            f"encoder ({pieces}): connect the CLIP of the base model it was trained on."
        )
    return tokens[0].id


def _replaced(
    tokens: Tokens, stand_ins: Sequence[Mapping[str, int]], by: Callable[[int, str], int | Tensor]
) -> dict[str, list[Token]]:
    """The tokens with what `by` (number of the subject, tower) gives in place of the stand-ins."""
    changed = {}
    for name, row in tokens.items():
        place = {ids[name]: by(number, name) for number, ids in enumerate(stand_ins)}
        changed[name] = [
            replace(token, id=place[token.id], piece="") if isinstance(token.id, int) and token.id in place else token
            for token in row
        ]
    return changed


# --- what does not fit


def _must_fit(encoder: TextEncoder, subjects: Sequence[Subject]) -> None:
    read = {tower.name: tower.width for tower in encoder.towers}
    for subject in subjects:
        made = {name: table.shape[2] for name, table in subject.tables.items()}
        if made != read:
            raise LikenessError(
                f"The subject {subject.placeholder!r} was trained for {_named(made)}, and the connected CLIP is "
                f"{_named(read)}: connect the CLIP and the MODEL of the base it was trained on."
            )


def _named(widths: Mapping[str, int]) -> str:
    return " and ".join(f"{name} ({width} wide)" for name, width in widths.items())


def _must_differ(subjects: Sequence[Subject]) -> None:
    names = [subject.placeholder for subject in subjects]
    for number, name in enumerate(names):
        for other in names[:number]:
            if name.lower() in other.lower() or other.lower() in name.lower():
                raise LikenessError(
                    f"Two subjects are called {other!r} and {name!r}, which a prompt cannot tell apart: give one of "
                    "them another placeholder in Load Subject."
                )


def _must_be_one_or_all(shares: Shares, subjects: Sequence[Subject]) -> None:
    for what, numbers in (("keys", shares.keys), ("values", shares.values)):
        for subject in subjects:
            if len(numbers) not in (1, subject.stages) or len({one.stages for one in subjects}) > 1 < len(numbers):
                raise LikenessError(
                    f"There are {len(numbers)} shares for the {what} and {subject.stages} stages of "
                    f"{subject.placeholder!r}: write one number, or one for each stage."
                )
