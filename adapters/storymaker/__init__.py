"""StoryMaker (arXiv 2409.12576; weights of RED-AIGC/StoryMaker), for SDXL: face, hair, clothes and body of one to
three characters.

    T   = [background, character 1, …, character P]      20 tokens each, see `projection`
    q   = (W_q + l·B_q A_q) x                             likewise k, v and out: a LoRA of rank 128, without alpha
    out = A(q, K(text), V(text)) + s · A(q, K'(T), V'(T))    K', V' without LoRA

One softmax spans all of T, so characters and background compete for a place. Self-attention has the LoRA alone. Both
halves of guidance have all of it; the unconditioned half reads zeros in place of the embedding and of CLIP's features.

The LoRA is in every step and in both halves alike, so it is added to the model's own weights once: (W + l·B A) x is
W x + l·B A x. `mask.bin` holds two groups:

    image_proj_model.*                                the resampler and the embeddings, see `projection`
    ip_adapter.<slot>.to_{q,k,v,out}_lora.{down,up}   every attention layer
    ip_adapter.<slot>.to_{k,v}_ip.weight              cross-attention, no bias

What it is shown of a character: the unit embedding of buffalo_l, CLIP ViT-H's hidden states of the aligned face with
its background, and those of the body cut out on white and squashed to a square (`body`, `cast`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...checks import all_finite
from ...errors import LikenessError
from ...weights import families
from ...weights.checkpoint_layout import below
from ...weights.lora import LoraPair
from ...weights.lora_files import read_slots
from ..clip_vision import ClipEncoder, check_encoder
from ..effects import AttentionTerm, Effect, WeightDelta
from ..image_prep import Crop, normalise, to_square
from ..networks import KeyValueSites, build_key_values
from ..slot_lora import slot_delta
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..types import IdentityTokens, KeyValueScaling, SiteWeight
from .cast import OPTIONS, Cast, Character
from .projection import HeadWidths, build_character_projection

_PROJECTION, _LAYERS = "image_proj_model.", "ip_adapter."
_LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out")


@dataclass(frozen=True, eq=False)
class Shown:
    """What the networks read of a character.

    ids: (photos, id_dim), the unit embedding; face: (photos, sequence, hidden), CLIP of the aligned faces; shares:
    (photos,), how much each counts, 1 in all; body: (images, sequence, hidden), CLIP of the bodies.
    """

    ids: Tensor
    face: Tensor
    shares: Tensor
    body: Tensor

    def times(self, factor: float) -> Shown:
        """All but the shares, multiplied."""
        return Shown(factor * self.ids, factor * self.face, self.shares, factor * self.body)


class StoryMaker(KeyValueSites):
    """A loaded `mask.bin`. Frozen, in eval mode; `state_dict()` has the official keys of what runs as a network.

    The LoRA is kept beside the modules, because it changes the denoiser's own weights and never runs as a layer.
    """

    title = "StoryMaker"

    def __init__(self, weights: Mapping[str, Tensor], name: str, heads: HeadWidths | None = None) -> None:
        """weights: official keys, flat. Raises LikenessError that says what of them is missing or does not fit."""
        super().__init__()
        self.name = name
        layers = below(weights, _LAYERS)
        self._lora = {key: value for key, value in layers.items() if "_lora." in key}
        try:
            self.image_proj_model = build_character_projection(below(weights, _PROJECTION), heads or HeadWidths())
            self.ip_adapter = build_key_values({k: v for k, v in layers.items() if k not in self._lora})
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise _incomplete(name, "its resampler, or the keys and values of a layer, do not fit together") from error
        self._check()
        self.requires_grad_(False).eval()

    def _check(self) -> None:
        dim = self.image_proj_model.bg_embed.shape[-1]
        if not self.site_shapes or any(text != dim for _, text in self.site_shapes.values()):
            raise _incomplete(self.name, f"its tokens are {dim} wide, and its layers read others")
        slots = [slot for odd in self.site_shapes for slot in (odd - 1, odd)]
        wanted = {f"{s}.{layer}_lora.{half}.weight" for s in slots for layer in _LORA_LAYERS for half in ("down", "up")}
        if missing := sorted(wanted ^ self._lora.keys()):
            raise _incomplete(self.name, f"its LoRA does not have every attention layer, as {missing[0]!r}")

    @property
    def id_dim(self) -> int:
        """Numbers of the embedding it reads."""
        return self.image_proj_model.proj[0].in_features  # type: ignore[return-value]

    @property
    def feature_dim(self) -> int:
        """Width of CLIP's hidden states it reads: ViT-H's 1280."""
        return self.image_proj_model.resample.proj_in.in_features

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        recogniser = "miniature" if self.base is families.MINIATURE else "buffalo_l"
        return Needs(base=self.base, recogniser=recogniser, encoder_width=self.feature_dim, hidden=True)

    # From a request to effects ----------------------------------------------------------------------------------------

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the tokens of all characters, and the LoRA."""
        cast = self._cast(request)
        tokens = self.encode(cast, request)
        everywhere = (SiteWeight(request.strength),) * len(request.layout)
        whole = AttentionTerm(self, tokens, everywhere, scope=request.scope)
        each = tokens.cond.shape[1] // (1 + len(cast))
        terms = _placed(whole, cast, each) if any(one.region is not None for one in cast) else (whole,)
        if all(term.why_never is not None for term in terms):
            return terms
        return (*terms, self.lora(request.attention, request.weight_strength))

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        cast, notes = self._cast(request), []
        if len(cast) > 1:
            names = [repr(one.identity.name) if one.identity is not None else "one from behind" for one in cast]
            notes.append(f"The characters, in this order: {', '.join(names)}.")
        for number, one in enumerate(cast, 1):
            who = f"Character {number}" + (f" ({one.identity.name})" if one.identity is not None else "")
            if not one.bodies:
                notes.append(f"{who} has no body image, so hair and clothes are left to the prompt ({OPTIONS}).")
            if one.faceless:
                notes.append(f"{who} has no face, as seen from behind: the prompt should say so.")
        return notes

    def lora_pairs(self) -> dict[tuple[int, str], LoraPair]:
        """(slot, layer) -> the LoRA. Even slots are self-attention, odd slots cross-attention."""
        return read_slots(self._lora)

    def lora(self, attention: Mapping[int, str], strength: float = 1.0) -> WeightDelta:
        """The LoRA as a change of the denoiser's weights. attention: slot -> diffusers' path of the layer."""
        return slot_delta(self.name, self._lora, attention, strength)

    def _cast(self, request: Request) -> tuple[Character, ...]:
        cast = request.options_of(Cast, OPTIONS).with_identity(request.identity)
        most = self.image_proj_model.most
        if len(cast) > most:
            raise LikenessError(
                f"There are {len(cast)} characters, and {self.name!r} supports {most}: remove one, or generate two "
                "images."
            )
        return cast

    @torch.no_grad()
    def encode(self, cast: tuple[Character, ...], request: Request) -> IdentityTokens:
        """Tokens of the background and of everybody, (1, 20·(1 + P), dim), on the CPU.

        Raises LikenessError for whatever is missing: the encoder, an aligned face, the right recogniser's embedding.
        """
        encoder = self._encoder(request.encoder)
        shown = [self._shown(one, request, encoder) for one in cast]  # before the tokens: CLIP may take our place
        cond, uncond = (self._tokens(cast, [one.times(real) for one in shown]) for real in (1.0, 0.0))
        if not all_finite(cond) or not all_finite(uncond):
            raise LikenessError(
                f"The adapter {self.name!r} turns these images into NaN: check them, the CLIP vision model and the "
                "adapter's file."
            )
        return IdentityTokens(cond, uncond).to("cpu", torch.float32)

    def _tokens(self, cast: Sequence[Character], shown: Sequence[Shown]) -> Tensor:
        """Several photos of a character are seen one by one; the mean of their tokens counts."""
        network, weight = self.image_proj_model, self.image_proj_model.bg_embed
        faces, bodies = [], []
        for character, one in zip(cast, shown, strict=True):
            face = network.faces(one.ids.to(weight), one.face.to(weight))
            faces.append(character.face_strength * (face * one.shares.to(weight).view(-1, 1, 1)).sum(0))
            body_strength = character.body_strength if character.bodies else 0.0  # as in the drops of training
            bodies.append(body_strength * network.bodies(one.body.to(weight)).mean(0))
        return network(torch.stack(faces), torch.stack(bodies))

    def _shown(self, one: Character, request: Request, encoder: ClipEncoder) -> Shown:
        """What the networks read of a character; zeros where there is nothing, as in the unconditioned half."""
        nothing = torch.zeros(1, 1, self.feature_dim)
        body = _hidden(encoder, one.bodies) if one.bodies else nothing
        if one.identity is None:  # seen from behind
            return Shown(torch.zeros(1, self.id_dim), nothing, torch.ones(1), body)
        person = replace(request, identity=one.identity).person(self, self.id_dim, any_recogniser=None)
        if not len(person.aligned):
            raise LikenessError(
                f"The identity {person.name!r} has no aligned face, because its detector gave no keypoints: make it "
                "with a face analysis that does, for example buffalo_l."
            )
        face = _hidden(encoder, list(person.aligned))
        return Shown(person.mean_embedding().expand(len(face), -1), face, person.weights / person.weights.sum(), body)

    def _encoder(self, encoder: ClipEncoder | None) -> ClipEncoder:
        if encoder is None:
            raise LikenessError(
                f"The adapter {self.name!r} reads face and body through CLIP, and no CLIP vision model is connected: "
                "connect ViT-H/14 to clip_vision (Load CLIP Vision; `likeness models list` names the file)."
            )
        check_encoder(self.feature_dim, None, encoder.size)
        return encoder


