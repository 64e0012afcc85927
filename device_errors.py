"""What a device could not do, whichever it is and whoever says so: torch, the host, numpy, onnxruntime, the system."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import LikenessError

_FULL = re.compile(
    r"out.?of.?((device|host).?)?memory|(not enough|insufficient) (gpu )?(video )?memory|alloc_failed|bad.?alloc"
    r"|(can't|cannot|could not|failed to|unable to) allocate",
    re.IGNORECASE,
)
_LACKS_TYPE = re.compile(
    r"not implemented for '(half|bfloat16)'|(float16|half) (is )?not supported|not support b?(float16|half)",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a CPU or a GPU was full. Only some of these errors have a class."""
    if isinstance(error, LikenessError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch, host = sys.modules.get("torch"), sys.modules.get("comfy.model_management")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    if host is not None and hasattr(host, "is_oom") and host.is_oom(error):
        return True
    return not isinstance(error, OSError) and bool(_FULL.search(str(error)))


def lacks_precision(error: BaseException) -> bool:
    """Whether a device has no half precision of this kind for what it was asked."""
    return isinstance(error, (RuntimeError, TypeError)) and bool(_LACKS_TYPE.search(str(error)))


@contextmanager
def full_memory_said(sentence: Callable[[], str]) -> Iterator[None]:
    """Raises a LikenessError with this sentence in place of whatever says that memory is full."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise LikenessError(sentence()) from error
