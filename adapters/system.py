"""What a system is to the rest of the pack: it recognises its files, says what it needs as data, and returns effects.

Keys and shapes do not always tell whose a file is: InstantID's adapter and FaceID Portrait (raw embedding) have the
same ones. So recognition has degrees, and a tie is settled by the folder the file lies in; one that stays is put to the
user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

from ..errors import LikenessError
from ..weights.families import OTHER, DitLayout, Family, TransformerLayout
from .effects import Effect, Scope

if TYPE_CHECKING:
    from pathlib import Path

    from ..faces.identity import Identity
    from .blip_diffusion.words import WordPieces
    from .clip_vision import ClipEncoder
    from .eva_clip import EvaTower
    from .text_encoder import TextEncoder

O = TypeVar("O")  # noqa: E741 - the options of one system


class Sureness(IntEnum):
    """Whether a file is of a kind; more is surer."""

    NO = 0
    POSSIBLE = 1  # nothing speaks against it, but the same content can be another kind
    YES = 2


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What is known of a weight file before it is loaded.

    weights: flat, dot-joined keys. parents: names of the folders it lies in, nearest first. path: where it lies, for
    systems that are published as several files.
    """

    name: str
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    path: Path | None = None

    def has(self, *prefixes: str) -> bool:
        """Whether every prefix starts a key."""
        return all(any(key.startswith(prefix) for key in self.weights) for prefix in prefixes)

    def shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None when there is none of that key."""
        return tuple(self.weights[key].shape) if key in self.weights else None


@dataclass(frozen=True)
class Needs:
    """What an adapter has to be given, as data: no node asks which system it is.

    base: the family of base models it was made for. recogniser: whose embedding it reads, None for none; raw: as that
    network returns it, not as a unit vector; every_photo: photo by photo, not their mean. encoder_width: of the image
    encoding it reads, None for none; hidden: the tokens of the last layer but one, not the pooled embedding. keypoints:
    it has a ControlNet of its own, whose hint is an image of the face's keypoints. trigger_word: the usual one, where
    it works through the prompt; None where it works on the model alone. grounded: Identity Prompt reads its people from
    the MODEL, and shows them to the text encoder where that was trained on it; base is OTHER where the MODEL decides.
    """

    base: Family
    recogniser: str | None = None
    raw: bool = False
    every_photo: bool = False
    encoder_width: int | None = None
    hidden: bool = False
    keypoints: bool = False
    trigger_word: str | None = None
    grounded: bool = False
    text_width: int | None = None


def _no_eva() -> EvaTower:
    raise LikenessError("This adapter needs the image encoder EVA02-CLIP-L-14-336: give one.")


def _no_parser(crops: Tensor) -> Tensor:
    raise LikenessError("This adapter needs a face parsing network: give one.")


def _no_model(wanted: Callable[[str], bool]) -> Mapping[str, Tensor]:
    raise LikenessError("This adapter puts weights of its own in place of the MODEL's: connect the MODEL as well.")


def _no_vocabulary() -> WordPieces:
    raise LikenessError("This adapter needs the vocabulary of bert-base-uncased, vocab.txt: give it.")


@dataclass(frozen=True, eq=False)
class Request:
    """What a user asks of an adapter for one person in one model.

    layout: where the model's spatial transformers sit. attention: slot -> diffusers' path of that attention layer. dit:
    the blocks of a model that is a DiT. options: what the system's own options node made, None for its defaults.
    weight_strength: of the change of the model's own weights, where the file brings one. seen_by: adds the embeddings
    of a recogniser to an identity, where that recogniser is at hand. find_eva: the EVA02-CLIP image encoder. parse: the
    parts of aligned faces, see `faces.parsing`. base_weights: the model's own weights that are wanted, by diffusers'
    name, float32. find_vocabulary: BERT's word pieces. All four raise LikenessError that says how to get them.

    family: of the MODEL. timestep_zero: whether its file says that references have the timestep 0, None where it can
    say nothing of it. references: how many it has already.

    Through the prompt: text is what the user wrote, text_encoder reads it, and trigger_words stand in it for the
    identity and the others, in this order; empty for the adapter's own.
    """

    layout: TransformerLayout
    attention: Mapping[int, str]
    strength: float = 1.0
    scope: Scope = field(default_factory=Scope)
    identity: Identity | None = None
    encoder: ClipEncoder | None = None
    options: Any = None
    weight_strength: float = 1.0
    seen_by: Callable[[Identity, str], Identity] = lambda identity, recogniser: identity
    dit: DitLayout | None = None
    find_eva: Callable[[], EvaTower] = _no_eva
    parse: Callable[[Tensor], Tensor] = _no_parser
    base_weights: Callable[[Callable[[str], bool]], Mapping[str, Tensor]] = _no_model
    find_vocabulary: Callable[[], WordPieces] = _no_vocabulary
    text: str = ""
    text_encoder: TextEncoder | None = None
    trigger_words: tuple[str, ...] = ()
    others: tuple[Identity, ...] = ()
    family: Family = OTHER
    timestep_zero: bool | None = None
    references: int = 0

    @property
    def people(self) -> tuple[Identity, ...]:
        """Everybody who is connected, in order."""
        return self.others if self.identity is None else (self.identity, *self.others)

    def options_of(self, kind: type[O], node: str) -> O:
        """The options, or the system's defaults. LikenessError naming the system's `node` for those of another."""
        if self.options is None:
            return kind()
        if not isinstance(self.options, kind):
            raise LikenessError(f"The options are those of another system: connect {node}, or nothing.")
        return self.options

    def person(self, adapter: Adapter, width: int, any_recogniser: bool | None = False) -> Identity:
        """The identity, with the embeddings of the adapter's recogniser in front; `width` numbers each.

        LikenessError when there is none, when it has no such embeddings, or when its own cannot be read.
        """
        identity, recogniser = self.identity, adapter.needs.recogniser
        if identity is not None and recogniser is not None and not any_recogniser:
            identity = self.seen_by(identity, recogniser)
        return require_person(adapter, identity, width, any_recogniser)


class Adapter(Protocol):
    """A loaded file of any system."""

    name: str  # the file's, for messages

    @property
    def title(self) -> str:
        """What it is, for reports: its system, and the variant where there are several."""
        ...

    @property
    def needs(self) -> Needs: ...

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text) of the model it was made for; empty without such sites."""
        ...

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """What a request does to the model. Runs where the adapter's weights are, and returns tensors on the CPU.

        Raises LikenessError in one sentence for everything that is missing or does not fit.
        """
        ...

    def notes(self, request: Request) -> list[str]:
        """Sentences for the report: what of the request is without effect."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of weight file.

    title: what it is called in sentences. folders: below `models/`, where its files lie. load: makes the adapter of a
    file that it recognises; None while the system is known by its files only.
    """

    title: str
    recognise: Callable[[WeightFile], Sureness]
    folders: tuple[str, ...] = ()
    load: Callable[[WeightFile], Adapter] | None = None


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
            f"{file.name!r} can be {titles}, whose files look the same: give it the name it was published under, or "
            f"move it to the folder of its system ({homes})."
        )
    return likely[0]


