"""IP-Adapter and all of its FaceID variants (arXiv 2308.06721; weights of h94/IP-Adapter and h94/IP-Adapter-FaceID).

A file holds two or three parts, and everything about it is read from their keys and shapes:

    image_proj.*                              the network that makes image tokens
    ip_adapter.<slot>.to_{k,v}_ip.weight      one pair per cross-attention site, no bias
    ip_adapter.<slot>.to_{q,k,v,out}_lora.*   FaceID: a LoRA on every attention layer, without alpha

The slots are those of `injection.sites`. Not in the tensors is whether FaceID-Plus adds its shortcut (version 2): that
is taken from the file's name or metadata, or from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...errors import LikenessError, logger
from ...weights import families
from ...weights.lora import LoraPair
from ...weights.lora_files import read_slots
from ..effects import AttentionTerm, Effect, WeightDelta
from ..networks import (
    FaceIdPlusProjection,
    IdProjection,
    ImageProjection,
    KeyValueProjection,
    KeyValueSites,
    Resampler,
    TokenwiseProjection,
    build_key_values,
    build_projection,
)
from ..slot_lora import digest, slot_delta
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..types import IdentityTokens
from .evidence import READS_EMBEDDING, READS_FEATURES, Evidence, Variant
from .reference import ReferenceOptions, references, unused_inputs

log = logger("likeness")

ID_DIM = 512  # of every recogniser that published FaceID files were trained on
_CLIP_WIDTHS = (1024, 1280, 1664)  # of the hidden states of ViT-L/14, ViT-H/14 and ViT-bigG/14
# What the keys of all image projections begin with.
_PROJECTION_PARTS = {
    "proj", "norm", "perceiver_resampler", "latents", "proj_in", "layers", "proj_out", "norm_out",
}  # fmt: skip
HEAD_WIDTH = 64  # of the attention in all published image projections
PORTRAIT_TOKENS = 16  # per photo; the other variants that read an embedding use 4


class IPAdapter(KeyValueSites):
    """A loaded IP-Adapter file: its image projection and its key and value projections. Frozen, in eval mode.

    `state_dict()` has exactly the official keys. The LoRA of FaceID files is kept beside the modules (`lora_pairs`),
    because it changes the denoiser's own weights and never runs as a layer.
    """

    image_proj: nn.Module

    def __init__(self, weights: Mapping[str, Tensor], name: str, plus_version: int | None = None) -> None:
        """weights: official keys, flat (see `official_layout`). plus_version: 1 or 2 for FaceID-Plus, None to tell
        from `name`. Raises LikenessError when the weights are not a complete IP-Adapter."""
        super().__init__()
        self.name = name
        parts = _split(weights, name)
        try:
            self.image_proj = build_projection(parts.image_proj, HEAD_WIDTH)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise LikenessError(
                f"'{name}' is not a complete IP-Adapter file (its image projection does not fit together): "
                "download it again, or choose another file."
            ) from error
        try:
            self.ip_adapter = build_key_values(parts.key_values)
        except (KeyError, RuntimeError, TypeError) as error:
            raise LikenessError(
                f"'{name}' is not a complete IP-Adapter file (keys or values of a layer are missing): download it "
                "again."
            ) from error
        self._lora = parts.lora
        self.variant = _variant_of(self.image_proj, name, plus_version)
        out_dim = _token_width(self.image_proj)
        if any(text != out_dim for _, text in self.site_shapes.values()):
            raise LikenessError(
                f"'{name}' is not a complete IP-Adapter file (its tokens are {out_dim} wide, but its layers read "
                f"{self.dim}): download it again, or choose another file."
            )
        self.eval()

    @property
    def dim(self) -> int:
        """Width of the image tokens, which is the text width of the base model."""
        return next(iter(self._projections())).to_k_ip.weight.shape[1]

    @property
    def recogniser(self) -> str:
        """The recogniser whose embeddings it was trained on: insightface's for all files of h94/IP-Adapter-FaceID."""
        return "miniature" if self.base is families.MINIATURE else "buffalo_l"

    @property
    def needs_embedding(self) -> bool:
        """Whether a recogniser's embedding is part of the evidence."""
        return self.variant in READS_EMBEDDING

    @property
    def needs_raw_embedding(self) -> bool:
        """Whether that embedding is the recogniser's raw output instead of the unit vector."""
        return self.variant is Variant.PORTRAIT_UNNORM

    @property
    def reads_every_photo(self) -> bool:
        """Whether several photos enter one by one (Portrait) instead of as their mean."""
        return self.variant in (Variant.PORTRAIT, Variant.PORTRAIT_UNNORM)

    @property
    def needs_features(self) -> bool:
        """Whether CLIP hidden states are part of the evidence."""
        return self.variant in READS_FEATURES

    @property
    def needs_pooled(self) -> bool:
        """Whether the pooled CLIP embedding is the evidence."""
        return self.variant is Variant.BASE

    @property
    def id_dim(self) -> int | None:
        """Width of the embedding it reads, None if it reads none."""
        if not self.needs_embedding:
            return None
        projection = self.image_proj
        if isinstance(projection, Resampler):
            return projection.proj_in.in_features
        assert isinstance(projection, IdProjection)
        return projection.proj[0].in_features  # type: ignore[return-value]

    @property
    def feature_dim(self) -> int | None:
        """Width of the CLIP encoding it reads (pooled or hidden), None if it reads none."""
        projection = self.image_proj
        if isinstance(projection, ImageProjection):
            return projection.proj.in_features
        if isinstance(projection, TokenwiseProjection):
            return projection.proj[0].in_features  # type: ignore[return-value]
        if isinstance(projection, FaceIdPlusProjection):
            return projection.perceiver_resampler.proj_in.in_features
        if isinstance(projection, Resampler) and self.needs_features:
            return projection.proj_in.in_features
        return None

    @property
    def title(self) -> str:
        """The variant, for reports."""
        return self.variant.value

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(
            base=self.base,
            recogniser=self.recogniser if self.needs_embedding else None,
            raw=self.needs_raw_embedding,
            every_photo=self.reads_every_photo,
            encoder_width=self.feature_dim,
            hidden=self.needs_features,
        )

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: one attention term for each reference, and the LoRA of FaceID files."""
        options = request.options_of(ReferenceOptions, "IP-Adapter Options")
        identity = request.identity
        if identity is not None and self.needs_embedding and not options.any_recogniser:
            identity = request.seen_by(identity, self.recogniser)
        found = references(self, identity, request.encoder, options, request.layout, request.strength)
        terms = tuple(
            AttentionTerm(
                self,
                reference.tokens,
                reference.site_weights,
                options.scaling.function,
                replace(request.scope, image_weights=reference.row_weights),
                reference.mask,
            )
            for reference in found
        )
        lora = self.lora(request.attention, request.weight_strength)
        acts = any(term.why_never is None for term in terms)
        return (*terms, lora) if lora is not None and acts else terms

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        unused = unused_inputs(self, request.options_of(ReferenceOptions, "IP-Adapter Options"))
        if not unused:
            return []
        return [f"This adapter reads no images, so these options have no effect: {', '.join(unused)}."]

    @torch.no_grad()
    def encode(self, evidence: Evidence, structure: float = 1.0) -> IdentityTokens:
        """Image tokens of every photo and their unconditioned counterparts, each (photos, n_tokens, dim), on the CPU.

        structure: how much of the face's CLIP structure enters FaceID-Plus v2 (official `s_scale`).
        """
        weight = next(self.parameters())
        return self.tokens(evidence.to(weight.device, weight.dtype), structure).to("cpu", torch.float32)

    def tokens(self, evidence: Evidence, structure: float = 1.0) -> IdentityTokens:
        """`encode` with gradient, for training."""
        network, ids, features = self.image_proj, evidence.id_embeds, evidence.features
        if isinstance(network, FaceIdPlusProjection):
            assert ids is not None and features is not None and evidence.uncond_features is not None
            shortcut = self.variant is Variant.FACEID_PLUS_V2
            cond = network(ids, features, shortcut=shortcut, structure=structure)
            empty = evidence.uncond_features.expand(len(cond), -1, -1)
            return IdentityTokens(cond, network(torch.zeros_like(ids), empty, shortcut=shortcut, structure=structure))
        if self.variant is Variant.PORTRAIT_UNNORM:
            assert ids is not None
            row = ids.unsqueeze(1)  # the only token of the resampler's input
            return IdentityTokens(network(row), network(torch.zeros_like(row)))
        if self.needs_embedding:
            assert ids is not None
            return IdentityTokens(network(ids), network(torch.zeros_like(ids)))
        assert features is not None
        uncond = evidence.uncond_features
        if uncond is None:
            if self.needs_features:
                raise LikenessError("This adapter needs the unconditioned image features: encode a zero image first.")
            uncond = torch.zeros_like(features)
        return IdentityTokens(network(features), network(uncond))

    def lora_pairs(self) -> dict[tuple[int, str], LoraPair]:
        """(slot, layer) -> the LoRA of FaceID files. Even slots are self-attention, odd slots cross-attention."""
        return read_slots(self._lora)

    def lora(self, attention: Mapping[int, str], strength: float = 1.0) -> WeightDelta | None:
        """The LoRA as a change of the denoiser's weights; None where the file has none. attention: slot -> diffusers'
        path of the attention layer."""
        return slot_delta(self.name, self._lora, attention, strength) if self._lora else None

    @property
    def lora_id(self) -> str | None:
        """Tells this LoRA from others, whatever the files are called; None without one."""
        return digest(self._lora) if self._lora else None

    def _projections(self) -> Iterator[KeyValueProjection]:
        yield from self.ip_adapter.values()  # type: ignore[misc]


def recognise(file: WeightFile) -> Sureness:
    """Whether a file (in any of the published layouts) is an IP-Adapter.

    InstantID's file has the keys and shapes of FaceID Portrait (raw embedding): that variant is only possible, unless
    the name says more.
    """
    weights = official_layout(file.weights)
    projection = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith("image_proj.")}
    if not projection or not any(key.endswith(".to_k_ip.weight") for key in weights):
        return Sureness.NO
    if any(key.partition(".")[0] not in _PROJECTION_PARTS for key in projection):
        return Sureness.NO  # another system's
    try:
        network = build_projection(projection, HEAD_WIDTH)
    except (KeyError, RuntimeError, ValueError, IndexError):
        return Sureness.POSSIBLE  # a damaged one, if no other system knows it
    if not isinstance(network, Resampler) or network.proj_in.in_features in _CLIP_WIDTHS:
        return Sureness.YES
    return Sureness.YES if re.search("portrait|unnorm", file.name.lower()) else Sureness.POSSIBLE


def load(file: WeightFile) -> IPAdapter:
    """The adapter of a file that was recognised."""
    version = file.metadata.get("faceid_plus_version")
    return IPAdapter(file.weights, file.name, int(version) if version in ("1", "2") else None)


SYSTEM = Kind("IP-Adapter", recognise, ("ipadapter",), load)


def official_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys as in the official files; accelerate checkpoints of the official trainers use other prefixes."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace("image_proj_model.", "image_proj.", 1).replace("adapter_modules.", "ip_adapter.", 1)
        if not key.startswith("unet."):  # such checkpoints carry the whole UNet along
            renamed[key] = value
    return renamed


@dataclass(frozen=True)
class _Parts:
    image_proj: dict[str, Tensor]
    key_values: dict[str, Tensor]
    lora: dict[str, Tensor]


def _split(weights: Mapping[str, Tensor], name: str) -> _Parts:
    parts = _Parts({}, {}, {})
    for key, value in official_layout(weights).items():
        group, _, rest = key.partition(".")
        if group == "image_proj":
            parts.image_proj[rest] = value
        elif group == "ip_adapter" and "_lora." in rest:
            parts.lora[rest] = value
        elif group == "ip_adapter":
            parts.key_values[rest] = value
    missing = [k for k in parts.lora if _other_half(k) not in parts.lora]
    if not parts.image_proj or not parts.key_values or missing:
        raise LikenessError(f"'{name}' is not a complete IP-Adapter file: download it again, or choose another file.")
    return parts


def _other_half(lora_key: str) -> str:
    return lora_key.replace(".down.", ".up.") if ".down." in lora_key else lora_key.replace(".up.", ".down.")


def _token_width(projection: nn.Module) -> int:
    """The width of the tokens a projection makes: that of the norm they end in."""
    if isinstance(projection, TokenwiseProjection):
        norm = projection.proj[3]
    else:
        norm = projection.norm_out if isinstance(projection, Resampler) else projection.norm
    return norm.normalized_shape[0]  # type: ignore[union-attr, index]


def _variant_of(projection: nn.Module, name: str, plus_version: int | None) -> Variant:
    if isinstance(projection, ImageProjection):
        return Variant.BASE
    if isinstance(projection, TokenwiseProjection):
        return Variant.FULL_FACE
    if isinstance(projection, Resampler):
        # CLIP hidden states are 1024, 1280 or 1664 wide, an embedding is 512: the widths tell the two apart, except in
        # networks made small for tests, which say so by name.
        raw = projection.proj_in.in_features == ID_DIM or "unnorm" in name.lower()
        return Variant.PORTRAIT_UNNORM if raw else Variant.PLUS
    if isinstance(projection, FaceIdPlusProjection):
        version = plus_version or _plus_version_in(name)
        if version is None:
            log.info("[likeness] '%s' does not say which FaceID-Plus it is; taking version 2.", name)
            version = 2
        return Variant.FACEID_PLUS if version == 1 else Variant.FACEID_PLUS_V2
    assert isinstance(projection, IdProjection)
    n_tokens = projection.proj[2].out_features // projection.norm.normalized_shape[0]  # type: ignore[operator]
    return Variant.PORTRAIT if n_tokens == PORTRAIT_TOKENS else Variant.FACEID


def _plus_version_in(name: str) -> int | None:
    text = re.sub(r"[\s_-]", "", name.lower())
    if "plusv2" in text:
        return 2
    return 1 if "plusv1" in text or "faceidplus" in text else None
