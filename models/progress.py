"""Telling how far a long reading or writing is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

CHUNK = 1 << 20  # bytes between two reports

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes done and the total (None: not known). What it raises ends the work, to be resumed later."""


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A tqdm bar on standard error, as a `Progress`; nothing is shown before the first call."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []

        def show(done: int, total: int | None) -> None:
            if not bars:
                bars.append(stack.enter_context(tqdm(desc=label, unit="B", unit_scale=True, leave=False)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield show
