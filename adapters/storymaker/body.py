"""The image of a body as StoryMaker reads it: the character alone, on white, cut to its mask."""

from __future__ import annotations

import numpy as np

from ...errors import LikenessError

_BLUR = (1, 4, 6, 4, 1)  # sixteenths: OpenCV's 5-tap Gaussian of automatic sigma
NOISE = 8  # grey levels of a mask that JPEG leaves around its shape


def cut_out_character(picture: np.ndarray, mask: np.ndarray, noise: int = 0) -> np.ndarray:
    """The character on a white ground, (h, w, 3) uint8, cut to the box of its mask.

    picture: (H, W, 3) uint8; mask: (H, W) uint8, 255 = the character. noise: mask values up to this one do not enlarge
    the box; 0 is official. Raises LikenessError for a mask with nothing in it.
    """
    rows, columns = np.nonzero(mask > noise)
    if not len(rows):
        raise LikenessError("The mask is empty: paint the character, or leave the mask out.")
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    share = smoothed(mask[box])[..., None] / 255
    return (255 * (1 - share) + share * picture[box]).astype(np.uint8)


def smoothed(mask: np.ndarray) -> np.ndarray:
    """A 5 x 5 Gaussian blur of (h, w) uint8, mirrored at the border, rounded."""
    taps = np.array(_BLUR)
    padded = np.pad(mask.astype(np.int64), 2, mode="reflect")
    wide = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1) @ taps
    high = np.lib.stride_tricks.sliding_window_view(wide, 5, axis=0) @ taps
    return ((high + 128) // 256).astype(np.uint8)
