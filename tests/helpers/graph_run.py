"""A workflow in API format, run node by node in this process; some kinds of node are replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Outputs = tuple[Any, ...]


def run_graph(
    prompt: Mapping[str, Any], classes: Mapping[str, Any], replaced: Mapping[str, Callable[[dict[str, Any]], Outputs]]
) -> dict[str, Outputs]:
    """The outputs of every node. classes: of the host and ours, by class_type; replaced: in place of some of them."""
    made: dict[str, Outputs] = {}

    def result(number: str) -> Outputs:
        if number not in made:
            node = prompt[number]
            inputs = {
                name: result(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            }
            made[number] = _run(node["class_type"], inputs)
        return made[number]

    def _run(kind: str, inputs: dict[str, Any]) -> Outputs:
        if kind in replaced:
            return replaced[kind](inputs)
        cls = classes[kind]
        if hasattr(cls, "GET_SCHEMA"):
            return cls.execute(**inputs).result or ()
        found = getattr(cls(), cls.FUNCTION)(**inputs)
        return found if isinstance(found, tuple) else ()

    with torch.inference_mode():
        for number in prompt:
            result(number)
    return made
