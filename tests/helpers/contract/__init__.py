"""What the contract of every identity adapter needs of a system: a module of this folder each, with its `CASE`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from likeness.adapters.system import Sureness

UNTOLD = "x.safetensors"  # a name that says nothing


@dataclass(frozen=True)
class Case:
    """title: of the system in the registry. weights: of a file that fits the sites (shapes) of a MODEL, from a seed.

    missing: a word of the sentence that is said without an identity. file_name: one that tells the system, where its
    content alone does not. reads_clip: it needs a CLIP vision model. reads_faces: a photo without a face is not enough.
    base: of the MODEL it is for, "sd15" standing for every UNet. prompt, plain: of a system that works through the
    prompt, a text with its trigger word and the same without. use: (world, seed, strength, model) -> MODEL, positive
    prompt and report, of what is no adapter and has nodes of its own.
    options: what its options node makes, where it acts in few of a short run's steps without them.
    """

    title: str
    weights: Callable[[Any, int], dict[str, Tensor]] = lambda shapes, seed: {}
    missing: str = "Identity from Photos"
    file_name: str = UNTOLD
    reads_clip: bool = False
    reads_faces: bool = True
    base: str = "sd15"
    prompt: str = ""
    plain: str = ""
    use: Callable[[Any, int, float, Any], tuple[Any, Any, str]] | None = None
    options: Callable[[], Any] = lambda: None

    @property
    def least(self) -> Sureness:
        """What no other system may be of its file: where the name has to tell, others may take it for possible."""
        return Sureness.POSSIBLE if self.file_name == UNTOLD else Sureness.YES


def concepts() -> dict[str, Case]:
    """What is trained and has nodes of its own, by title: it keeps to the part of the contract that is about a run."""
    from ._concepts import CASES

    return {case.title: case for case in CASES}


def cases() -> dict[str, Case]:
    """The case of every system, by title."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    found = [import_module(f"{__name__}.{name}").CASE for name in names]
    return {case.title: case for case in found}