def _placed(whole: AttentionTerm, cast: tuple[Character, ...], each: int) -> tuple[AttentionTerm, ...]:
    """One term for the background and one for each character in their region; together `whole`, where all regions are.

    All of them take part in every softmax, but each term keeps the values of its own tokens alone.
    """
    regions = [None, *(one.region for one in cast)]
    return tuple(
        replace(whole, region=region, scaling=_only(slice(each * number, each * (number + 1))))
        for number, region in enumerate(regions)
    )


def _only(tokens: slice) -> KeyValueScaling:
    def scaling(keys: Tensor, values: Tensor, weight: float, channels: int) -> tuple[Tensor, Tensor]:
        kept = torch.zeros_like(values)
        kept[:, tokens] = weight * values[:, tokens]
        return keys, kept

    return scaling


def _hidden(encoder: ClipEncoder, pictures: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """CLIP's hidden states of images, each (h, w, 3) uint8 and squashed to a square: (n, sequence, hidden)."""
    side = encoder.size.image_size
    squares = torch.cat([to_square(picture.unsqueeze(0) / 255, side, Crop.SQUASH) for picture in pictures])
    return encoder.encode_pixels(normalise(squares)).penultimate


def _incomplete(name: str, why: str) -> LikenessError:
    return LikenessError(
        f"{name!r} is not a complete StoryMaker file ({why}): download mask.bin of RED-AIGC/StoryMaker again."
    )


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is StoryMaker's: no other has embeddings of places and of a background."""
    found = file.has(f"{_PROJECTION}pos_embed", f"{_PROJECTION}bg_embed")
    return Sureness.YES if found else Sureness.NO


def load(file: WeightFile) -> StoryMaker:
    """The adapter of a file that was recognised, or that the user says is one."""
    return StoryMaker(file.weights, file.name)


SYSTEM = Kind("StoryMaker", recognise, ("storymaker",), load)
