"""Reading weight files of this room's networks, and the one sentence when a file does not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..checks import first_not_finite
from ..errors import LikenessError
from ..weights.files import read_content

Weights = dict[str, torch.Tensor]
Network = TypeVar("Network", bound=nn.Module)


def read_network_weights(path: Path | str) -> Weights:
    """The tensors of a `.safetensors` file or of a pickle read with `weights_only`, `module.` prefixes taken off."""
    path = Path(path)
    if not path.is_file():
        raise LikenessError(f"The face model {path.name} is missing: put it into {path.parent}.")
    content, _ = read_content(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    pairs = content.items() if isinstance(content, dict) else ()
    weights = {str(key).removeprefix("module."): value for key, value in pairs if torch.is_tensor(value)}
    if not weights:
        raise LikenessError(f"The face model {path.name} holds no weights: download it again.")
    if broken := first_not_finite(weights):
        raise LikenessError(f"The face model {path.name} holds NaN or infinity ({broken[:80]!r}): download it again.")
    return weights


def filled(network: Network, weights: Weights, what: str) -> Network:
    """The network with these weights, in evaluation mode, its parameters out of any optimiser's reach."""
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise LikenessError(f"The weights do not fit {what} ({str(error)[:300]}): choose another file.") from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise LikenessError(
            f"The weights do not fit {what}: {len(missing)} missing {missing[:3]}, {len(unexpected)} unknown "
            f"{unexpected[:3]}; choose another file."
        )
    return network.float().eval().requires_grad_(False)


def builds(what: str) -> Callable[[Callable[[Weights], Network]], Callable[[Weights], Network]]:
    """For functions that read an empty network's sizes off weights: the network comes out `filled` with them.

    `what` names it in the sentence for weights that lack the keys the sizes are read from.
    """

    def decorate(build: Callable[[Weights], Network]) -> Callable[[Weights], Network]:
        @wraps(build)
        def build_and_fill(weights: Weights) -> Network:
            try:
                network = build(weights)
            except (KeyError, IndexError, ValueError) as error:
                raise LikenessError(f"The weights do not fit {what} ({error}): choose another file.") from None
            return filled(network, weights, what)

        return build_and_fill

    return decorate


def block_count(weights: Weights, prefix: str) -> int:
    """How many numbered blocks `prefix0.`, `prefix1.` ... the weights hold."""
    numbers = {key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})
