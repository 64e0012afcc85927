"""Work for a judge, done in this process or shared among several, in the order it was given."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from ..errors import LikenessError
from ..faces import FaceAnalysis

Task = TypeVar("Task")
Result = TypeVar("Result")

MOST_WORKERS = 512
WORTH_A_WORKER = 200  # images; a process needs seconds to start
_judge: FaceAnalysis | None = None  # in a worker, opened once


class Pool:
    """A judge, and the processes that may share its work. To be used in a `with` block, which ends the processes.

    `open_judge` opens the judge in every worker; it must be found by its name there (no lambda, no local function).
    `workers` None: one for each core but one, if there is enough to do. Every process computes with one thread, this
    one too, so that the number of processes changes no number.
    """

    def __init__(
        self,
        judge: FaceAnalysis,
        open_judge: Callable[[], FaceAnalysis] | None = None,
        workers: int | None = 1,
    ):
        if workers is not None and not 1 <= workers <= MOST_WORKERS:
            raise LikenessError(f"{workers} workers are not possible: choose 1 to {MOST_WORKERS}.")
        self.judge = judge
        self._open, self._workers = open_judge, workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def map(self, work: Callable[[FaceAnalysis, Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """`work(judge, task)` for every task, in order. LikenessError when a worker has died."""
        pool = self._shared(len(tasks))
        if pool is None:
            with _one_thread():
                yield from (work(self.judge, task) for task in tasks)
            return
        try:
            yield from pool.map(functools.partial(_call, work), tasks)
        except BrokenProcessPool:
            raise LikenessError(
                "A worker process died, perhaps for lack of memory: run the same command again with fewer --workers; "
                "the measurements made so far are kept."
            ) from None

    def _shared(self, tasks: int) -> ProcessPoolExecutor | None:
        """The workers, started when there is enough for them to do; None while there is not."""
        if self._executor is None and self._open is not None and (workers := self._wanted(tasks)) > 1:
            self._executor = ProcessPoolExecutor(workers, get_context("spawn"), _start, (self._open,))
        return self._executor

    def _wanted(self, tasks: int) -> int:
        if not tasks:
            return 1
        if self._workers is not None:
            return min(self._workers, tasks)
        return min(max((os.cpu_count() or 1) - 1, 1), math.ceil(tasks / WORTH_A_WORKER))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- in a worker


def _start(open_judge: Callable[[], FaceAnalysis]) -> None:
    global _judge
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that shares out the work
    torch.set_num_threads(1)
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
    if importlib.util.find_spec("onnxruntime"):
        _limit_onnxruntime()
    _judge = open_judge()


def _limit_onnxruntime() -> None:
    """One thread for every session of this process: by itself each would take, and spin on, all cores."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    onnxruntime.InferenceSession = functools.partial(onnxruntime.InferenceSession, sess_options=options)


def _call(work: Callable[[FaceAnalysis, Task], Result], task: Task) -> Result:
    assert _judge is not None
    return work(_judge, task)
