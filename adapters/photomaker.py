"""PhotoMaker v1 and v2 for SDXL (arXiv 2312.04461; weights of TencentARC/PhotoMaker and TencentARC/PhotoMaker-V2).

The noun before a trigger word, "a man img", is repeated once for every ID token, and each copy c is fused with one
token e of a photo. Until the merge the prompt is read without the person, afterwards with the fused words:

    v1   e = [W1 p; W2 p]                       p: pooled CLIP of the photo; one token for each
    v2   t = norm(mlp(f));  e = t + resample(t, H)   f: raw buffalo_l embedding, H: all CLIP states; two tokens for each
         word = c + w · (fuse(c, e) - c)        w: how much the photo counts, 1 is official

A file holds everything, as two groups:

    id_encoder.vision_model.*, visual_projection.weight, visual_projection_2.weight      the CLIP tower, W1, W2
    id_encoder.fuse_module.{mlp1,mlp2,layer_norm}.*
    id_encoder.qformer_perceiver.{token_proj,token_norm,perceiver_resampler}.*           v2 alone
    lora_weights.unet.<attention>.processor.to_{q,k,v,out}_lora.{down,up}.weight         on every attention layer
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..errors import LikenessError
from ..faces.identity import Identity
from ..weights import families
from ..weights.checkpoint_layout import registration_order
from ..weights.families import Family
from ..weights.lora import LoraPair
from ..weights.lora_files import read_attention_lora
from .clip_tower import HEAD_WIDTH, ClipTower, TowerSizes
from .effects import Effect, PromptEdit, PromptStates, Scope, WeightDelta
from .image_prep import pixel_values
from .networks import FuseModule, Perceiver, PerceiverSizes
from .photo_crops import PhotoCrop
from .system import Kind, Needs, Request, Sureness, WeightFile
from .text_encoder import TextEncoder, Token, Tokens, Windows, level
from .trigger_words import Mention, mentions, place_in_all, repeated, run_places, without, words_in
from .whole_file import fault, of_one_precision, without_buffers

RECOGNISER = "buffalo_l"  # of v2: insightface's default pack
RESAMPLER_HEAD_WIDTH = 128
TRIGGER = "img"
LATEST_MERGE = 30  # step; later than this the official demos never merge


# --- what a user can set


class MergeTiming(Enum):
    """How the share after which the person enters is counted in a run; the value is the name a user chooses."""

    OFFICIAL = "official steps"  # int(share · steps), at most 30, and one step more: the demos' style strength
    STEPS = "share of the steps"  # the paper's
    NOISE = "share of the noise"  # as the host's own time ranges: the same for any number of steps


class LongPrompts(Enum):
    """What happens to a prompt of more than 75 tokens; the value is the name a user chooses."""

    WINDOWS = "read all of it"  # in several windows, as the host does
    CUT = "cut as the official code"  # to 77 tokens, the end token as well


@dataclass(frozen=True, eq=False)
class PhotoMakerOptions:
    """Everything a user can set beside strength and window; the defaults are those of the official code.

    images: shown in place of the first person's crops, (n, H, W, 3) each. merge_step: the official `start_merge_step`,
    the last step without the person; -1: none. It wins over the window's start, and over `merge`.
    """

    photo: PhotoCrop = PhotoCrop.HEAD
    merge: MergeTiming = MergeTiming.OFFICIAL
    merge_step: int | None = None
    long_prompts: LongPrompts = LongPrompts.WINDOWS
    images: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if self.merge_step is not None:
            check_number(self.merge_step, "The merge step", -1, 10_000)

    def first_step(self, share: float) -> Callable[[int], int] | None:
        """Number of steps of a run -> the first one with the person, from 0; None where no step is counted."""
        if self.merge_step is not None:
            last = self.merge_step
            return lambda steps: last + 1
        if share <= 0 or self.merge is MergeTiming.NOISE:
            return None
        if self.merge is MergeTiming.STEPS:
            return lambda steps: round(share * steps)
        return lambda steps: min(int(share * steps), LATEST_MERGE) + 1


# --- networks


class QFormer(nn.Module):
    """A face's embedding to ID tokens, refined by all CLIP states of its photo (v2)."""

    def __init__(self, id_dim: int, inner_dim: int, n_tokens: int, perceiver: PerceiverSizes) -> None:
        super().__init__()
        dim = perceiver.dim
        self.token_proj = nn.Sequential(nn.Linear(id_dim, inner_dim), nn.GELU(), nn.Linear(inner_dim, n_tokens * dim))
        self.token_norm = nn.LayerNorm(dim)
        self.perceiver_resampler = Perceiver(perceiver)

    @classmethod
    def of(cls, weights: dict[str, Tensor], head_width: int) -> QFormer:
        """Sizes read off the weights (keys without `qformer_perceiver.`)."""
        inner_dim, id_dim = weights["token_proj.0.weight"].shape
        perceiver = PerceiverSizes.of(weights, head_width, "perceiver_resampler.")
        return cls(id_dim, inner_dim, weights["token_proj.2.weight"].shape[0] // perceiver.dim, perceiver)

    def forward(self, embeddings: Tensor, states: Tensor) -> Tensor:
        """embeddings: (photos, id_dim), raw; states: (photos, 1 + patches, width) -> (photos, n_tokens, dim)"""
        width = self.token_norm.normalized_shape[0]
        tokens = self.token_norm(self.token_proj(embeddings).unflatten(-1, (-1, width)))
        return tokens + self.perceiver_resampler.resample(tokens, states)


class IdEncoder(nn.Module):
    """`id_encoder` of a file. Photos to ID tokens, and those into the words of a prompt."""

    def __init__(self, weights: Mapping[str, Tensor], head_width: int, resampler_head_width: int) -> None:
        """Raises KeyError, ValueError or RuntimeError when the weights are no complete encoder."""
        super().__init__()
        tower, perceiver = _below(weights, "vision_model."), _below(weights, "qformer_perceiver.")
        with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
            self.vision_model = ClipTower(TowerSizes.of(tower, head_width))
            self.visual_projection, self.visual_projection_2 = (
                nn.Linear(*reversed(weights[f"{name}.weight"].shape), bias=False)
                for name in ("visual_projection", "visual_projection_2")
            )
            self.fuse_module = FuseModule(weights["fuse_module.layer_norm.weight"].shape[0])
            self.qformer_perceiver = QFormer.of(perceiver, resampler_head_width) if perceiver else None
        self.load_state_dict(weights, strict=True, assign=True)

    def id_tokens(self, pixels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """pixels: (photos, 3, S, S); embeddings: (photos, id_dim), raw, v2 alone -> (photos, tokens, dim)"""
        return self.tokens_of(self.vision_model(pixels), embeddings)

    def tokens_of(self, states: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """The same of the tower's last states, (photos, 1 + patches, width)."""
        if self.qformer_perceiver is not None:
            assert embeddings is not None
            return self.qformer_perceiver(embeddings, states)
        pooled = self.vision_model.pooled(states)
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], dim=-1).unsqueeze(1)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


# --- the prompt


@dataclass(frozen=True, eq=False)
class Expanded:
    """A prompt as both of its phases read it.

    plain: without the trigger words. windows: with every noun as often as its person has tokens. places: mention -> its
    run among the states.
    """

    plain: Windows
    windows: Windows
    found: Sequence[Mention]
    places: Sequence[Tensor]


def expand(
    encoder: TextEncoder,
    tokens: Tokens,
    words: Sequence[str],
    counts: Sequence[int],
    long_prompts: LongPrompts = LongPrompts.WINDOWS,
) -> Expanded:
    """Take the trigger words out of a prompt and repeat the nouns before them. counts: ID tokens of every person.

    Raises LikenessError in one sentence for all that `mentions` refuses, and when a person has more tokens than fit.
    """
    whole = {tower.name: tower.length - 2 if long_prompts is LongPrompts.CUT else None for tower in encoder.towers}
    cut = {name: own[: whole[name]] for name, own in tokens.items()}  # before the trigger words are taken out
    found = mentions(encoder, cut, words, len(counts))
    both = without(tokens, encoder, words), without(cut, encoder, words)
    plain, windows = {}, {}
    for tower in encoder.towers:
        own, before = (part[tower.name] for part in both)
        longer = repeated(before, found[tower.name], lambda mention: counts[mention.person])
        _check_room(longer, found[tower.name], counts, tower.length, long_prompts)
        if long_prompts is LongPrompts.CUT:
            plain[tower.name], windows[tower.name] = [tower.window(own[: whole[tower.name]])], [tower.window(longer)]
        else:
            plain[tower.name], windows[tower.name] = tower.windows(own), tower.windows(longer)
    plain, windows = level(encoder.towers, plain), level(encoder.towers, windows)
    everywhere = place_in_all(found)
    places = [
        [run_places(windows[tower.name], number) for tower in encoder.towers]
        for number in range(1, len(everywhere) + 1)
    ]
    if any(others.count(others[0]) != len(others) for others in places):
        raise LikenessError(
            "An embedding in the prompt has different lengths for the two text encoders, so that the person's place "
            "differs: write it behind the trigger word."
        )
    return Expanded(plain, windows, everywhere, [torch.tensor(others[0]) for others in places])


def _check_room(
    tokens: Sequence[Token], found: Sequence[Mention], counts: Sequence[int], length: int, long_prompts: LongPrompts
) -> None:
    """LikenessError when the run of a noun does not fit into one window."""
    for number, mention in enumerate(found, 1):
        first = next(place for place, token in enumerate(tokens) if token.run == number)
        room = length - 2 if long_prompts is LongPrompts.WINDOWS else length - 2 - first
        if counts[mention.person] > room:
            raise LikenessError(
                f"The photos behind {mention.word!r} make {counts[mention.person]} tokens, and the prompt has room for "
                f"{max(room, 0)} there: use fewer photos, or a shorter prompt before it."
            )


# --- the adapter


@dataclass(frozen=True, eq=False)
class _Person:
    """What is looked at of one person: pixels (photos, 3, S, S), embeddings (photos, id_dim), weights (photos,)."""

    name: str
    pixels: Tensor
    embeddings: Tensor | None
    weights: Tensor


class PhotoMaker(nn.Module):
    """A loaded PhotoMaker file. Frozen, in eval mode. `id_encoder.state_dict()` has exactly the official keys."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        head_width: int = HEAD_WIDTH,
        resampler_head_width: int = RESAMPLER_HEAD_WIDTH,
    ) -> None:
        """weights: flat, below `id_encoder.` and `lora_weights.`. The widths of heads are in no weight; the defaults
        are those of both published files. Raises LikenessError when the file is not complete."""
        super().__init__()
        self.name = name
        found = without_buffers(_below(weights, "id_encoder."))
        lora = _below(weights, "lora_weights.")
        if not found or not lora:
            missing = "lora_weights" if found else "id_encoder"
            raise LikenessError(
                f"{name!r} is not a complete PhotoMaker file (its {missing} is missing): download it again."
            )
        try:
            self.id_encoder = IdEncoder(of_one_precision(found), head_width, resampler_head_width)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise LikenessError(
                f"{name!r} is not a complete PhotoMaker file ({fault(error)}): download it again."
            ) from error
        self._lora = read_attention_lora(lora, name)
        self.requires_grad_(False).eval()

    @property
    def version(self) -> int:
        """1 or 2, from the keys."""
        return 1 if self.id_encoder.qformer_perceiver is None else 2

    @property
    def title(self) -> str:
        """See `system.Adapter`."""
        return f"PhotoMaker v{self.version}"

    @property
    def dim(self) -> int:
        """Width of the text's states that it reads."""
        return self.id_encoder.fuse_module.dim

    @property
    def tokens_per_photo(self) -> int:
        """How many ID tokens a photo makes."""
        perceiver = self.id_encoder.qformer_perceiver
        return 1 if perceiver is None else perceiver.token_proj[2].out_features // self.dim  # type: ignore[operator]

    @property
    def base(self) -> Family:
        """The family of base models it was made for."""
        family = families.of_sites(list(self.site_shapes.values()))
        return families.of_text_width(self.dim) if family is families.OTHER else family

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(
            base=self.base,
            recogniser=RECOGNISER if self.version == 2 else None,
            raw=True,
            every_photo=True,
            trigger_word=TRIGGER,
        )

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """See `system.Adapter`; told by the LoRA, which changes every attention layer."""
        places = sorted((registration_order(path), path) for path in self._lora if path.endswith(".attn2.to_k"))
        pairs = [self._lora[path] for _, path in places]
        return {2 * i + 1: (pair.up.shape[0], pair.down.shape[1]) for i, pair in enumerate(pairs)}

    @cached_property
    def lora_id(self) -> str:
        """Tells this LoRA from others, whatever the files are called."""
        first = self._lora[min(self._lora)].down.detach().cpu().contiguous()
        return hashlib.sha256(first.view(torch.uint8).numpy().tobytes()).hexdigest()

    def lora_pairs(self) -> Mapping[str, LoraPair]:
        """The LoRA by diffusers' path of the layer."""
        return self._lora

    def lora(self, strength: float = 1.0) -> WeightDelta:
        """The LoRA as a change of the denoiser's weights, the same in all of the run."""
        return WeightDelta(self.name, self.lora_id, self._lora, strength)

    @torch.no_grad()
    def encode(self, pixels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """ID tokens of photos, (photos, tokens, dim), on the CPU. See `IdEncoder.id_tokens`."""
        weight = next(self.parameters())
        moved = [None if t is None else t.to(weight.device, weight.dtype) for t in (pixels, embeddings)]
        assert moved[0] is not None
        return self.id_encoder.id_tokens(moved[0], moved[1]).to("cpu", torch.float32)

    @torch.no_grad()
    def fuse(self, states: Tensor, places: Tensor, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        """States of a text with ID tokens in them, on the CPU; the given ones are left. See `FuseModule.into`.

        tokens: (photos, tokens, dim), image by image. weights: (photos,).
        """
        weight = next(self.parameters())
        each = None if weights is None else weights.repeat_interleave(tokens.shape[1]).to(weight.device)
        changed = self.id_encoder.fuse_module.into(
            states.to(weight.device, weight.dtype),
            places.to(weight.device),
            tokens.flatten(0, 1).unsqueeze(0).to(weight.device, weight.dtype),
            each,
        )
        result = states.to("cpu", torch.float32, copy=True)  # words without a person keep their precision
        result[:, places] = changed[:, places].to("cpu", torch.float32)
        return result

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the prompt without the person, from the merge on with it, and the LoRA."""
        encoder, options = _encoder(request), _options(request)
        people = self._people(request, options)
        counts = [len(person.pixels) * self.tokens_per_photo for person in people]
        tokens = encoder.tokenize(request.text)
        expanded = expand(encoder, tokens, _words(request), counts, options.long_prompts)
        plain = encoder.encode(expanded.plain)
        self._check_width(plain)
        start = request.scope.start
        scope = Scope(start, request.scope.end, first_step=options.first_step(start))
        acts = request.strength != 0 and scope.why_never is None
        without_person = PromptEdit(lambda _: plain)
        lora = self.lora(request.weight_strength if acts else 0.0)
        if not acts:
            return without_person, lora
        with_person = self._fused(encoder.encode(expanded.windows), expanded, people, request.strength)
        return without_person, PromptEdit(lambda _: with_person, scope), lora

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`: who stands where."""
        encoder, people = _encoder(request), self._people(request, _options(request))
        found = place_in_all(mentions(encoder, encoder.tokenize(request.text), _words(request), len(people)))
        named = [
            f"{people[mention.person].name!r} is {len(people[mention.person].pixels) * self.tokens_per_photo} tokens "
            f"at {mention.word!r}"
            for mention in found
        ]
        notes = [f"{', '.join(named)}."]
        notes += [
            f"The vocabulary cuts the word before the trigger; only its last piece {mention.word!r} carries the person."
            for mention in found
            if mention.cut
        ]
        absent = [person.name for i, person in enumerate(people) if all(mention.person != i for mention in found)]
        notes += [f"{name!r} is connected, but no trigger word of the prompt is theirs." for name in absent]
        return notes

    def _fused(
        self, text: PromptStates, expanded: Expanded, people: Sequence[_Person], strength: float
    ) -> PromptStates:
        states, encoded = text.states, {}
        for mention, places in zip(expanded.found, expanded.places, strict=True):
            person = people[mention.person]
            if mention.person not in encoded:
                encoded[mention.person] = self.encode(person.pixels, person.embeddings)
            states = self.fuse(states, places, encoded[mention.person], strength * person.weights)
        return PromptStates(states, text.pooled)

    def _check_width(self, text: PromptStates) -> None:
        width = text.states.shape[-1]
        if width != self.dim:
            raise LikenessError(
                f"The adapter {self.name!r} needs {self.base.title} ({self.dim}-wide conditioning), but the connected "
                f"CLIP makes text of width {width}: connect the CLIP of the checkpoint it was made for."
            )

    def _people(self, request: Request, options: PhotoMakerOptions) -> list[_Person]:
        people: list[Identity | None] = [*request.people]
        if not people and options.images and self.version == 1:
            people = [None]  # v1 looks at images alone
        if not people:
            raise LikenessError(
                f"The adapter {self.name!r} needs an identity: connect Identity from Photos or Load Identity."
            )
        return [self._person(request, who, options, options.images if i == 0 else ()) for i, who in enumerate(people)]

    def _person(
        self, request: Request, who: Identity | None, options: PhotoMakerOptions, images: Sequence[Tensor]
    ) -> _Person:
        """What is looked at of a person: crops or images, and in v2 the raw embedding of each."""
        name = "the images" if who is None else who.name
        size = self.id_encoder.vision_model.image_size
        if images:
            pixels = torch.cat([pixel_values(batch, size) for batch in images])
        else:
            assert who is not None
            pixels = pixel_values(options.photo.of(who).float() / 255, size)
        weights = torch.ones(len(pixels))
        if who is not None and len(who) == len(pixels):
            weights = who.weights / who.weights.max()
        if self.version == 1:
            return _Person(name, pixels, None, weights)
        assert who is not None
        embeddings = self._embeddings(request, who)
        if len(embeddings) != len(pixels):
            raise LikenessError(
                f"PhotoMaker v2 reads a face in every image, but there are {len(pixels)} images and "
                f"{len(embeddings)} faces of {name!r}: connect the images that the identity was made of, or none."
            )
        return _Person(name, pixels, embeddings, weights)

    def _embeddings(self, request: Request, who: Identity) -> Tensor:
        """(photos, id_dim), raw: as the recogniser that v2 was trained on returns them."""
        who = request.seen_by(who, RECOGNISER)
        if RECOGNISER not in who.recognisers:
            made = f"was made with {who.recogniser}" if who.recogniser else "has no face embedding"
            raise LikenessError(
                f"The adapter {self.name!r} reads the embeddings of {RECOGNISER}, but the identity {who.name!r} "
                f"{made}: install {RECOGNISER} (the identity is then embedded again from its own crops), or make it "
                f"with {RECOGNISER}."
            )
        found = who.as_seen_by(RECOGNISER).embeddings
        perceiver = self.id_encoder.qformer_perceiver
        assert perceiver is not None
        expected = perceiver.token_proj[0].in_features
        if found.shape[1] != expected:
            raise LikenessError(
                f"The adapter {self.name!r} reads embeddings of {expected} numbers, but those of the identity "
                f"{who.name!r} have {found.shape[1]}: make it with {RECOGNISER}."
            )
        return found


def _encoder(request: Request) -> TextEncoder:
    assert request.text_encoder is not None  # `needs.trigger_word` asks for it
    return request.text_encoder


def _options(request: Request) -> PhotoMakerOptions:
    return request.options_of(PhotoMakerOptions, "PhotoMaker Options")


def _words(request: Request) -> tuple[str, ...]:
    return request.trigger_words or words_in(TRIGGER)


# --- the registry's entry


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is PhotoMaker's, of either version, complete or not."""
    found = file.has("id_encoder.", "lora_weights.") or file.has("id_encoder.fuse_module.")
    return Sureness.YES if found else Sureness.NO


def load(file: WeightFile) -> PhotoMaker:
    """The adapter of a file that was recognised."""
    return PhotoMaker(file.weights, file.name)


SYSTEM = Kind("PhotoMaker", recognise, ("photomaker",), load)
