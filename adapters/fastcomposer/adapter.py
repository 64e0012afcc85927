"""A loaded FastComposer file: which part of it does what, and how people become a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from ...checks import LARGEST_FACTOR, check_number
from ...errors import LikenessError
from ...faces.identity import Identity
from ...weights import families
from ...weights.checkpoint_layout import registration_order
from ...weights.families import HEAD_WIDTH, Family
from ..effects import Effect, PromptEdit, PromptStates, Scope, WeightDelta
from ..photo_crops import PhotoCrop
from ..slot_lora import digest
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..text_encoder import TextEncoder
from ..trigger_words import words_in
from ..whole_file import fault, of_one_precision, without_buffers
from .networks import SubjectEncoder
from .prompt import LongPrompts, Subjects, SubjectWords, read
from .references import Background, noise, on_background, reference
from .timing import alpha_of, text_only_steps

TRIGGER = "img"  # of the demo; training's was <|image|>
MOST_SUBJECTS = 4  # that one image of training had
UNET = "unet."
ENCODER = ("image_encoder.", "postfuse_module.")


# --- what a user can set


class StepCount(Enum):
    """How the share before the subjects is counted in a run; the value is the name a user chooses."""

    OFFICIAL = "official steps"  # (1 - alpha) · steps in double precision, and one step more
    NOISE = "share of the noise"  # as the host's own time ranges: the same for any number of steps


@dataclass(frozen=True, eq=False)
class FastComposerOptions:
    """Everything a user can set beside strength and window; the defaults are those of the official code.

    images: the subjects, one image each (1, H, W, 3), in place of the identities' crops; masks: what of each is the
    subject, (1, H, W), None for all of it; background: what stands around it, noise of a seed. strengths: of every
    subject, beside the common one. start_step: the official `start_merge_step`, the last step without the subjects; -1:
    none. start_sigma: the first noise level with them. Both win over the window's start. original: the weights of
    SD1.5's own UNet by diffusers' name; what the file's UNet adds to them is then added to the model, which may be
    another checkpoint.
    """

    photo: PhotoCrop = PhotoCrop.HEAD
    words: SubjectWords = SubjectWords.MARKER
    count: StepCount = StepCount.OFFICIAL
    start_step: int | None = None
    start_sigma: float | None = None
    long_prompts: LongPrompts = LongPrompts.REFUSE
    strengths: tuple[float, ...] = ()
    images: tuple[Tensor, ...] = ()
    masks: tuple[Tensor | None, ...] = ()
    background: Background = Background.NOISE
    seed: int = 0
    original: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start_step is not None:
            check_number(self.start_step, "The start step", -1, 10_000)
        if self.start_sigma is not None:
            check_number(self.start_sigma, "The start's sigma", 0, 1e6)
        for strength in self.strengths:
            check_number(strength, "The strength of a person", 0, LARGEST_FACTOR)
        if self.masks and len(self.masks) != len(self.images):
            raise ValueError(f"{len(self.images)} images and {len(self.masks)} masks of subjects")

    def first_step(self, share: float) -> Callable[[int], int] | None:
        """Number of steps of a run -> the first one with the subjects, from 0; None where no step is counted."""
        if self.start_step is not None:
            last = self.start_step
            return lambda steps: last + 1
        if self.start_sigma is not None or self.count is StepCount.NOISE:
            return None
        alpha = alpha_of(share)
        return lambda steps: text_only_steps(alpha, steps)

    def scope(self, given: Scope) -> Scope:
        """When the subjects act, within a user's window."""
        return Scope(
            given.start, given.end, first_step=self.first_step(given.start), start_sigma=self.start_sigma
        )  # fmt: skip


# --- the adapter


@dataclass(frozen=True, eq=False)
class _Subject:
    """Who is looked at: images (photos, 3, S, S) in 0..1, each photo's share (photos,), and how far the word moves."""

    name: str
    images: Tensor
    shares: Tensor
    strength: float


