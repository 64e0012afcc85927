"""Several concepts in one model, in closed form (Custom Diffusion, arXiv 2212.04488, section 3.3).

    min_W ‖(W − W0) Rᵀ‖²   subject to   W Cᵀ = Tᵀ
    W = W0 + (Tᵀ − W0 Cᵀ)(D Cᵀ)⁻¹ D      D = C G⁻¹,  G = Rᵀ R

R: (M, d), text features of ordinary captions, which are to be projected as before. C: (m, d), those of the concepts'
own prompts, and T: (m, o), what each concept's own model makes of them. R and C are the same for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LikenessError
from .concepts import Concept, Layout, base_signature, check_base, whole_weight
from .lora import LoraPair

RIDGE = 1e-6  # of the mean of G's diagonal
WORST_CONDITION = 1e10  # of G, from which it is not inverted as it is
LARGEST_RESIDUAL = 1e-3


@dataclass(frozen=True, eq=False)
class Constraints:
    """What the merged weights must keep. features: (m, d), rows without duplicates; models: (m,), which concept each
    row belongs to."""

    features: Tensor
    models: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Constraints:
        """From the rows (m_j, d) of every concept. Of equal rows the first counts."""
        kept: list[Tensor] = []
        models: list[int] = []
        for model, found in enumerate(rows):
            for row in found:
                if not any(torch.equal(row, other) for other in kept):
                    kept.append(row)
                    models.append(model)
        return cls(torch.stack(kept), tuple(models))

    def targets(self, weights: Sequence[Tensor]) -> Tensor:
        """T: (m, o), every row through the weight (o, d) of its own concept."""
        rows = [weights[model].double() @ row.double() for row, model in zip(self.features, self.models, strict=True)]
        return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Merger:
    """The closed form for given captions and prompts, ready for every layer. projection: (D Cᵀ)⁻¹ D, (m, d). ridge:
    what was added to G's diagonal, 0 for nothing; rows: M."""

    constraints: Constraints
    projection: Tensor
    ridge: float
    rows: int
    softness: float = 0.0

    @classmethod
    def of(cls, captions: Tensor, constraints: Constraints, softness: float = 0.0) -> Merger:
        """captions: R, (M, d). Float64; a ridge where G cannot be inverted well.

        softness: 0 meets the constraints exactly. Where two concepts' prompts are nearly the same to the text encoder,
        that takes huge weights; what is added to the diagonal of D Cᵀ, as a share of its mean, keeps them small.
        """
        r, c = captions.double(), constraints.features.double()
        gram, ridge = r.T @ r, 0.0
        values = torch.linalg.eigvalsh(gram)
        if len(r) < r.shape[1] or float(values[0]) * WORST_CONDITION <= float(values[-1]):
            ridge = RIDGE * float(gram.diagonal().mean())
            gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
        d = torch.linalg.solve(gram, c.T).T
        inner = d @ c.T
        inner = inner + softness * float(inner.diagonal().mean()) * torch.eye(len(inner), dtype=inner.dtype)
        # Prompts that say nearly the same make it singular; what they have in common is then kept once.
        projection = torch.linalg.pinv((inner + inner.T) / 2, rtol=1e-13, hermitian=True) @ d
        return cls(constraints, projection, ridge, len(r), softness)

    def merged(self, base: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, float]:
        """W of one layer from W0 and the concepts' own, all (o, d), and the residual ‖W Cᵀ − Tᵀ‖ / ‖T‖; float32."""
        w0, c = base.double(), self.constraints.features.double()
        targets = self.constraints.targets(weights)
        w = w0 + (targets - c @ w0.T).T @ self.projection
        return w.float(), float((c @ w.T - targets).norm() / targets.norm().clamp_min(1e-300))


@dataclass(frozen=True, eq=False)
class Merged:
    """Several concepts as one. residual: the largest of all layers. growth: how much further from the base the keys and
    values are than those of the concept that is furthest. averaged: how many weights have no closed form,
    those of queries and output, and are the mean of the concepts'."""

    concept: Concept
    residual: float
    averaged: int
    growth: float


def merge_concepts(concepts: Sequence[Concept], base: Mapping[str, Tensor], merger: Merger) -> Merged:
    """All layers that any concept changes. Raises LikenessError where a concept is of another base model, where two
    have a word in common, and where one would be lost."""
    for concept in concepts:
        check_base(concept, base)
    words = [word.lower() for concept in concepts for word in concept.tokens]
    if len(set(words)) < len(words):
        raise LikenessError(
            f"Two concepts have the same word ({', '.join(sorted(words))}): give each words of its own in Load Concept."
        )
    weights: dict[str, Tensor | LoraPair] = {}
    residuals: dict[str, float] = {}
    moved, furthest = 0.0, [0.0] * len(concepts)
    for name in dict.fromkeys(name for concept in concepts for name in concept.weights):
        whole = [whole_weight(concept, name, base[name]) for concept in concepts]
        if name.endswith(("to_k.weight", "to_v.weight")):
            w, residuals[name] = merger.merged(base[name], whole)
            weights[name] = w
            moved += float((w - base[name]).square().sum())
            furthest = [f + float((w - base[name]).square().sum()) for f, w in zip(furthest, whole, strict=True)]
        else:
            weights[name] = torch.stack(whole).mean(0)
    tokens = {word: token for concept in concepts for word, token in concept.tokens.items()}
    title = " + ".join(concept.name for concept in concepts)
    merged = Concept(title, (Layout.DELTA,), weights, tokens, metadata={"ss_base_weights": base_signature(base)})
    worst = max(residuals.values(), default=0.0) if merger.softness else check_residual(residuals)
    growth = (moved / max(furthest)) ** 0.5 if max(furthest) else 1.0
    return Merged(merged, worst, len(weights) - len(residuals), growth)


def check_residual(residuals: Mapping[str, float]) -> float:
    """The largest residual. LikenessError where a concept would be lost."""
    name, worst = max(residuals.items(), key=lambda item: item[1], default=("", 0.0))
    if not worst <= LARGEST_RESIDUAL:
        raise LikenessError(
            f"The concepts contradict each other (residual {worst:.2g} at {name}, at most {LARGEST_RESIDUAL:g} is a "
            "merge): give each a class word or a word of its own, or fewer concepts."
        )
    return worst
