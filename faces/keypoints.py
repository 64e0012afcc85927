"""Five keypoints as the picture InstantID's control network was trained on.

Wang et al., "InstantID", 2024; drawing as in instantX-research/InstantID. Sizes are in absolute pixels there: draw at
the size of the picture to be made, never resize the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .opencv import opencv

COLOURS_RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE = 2
LIMBS = (0, 1, 3, 4)  # each joined to the nose, in this order
HALF_WIDTH, RADIUS = 4, 10
LIMB_BRIGHTNESS = 0.6


def draw_keypoints(faces: Sequence[np.ndarray], width: int, height: int) -> np.ndarray:
    """Faces' keypoints (5, 2), in pixels of the canvas, as a picture (height, width, 3) uint8 RGB on black.

    The limbs of all faces lie below the dots of all faces; for one face the bytes are the official ones. Points
    outside the canvas are cut off.
    """
    cv2 = opencv()
    canvas = np.zeros((height, width, 3), np.uint8)
    for points in faces:
        for end in LIMBS:
            limb = points[[end, NOSE]]
            centre = limb.mean(0)
            run, rise = limb[0] - limb[1]
            polygon = cv2.ellipse2Poly(
                (int(centre[0]), int(centre[1])),
                (int(np.hypot(run, rise) / 2), HALF_WIDTH),
                int(np.degrees(np.arctan2(rise, run))),
                0,
                360,
                1,
            )
            cv2.fillConvexPoly(canvas, np.asarray(polygon), COLOURS_RGB[end])
    canvas = (canvas * LIMB_BRIGHTNESS).astype(np.uint8)
    for points in faces:
        for (x, y), colour in zip(points, COLOURS_RGB, strict=True):
            cv2.circle(canvas, (int(x), int(y)), RADIUS, colour, -1)
    return canvas
