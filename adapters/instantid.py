"""InstantID (arXiv 2401.07519; weights of InstantX/InstantID), for SDXL: one photo, no training.

    T = Resampler(e),  T₀ = Resampler(0)        16 tokens of the raw antelopev2 embedding e, and of none
    UNet           out = A(q, K(text), V(text)) + s · A(q, K'(T), V'(T))    at every cross-attention site, all 70
    IdentityNet    a ControlNet whose hint is an image of five keypoints, and whose text is T

The unconditioned half reads T₀: the *embedding* is zero, not the tokens. `ip-adapter.bin` holds two groups:

    image_proj.latents                                  the 16 queries
    image_proj.{proj_in,proj_out,norm_out}.*            of the Resampler (`networks.Resampler`)
    image_proj.layers.<i>.0.{norm1,norm2,to_q,to_kv,to_out}.*, .1.{0,1,3}.*
    ip_adapter.<slot>.to_{k,v}_ip.weight                one pair per site, no bias

IdentityNet lies in a file of its own, an SDXL ControlNet that the host loads. FaceID Portrait (raw embedding) has the
same keys and shapes, but reads another recogniser: the file's name, its folder or the user tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import LikenessError
from ..faces.identity import Identity
from ..weights import families
from ..weights.checkpoint_layout import below
from .effects import AttentionTerm, ControlContext, Effect
from .networks import KeyValueSites, PerceiverSizes, Resampler, build_key_values
from .system import Kind, Needs, Request, Sureness, WeightFile
from .types import IdentityTokens, SiteWeight

ID_DIM = 512  # of antelopev2's recogniser
HEAD_WIDTH = 64  # of the Resampler's attention
_GROUPS = ("image_proj", "ip_adapter")
_SEEDS = 1_000_000_007  # of the noise in place of no face


class EmbeddingPooling(Enum):
    """How several photos make one person; the value is the name a user chooses."""

    MEAN = "mean"  # one embedding: the mean direction, at the mean length
    EACH = "each"  # the Resampler reads all of them, one after the other


@dataclass(frozen=True)
class InstantIDOptions:
    """What can be set about InstantID beyond its strength; the defaults are those of the official code.

    noise: how much random noise the unconditioned half is shown in place of a zero embedding; it takes away some of
    the burnt colours at high guidance. any_recogniser: accept embeddings of another recogniser, which show another
    face.
    """

    photos: EmbeddingPooling = EmbeddingPooling.MEAN
    noise: float = 0.0
    any_recogniser: bool = False


class InstantID(KeyValueSites):
    """A loaded `ip-adapter.bin`. Frozen, in eval mode; `state_dict()` has exactly the official keys.

    The Resampler computes in float32 whatever the file's precision, because its norms drift in half precision.
    """

    title = "InstantID"
    image_proj: Resampler

    def __init__(self, weights: Mapping[str, Tensor], name: str, head_width: int = HEAD_WIDTH) -> None:
        """weights: official keys, flat. Raises LikenessError that says what of them is missing or does not fit."""
        super().__init__()
        self.name = name
        groups = {group: below(weights, f"{group}.") for group in _GROUPS}
        try:
            sizes = PerceiverSizes.of(groups["image_proj"], head_width)
            with torch.device("meta"):
                self.image_proj = Resampler(sizes, groups["image_proj"]["latents"].shape[1])
            self.image_proj.load_state_dict(groups["image_proj"], strict=True, assign=True)
            self.ip_adapter = build_key_values(groups["ip_adapter"])
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise LikenessError(
                f"{name!r} is not a complete InstantID adapter (a Resampler below image_proj and one pair of keys and "
                "values per layer below ip_adapter were expected): download ip-adapter.bin of InstantX/InstantID again."
            ) from error
        self.image_proj.float()
        read = {text for _, text in self.site_shapes.values()}
        if read != {sizes.out_dim}:
            raise LikenessError(
                f"{name!r} is not a complete InstantID adapter (its tokens are {sizes.out_dim} wide, but its layers "
                f"read {', '.join(map(str, sorted(read))) or 'none'}): download ip-adapter.bin of InstantX/InstantID "
                "again."
            )
        self.requires_grad_(False).eval()

    @property
    def id_dim(self) -> int:
        """Numbers of the embedding it reads."""
        return self.image_proj.proj_in.in_features

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        recogniser = "miniature" if self.base is families.MINIATURE else "antelopev2"
        return Needs(base=self.base, recogniser=recogniser, raw=True, keypoints=True)

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the term at the UNet's sites, and what IdentityNet reads in place of the text."""
        options = request.options_of(InstantIDOptions, "InstantID Options")
        person = request.person(self, self.id_dim, options.any_recogniser)
        tokens = self.encode(face_embedding(person, options.photos), options.noise)
        everywhere = (SiteWeight(request.strength),) * len(request.layout)
        return (
            AttentionTerm(self, tokens, everywhere, scope=request.scope),
            ControlContext(self.name, tokens, request.strength, request.scope),
        )

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        return []

    @torch.no_grad()
    def encode(self, embedding: Tensor, noise: float = 0.0) -> IdentityTokens:
        """Tokens of a raw embedding (1, n, id_dim) of n photos, and of none; each (1, 16, width of the text), on the
        CPU."""
        uncond_embedding = noise * _noise_of(embedding.cpu()) if noise else torch.zeros_like(embedding)
        device = self.image_proj.latents.device
        tokens = IdentityTokens(*(self.image_proj(e.to(device, torch.float32)) for e in (embedding, uncond_embedding)))
        return tokens.to("cpu", torch.float32)


