"""MODELs that are sampled some images at a time: in the host's context windows, and in those of AnimateDiff-Evolved."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def in_context_windows(model: Any, length: int, dim: int = 0) -> Any:
    """The MODEL in context windows of the host: no overlap, everything else as the node has it."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Node

    values = {
        "model": model, "context_length": length, "context_overlap": 0, "context_schedule": "standard_static",
        "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": dim, "freenoise": False,
    }  # fmt: skip
    accepted = inspect.signature(Node.execute).parameters
    return Node.execute(**{name: value for name, value in values.items() if name in accepted})[0]


def in_windows_of_animatediff(model: Any, length: int) -> Any:
    """The MODEL as AnimateDiff-Evolved samples it: some frames at a time, which of them it says in `ad_params`."""
    from comfy.patcher_extension import WrappersMP

    def calculate(executor: Any, host_model: Any, conds: Any, x: Any, timestep: Any, model_options: Any) -> Any:
        results = [torch.zeros_like(x) for _ in conds]
        for window in torch.arange(len(x)).split(length):
            options = {**model_options, "transformer_options": {**model_options["transformer_options"]}}
            options["transformer_options"]["ad_params"] = {"sub_idxs": window.tolist(), "full_length": len(x)}
            parts = executor(host_model, conds, x[window], timestep[window], options)
            for result, part in zip(results, parts, strict=True):
                result[window] = part
        return results

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", calculate)
    return clone
