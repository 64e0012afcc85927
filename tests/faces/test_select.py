from __future__ import annotations

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces import Choice, Face, order_faces


def face(x: float, side: float, score: float, direction: tuple[float, float]) -> Face:
    box = np.array([x, 0, x + side, side], np.float32)
    return Face(box, score, embedding=np.array(direction, np.float32), recogniser="r")


LEFT, MIDDLE, RIGHT = face(0, 30, 0.7, (1, 0)), face(45, 10, 0.9, (0, 2)), face(70, 20, 0.8, (-3, 0))
FACES = [RIGHT, LEFT, MIDDLE]
SIZE = (10, 100)


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        (Choice.LARGEST, [LEFT, RIGHT, MIDDLE]),
        (Choice.CENTRAL, [MIDDLE, RIGHT, LEFT]),
        (Choice.LEFT_TO_RIGHT, [LEFT, MIDDLE, RIGHT]),
        (Choice.SCORE, [MIDDLE, RIGHT, LEFT]),
        (Choice.SIMILAR, [RIGHT, MIDDLE, LEFT]),
    ],
)
def test_order(choice, order):
    ordered = order_faces(FACES, choice, SIZE, torch.tensor([-1.0, 0.1]))
    assert [FACES.index(f) for f in ordered] == [FACES.index(f) for f in order]


def test_only_wants_exactly_one():
    assert order_faces([LEFT], Choice.ONLY) == [LEFT]
    with pytest.raises(LikenessError, match="3 were found"):
        order_faces(FACES, Choice.ONLY)


def test_a_rule_without_what_it_needs_says_so():
    with pytest.raises(LikenessError, match="size of its photo"):
        order_faces(FACES, Choice.CENTRAL)
    with pytest.raises(LikenessError, match="connect an identity"):
        order_faces(FACES, Choice.SIMILAR)
    with pytest.raises(LikenessError, match="another recogniser"):
        order_faces(FACES, Choice.SIMILAR, reference=torch.ones(7))
