from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from likeness.training.objectives.matching import Reward, assign, embeddings, matching_reward

EYE = torch.eye(6)


def people(n: int, cosine: float = 0.0) -> torch.Tensor:
    """n unit vectors of this cosine to each other."""
    gram = torch.full((n, n), cosine) + (1 - cosine) * torch.eye(n)
    return torch.linalg.cholesky(gram)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_assignment_is_the_best_of_all(m, n, seed):
    cosines = torch.rand(m, n, generator=torch.Generator().manual_seed(seed)).mul(4).round() / 4  # with ties
    table = cosines if m <= n else cosines.T
    orders = itertools.permutations(range(table.shape[1]), table.shape[0])
    best = max(sum(float(table[i, j]) for i, j in enumerate(order)) for order in orders)
    assigned = assign(cosines)
    assert float(cosines[assigned].sum()) == pytest.approx(best, abs=1e-5)
    assert int(assigned.sum()) == min(m, n) and int(assigned.sum(0).max()) == int(assigned.sum(1).max()) == 1


@pytest.mark.parametrize(("n", "reward"), [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)])
def test_its_scale_falls_with_the_number_of_people_unless_normalised(n, reward):
    assert float(Reward()(people(n), people(n))) == pytest.approx(reward, abs=1e-6)
    assert float(Reward(normalise=True)(people(n), people(n))) == pytest.approx(1.0, abs=1e-6)


def test_a_missing_person_costs_nothing_unless_asked_to():
    assert float(Reward()(people(2), people(2)[:1])) == pytest.approx(0.5)
    assert float(Reward(missing=0.4)(people(2), people(2)[:1])) == pytest.approx(0.1)
    assert float(Reward(missing=0.4)(people(2), people(2))) == pytest.approx(0.5)


def test_an_extra_stranger_dilutes():
    assert float(Reward()(EYE[:2], EYE[:3])) == pytest.approx(1 / 3)


def test_one_face_for_two_people_is_worth_nothing():
    assert float(Reward()(EYE[:2], EYE[[0, 0]])) == pytest.approx(0.0)


def test_relatives_are_punished_unless_there_is_a_margin():
    twins = people(2, 0.6)
    assert float(Reward()(twins, twins)) == pytest.approx(0.2, abs=1e-6)
    assert float(Reward(margin=True)(twins, twins)) == pytest.approx(0.5, abs=1e-5)
    assert float(Reward(margin=True)(twins, twins[[0, 0]])) < float(Reward(margin=True)(twins, twins))


@given(st.permutations(range(3)), st.permutations(range(4)))
def test_order_changes_nothing(rows, columns):
    generator = torch.Generator().manual_seed(1)
    wanted, faces = torch.randn(3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    for reward in (Reward(), Reward(normalise=True), Reward(margin=True)):
        torch.testing.assert_close(reward(wanted[rows], faces[columns]), reward(wanted, faces))


def test_gradient_reaches_the_faces_alone_and_is_finite():
    wanted, faces = EYE[:2].clone().requires_grad_(), EYE[[0, 0]].clone().requires_grad_()
    Reward()(wanted, faces).backward()
    assert wanted.grad is None and faces.grad is not None and bool(faces.grad.isfinite().all())


def test_an_embedding_of_nan_is_assigned_last_and_gives_no_gradient():
    faces = EYE[:2].clone()
    faces[1] = torch.nan
    faces.requires_grad_()
    reward = Reward()(EYE[:1], faces)
    reward.backward()
    assert float(reward.detach()) == pytest.approx((1 + 1) / 2)
    assert faces.grad is not None and bool((faces.grad[1].nan_to_num(0) == 0).all())


def test_pictures_without_a_face_are_left_out_of_the_mean():
    nobody = torch.zeros(0, 6)
    assert float(matching_reward([EYE[:1], EYE[:1]], [EYE[:1], nobody]) or 0) == 1.0
    assert matching_reward([EYE[:1]], [nobody]) is None and matching_reward([nobody], [EYE[:1]]) is None
    missed = matching_reward([EYE[:2]], [nobody], Reward(missing=0.5))
    assert missed is not None and float(missed) == -1.0


def test_its_gradient_is_the_slope():
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(3, 40, 40, generator=generator, dtype=torch.float64).mul(2).sub(1)
    landmarks = torch.tensor([[[12.0, 14], [24, 14], [18, 20], [13, 27], [23, 27]]])
    look = torch.randn(3, 8, generator=generator)

    def recogniser(crops: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(crops, 4).mean((2, 3)) @ look + crops.std((1, 2, 3))[:, None]

    wanted = torch.randn(1, 8, generator=generator)

    def reward(image: torch.Tensor) -> torch.Tensor:
        return Reward()(wanted, embeddings(image, landmarks, recogniser))

    image = picture.float().requires_grad_()
    reward(image).backward()
    assert image.grad is not None
    step = 0.05 * torch.sign(image.grad)
    with torch.no_grad():
        slope = float(reward(image + step) - reward(image - step)) / 2
    assert slope == pytest.approx(float((image.grad * step).sum()), rel=0.05)


def test_steps_along_the_gradient_raise_it():
    faces = torch.randn(2, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
    optimiser = torch.optim.SGD([faces], lr=1.0)
    first = float(Reward()(EYE[:2], faces))
    for _ in range(200):
        optimiser.zero_grad()
        (-Reward()(EYE[:2], faces)).backward()
        optimiser.step()
    assert float(Reward()(EYE[:2], faces)) > max(first, 0.45)