class FastComposer(nn.Module):
    """A loaded file. Frozen, in eval mode. `encoder.state_dict()` has the official keys; the UNet is kept beside it."""

    title = "FastComposer"

    def __init__(self, weights: Mapping[str, Tensor], name: str, head_width: int = HEAD_WIDTH) -> None:
        """weights: flat, as the file has them. head_width: of the vision tower, in no weight; the default is the
        published one. Raises LikenessError when the file is not complete."""
        super().__init__()
        self.name = name
        own = {key: value for key, value in weights.items() if key.startswith(ENCODER)}
        missing = [part.rstrip(".") for part in ENCODER if not any(key.startswith(part) for key in own)]
        if missing:
            raise self._incomplete(f"its {missing[0]} is missing")
        try:
            self.encoder = SubjectEncoder(of_one_precision(without_buffers(own)), head_width)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise self._incomplete(fault(error)) from error
        self._unet = {key.removeprefix(UNET): value for key, value in weights.items() if key.startswith(UNET)}
        self.requires_grad_(False).eval()

    def _incomplete(self, why: str) -> LikenessError:
        return LikenessError(f"{self.name!r} is not a complete FastComposer file ({why}): download it again.")

    @property
    def dim(self) -> int:
        """Width of the text's states that it reads."""
        return self.encoder.postfuse_module.dim

    @property
    def base(self) -> Family:
        """The family of base models it was made for."""
        family = families.of_sites(list(self.site_shapes.values()))
        return families.of_text_width(self.dim) if family is families.OTHER else family

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(base=self.base, every_photo=True, trigger_word=TRIGGER)

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """See `system.Adapter`; told by the UNet."""
        keys = sorted((key for key in self._unet if key.endswith(".attn2.to_k.weight")), key=registration_order)
        return {2 * i + 1: (self._unet[key].shape[0], self._unet[key].shape[1]) for i, key in enumerate(keys)}

    @cached_property
    def unet_id(self) -> str:
        """Tells this UNet from others, whatever the files are called."""
        return digest(self._unet)

    def unet(self, strength: float = 1.0, original: Mapping[str, Tensor] | None = None) -> WeightDelta:
        """The file's UNet as a change of the model's weights, the same in all of the run.

        strength: 0 leaves the model's UNet, 1 is the file's. original: see `FastComposerOptions`.
        """
        weights = {key.removesuffix(".weight"): value for key, value in self._unet.items()}
        if not original:
            return WeightDelta(self.name, self.unet_id if weights else "", weights, strength, replaces=True)
        if missing := next((key for key in self._unet if key not in original), None):
            raise LikenessError(
                f"The original MODEL has no {missing!r}, which the UNet of {self.name!r} has: connect the MODEL of the "
                "SD1.5 checkpoint itself."
            )
        changes = {
            key.removesuffix(".weight"): value.float() - original[key].float().reshape(value.shape)
            for key, value in self._unet.items()
        }
        return WeightDelta(self.name, f"{self.unet_id} difference", changes, strength)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Embeddings of subjects, (n, 3, S, S) in 0..1 -> (n, dim), on the CPU."""
        weight = next(self.parameters())
        found = self.encoder.image_encoder(images.unsqueeze(0).to(weight.device, weight.dtype))
        return found[0, :, 0].to("cpu", torch.float32)

    @torch.no_grad()
    def fuse(self, states: Tensor, places: Tensor, embeds: Tensor, weights: Tensor) -> Tensor:
        """States of a text with subjects at these places, on the CPU; the given ones are left. See `FuseModule.into`.

        embeds: (count, dim); weights: (count,).
        """
        weight = next(self.parameters())
        moved = [t.to(weight.device, weight.dtype) for t in (states, embeds.unsqueeze(0), weights)]
        changed = self.encoder.postfuse_module.into(moved[0], places.to(weight.device), moved[1], moved[2])
        result = states.to("cpu", torch.float32, copy=True)  # words without a subject keep their precision
        result[:, places] = changed[:, places].to("cpu", torch.float32)
        return result

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the prompt without its subjects, from the border on with them, and the UNet."""
        encoder, options = self._encoder(request), _options(request)
        subjects = self._subjects(request, options)
        text = _read(request, options, len(subjects))
        plain = encoder.encode(text.windows)
        scope = options.scope(request.scope)
        acts = request.strength != 0 and scope.why_never is None
        if not 0 <= request.weight_strength <= 1 and not options.original:
            raise LikenessError(
                f"The strength of the UNet is {request.weight_strength:g}, but FastComposer's takes the place of the "
                "model's: enter a number from 0 to 1, or connect the original SD1.5 MODEL to FastComposer Options."
            )
        unet = self.unet(request.weight_strength if acts else 0.0, options.original)
        without_people = PromptEdit(lambda _: plain)
        if not acts or not subjects:
            return without_people, unet
        embeds = self._embeds(subjects)
        order = [mention.person for mention in text.found]
        strengths = torch.tensor([request.strength * subjects[person].strength for person in order])
        states = self.fuse(plain.states, torch.tensor(text.places), embeds[order], strengths)
        with_people = PromptStates(states, plain.pooled)
        return without_people, PromptEdit(lambda _: with_people, scope), unet

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`: who stands where."""
        options = _options(request)
        subjects = self._subjects(request, options)
        text = _read(request, options, len(subjects))
        named = [f"{subjects[mention.person].name!r} is at {mention.word!r}" for mention in text.found]
        notes = [f"{', '.join(named)}."] if named else ["Nobody is connected, so that the prompt is plain text."]
        notes += [
            f"The vocabulary cuts the word before the trigger; only its last piece {mention.word!r} carries the person."
            for mention in text.found
            if mention.cut
        ]
        if not self._unet:
            notes.append(
                "The file has no UNet, and the MODEL's own was not trained on such prompts: expect less likeness."
            )
        if skipped := getattr(request.text_encoder, "skipped_layers", 0):
            notes.append(
                f"The CLIP skips its last {skipped} layer{'s' if skipped > 1 else ''}, which FastComposer was not "
                "trained on: connect it without CLIP Set Last Layer."
            )
        return notes

    def _embeds(self, subjects: Sequence[_Subject]) -> Tensor:
        """(subjects, dim); that of several photos is their mean."""
        return torch.stack([subject.shares @ self.encode(subject.images) for subject in subjects])

    def _encoder(self, request: Request) -> TextEncoder:
        encoder = request.text_encoder
        assert encoder is not None  # `needs.trigger_word` asks for it
        width = sum(tower.width for tower in encoder.towers)
        if width != self.dim:
            raise LikenessError(
                f"The adapter {self.name!r} needs {self.base.title} ({self.dim}-wide conditioning), but the connected "
                f"CLIP makes text of width {width}: connect the CLIP of the checkpoint it was made for."
            )
        return encoder

    def _subjects(self, request: Request, options: FastComposerOptions) -> list[_Subject]:
        people, images = request.people, options.images
        if images and people and len(images) != len(people):
            raise LikenessError(
                f"There are {len(images)} images and {len(people)} identities: connect one image for each identity, "
                "or either of them alone."
            )
        count = max(len(images), len(people))
        if count > MOST_SUBJECTS:
            raise LikenessError(
                f"There are {count} people, and FastComposer was trained with {MOST_SUBJECTS} at most: leave some out."
            )
        if options.strengths and len(options.strengths) not in (1, count):
            raise LikenessError(
                f"There are {len(options.strengths)} strengths for {count} people: enter one for each, or one for all."
            )
        strengths = options.strengths or (1.0,)
        return [
            self._subject(
                people[i] if people else None,
                options,
                i,
                strengths[min(i, len(strengths) - 1)],
            )
            for i in range(count)
        ]

    def _subject(self, who: Identity | None, options: FastComposerOptions, number: int, strength: float) -> _Subject:
        size = self.encoder.image_encoder.vision_model.image_size
        name = f"image {number + 1}" if who is None else who.name
        if options.images:
            images = reference(_image(options, number), size)
            return _Subject(name, images, torch.ones(1), strength)
        assert who is not None
        images = reference(options.photo.of(who).float() / 255, size)
        return _Subject(name, images, who.weights / who.weights.sum(), strength)


def _image(options: FastComposerOptions, number: int) -> Tensor:
    """A subject's image, (1, H, W, 3), with what a user wants around it."""
    image = options.images[number]
    mask = options.masks[number] if options.masks else None
    if mask is None or options.background is Background.KEEP:
        return image
    height, width = image.shape[1:3]
    if mask.shape[-2:] != (height, width):
        raise LikenessError(
            f"The mask of image {number + 1} is {mask.shape[-1]} x {mask.shape[-2]}, and the image {width} x {height}: "
            "make the mask of this image."
        )
    black = torch.zeros(1, 1, 1, 3)
    if options.background is Background.BLACK:
        return on_background(image, mask, black)
    return on_background(image, mask, noise(height, width, torch.Generator().manual_seed(options.seed)))


def _read(request: Request, options: FastComposerOptions, people: int) -> Subjects:
    assert request.text_encoder is not None
    words = request.trigger_words or words_in(TRIGGER)
    return read(request.text_encoder, request.text, words, people, options.words, options.long_prompts)


def _options(request: Request) -> FastComposerOptions:
    return request.options_of(FastComposerOptions, "FastComposer Options")


# --- the registry's entry


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is FastComposer's, complete or not."""
    return Sureness.YES if file.has("postfuse_module.") else Sureness.NO


def load(file: WeightFile) -> FastComposer:
    """The adapter of a file that was recognised."""
    return FastComposer(file.weights, file.name)


SYSTEM = Kind("FastComposer", recognise, ("fastcomposer",), load)
