"""Who is in the image: one to three characters, each with a face, a body and, where wanted, a place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ...checks import check_number
from ...errors import LikenessError

if TYPE_CHECKING:
    from ...faces.identity import Identity

OPTIONS = "StoryMaker Character"  # what the node is called
STRONGEST = 2.0


@dataclass(frozen=True, eq=False)
class Character:
    """One person, as StoryMaker is shown them.

    identity: whose face it is; None for the one that Apply Identity brings. bodies: images of hair, clothes and body
    on white, or of clothes alone, each (h, w, 3) uint8; without one they are left to the prompt. face_strength,
    body_strength: what the face and body tokens are multiplied with, 0 as in the drops of training. region: (1, H, W),
    where in the image the character may be seen. faceless: seen from behind, so that nobody's face is wanted.
    """

    identity: Identity | None = None
    bodies: tuple[Tensor, ...] = ()
    face_strength: float = 1.0
    body_strength: float = 1.0
    region: Tensor | None = None
    faceless: bool = False

    def __post_init__(self) -> None:
        check_number(self.face_strength, "The strength of the face", 0, STRONGEST)
        check_number(self.body_strength, "The strength of the body", 0, STRONGEST)


@dataclass(frozen=True, eq=False)
class Cast:
    """The characters, in the order that counts: each place in the list has an embedding of its own."""

    characters: tuple[Character, ...] = ()

    def with_identity(self, identity: Identity | None) -> tuple[Character, ...]:
        """The characters, where the one without an identity has got this one.

        If every character has one already, this one stands first, with its face alone. Raises LikenessError where
        nobody is given, or where one identity would be several characters.
        """
        open_places = [i for i, one in enumerate(self.characters) if one.identity is None and not one.faceless]
        if len(open_places) > 1:
            numbers = " and ".join(str(i + 1) for i in open_places)
            raise LikenessError(
                f"Characters {numbers} have no identity of their own, and Apply Identity has only one: connect an "
                f"identity to {OPTIONS}, or turn seen_from_behind on."
            )
        if open_places and identity is not None:
            return tuple(
                replace(one, identity=identity) if i == open_places[0] else one for i, one in enumerate(self.characters)
            )
        if open_places or (identity is None and not self.characters):
            raise LikenessError(
                "StoryMaker needs an identity: connect Identity from Photos or Load Identity, or turn seen_from_behind "
                f"of {OPTIONS} on for a character without a face."
            )
        if identity is None or any(one.identity is identity for one in self.characters):
            return self.characters
        return (Character(identity), *self.characters)