def require_person(
    adapter: Adapter, identity: Identity | None, width: int, any_recogniser: bool | None = False
) -> Identity:
    """The identity, with the embeddings of the adapter's recogniser in front; `width` numbers each.

    any_recogniser: take another's embeddings as well; None where the adapter's options have no such choice.
    LikenessError when there is none, when it has no embeddings, or when the adapter cannot read those it has.
    """
    name, recogniser = adapter.name, adapter.needs.recogniser
    assert recogniser is not None
    if identity is None:
        raise LikenessError(f"The adapter {name!r} needs an identity: connect Identity from Photos or Load Identity.")
    if recogniser in identity.recognisers:
        identity = identity.as_seen_by(recogniser)
    if not identity.has_embeddings:
        raise LikenessError(
            f"The adapter {name!r} reads a face embedding, and the identity {identity.name!r} has none: make it with a "
            f"face analysis that has a recogniser, for this adapter {recogniser}."
        )
    if (found := identity.embeddings.shape[1]) != width:
        raise LikenessError(
            f"The adapter {name!r} reads embeddings of {width} numbers, but the recogniser {identity.recogniser!r} of "
            f"the identity {identity.name!r} makes {found}: make it with {recogniser}."
        )
    if identity.recogniser != recogniser and not any_recogniser:
        allow = "" if any_recogniser is None else ", or allow any recogniser in the adapter's options"
        raise LikenessError(
            f"The adapter {name!r} was trained on the recogniser {recogniser}, but the identity {identity.name!r} was "
            f"made with {identity.recogniser}, whose embeddings would show another face: install {recogniser} (the "
            f"identity is then embedded again from its own crops), or make it with {recogniser}{allow}."
        )
    return identity
