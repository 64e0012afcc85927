"""What a trained method says about itself to whoever offers it: nodes, command line, miniature and tests.

It is read when ComfyUI starts, so nothing here imports what takes long; the recipe is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..data.dataset import Dataset, DatasetKind

if TYPE_CHECKING:
    from ..materials import Trainable


@dataclass(frozen=True)
class ConceptInput:
    """A set of photos that a method learns, under a word of its own.

    entry: in a configuration's [data]. socket: of the node. kind: what the dataset must show; None: whatever it does.
    """

    entry: str
    socket: str
    tooltip: str
    kind: DatasetKind | None = None
    needs_masks: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Knob:
    """A choice in a method's node. setting: the field of the settings that it is, with a dot for a field within one;
    empty: the method's `choose` reads it. The widget follows from the default, from options, or from lines.
    folder: it names one with images, below the host's own, or none."""

    name: str
    default: bool | int | float | str
    tooltip: str
    setting: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    lines: bool = False
    folder: bool = False
    advanced: bool = False
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Method:
    """A trained method.

    kind: its name in configurations and run folders. clip: tooltip of the node's text encoder. first, last: choices
    before and after those that all trainings have. load: what its recipe's module offers. usage: how a prompt speaks of
    what was learned, from the datasets and the names of the embeddings. sample: the prompt of a sample image.

    learns_words: whether a word of its own is made for each concept, instead of giving one that is there a meaning.
    with_class_word: whether prompts say what the concept is behind its word, as in "<sks> person".
    identity_knob: the choice that is 0 where no face analysis is needed; empty: none ever is. continues_lora: whether a
    LoRA's file can be trained further. reads_adapter: whether an identity adapter gives it vectors to start from.
    miniature: settings that suit the miniature world; variant:
    what distinguishes this form of the method in tables, as in DreamBooth-LoRA.
    """

    kind: str
    title: str
    description: str
    concepts: tuple[ConceptInput, ...]
    clip: str
    load: Callable[[], Trainable]
    usage: Callable[[Sequence[Dataset], Sequence[str]], str]
    sample: Callable[[Sequence[Dataset], Mapping[str, Any]], str] = lambda datasets, values: (
        datasets[0].pictures[0].caption
    )
    first: tuple[Knob, ...] = ()
    last: tuple[Knob, ...] = ()
    learns_words: bool = True
    with_class_word: bool = True
    continues_lora: bool = False
    reads_adapter: bool = False
    identity_knob: str = ""
    search_aliases: tuple[str, ...] = ()
    is_experimental: bool = False
    miniature: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        """In names of nodes and classes: TextualInversion."""
        return self.title.replace(" ", "").replace("-", "")

    @property
    def node_id(self) -> str:
        return f"LikenessTrain{self.name}"

    @property
    def knobs(self) -> tuple[Knob, ...]:
        return self.first + self.last

    @cached_property
    def trainable(self) -> Trainable:
        """What its recipe's module offers, imported now."""
        return self.load()


def placeholder(trigger: str) -> str:
    """What a dataset's trigger word is called while it is learned: in brackets, because rare words such as ohwx are
    words of CLIP already, and would be two things at once."""
    return f"<{trigger.strip('<>')}>"


def steps(name: str, default: int, tooltip: str) -> Knob:
    """The number of a phase's steps."""
    return Knob(name, default, tooltip, name, low=1, high=1_000_000)


def rate(default: float, tooltip: str) -> Knob:
    """The learning rate."""
    return Knob("learning_rate", default, tooltip, "learning_rate", low=0.0, high=1.0, step=1e-6)


MASKS = ("none", "face", "face, normalised")
MASK = Knob(
    "mask",
    MASKS[0],
    "Whether only the face is learned: 'face' weighs the image with the dataset's masks, 'face, normalised' also "
    "makes small faces count as much as large ones.",
    "mask",
    options=MASKS,
    advanced=True,
)
