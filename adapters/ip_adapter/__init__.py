"""IP-Adapter and FaceID: the networks of `adapter`, and what a user can set about a reference.

adapter        the files, their variants and their image tokens
evidence       what a variant is shown of a person or of an image
reference      from an identity, images and options to tokens and site weights
embeds         combining, scaling and saving image encodings
weight_types   how a weight is spread over the spatial transformers
schedules      weights over the frames of an animation
"""

from .adapter import SYSTEM, IPAdapter
from .evidence import Evidence, Variant

__all__ = ["SYSTEM", "Evidence", "IPAdapter", "Variant"]
