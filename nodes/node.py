"""What every node of the pack does at its edge, whatever it does inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..device_errors import full_memory_said

_MARK = "likeness_edge"  # on an `execute` that is wrapped already


class Node(io.ComfyNode):
    """A node whose images and masks come as float32 on the CPU, though the host may keep them in half precision
    (`--fp16-intermediates`) or on a card (`--gpu-only`), and which says in a sentence that memory is full."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        plain = getattr(vars(cls).get("execute"), "__func__", None)
        # The host clones a node's class for every run, with its attributes, and locks the clone.
        if plain is not None and not hasattr(plain, _MARK):
            cls.execute = classmethod(_at_the_edge(plain))


def _at_the_edge(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def edge(cls: type[Node], *given: Any, **named: Any) -> Any:
        with full_memory_said(lambda: _memory_was_full(cls)):
            named = {name: _as_pictures_are(value) for name, value in named.items()}
            return execute(cls, *map(_as_pictures_are, given), **named)

    setattr(edge, _MARK, True)
    return edge


def _as_pictures_are(value: Any) -> Any:
    """An IMAGE or MASK, which are the only sockets with plain tensors, as every node of ours computes on it."""
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to("cpu", torch.float32)
    return value


def _memory_was_full(cls: type[Node]) -> str:
    """The sentence, once the host has let go of what it keeps loaded, as it does for errors that it knows itself."""
    import comfy.model_management as host

    host.unload_all_models()
    host.soft_empty_cache()
    return (
        f"Memory ran out while '{cls.GET_SCHEMA().display_name}' was running: give it fewer or smaller images, or "
        "close other programs, and queue it again."
    )
