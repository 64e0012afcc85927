"""PuLID for SDXL, version 1 and 1.1 (arXiv 2404.16022; weights of guozinan/PuLID).

    id_adapter.*                                          the encoder: see `encoders`
    id_adapter_attn_layers.<slot>.id_to_{k,v}.weight      one pair per cross-attention site, no bias

or, in the files that ComfyUI users have, `image_proj.*` and `ip_adapter.<slot>.to_{k,v}_ip.weight`. The slots are those
of `injection.sites`.

    aligned photo ──parsing, grey──▶ EVA02-CLIP ──▶ e, hidden states      photo ──antelopev2──▶ f
    E = [encoder([f, e / |e|], hidden), zeros]        10 tokens (v1) or 32 (v1.1), and zero tokens that stand for no one
    out = T + w · merge(softmax(q kᵀ/√d) v)           k = E W_k, v = E W_v, T the attention to the text; see `merge`

The unconditioned half reads the encoder of zeros. The recogniser's embedding is read as it comes, not as a unit vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor, nn

from ...errors import LikenessError
from ...faces.identity import Identity
from ...weights import families
from ...weights.families import Family
from .. import eva_clip
from ..effects import AttentionTerm, Effect, Merge, Scope
from ..eva_clip import EvaFeatures
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..types import IdentityTokens, SiteWeight
from .encoders import ID_TOKENS, IDEncoder, IDFormer, build_encoder
from .face import face_features, pixels_of
from .merge import ortho, ortho_v2

RECOGNISER, ID_DIM = "antelopev2", 512
OPTIONS_NODE = "PuLID Options"
_LAYERS = "id_adapter_attn_layers."
_REPACKED = re.compile(r"^ip_adapter\.(\d+)\.to_([kv])_ip\.weight$")


class Projection(Enum):
    """What becomes of the part of the person's attention that lies along the text's; the value is the official name."""

    ORTHO_V2 = "ortho_v2"
    ORTHO = "ortho"
    OFF = "off"

    @property
    def merge(self) -> Merge | None:
        """How the two attentions meet; None for a plain sum."""
        return {Projection.ORTHO_V2: ortho_v2, Projection.ORTHO: ortho}.get(self)


@dataclass(frozen=True)
class Mode:
    """zeros: tokens of zeros behind the person's, which a place can attend to instead (official `num_zero`)."""

    zeros: int
    projection: Projection


FIDELITY = Mode(8, Projection.ORTHO_V2)
STYLE = Mode(16, Projection.ORTHO)
NEUTRAL = Mode(0, Projection.OFF)
VERSION_1_1 = Mode(20, Projection.ORTHO_V2)


class TokenPooling(Enum):
    """How several photos make one person; the value is the name a user chooses."""

    OFFICIAL = "as published"
    EVERY_TOKEN = "every token of every photo"  # version 1's "ID mix"
    MEAN = "mean"


class Background(Enum):
    """What EVA02-CLIP sees around face and hair; the value is the name a user chooses."""

    WHITE = "white"
    PHOTO = "as in the photo"


@dataclass(frozen=True)
class PuLIDOptions:
    """What can be set about PuLID beyond its strength; the defaults are those of the official code.

    mode: None for the one the version was published with. antialias: of the image that EVA02-CLIP sees.
    any_recogniser: accept embeddings of another recogniser, which show another face. start_step: the first step in
    which the person acts, counted from 0; 0 leaves it to the window.
    """

    mode: Mode | None = None
    photos: TokenPooling = TokenPooling.OFFICIAL
    background: Background = Background.WHITE
    antialias: bool = True
    any_recogniser: bool = False
    start_step: int = 0

    def starting(self, scope: Scope) -> Scope:
        """The scope, from the chosen step on."""
        first = self.start_step
        return replace(scope, first_step=lambda _steps: first) if first else scope


