"""PhotoVerse (arXiv 2309.05793) for SD1.5: a face as words of the prompt and as a second branch of cross-attention.

    x_m = the face box times 1.3, black around the face          `face`
    e   = CLIP ViT-L/14's last hidden state of x_m, and others   `networks.LAYERS`
    p_f = text_adapter(e)       m vectors in place of the prompt's placeholder         `prompt`
    f   = image_adapter(e)      m tokens
    O   = gamma Attn(Q, K_T, V_T) + sigma Attn(Q, f W_k^S, f W_v^S)                    `fusion`
    K_T = (W_k + alpha B A) p,   V_T likewise                                          a LoRA, in every step

There are no official weights. `layouts` reads those of the unofficial code, our training's, and the global mapper of
ELITE (arXiv 2302.13848), which has the words alone and was trained on objects.

In use m = 1, the last hidden state (ELITE: all five), and gamma = sigma = alpha = 1. The unconditioned half has no
face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...errors import LikenessError, logger
from ...faces.identity import HEAD_FACTOR, Identity
from ...weights import families
from ...weights.families import Family
from ...weights.lora import LoraPair
from ..clip_vision import ClipEncoder, EncoderSize
from ..effects import AttentionTerm, Effect, PromptEdit, PromptStates, WeightDelta
from ..image_prep import pixel_values
from ..networks import KeyValueSites, build_key_values
from ..slot_lora import digest
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..text_encoder import TextEncoder
from ..trigger_words import words_in
from ..types import IdentityTokens, SiteWeight
from .face import SCALE, FaceMask, face_crops, small_faces
from .fusion import Fusion
from .layouts import Content, Layout, layout_of, read
from .networks import LAYERS, build_adapter
from .prompt import Placed, class_ids, find_placeholders

log = logger("likeness")

TRIGGER = "S*"
OPTIONS_NODE = "PhotoVerse Options"
CLIP_NAME = "ViT-L/14"
MOST = 2.0  # of gamma and sigma: training shows either branch alone with 2


class Unconditioned(Enum):
    """What the unconditioned half of guidance attends to; the value is the name a user chooses."""

    NOTHING = "nothing"
    ZERO_IMAGE = "an empty image"  # what the adapter makes of pixels of zero, as the unofficial code


@dataclass(frozen=True, eq=False)
class PhotoVerseOptions:
    """Everything a user can set beside strength, window and LoRA; the defaults are the paper's.

    gamma, sigma: of the text's attention and of the image's. words: m, None for what the file was made for. crop: side
    of what CLIP sees, in face boxes. class_word: what the prompt says where nobody is meant. region: (1 | images, H,
    W), where the image branch acts.
    """

    gamma: float = 1.0
    sigma: float = 1.0
    words: int | None = None
    mask: FaceMask = FaceMask.PUBLISHED
    crop: float = SCALE
    unconditioned: Unconditioned = Unconditioned.NOTHING
    class_word: str = "person"
    region: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("sigma", self.sigma)):
            check_number(value, f"The {name}", 0, MOST)
        check_number(self.crop, "The crop", 1, HEAD_FACTOR)


class PhotoVerse(KeyValueSites):
    """A loaded file. Frozen, in eval mode. The LoRA, or ELITE's own weights, are kept beside the modules, because they
    change the denoiser's weights and never run as layers."""

    def __init__(self, content: Content, name: str) -> None:
        """Raises LikenessError when the parts do not fit each other."""
        super().__init__()
        self.name, self.layout = name, content.layout
        self._lora, self._whole, paths = content.lora, content.whole, content.attention
        weights = {
            f"{2 * i + 1}.{layer}_ip.weight": weight
            for i, path in enumerate(paths if content.visual else ())
            for layer, weight in zip(("to_k", "to_v"), content.visual[path], strict=True)
        }
        try:
            self.text_adapter = build_adapter(content.text)
            self.image_adapter = build_adapter(content.image) if content.image else None
            self.ip_adapter = build_key_values(weights)
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise LikenessError(
                f"{name!r} is not a complete PhotoVerse file ({_fault(error)}): download it again."
            ) from error
        self._sites = {2 * i + 1: self._shape(path, content) for i, path in enumerate(paths)}
        self._check()
        self.requires_grad_(False).eval()

    @staticmethod
    def _shape(path: str, content: Content) -> tuple[int, int]:
        weight = content.visual[path][0] if content.visual else content.whole[f"{path}.to_k"]
        return weight.shape[0], weight.shape[1]

    def _check(self) -> None:
        """LikenessError unless words, tokens and layers are of one width."""
        dims = {"text_adapter": self.text_adapter.dim}
        if self.image_adapter is not None:
            dims["image_adapter"] = self.image_adapter.dim
        wanted = {text for _, text in self.site_shapes.values()}
        for part, dim in dims.items():
            if wanted != {dim}:
                found = ", ".join(map(str, sorted(wanted))) or "missing"
                raise LikenessError(
                    f"The {part} of {self.name!r} makes vectors {dim} wide, and its cross-attention layers read "
                    f"{found}: the file was put together from two models; download it again."
                )

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """See `system.Adapter`."""
        return self._sites

    @property
    def title(self) -> str:
        """See `system.Adapter`."""
        return self.layout.value

    @property
    def base(self) -> Family:
        """The family of base models it was made for."""
        return families.of_adapter(list(self.site_shapes.values()))

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(
            base=self.base, every_photo=True, encoder_width=self.text_adapter.sizes.width, hidden=True,
            trigger_word=TRIGGER,
        )  # fmt: skip

    # From a request to effects ----------------------------------------------------------------------------------------

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the prompt with the people in it, their image branch, and the change of weights."""
        encoder, options, people = _encoder(request), _options(request), self._people(request)
        placed = find_placeholders(encoder, request.text, _words(request), len(people))
        plain = placed.encoded(class_ids(encoder, options.class_word))
        self._check_width(plain)
        acts = request.strength != 0 and request.scope.why_never is None
        without_people = PromptEdit(lambda _: plain)
        change = self.change(request, options, request.weight_strength if acts else 0.0)
        if not acts:
            return without_people, *change
        words, image = self.encode(people, request, options)
        room = min(tower.length for tower in encoder.towers) - 2
        states = self._states(placed, plain, [one[:room] for one in words], request.strength, options, encoder)
        terms = self.terms(image, request, options)
        return without_people, PromptEdit(lambda _: states, request.scope), *terms, *change

    def terms(self, image: IdentityTokens | None, request: Request, options: PhotoVerseOptions) -> list[AttentionTerm]:
        """The image branch. All people share one softmax, so that gamma and sigma are theirs together.

        The strength goes from the model alone, gamma = 1 and sigma = 0, to what the options say.
        """
        if image is None:
            return []
        gamma, sigma = 1 + request.strength * (options.gamma - 1), request.strength * options.sigma
        merge = None if gamma == 1 else Fusion(gamma, sigma)
        weight = SiteWeight(sigma if merge is None else 1.0)
        scope = replace(request.scope, mask=options.region)
        return [AttentionTerm(self, image, (weight,) * len(request.layout), scope=scope, merge=merge)]

    def change(self, request: Request, options: PhotoVerseOptions, strength: float) -> list[WeightDelta]:
        """The LoRA on text keys and values, or ELITE's own weights in place of the model's."""
        if self._lora:
            return [WeightDelta(self.name, self._lora_id, self._lora, strength)]
        if not self._whole:
            return []
        base = request.base_weights(lambda name: name.removesuffix(".weight") in self._whole)
        changes = {path: weight.float() - base[f"{path}.weight"] for path, weight in self._whole.items()}
        return [WeightDelta(self.name, digest(self._whole), changes, strength)]

    @property
    def lora_pairs(self) -> Mapping[str, LoraPair]:
        """The LoRA by diffusers' path of the layer; empty where the file has none."""
        return self._lora

    @cached_property
    def _lora_id(self) -> str:
        """Tells this LoRA from others, whatever the files are called."""
        return digest({path: pair.down for path, pair in self._lora.items()})

    @torch.no_grad()
    def encode(
        self, people: Sequence[Identity], request: Request, options: PhotoVerseOptions
    ) -> tuple[list[Tensor], IdentityTokens | None]:
        """Of every person the vectors p_f (m, dim), and the tokens f of all, on the CPU.

        Photos are seen one by one; the weighted mean counts. Raises LikenessError for whatever is missing or does not
        fit.
        """
        clip, count = self._clip(request.encoder), self._words_of(options)
        seen = [clip.hidden_states(self._pixels(one, request, options, clip), LAYERS[:count]) for one in people]
        nothing = None
        if options.unconditioned is Unconditioned.ZERO_IMAGE and self.image_adapter is not None:
            side = clip.size.image_size
            nothing = clip.hidden_states(torch.zeros(1, 3, side, side), LAYERS[:count])
        # CLIP may have taken our place on the device until here.
        words = [_mean(self._through(self.text_adapter, states), one) for states, one in zip(seen, people, strict=True)]
        if self.image_adapter is None:
            return words, None
        image = [
            _mean(self._through(self.image_adapter, states), one) for states, one in zip(seen, people, strict=True)
        ]
        cond = torch.cat(image).unsqueeze(0)
        uncond = torch.zeros_like(cond) if nothing is None else self._through(self.image_adapter, nothing)
        return words, IdentityTokens(cond, uncond)

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        options, people = _options(request), self._people(request)
        gamma, sigma = f"gamma {options.gamma:g}", f"sigma {options.sigma:g}"
        notes = [f"{gamma}, {sigma}, {self._words_of(options)} words for each person."]
        if self.image_adapter is None:
            notes = [
                "This is ELITE's mapper, which was trained on objects and has no image branch: it keeps little of a "
                "face."
            ]
        for person in people:
            notes += [
                f"The face in photo {number} of {person.name!r} is {side} pixels wide, and details are lost below 64."
                for number, side in small_faces(person)
            ]
        room = min(tower.length for tower in _encoder(request).towers) - 2
        if (count := self._words_of(options)) > room:
            notes.append(f"Each person is {count} words and the prompt has room for {room}: the rest was left out.")
        return notes

    # What they are made of --------------------------------------------------------------------------------------------

    def _states(
        self, placed: Placed, plain: PromptStates, words: Sequence[Tensor], strength: float,
        options: PhotoVerseOptions, encoder: TextEncoder,
    ) -> PromptStates:  # fmt: skip
        """The prompt with its people; a strength other than 1 lies on the line from the class word through them."""
        said = placed.encoded(lambda person, _: list(words[person]))
        if strength == 1:
            return said
        of_class = class_ids(encoder, options.class_word)

        def as_long(person: int, tower: str) -> list[int | Tensor]:
            ids = of_class(person, tower)
            return [ids[i % len(ids)] for i in range(len(words[person]))]

        return PromptStates(
            torch.lerp(placed.encoded(as_long).states.to(said.states), said.states, strength), plain.pooled
        )

    def _through(self, adapter: nn.Module, states: Sequence[Tensor]) -> Tensor:
        weight = next(adapter.parameters())
        return adapter([one.to(weight) for one in states]).to("cpu", torch.float32)

    def _pixels(self, person: Identity, request: Request, options: PhotoVerseOptions, clip: ClipEncoder) -> Tensor:
        mask = options.mask
        if mask is FaceMask.PUBLISHED:
            mask = FaceMask.NONE if self.layout is Layout.ELITE else FaceMask.FACE
        crops = face_crops(person, options.crop, request.parse if mask is FaceMask.FACE else None)
        return pixel_values(crops, clip.size.image_size)

    def _words_of(self, options: PhotoVerseOptions) -> int:
        """m. LikenessError when it is more than the file has."""
        most = self.text_adapter.sizes.maps
        if options.words is None:
            return most if self.layout is Layout.ELITE else 1
        if options.words > most:
            raise LikenessError(
                f"The options ask for {options.words} words and the adapter {self.name!r} has {most}: choose at most "
                f"{most}."
            )
        return options.words

    def _clip(self, encoder: ClipEncoder | None) -> ClipEncoder:
        if encoder is None:
            raise LikenessError(
                f"The adapter {self.name!r} looks at the face through CLIP, and no CLIP vision model is connected: "
                f"connect {CLIP_NAME} to clip_vision (Load CLIP Vision; `likeness models list` names the file)."
            )
        self.check_clip(encoder.size)
        return encoder

    def check_clip(self, found: EncoderSize) -> None:
        """LikenessError unless an image encoder of this size makes what the adapters read."""
        wanted = self.text_adapter.sizes.width
        if found.hidden != wanted:
            raise LikenessError(
                f"The adapter {self.name!r} reads hidden states {wanted} wide, and the CLIP vision model is "
                f"{found.name}, which makes {found.hidden}: choose {CLIP_NAME}."
            )

    def _check_width(self, text: PromptStates) -> None:
        width, dim = text.states.shape[-1], self.text_adapter.dim
        if width != dim:
            raise LikenessError(
                f"The adapter {self.name!r} needs {self.base.title} ({dim}-wide conditioning), but the connected CLIP "
                f"makes text of width {width}: connect the CLIP of the checkpoint it was made for."
            )

    def _people(self, request: Request) -> tuple[Identity, ...]:
        if not request.people:
            raise LikenessError(
                f"The adapter {self.name!r} needs an identity: connect Identity from Photos or Load Identity."
            )
        return request.people


def _mean(vectors: Tensor, person: Identity) -> Tensor:
    """(photos, m, dim) -> (m, dim), by how much each photo counts."""
    return torch.einsum("n,nmd->md", person.weights / person.weights.sum(), vectors)


def _encoder(request: Request) -> TextEncoder:
    assert request.text_encoder is not None  # `needs.trigger_word` asks for it
    return request.text_encoder


def _options(request: Request) -> PhotoVerseOptions:
    return request.options_of(PhotoVerseOptions, OPTIONS_NODE)


def _words(request: Request) -> tuple[str, ...]:
    return request.trigger_words or words_in(TRIGGER)


def _fault(error: Exception) -> str:
    """Which keys are missing or unknown, on one line of a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.removeprefix("Error(s) in loading state_dict for FeatureAdapter: ")
    return text if len(text) <= 200 else f"{text[:200]}…"


# --- the registry's entry


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is PhotoVerse's or ELITE's, complete or not."""
    return Sureness.NO if layout_of(file) is None else Sureness.YES


def load(file: WeightFile) -> PhotoVerse:
    """The adapter of a file that was recognised."""
    return PhotoVerse(read(file), file.name)


SYSTEM = Kind("PhotoVerse", recognise, ("photoverse",), load)
