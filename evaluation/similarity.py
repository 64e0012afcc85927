"""How alike whole images are, by an image encoder that is passed in: style, disturbance of the base model, diversity.

An `ImageEncoder` turns images (n, H, W, 3) RGB 0..1 into embeddings (n, D): CLIP, DINOv2, or the miniature's. These
numbers measure scenes and clothes more than people: use them for how much of an image changed, never for identity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..faces import Face, cosine_similarity, unit

ImageEncoder = Callable[[torch.Tensor], torch.Tensor]
GREY = 0.5


def without_faces(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Images (n, H, W, 3) with grey where masks (n, H, W) 0..1 are 1."""
    return images + (GREY - images) * masks[..., None]


def masked_clip(
    images: torch.Tensor,
    references: torch.Tensor,
    image_masks: torch.Tensor,
    reference_masks: torch.Tensor,
    encoder: ImageEncoder,
) -> torch.Tensor:
    """MagiCapture's style similarity: mean cosine (n,) to the style references, the face grey in both."""
    given = encoder(without_faces(images, image_masks))
    return cosine_similarity(given, encoder(without_faces(references, reference_masks))).mean(1)


def style_gain(to_own: torch.Tensor, to_others: torch.Tensor) -> torch.Tensor:
    """`masked_clip` to the style asked for (n,) minus that to other styles (n, k): absolute ones mean nothing."""
    return to_own - to_others.reshape(len(to_own), -1).mean(1)


def keep_base(
    with_person: torch.Tensor, without: torch.Tensor, masks: torch.Tensor, encoder: ImageEncoder
) -> torch.Tensor:
    """PuLID's question: how much of the base model's image is left. Cosine (n,) of pairs with the same seed.

    `masks` (n, H, W) cover the faces of both images, which are grey in both.
    """
    kept, base = (unit(encoder(without_faces(images, masks))) for images in (with_person, without))
    return (kept * base).sum(1)


def diversity(images: torch.Tensor, encoder: ImageEncoder) -> float:
    """Mean over pairs of 1 - cosine: `div` for images of one prompt, `face_div` for face crops of one person.

    NaN for fewer than two images. Greater is more varied; compare with the images without identity.
    """
    count = len(images)
    if count < 2:
        return float("nan")
    alike = cosine_similarity(embeddings := encoder(images), embeddings).double()
    return float(1 - (alike.sum() - alike.diagonal().sum()) / (count * (count - 1)))


def aligned_faces(photos: list[np.ndarray], faces: list[Face | None], size: int = 112) -> torch.Tensor:
    """Aligned crops (m, size, size, 3) 0..1 of the faces with keypoints, for `diversity` and `crop_sharpness`."""
    from ..faces import arcface_crop

    crops = [
        torch.from_numpy(arcface_crop(photo, face.keypoints, size)).float() / 255
        for photo, face in zip(photos, faces, strict=True)
        if face is not None and face.keypoints is not None
    ]
    return torch.stack(crops) if crops else torch.zeros(0, size, size, 3)