class IdentityKeyValues(nn.Module):
    """`id_to_k` and `id_to_v` of one site."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.id_to_k = nn.Linear(dim, width, bias=False)
        self.id_to_v = nn.Linear(dim, width, bias=False)


class Projections(nn.Module):
    """The keys and values of all sites; `state_dict()` has the official keys."""

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        """weights: official keys, of which others than the sites' are left out. Raises LikenessError when a site's
        other half is missing."""
        super().__init__()
        self.name = name
        sites = {key: value for key, value in weights.items() if key.startswith(_LAYERS)}
        slots = sorted({key[len(_LAYERS) :].split(".")[0] for key in sites}, key=int)
        with torch.device("meta"):
            self.id_adapter_attn_layers = nn.ModuleDict(
                {slot: IdentityKeyValues(*sites[f"{_LAYERS}{slot}.id_to_k.weight"].shape) for slot in slots}
            )
        self.load_state_dict(sites, strict=True, assign=True)
        self.requires_grad_(False).eval()

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """slot -> (width of the site, width of the text), as the file has them."""
        return {int(slot): tuple(kv.id_to_k.weight.shape) for slot, kv in self.id_adapter_attn_layers.items()}  # type: ignore[misc]

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a site: (rows, n_tokens, dim) -> two (rows, n_tokens, width)."""
        site = self.id_adapter_attn_layers[str(slot)]
        tokens = tokens.to(site.id_to_k.weight.dtype)  # type: ignore[union-attr]
        return site.id_to_k(tokens), site.id_to_v(tokens)  # type: ignore[operator]


