"""OpenCV, imported when it is first needed."""

from __future__ import annotations

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
