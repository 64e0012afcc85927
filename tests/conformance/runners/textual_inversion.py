"""Textual Inversion: what a step does to the placeholders' rows and to nothing else."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from conformance import harness
from torch import Tensor, nn

from likeness.training.base.placeholders import PlaceholderEmbedding
from likeness.training.objectives import token_embeddings
from likeness.weights.embedding_files import TokenEmbedding, embedding_tensors, load_embedding, read_embedding


def placeholders(case: Any, ids: list[int]) -> PlaceholderEmbedding:
    weight = case.weights["embedding"]
    return PlaceholderEmbedding(nn.Embedding.from_pretrained(weight), ids, weight[ids])


def adamw(case: Any, embedding: PlaceholderEmbedding) -> torch.optim.AdamW:
    config = case.config
    return torch.optim.AdamW(
        [embedding.rows],
        lr=config["learning_rate"],
        betas=tuple(config["betas"]),
        eps=config["eps"],
        weight_decay=config["weight_decay"],
    )


@harness.runs("textual_inversion", r"masked_update_steps")
def masked_update(case: Any) -> dict[str, Tensor]:
    embedding = placeholders(case, case.config["placeholder_ids"])
    optimiser, limit = adamw(case, embedding), case.config["max_grad_norm"]
    for gradient in case.inputs["grads"]:
        # The reference clips by the norm of the whole table's gradient, all other words' included.
        factor = 1.0 if limit is None else min(1.0, limit / (float(gradient.norm()) + 1e-6))
        embedding.rows.grad = factor * gradient[embedding.ids]
        optimiser.step()
    return {"embedding": embedding.rows}


@harness.runs("textual_inversion", r"pivotal_norm_decay_steps")
def pivotal(case: Any) -> dict[str, Tensor]:
    config = case.config
    embedding = placeholders(case, config["trainable_rows"])
    optimiser, steps = adamw(case, embedding), config["steps"]
    for i, gradient in enumerate(case.inputs["grads"]):
        rate = config["learning_rate"] * (1 - (i + 1) / steps)
        optimiser.param_groups[0]["lr"] = rate
        embedding.rows.grad = gradient[embedding.ids]
        optimiser.step()
        if config["norm_decay"]:
            embedding.rows.data = token_embeddings.norm_decay(embedding.rows.data, rate, config["target_norm"])
    return {"embedding": embedding.rows, "all_rows": embedding.weight}


@harness.runs("textual_inversion", r"std_retraction")
def std_retraction(case: Any) -> dict[str, Tensor]:
    embedding = placeholders(case, case.config["trainable_rows"])
    for delta in case.inputs["deltas"]:
        moved = embedding.rows.data + delta[embedding.ids]
        embedding.rows.data = token_embeddings.std_retraction(moved, case.config["reference_std"])
    return {"embedding": embedding.rows}


def as_a1111_pickle(case: Any, vectors: Tensor) -> TokenEmbedding:
    """Written to disk as A1111 writes it, and read again."""
    content = {**case.config["a1111_pickle"], "string_to_param": {"*": nn.Parameter(vectors)}}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "embedding.pt"
        torch.save(content, path)
        return load_embedding(path)


@harness.runs("textual_inversion", r"embedding_files")
def embedding_files(case: Any) -> dict[str, Tensor]:
    files = [read_embedding(case.weights_below(f"{name}.")) for name in case.config["files"]]
    files.append(as_a1111_pickle(case, case.weights["a1111.string_to_param.*"]))
    files += [read_embedding(embedding_tensors(file)) for file in files]
    fullest = max(files, key=lambda file: len(file.vectors))
    for file in files:
        assert file.count == case.config["vectors"]
        assert all(torch.equal(vectors, fullest.vectors[encoder]) for encoder, vectors in file.vectors.items())
    return fullest.vectors
