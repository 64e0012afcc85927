"""What each model, or the LoRA on it, was trained on: one row each.

Two LoRAs with the same keys can want opposite things, and the wrong ones give a weak, plausible image, so that a scheme
is never guessed from tensors: a known file is told by its checksum, a base with a single scheme by the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import LikenessError
from ...weights.families import FLUX, FLUX2, KREA2, QWEN_IMAGE, Family
from ..effects import Placement
from . import positions, sizes
from .grounding import IDENTITY_EDIT, KREA2_LABELS, QWEN_LABELS, TextForm
from .sizes import Fit

INDEX, TIMESTEP_ZERO, OFFSET = "index", "index_timestep_zero", "offset"  # ComfyUI's names of reference methods


@dataclass(frozen=True)
class Scheme:
    """How one model attends to references.

    title: what users choose. method: ComfyUI's. placement: see `positions`. isolated: references see only themselves.
    fit: see `sizes`. text: None where the text encoder sees no images. several: whether it was trained on several
    photos of one person. trained: most references in all. pixels: on a side of a latent cell; channels: of a latent.
    """

    title: str
    base: Family
    method: str
    placement: Placement
    fit: Fit
    text: TextForm | None
    isolated: bool = False
    several: bool = False
    trained: int = 2
    pixels: int = 8
    channels: int = 16

    @property
    def has_frames(self) -> bool:
        """Whether its VAE is one of videos."""
        return self.base in (KREA2, QWEN_IMAGE)


IDENTITY_EDIT_12 = Scheme(
    "Krea 2 Identity Edit v1.2", KREA2, INDEX, positions.centred, sizes.fit, IDENTITY_EDIT
)  # fmt: skip
IDENTITY_EDIT_1 = Scheme(
    "Krea 2 Identity Edit v1, v1.1", KREA2, INDEX, positions.origin, sizes.crop, IDENTITY_EDIT
)  # fmt: skip
KREA2_EDIT = Scheme(
    "Krea 2 edit (ai-toolkit)", KREA2, TIMESTEP_ZERO, positions.origin, sizes.native, KREA2_LABELS,
    several=True, trained=3,
)  # fmt: skip
KREA2_REID = Scheme(
    "Krea 2 ReID", KREA2, TIMESTEP_ZERO, positions.origin, sizes.native, KREA2_LABELS, isolated=True, trained=1
)  # fmt: skip
FLUX2_PLAIN = Scheme(
    "FLUX.2", FLUX2, INDEX, positions.flux2, sizes.flux2, None, several=True, trained=4, pixels=16, channels=128
)  # fmt: skip
FLUX2_KV = Scheme(
    "FLUX.2 KV", FLUX2, TIMESTEP_ZERO, positions.flux2, sizes.flux2, None, isolated=True, several=True, trained=4,
    pixels=16, channels=128,
)  # fmt: skip
QWEN_2509 = Scheme(
    "Qwen-Image-Edit 2509", QWEN_IMAGE, INDEX, positions.qwen, sizes.qwen, QWEN_LABELS, several=True, trained=3
)  # fmt: skip
QWEN_2511 = Scheme(
    "Qwen-Image-Edit 2511", QWEN_IMAGE, TIMESTEP_ZERO, positions.qwen, sizes.qwen, QWEN_LABELS, several=True, trained=3
)  # fmt: skip
KONTEXT = Scheme(
    "FLUX.1 Kontext", FLUX, OFFSET, positions.offset, sizes.native, None, trained=1
)  # fmt: skip

SCHEMES = (
    IDENTITY_EDIT_12, IDENTITY_EDIT_1, KREA2_EDIT, KREA2_REID, FLUX2_PLAIN, FLUX2_KV, QWEN_2509, QWEN_2511, KONTEXT,
)  # fmt: skip

# Published LoRAs: bytes -> {SHA-256: scheme}. A file of another length need not be read.
LORAS = {
    1_828_256_432: {"6adf9a69cc9502d286db7b69964d37da7e9cfe4b05b4d004bc275f087d3fd3cf": IDENTITY_EDIT_12},
    914_159_744: {"f53db0bb4b081d638f196865cbc9f055379704fafb788336784fc1ccde18d825": IDENTITY_EDIT_12},
    457_111_048: {"f794b47142555c929cf536a2f1e4f335174b9aedbb08572b07d45814d4242423": IDENTITY_EDIT_12},
    228_587_752: {"a80349faee4a2d80eff9a83820cd523c74cd0bbc6039cee21fa34b084d967944": KREA2_REID},
}


def titled(title: str) -> Scheme | None:
    """The scheme of this name."""
    return next((scheme for scheme in SCHEMES if scheme.title == title), None)


def of_model(family: Family, timestep_zero: bool | None) -> Scheme:
    """The scheme of a MODEL that has only one. timestep_zero: whether its file says that its references have the
    timestep 0. LikenessError, as a question, where several are possible."""
    possible = [scheme for scheme in SCHEMES if scheme.base is family]
    if family is FLUX2:
        return FLUX2_PLAIN  # the KV file is asked for by name
    if family is QWEN_IMAGE and timestep_zero:
        return QWEN_2511
    if len(possible) == 1:
        return possible[0]
    if not possible:
        raise LikenessError(
            "The connected MODEL does not attend to reference images: choose Krea 2, FLUX.2, Qwen-Image-Edit or FLUX.1 "
            "Kontext."
        )
    raise LikenessError(
        f"{family.title} can have been trained in several ways, which its file does not tell: choose the scheme in "
        f"Reference Adapter ({_listed(possible)})."
    )


def _listed(schemes: Sequence[Scheme]) -> str:
    return ", ".join(scheme.title for scheme in schemes)
