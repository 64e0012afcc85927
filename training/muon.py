"""Muon: momentum whose steps are orthogonal matrices; for the matrices of a network, beside AdamW for all else.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the step size that matches AdamW's is
Liu et al. 2025 (arXiv 2502.16982), section 2.2. torch's own computes in bfloat16 alone, which most CPUs do not have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .team import Team

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steepest at 0
_ITERATIONS = 5
_DECAY = 0.01
_MATCH = 0.2  # the root mean square of AdamW's usual step


class Muon(torch.optim.Optimizer):
    """For the weights (n, ...) within a network, convolutions as (out, in·h·w). team: shares the orthogonalising."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = _DECAY,
        team: Team | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.team = team or Team()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step on the gradients that are there; parameters without one stay."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            updates = [self._update(row, p, p.grad, group["momentum"]) for row, p in enumerate(trained)]
            self.team.total(updates)
            for parameter, update in zip(trained, updates, strict=True):
                longer = max(len(parameter), parameter.numel() // len(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * _MATCH * longer**0.5)

    def _update(self, row: int, parameter: nn.Parameter, gradient: Tensor, decay: float) -> Tensor:
        """The orthogonal direction, or zeros when another of the team works it out."""
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - decay)
        if row % self.team.size != self.team.rank:
            return torch.zeros_like(parameter)
        nesterov = gradient.lerp(momentum, decay)
        return orthogonalised(nesterov.flatten(1)).view_as(parameter)


class Together:
    """Several optimisers in the place of one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups of all of them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by its number."""
        return {str(row): optimizer.state_dict() for row, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for row, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(row)])


def muon_and_adamw(
    matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float, team: Team | None = None
) -> Together:
    """Muon for the matrices and AdamW for the others, at one learning rate and with the same decay."""
    return Together(
        Muon(matrices, lr, weight_decay=_DECAY, team=team),
        torch.optim.AdamW(others, lr, betas=(0.9, 0.99), weight_decay=_DECAY),
    )


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to this one (m, n), with singular values between about 0.7 and 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def split_parameters(modules: Iterable[nn.Module], ends: Iterable[nn.Module]) -> tuple[list, list]:
    """The matrices and the others among the trainable parameters of the modules.

    ends: layers whose weights count among the others although they are matrices: the first and the last one.
    """
    outer = {id(p) for module in ends for p in module.parameters()}
    matrices, others = [], []
    for module in modules:
        for layer in module.modules():
            for parameter in layer.parameters(recurse=False):
                inner = parameter.ndim >= 2 and not isinstance(layer, nn.Embedding) and id(parameter) not in outer
                (matrices if inner else others).append(parameter)
    return matrices, others