def face_embedding(person: Identity, photos: EmbeddingPooling = EmbeddingPooling.MEAN) -> Tensor:
    """What the Resampler reads of a person: (1, n, id_dim), raw, n = 1 for the mean of the photos."""
    rows = person.embeddings
    if photos is EmbeddingPooling.EACH or len(rows) == 1:
        return rows.unsqueeze(0)
    length = (rows.norm(dim=-1) * person.weights).sum() / person.weights.sum()
    return (person.mean_embedding() * length).view(1, 1, -1)


def _noise_of(embedding: Tensor) -> Tensor:
    """Uniform noise in [0, 1) of a seed that belongs to the face, from a generator of its own."""
    seed = int(embedding.sum()) % _SEEDS
    return torch.rand(embedding.shape, generator=torch.Generator().manual_seed(seed))


# Files ----------------------------------------------------------------------------------------------------------------


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is InstantID's: sure by its name, possible by its content, as FaceID Portrait's is as well."""
    latents, reads = file.shape("image_proj.latents"), file.shape("image_proj.proj_in.weight")
    if latents is None or reads is None or reads[1] != ID_DIM or not file.has("ip_adapter.1.to_k_ip."):
        return Sureness.NO
    name = file.name.lower()
    if "instantid" in name:
        return Sureness.YES
    if file.shape("image_proj.proj_out.weight") != (families.SDXL.text_width, latents[2]):
        return Sureness.POSSIBLE if "instantid" in file.parents else Sureness.NO  # of a model that is not published
    return Sureness.YES if name in ("ip-adapter.bin", "ip-adapter.safetensors") else Sureness.POSSIBLE


def load(file: WeightFile) -> InstantID:
    """The adapter of a file that was recognised, or that the user says is one."""
    reads = file.shape("image_proj.proj_in.weight")
    if reads is not None and reads[1] != ID_DIM:
        raise LikenessError(
            f"{file.name!r} is not InstantID's adapter: it reads {reads[1]} numbers, and InstantID a face embedding of "
            f"{ID_DIM}; choose ip-adapter.bin of InstantX/InstantID, or another system."
        )
    return InstantID(file.weights, file.name)


SYSTEM = Kind("InstantID", recognise, ("instantid",), load)
