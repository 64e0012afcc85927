"""What a file of BLIP-Diffusion does: images of a subject become vectors among the words of a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ...errors import LikenessError
from ...weights import families
from ...weights.checkpoint_layout import registration_order
from ...weights.families import Family
from ...weights.lora import LoraPair
from ..effects import Effect, PromptEdit, PromptStates, Scope, WeightDelta
from ..system import Kind, Needs, Request, Sureness, WeightFile
from ..text_encoder import TextEncoder, Token
from ..trigger_words import words_in
from .files import Contents, build_encoder, is_blip_diffusion, read
from .prompt import SUBJECT_AT, Insertion, Written, places_of_words, repeated, write
from .subject import OPTIONS_NODE, PERSON, BlipDiffusionOptions, Shown, ratios, shown, unknown
from .words import WordPieces

TRIGGER = "img"


class BlipDiffusion(nn.Module):
    """A loaded file: the subject encoder, a subject that was trained, or both. Frozen, in eval mode."""

    def __init__(self, contents: Contents, name: str, subject: str = "", word: str = "") -> None:
        """subject: what was trained, as prompts name it; word: what it was called in training. Raises LikenessError
        when the file is not complete."""
        super().__init__()
        self.name, self.subject, self.word = name, subject, word
        self.encoder = build_encoder(contents, name) if contents.encoder else None
        vectors = contents.vectors
        if vectors is not None and (vectors.ndim != 3 or len(vectors) != 1):
            raise LikenessError(
                f"{name!r} is not a complete BLIP-Diffusion file (its vectors have shape {tuple(vectors.shape)}): "
                "download it again, or train it again."
            )
        if vectors is None and self.encoder is None:
            raise LikenessError(f"{name!r} is not a complete BLIP-Diffusion file: download it again.")
        self.vectors = None if vectors is None else nn.Parameter(vectors[0].float(), requires_grad=False)
        self._changes: Mapping[str, LoraPair | Tensor] = contents.lora or contents.unet
        self._is_lora = bool(contents.lora)

    @property
    def title(self) -> str:
        """See `system.Adapter`."""
        return "BLIP-Diffusion" if self.vectors is None else f"BLIP-Diffusion, the subject {self._word!r}"

    @property
    def _word(self) -> str:
        return self.subject or PERSON

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.dim if self.vectors is None else self.vectors.shape[-1]  # type: ignore[union-attr]

    @property
    def base(self) -> Family:
        """The family of base models it was made for."""
        return families.of_text_width(self.dim)

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(base=self.base, every_photo=True, trigger_word=TRIGGER, text_width=self.dim)

    @property
    def site_shapes(self) -> dict[int, tuple[int, int]]:
        """See `system.Adapter`; told by the UNet, where the file brings one. The text alone fits any site."""
        paths = sorted((p for p in self._changes if p.endswith(".attn2.to_k")), key=registration_order)
        keys = [self._changes[path] for path in paths]
        halves = [(key.up, key.down) if isinstance(key, LoraPair) else (key, key) for key in keys]
        return {2 * i + 1: (rows.shape[0], columns.shape[1]) for i, (rows, columns) in enumerate(halves)}

    @cached_property
    def _unet_id(self) -> str:
        """Tells this UNet from others, whatever the files are called."""
        change = self._changes[min(self._changes)]
        first = (change.down if isinstance(change, LoraPair) else change).detach().cpu().contiguous()
        return hashlib.sha256(first.view(torch.uint8).numpy().tobytes()).hexdigest()

    def unet(self, strength: float = 1.0) -> WeightDelta | None:
        """The UNet that the file brings, as a change of the MODEL's; None where it brings none."""
        if not self._changes:
            return None
        return WeightDelta(self.name, self._unet_id, self._changes, strength, replaces=not self._is_lora)

    @torch.no_grad()
    def encode(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Vectors of images, (n, queries, dim), on the CPU. See `SubjectEncoder`."""
        assert self.encoder is not None
        weight = self.encoder.query_tokens
        found = self.encoder(pixels.to(weight.device, weight.dtype), words.to(weight.device), mask.to(weight.device))
        return found.to("cpu", torch.float32)

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: the prompt without the subject, the prompt with it, and the file's UNet."""
        encoder, options = self._text_encoder(request), _options(request)
        tokens, places = _read(encoder, self._text(request, options), request)
        written = self._written(request, options, tokens, places)
        plain = _encoded(encoder, written.plain)
        acts = request.strength != 0 and request.scope.why_never is None
        unet = self.unet(request.weight_strength if acts else 0.0)
        effects: list[Effect] = [PromptEdit(lambda _: plain)]
        if acts:
            subject = _blended(plain, _encoded(encoder, written.window), request.strength)
            effects.append(PromptEdit(lambda _: subject, Scope(request.scope.start, request.scope.end)))
        return (*effects, *([] if unet is None else [unet]))

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`: what stands where, and what of it is unusual."""
        encoder, options = self._text_encoder(request), _options(request)
        text = self._text(request, options)
        tokens, places = _read(encoder, text, request)
        looked = self._shown(request, options)
        notes = [f"{_named(looked) if looked else f'the trained subject {self._word!r}'} as {self._count} vectors."]
        room = encoder.towers[0].length - 2 - self._count * max(len({n for _, n in places}), 1)
        once = tokens if places else encoder.tokenize(repeated(request.text, self._target(options), 1))[_tower(encoder)]
        if len(once) > room:
            notes.append(f"The text is {len(once)} tokens, and {room} fit beside the vectors: the rest is not read.")
        total = sum(options.ratios)
        if options.ratios and abs(total - 1) > 1e-3:
            notes.append(f"The ratios add up to {total:g} and were scaled to 1.")
        if looked:
            vocabulary = request.find_vocabulary()
            strange = sorted({one.category for one in looked if unknown(vocabulary, one.category)})
            notes += [f"The vocabulary does not know {word!r}: write the category in English." for word in strange]
        elif request.people or options.images:
            notes.append("This file holds one trained subject, so the images and identities are not looked at.")
        if request.scope.start > 0:
            notes.append("BLIP-Diffusion was trained with the subject in all steps: start_at 0 is official.")
        return notes

    # --- what is shown

    @property
    def _count(self) -> int:
        return self.encoder.queries if self.vectors is None else len(self.vectors)  # type: ignore[union-attr]

    def _shown(self, request: Request, options: BlipDiffusionOptions) -> list[Shown]:
        if self.encoder is None or (self.vectors is not None and not request.people and not options.images):
            return []
        if not request.people and not options.images:
            raise LikenessError(
                f"The adapter {self.name!r} needs a subject: connect Identity from Photos, or images through "
                f"{OPTIONS_NODE}."
            )
        return shown(options, request.people, self.encoder.image_size)[0]

    def _vectors(self, request: Request, options: BlipDiffusionOptions, mixed: bool) -> list[Tensor]:
        """Vectors (queries, dim) of every subject; of one, if they are mixed."""
        looked = self._shown(request, options)
        if not looked:
            assert self.vectors is not None
            return [self.vectors.to("cpu", torch.float32)]
        words = self._words(request.find_vocabulary, looked)
        each = torch.stack([self._mean(one, words) for one in looked])
        if mixed:
            return [torch.einsum("i,iqd->qd", ratios(options, len(each)), each)]
        first = sum(len(images) for images in options.images) or 1
        head = torch.einsum("i,iqd->qd", ratios(options, first), each[:first])
        return [head, *each[first:]]

    def _mean(self, one: Shown, words: WordPieces) -> Tensor:
        ids, mask = words.batch([one.category])
        count = len(one.pixels)
        found = self.encode(one.pixels, ids.expand(count, -1), mask.expand(count, -1))
        return torch.einsum("i,iqd->qd", one.weights, found)

    def subject_of(self, images: Sequence[Tensor], category: str, find_vocabulary: Callable[[], WordPieces]) -> Tensor:
        """The mean of the vectors of images (n, H, W, 3) of one subject, (queries, dim), where few-shot tuning starts.
        Of a file without an encoder it is the subject that it holds."""
        if self.encoder is None:
            assert self.vectors is not None
            return self.vectors.to("cpu", torch.float32)
        options = BlipDiffusionOptions(category.replace(",", " "), images=tuple(images))
        looked, _ = shown(options, (), self.encoder.image_size)
        words = self._words(find_vocabulary, looked)
        return torch.stack([self._mean(one, words) for one in looked]).mean(0)

    @property
    def fingerprint(self) -> str:
        """Tells files apart by a few values of every weight."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            few = value.detach().flatten()[:: max(1, value.numel() // 4)][:4].float().cpu()
            digest.update(f"{name} {tuple(value.shape)}".encode() + few.half().numpy().tobytes())
        return digest.hexdigest()

    def _words(self, find_vocabulary: Callable[[], WordPieces], looked: Sequence[Shown]) -> WordPieces:
        """The vocabulary, for these categories. LikenessError when it is another's, or a category is too long."""
        assert self.encoder is not None
        words = find_vocabulary()
        known = self.encoder.embeddings.word_embeddings.num_embeddings
        if len(words) > known:
            raise LikenessError(
                f"The vocabulary {words.name!r} has {len(words)} pieces and {self.name!r} knows {known}: put the "
                "vocab.txt of bert-base-uncased in its place."
            )
        for category in {one.category for one in looked}:
            ids, _ = words.batch([category])
            if ids.shape[1] > self.encoder.longest:
                raise LikenessError(
                    f"The category {category[:40]!r} has {ids.shape[1]} pieces, and {self.encoder.longest} are read: "
                    "enter a word or two."
                )
        return words

    # --- the prompt

    def _target(self, options: BlipDiffusionOptions) -> str:
        return options.target.strip() or (options.categories or (self._word,))[0]

    def _text(self, request: Request, options: BlipDiffusionOptions) -> str:
        """The text as it is written, where it has a place for the subject; else the official prompt of it."""
        encoder = self._text_encoder(request)
        tokens = encoder.tokenize(request.text)[_tower(encoder)]
        if places_of_words(encoder, tokens, _triggers(request)):
            return request.text
        return repeated(request.text, self._target(options), options.times)

    def _written(
        self,
        request: Request,
        options: BlipDiffusionOptions,
        tokens: Sequence[Token],
        places: Sequence[tuple[range, int]],
    ) -> Written:
        tower = self._text_encoder(request).towers[0]
        vectors = self._vectors(request, options, mixed=not places)
        if not places:
            return write(tower, tokens, [Insertion(vectors[0], SUBJECT_AT)])
        words = _triggers(request)
        insertions = []
        for number, (span, word) in enumerate(places):
            subject = number if len(words) == 1 else word
            if subject >= len(vectors):
                raise LikenessError(
                    f"The prompt has places for {len(places)} subjects, but {len(vectors)} of them are connected: "
                    "connect one for each, or name several trigger words so that each stands for one."
                )
            insertions.append(Insertion(vectors[subject], span.start, len(span)))
        return write(tower, tokens, insertions)

    def _text_encoder(self, request: Request) -> TextEncoder:
        encoder = request.text_encoder
        assert encoder is not None  # `needs.trigger_word` asks for it
        widths = [tower.width for tower in encoder.towers]
        if widths != [self.dim]:
            made = " and ".join(f"{tower.name} ({tower.width})" for tower in encoder.towers)
            raise LikenessError(
                f"The adapter {self.name!r} needs the {self.dim}-wide CLIP-L of {self.base.title}, but the connected "
                f"CLIP is {made}: connect the CLIP of the checkpoint it was made for."
            )
        return encoder


def _read(encoder: TextEncoder, text: str, request: Request) -> tuple[Sequence[Token], Sequence[tuple[range, int]]]:
    """The tokens of a text, and where subjects stand in it."""
    tokens = encoder.tokenize(text)[_tower(encoder)]
    return tokens, places_of_words(encoder, tokens, _triggers(request))


def _encoded(encoder: TextEncoder, window: Sequence[Token]) -> PromptStates:
    return encoder.encode({_tower(encoder): [window]})


def _tower(encoder: TextEncoder) -> str:
    return encoder.towers[0].name


def _blended(plain: PromptStates, subject: PromptStates, strength: float) -> PromptStates:
    """1 is the subject's prompt, 0 the plain one; between them a mean, as ConditioningAverage makes it."""
    if strength == 1:
        return subject
    return PromptStates(torch.lerp(plain.states, subject.states, strength), subject.pooled)


def _named(looked: Sequence[Shown]) -> str:
    return ", ".join(f"{one.name} ({one.category})" for one in looked)


def _options(request: Request) -> BlipDiffusionOptions:
    return request.options_of(BlipDiffusionOptions, OPTIONS_NODE)


def _triggers(request: Request) -> tuple[str, ...]:
    return request.trigger_words or words_in(TRIGGER)


# --- the registry's entry


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is BLIP-Diffusion's, in any layout, complete or not."""
    return Sureness.YES if is_blip_diffusion(file.weights) else Sureness.NO


def load(file: WeightFile) -> BlipDiffusion:
    """The adapter of a file that was recognised."""
    told = file.metadata
    contents = read(file.weights, file.name, file.path)
    return BlipDiffusion(contents, file.name, told.get("subject", ""), told.get("word", ""))


SYSTEM = Kind("BLIP-Diffusion", recognise, ("blip_diffusion",), load)
