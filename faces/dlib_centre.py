"""The mean of faces as dlib's recogniser sees them.

Its embeddings all lie on one side of the origin: those of strangers have a cosine of 0.84. Seen from their mean it is
0.1, and what holds for other recognisers' cosines holds for these. Distances, by which dlib judges (0.6), stay as they
are. Measured on 134 faces in 90 groups, of a person or less each, that count alike: the sample images of the npm
packages @vladmandic/face-api 1.7.15 and @vladmandic/human 3.3.6. None of them is in this pack's tests.
"""

from __future__ import annotations

import numpy as np

# fmt: off
CENTRE = np.array([  # (128,)
    -0.113, 0.070, 0.062, -0.092, -0.114, -0.036, -0.046, -0.103, 0.174, -0.083, 0.163, -0.047, -0.243, -0.030,
    -0.066, 0.161, -0.175, -0.163, -0.072, -0.061, 0.033, 0.024, 0.024, 0.080, -0.145, -0.332, -0.067, -0.089, -0.023,
    -0.086, 0.045, 0.086, -0.182, -0.015, 0.029, 0.096, -0.038, -0.097, 0.177, 0.010, -0.226, -0.047, 0.074, 0.261,
    0.209, 0.003, 0.028, -0.072, 0.139, -0.283, 0.018, 0.159, 0.064, 0.047, 0.085, -0.150, 0.047, 0.121, -0.199,
    0.033, 0.066, -0.093, -0.042, -0.079, 0.198, 0.113, -0.126, -0.144, 0.188, -0.174, -0.040, 0.092, -0.116, -0.184,
    -0.265, -0.021, 0.382, 0.140, -0.142, 0.038, -0.064, 0.005, 0.007, 0.111, -0.051, 0.015, -0.093, 0.027, 0.189,
    -0.020, -0.006, 0.236, 0.007, -0.021, 0.026, 0.049, -0.125, 0.009, -0.124, -0.013, 0.021, -0.043, 0.012, 0.091,
    -0.162, 0.160, -0.031, -0.013, -0.031, -0.025, -0.063, -0.035, 0.153, -0.241, 0.155, 0.156, 0.027, 0.140, 0.040,
    0.074, -0.011, -0.040, -0.144, -0.069, 0.025, -0.055, 0.024, 0.019,
], np.float32)
# fmt: on