class PuLID(Projections):
    """A loaded file: its encoder, in float32 as it was trained, and its key and value projections. Frozen."""

    id_adapter: IDEncoder | IDFormer

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        """weights: in either layout, flat. Raises LikenessError when they are not a complete PuLID for SDXL."""
        weights = official_layout(weights)
        try:
            super().__init__(weights, name)
            prefix = "id_adapter."
            encoder = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
            self.id_adapter = build_encoder({key: value.float() for key, value in encoder.items()})
            if any(text != self.id_adapter.dim for _, text in self.site_shapes.values()) or not self.site_shapes:
                raise ValueError("tokens and layers differ in width")
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise LikenessError(
                f"{name!r} is not a complete PuLID file for SDXL ({_fault(weights)}): download it again, or choose "
                "another file."
            ) from error

    @property
    def base(self) -> Family:
        """The family of base models the file was trained for; one whose model was pruned is of its text's family."""
        return families.of_adapter(list(self.site_shapes.values()))

    @property
    def title(self) -> str:
        """The version, for reports."""
        return "PuLID v1.1" if isinstance(self.id_adapter, IDFormer) else "PuLID v1"

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(base=self.base, recogniser=RECOGNISER, raw=True, every_photo=True)

    @property
    def default_mode(self) -> Mode:
        """The mode it was published with."""
        return VERSION_1_1 if isinstance(self.id_adapter, IDFormer) else FIDELITY

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: one attention term."""
        options = request.options_of(PuLIDOptions, OPTIONS_NODE)
        person = request.person(self, ID_DIM, options.any_recogniser)
        mode = options.mode or self.default_mode
        tokens = person_tokens(self.id_adapter, self.name, person, request, options)
        term = AttentionTerm(
            self,
            IdentityTokens(with_zeros(tokens.cond, mode.zeros), with_zeros(tokens.uncond, mode.zeros)),
            (SiteWeight(request.strength),) * len(request.layout),
            scope=options.starting(request.scope),
            merge=mode.projection.merge,
        )
        return (term,)

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        mode = request.options_of(PuLIDOptions, OPTIONS_NODE).mode or self.default_mode
        return [f"Orthogonal mode {mode.projection.value}, {mode.zeros} zero tokens."]


@torch.no_grad()
def person_tokens(
    encoder: IDEncoder | IDFormer, name: str, person: Identity, request: Request, options: PuLIDOptions
) -> IdentityTokens:
    """The tokens of a person, without zeros, on the CPU. LikenessError for one without aligned faces.

    name: of the encoder's file, for messages.
    """
    if not len(person.portraits):
        raise LikenessError(
            f"The identity {person.name!r} has no aligned faces, because its detector gave no keypoints: make it "
            f"again with {RECOGNISER}."
        )
    tower = request.find_eva()
    wanted = encoder.hidden_dim, encoder.id_dim - ID_DIM
    if tower.widths != wanted:
        raise LikenessError(
            f"The image encoder {tower.name!r} has the widths {tower.widths[0]} and {tower.widths[1]}, but "
            f"{name!r} reads {wanted[0]} and {wanted[1]}: put {eva_clip.FILE} into models/clip_vision."
        )
    labels = request.parse(person.portraits) if options.background is Background.WHITE else None
    pixels = pixels_of(face_features(person.portraits, labels), tower.image_size, options.antialias)
    device = next(encoder.parameters()).device
    seen = tower.encode_pixels(pixels).to(device, torch.float32)
    tokens = encode(encoder, person.embeddings.to(device), seen, options.photos, person.weights.to(device))
    return tokens.to("cpu", torch.float32)


def encode(
    encoder: IDEncoder | IDFormer,
    ids: Tensor,
    seen: EvaFeatures,
    photos: TokenPooling = TokenPooling.OFFICIAL,
    weights: Tensor | None = None,
) -> IdentityTokens:
    """The tokens of one person from n photos, without zeros.

    ids: (n, D), raw. weights: (n,), how much each photo counts in a mean. As published, version 1 reads all tokens of
    the first photo and those of the embedding of every further one, version 1.1 all photos in one pass.
    """
    ids_and_eva = torch.cat([ids, seen.pooled / seen.pooled.norm(dim=-1, keepdim=True)], dim=-1)
    uncond = encoder(torch.zeros_like(ids_and_eva[:1]), [torch.zeros_like(states[:1]) for states in seen.hidden])
    if isinstance(encoder, IDFormer) and photos is not TokenPooling.MEAN:
        side_by_side = [states.flatten(0, 1).unsqueeze(0) for states in seen.hidden]
        return IdentityTokens(encoder(ids_and_eva.unsqueeze(0), side_by_side), uncond)
    each = encoder(ids_and_eva, seen.hidden)
    if photos is TokenPooling.MEAN:
        share = torch.ones_like(ids[:, 0]) if weights is None else weights
        return IdentityTokens(torch.einsum("n,ntd->td", share / share.sum(), each).unsqueeze(0), uncond)
    count = each.shape[1] if photos is TokenPooling.EVERY_TOKEN else ID_TOKENS
    further = [row[None, :count] for row in each[1:]]
    return IdentityTokens(
        torch.cat([each[:1], *further], dim=1), torch.cat([uncond, *(uncond[:, :count] for _ in further)], dim=1)
    )


def with_zeros(tokens: Tensor, count: int) -> Tensor:
    """(rows, n, dim) -> (rows, n + count, dim)"""
    return torch.cat([tokens, tokens.new_zeros(len(tokens), count, tokens.shape[2])], dim=1)


def official_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys as in the official files."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"^image_proj\.", "id_adapter.", key)
        renamed[_REPACKED.sub(rf"{_LAYERS}\1.id_to_\2.weight", key)] = value
    return renamed


def recognise(file: WeightFile) -> Sureness:
    """Whether a file, in either layout, is PuLID's for SDXL. Its encoders map the layers of EVA02-CLIP one by one."""
    repacked = file.has("image_proj.mapping_0.", "ip_adapter.")
    return Sureness.YES if repacked or file.has("id_adapter.") or file.has(_LAYERS) else Sureness.NO


def load(file: WeightFile) -> PuLID:
    """The adapter of a file that was recognised."""
    return PuLID(file.weights, file.name)


SYSTEM = Kind("PuLID for SDXL", recognise, ("pulid",), load)


def _fault(weights: Mapping[str, Tensor]) -> str:
    if not any(key.startswith(_LAYERS) for key in weights):
        return f"the layers {_LAYERS}* are missing"
    if not any(key.startswith("id_adapter.") for key in weights):
        return "the encoder id_adapter.* is missing"
    return "its parts do not fit together"
