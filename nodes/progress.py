"""The node's progress bar and the user's Cancel."""

from __future__ import annotations

from collections.abc import Callable


def counter(total: int) -> Callable[[], None]:
    """Moves the node's progress bar by one, and stops the run when the user has pressed Cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def step() -> None:
        throw_exception_if_processing_interrupted()
        bar.update(1)

    return step
