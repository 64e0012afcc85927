"""OpenCV, imported when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..errors import LikenessError


@cache
def opencv() -> Any:
    """The module `cv2`; LikenessError says what to install where it is missing or cannot be loaded."""
    try:
        import cv2
    except ImportError as error:  # of a library of the desktop, too, on a server that has none
        raise LikenessError(
            f"OpenCV cannot be loaded ({str(error)[:200]}): pip install opencv-python, or opencv-python-headless in "
            "its place on a machine without a display."
        ) from error
    return cv2


@contextmanager
def without_warnings() -> Iterator[None]:
    """Opens a network without the line that OpenCV 5 writes about targets."""
    logging = getattr(getattr(opencv(), "utils", None), "logging", None)
    if logging is None:  # of a build without it
        yield
        return
    before = logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(before)
