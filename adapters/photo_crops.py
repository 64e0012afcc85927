"""Which crop of a person's photos an adapter looks at that was trained on images of people, not of aligned faces."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from ..errors import LikenessError
from ..faces.identity import Identity


class PhotoCrop(Enum):
    """Which crop of a photo is looked at; the value is the name a user chooses."""

    HEAD = "head"  # an upright square of twice the face: what training showed
    PORTRAIT = "portrait"  # turned upright, the eyes always in the same place
    FACE = "face"  # the face alone

    def of(self, who: Identity) -> Tensor:
        """Every photo's crop, (photos, side, side, 3), uint8; LikenessError when the identity has none of this kind."""
        crops = {PhotoCrop.HEAD: who.heads, PhotoCrop.PORTRAIT: who.portraits, PhotoCrop.FACE: who.aligned}[self]
        if not len(crops):
            raise LikenessError(
                f"The identity {who.name!r} has no {self.value} crops, because its detector gave no keypoints: choose "
                f"the crop {PhotoCrop.HEAD.value!r}, or make it with buffalo_l."
            )
        return crops
