"""Which system a weight file belongs to: each kind says how sure it is, and the most sure one gets the file.

Keys and shapes do not always tell: InstantID's adapter and FaceID Portrait (raw embedding) have the same ones. So
recognition has degrees, and a tie is settled by the folder the file lies in; one that stays is put to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor

from ..errors import LikenessError


class Sureness(IntEnum):
    """Whether a file is of a kind; more is surer."""

    NO = 0
    POSSIBLE = 1  # nothing speaks against it, but the same content can be another kind
    YES = 2


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What is known of a weight file before it is loaded.

    weights: flat, dot-joined keys. parents: names of the folders it lies in, nearest first.
    """

    name: str
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    def has(self, *prefixes: str) -> bool:
        """Whether every prefix starts a key."""
        return all(any(key.startswith(prefix) for key in self.weights) for prefix in prefixes)

    def shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None when there is none of that key."""
        return tuple(self.weights[key].shape) if key in self.weights else None


@dataclass(frozen=True)
class Kind:
    """A kind of weight file.

    title: what it is called in sentences. folders: below `models/`, where its files lie. load: makes the adapter of a
    file that it recognises; None while the system is known by its files only.
    """

    title: str
    recognise: Callable[[WeightFile], Sureness]
    folders: tuple[str, ...] = ()
    load: Callable[[WeightFile], Any] | None = None


def kind_of(file: WeightFile, kinds: Iterable[Kind]) -> Kind | None:
    """The kind that is most sure of the file; None when none is.

    Raises LikenessError, as a question, when several are equally sure and the file's folder does not decide.
    """
    sureness = {kind: kind.recognise(file) for kind in kinds}
    best = max(sureness.values(), default=Sureness.NO)
    if best is Sureness.NO:
        return None
    likely = [kind for kind, sure in sureness.items() if sure is best]
    for parent in file.parents:
        at_home = [kind for kind in likely if parent.lower() in kind.folders]
        if at_home:
            likely = at_home
            break
    if len(likely) > 1:
        titles = " or ".join(kind.title for kind in likely)
        homes = ", ".join(f"models/{kind.folders[0]} for {kind.title}" for kind in likely if kind.folders)
        raise LikenessError(
            f"{file.name!r} can be {titles}, whose files look the same: choose its system by hand, or move it to the "
            f"folder that tells ({homes})."
        )
    return likely[0]
