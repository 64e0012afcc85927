"""MagiCapture: a person's likeness in a portrait style (Hyung, Shin, Choo, AAAI 2024, arXiv 2309.06895).

Phase 1 learns a word for the person and one for the style. Phase 2 tunes a LoRA in denoiser and text encoder with them:

    L = L_mask + λ_id L_id + λ_AR L_AR

over the person's photos (`INSTANCE`: only the face counts), the style's (`STYLE`: all but the face) and composed
prompts (`BOTH`: the style photo outside the face is the pseudo-label of a prompt with both words; inside, L_id alone).

Defaults are the published command's in effect: its learning rates times its accumulation of 4. Where the official code
has faults, the paper's behaviour is taken: refocusing has its gradient under checkpointing, only the placeholders' rows
move in phase 2, a batch is the mean of its samples, ẑ_0 follows the prediction type. Two of its detours are options,
`IdentityPass.SEPARATE` and `Layout.DETECTED`; a shared pass and the reference's layout teach the same for less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...errors import LikenessError
from ...weights.embedding_files import TokenEmbedding
from ..base.lora import Reach, StartLora, trained_pairs
from ..base.model import BaseModel
from ..base.vocabulary import NewToken, Vocabulary
from ..config import Group, LoraSettings, MethodSettings, Moment, Rate, RateSchedule, Seen, Weight
from ..data.captions import composed, fill_template, parse_templates, person_templates, style_templates
from ..data.dataset import Dataset
from ..data.portraits import Detect, Portrait, as_uint8, portraits
from ..export import Saved, SavedKind, TrainingRecord, save_embedding, save_lora
from ..materials import Materials, Trainable
from ..methods.magicapture import templates
from ..objectives.attention_refocusing import attention_refocusing, attention_refocusing_per_map
from ..objectives.identity import Decoder, LikenessTarget, Measure, below_cap, identity_of_latents
from ..objectives.magicapture import ShotKind, positions, reconstruction_weight, regions
from ..objectives.reconstruction import masked_reconstruction, soft_mask
from ..probe import Grid, refocusing_grid, sites_at
from ..recipe import Objective, Pass, Phase, Recipe, Recording, Sample, epochs, generator, uniform_timesteps
from . import prompts
from .denoising import Mask, require_masks
from .textual_inversion import Tether, hold


class Refocusing(Enum):
    """The form of L_AR."""

    OFFICIAL = "official code"  # mean over the maps first, towards the soft mask
    PAPER = "paper"  # every map for itself, towards nothing outside


class IdentityPass(Enum):
    """Which pass of the denoiser L_id looks at."""

    SHARED = "shared"  # that of the other losses
    SEPARATE = "separate"  # one of its own, at another timestep


class FaceLayout(Enum):
    """Where L_id takes the face to be."""

    REFERENCE = "reference"  # where it is in the training photo
    DETECTED = "detected"  # where a detector finds it in the image that the latents stand for


class MagiCaptureSettings(MethodSettings):
    """Everything the method leaves open."""

    title: ClassVar[str] = "MagiCapture"
    phases: ClassVar[tuple[str, ...]] = ("inversion_steps", "tuning_steps")
    words: ClassVar[tuple[str, ...]] = ("subject", "style")
    loras: ClassVar[tuple[str, ...]] = ("lora", "text_lora")
    kind: Literal["magicapture"] = "magicapture"
    subject: str = "<sks>"
    style: str = "<style1>"
    vectors: int = Field(default=1, ge=1, le=16, description="Per word.")
    subject_start: str = "person"
    style_start: str = Field(default="", description="Empty: chance, N(0, 0.017²).")
    inversion_steps: Moment = 1200
    tuning_steps: Moment = 1500
    inversion_rate: Rate = 2e-3
    unet_rate: Rate = 4e-4
    text_rate: Rate = 4e-5
    rows_rate: Rate = 1e-4
    weight_decay: float = Field(default=1e-3, ge=0, le=1, description="In the second phase; the first has none.")
    clip: float = Field(default=1.0, gt=0, le=1e6, description="In the second phase; the first has none.")
    lora: LoraSettings = LoraSettings(reach=Reach.ATTENTION_AND_GEGLU)  # the paper: cross-attention alone
    text_lora: LoraSettings = LoraSettings()
    lambda_id: Weight = 0.25
    lambda_attention: Weight = 2.5
    lambda_style: Weight = 2.0
    compose: bool = Field(default=True, description="Train on composed prompts.")
    mask_temperature: float = Field(default=1.0, ge=0.01, le=100)
    noise_share: float = Field(
        default=0.8, gt=0, le=1, description="The second phase's timesteps, of all from the clean end."
    )
    identity_share: float = Field(
        default=0.8, gt=0, le=1, description="The timesteps at which the identity loss is computed."
    )
    refocusing: Refocusing = Refocusing.OFFICIAL
    map_division: int = Field(
        default=4, ge=1, le=64, description="Latent sides divided by this give the attention maps' grid."
    )
    identity_pass: IdentityPass = IdentityPass.SHARED
    layout: FaceLayout = FaceLayout.REFERENCE
    decode_margin: int = Field(default=4, ge=0, le=256, description="Latent cells decoded around the face.")
    decode_whole: bool = Field(default=False, description="Decode the whole image instead.")
    flip: float = Field(default=0.5, ge=0, le=1)
    person_templates: tuple[str, ...] = person_templates("person")
    style_templates: tuple[str, ...] = style_templates("person")

    @property
    def idle(self) -> set[str]:
        groups = (
            (self.lambda_id == 0, {"identity_share", "identity_pass", "layout", "decode_margin", "decode_whole"}),
            (self.lambda_attention == 0, {"refocusing", "map_division"}),
            (self.decode_whole, {"decode_margin"}),
        )
        return {name for without_effect, names in groups if without_effect for name in names}

    @property
    def sees(self) -> Seen:
        return Seen.MASKS | (Seen.KEYPOINTS if self.lambda_id > 0 else Seen(0))

    @property
    def measures_identity(self) -> bool:
        return self.lambda_id > 0


@dataclass(frozen=True, eq=False)
class Shot:
    """What one sample shows. mask: (1, h, w), where its reconstruction counts. likeness: who should be where."""

    kind: ShotKind
    mask: Tensor
    likeness: LikenessTarget | None


def magicapture(
    base: BaseModel,
    people: Sequence[Portrait],
    styles: Sequence[Portrait],
    settings: MagiCaptureSettings,
    seed: int = 0,
    measure: Measure | None = None,
    detect: Detect | None = None,
    start: Mapping[str, TokenEmbedding] | None = None,
    start_lora: StartLora | None = None,
) -> Recipe:
    """The recipe, on SD1.x, SD2 and SDXL, whatever they predict.

    people: the person's photos; styles: the reference photos; all of one size and with face masks. measure: the
    recogniser of L_id, needed unless λ_id is 0; detect: where the layout is to be detected. start: vectors of earlier
    trainings to begin with, by word; start_lora: a LoRA that the second phase trains further, with its own layers and
    ranks. A phase of 0 steps is left out.
    """
    start = start or {}
    size = _check(base, people, styles, settings, measure, detect)
    grid = refocusing_grid(size, settings.map_division)
    tokens = [
        NewToken(settings.subject, settings.vectors, start.get(settings.subject) or settings.subject_start or None),
        NewToken(
            settings.style, settings.vectors, start.get(settings.style) or settings.style_start or None, std=0.017
        ),
    ]
    vocabulary = Vocabulary(base, tokens, seed)
    words = Words(base, vocabulary, settings)
    draw = partial(ShotStream, people, styles, settings, size, seed)
    reconstruction = Objective("reconstruction", partial(reconstruct, lambda_style=settings.lambda_style))

    inversion = Phase(
        "inversion",
        settings.inversion_steps,
        begin=lambda: [Group("rows", vocabulary.rows, settings.inversion_rate)],
        streams=[draw(pairs=False)],
        objectives=[reconstruction],
        factor=RateSchedule.LINEAR.factor(settings.inversion_steps, ahead=1),
        timestep=uniform_timesteps(len(base.schedule)),
        after_step=partial(hold, vocabulary, Tether.NORM),
    )

    def tuned() -> list[Group]:
        decay, given = settings.weight_decay, start_lora or StartLora({}, ({},) * len(base.text))
        size = {} if start_lora is None else {"rank": start_lora.rank}
        lora, text_lora = (kind.model_copy(update=size) for kind in (settings.lora, settings.text_lora))
        groups = [Group("unet", lora.add_to(base.unet, given.unet), settings.unet_rate, decay)]
        for tower, pairs in zip(base.text, given.encoders, strict=True):
            groups.append(Group(tower.kind, text_lora.add_to(tower.encoder, pairs), settings.text_rate, decay))
        return [*groups, Group("rows", vocabulary.rows, settings.rows_rate, decay)]

    objectives = [reconstruction]
    if measure is not None:
        cap = round(settings.identity_share * len(base.schedule))
        term = partial(resemble, settings, base.codec.decoder, measure, cap, detect)
        objectives.append(Objective("identity", term, settings.lambda_id))
    recording = None
    if settings.lambda_attention > 0:
        objectives.append(
            Objective(
                "attention", partial(refocus, settings.vectors, settings.refocusing, grid), settings.lambda_attention
            )
        )
        recording = Recording(sites_at(base.unet, size, grid), words.positions)

    tuning = Phase(
        "tuning",
        settings.tuning_steps,
        begin=tuned,
        streams=[draw(pairs=settings.compose)],
        objectives=objectives,
        factor=RateSchedule.LINEAR.factor(settings.tuning_steps, ahead=1),
        timestep=uniform_timesteps(round(settings.noise_share * len(base.schedule))),
        clip=settings.clip,
        recording=recording,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        names = {settings.subject: f"{name}-person", settings.style: f"{name}-style"}
        learned = [
            Saved(save_embedding(vocabulary.embedding(word), folder, names[word], record), SavedKind.EMBEDDING)
            for word in names
        ]
        if settings.tuning_steps == 0:
            return learned
        pairs = [trained_pairs(encoder) for encoder in base.encoders]
        lora = save_lora(base.unet, trained_pairs(base.unet), folder, name, record, base.encoders, pairs)
        return [Saved(lora, SavedKind.LORA), *learned]

    phases = [phase for phase in (inversion, tuning) if phase.steps != 0] or [inversion, tuning]
    return Recipe(settings.title, settings, phases, (settings.subject, settings.style), save)


# Samples --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShotStream:
    """The stream of photos and composed prompts.

    Items are the person's photos, repeated to about as many as the style's, the style's photos, and half as many random
    pairs of both where prompts are composed. Each comes once per epoch, in a new order.
    """

    people: Sequence[Portrait]
    styles: Sequence[Portrait]
    settings: MagiCaptureSettings
    size: Grid  # of the latents
    seed: int
    pairs: bool

    @cached_property
    def _faces(self) -> list[int]:
        """Which style photos show a face: only there can the person's be."""
        return [j for j, portrait in enumerate(self.styles) if portrait.example.shows_face]

    def items(self) -> list[tuple[ShotKind, int, int]]:
        """Kind, which person's photo, which style photo."""
        persons, styles = len(self.people), len(self.styles)
        singles = [(ShotKind.INSTANCE, i, 0) for i in range(persons)] * max(1, styles // persons)
        singles += [(ShotKind.STYLE, 0, j) for j in range(styles)]
        faces = self._faces
        pairs = torch.randperm(persons * len(faces), generator=generator(self.seed, "pairs"))
        composed = [divmod(pair, len(faces)) for pair in pairs[: len(singles) // 2].tolist() if self.pairs]
        return singles + [(ShotKind.BOTH, i, faces[j]) for i, j in composed]

    def __call__(self, n: int, random: torch.Generator) -> Sample:
        items, settings = self.items(), self.settings
        kind, i, j = items[epochs(len(items), self.seed, n)]
        person, style = self.people[i], self.styles[j]
        shown = person if kind is ShotKind.INSTANCE else style
        prompt = self._prompt(kind, random)
        flipped = prompts.happens(settings.flip, random)
        face = shown.example.face_mask
        assert face is not None
        counts = face if kind is ShotKind.INSTANCE else 1 - face
        mask = soft_mask(counts.unsqueeze(0), self.size, settings.mask_temperature)[0]
        likeness, keypoints = None, shown.keypoints_as_shown(flipped)
        if kind.shows_person and keypoints is not None and person.embedding is not None:
            likeness = LikenessTarget(keypoints, person.embedding)
        return Sample(shown.example, prompt, flipped, Shot(kind, mask.flip(-1) if flipped else mask, likeness))

    def _prompt(self, kind: ShotKind, random: torch.Generator) -> str:
        settings = self.settings
        if kind is ShotKind.STYLE:
            return fill_template(prompts.random_choice(settings.style_templates, random), settings.style)
        template = prompts.random_choice(settings.person_templates, random)
        return fill_template(
            composed(template, settings.style) if kind is ShotKind.BOTH else template, settings.subject
        )


@dataclass(frozen=True)
class Words:
    """Where the learned words stand in the prompts."""

    base: BaseModel
    vocabulary: Vocabulary
    settings: MagiCaptureSettings

    def of(self, kind: ShotKind) -> list[int]:
        """The ids of the learned words in prompts of a kind, the subject's before the style's."""
        subject, style = self.vocabulary.ids(self.settings.subject), self.vocabulary.ids(self.settings.style)
        return {ShotKind.INSTANCE: subject, ShotKind.STYLE: style, ShotKind.BOTH: subject + style}[kind]

    def positions(self, samples: Sequence[Sample]) -> Tensor:
        """(batch, tokens); where a prompt has fewer words than another, 0 fills its row."""
        ids = self.base.ids([sample.prompt for sample in samples])
        rows = [positions(row[None], self.of(s.about.kind))[0] for row, s in zip(ids, samples, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


# Objectives -----------------------------------------------------------------------------------------------------------


def reconstruct(found: Pass, lambda_style: float) -> Tensor:
    """L_mask: the masked reconstruction, style photos weighing more in a phase's first half."""
    masks = torch.stack([sample.about.mask for sample in found.samples]).to(found.prediction.device)
    weights = [reconstruction_weight(sample.about.kind, found.progress, lambda_style) for sample in found.samples]
    losses = masked_reconstruction(found.prediction, found.target, masks)
    return (torch.tensor(weights, device=losses.device) * losses).mean()


def refocus(vectors: int, form: Refocusing, grid: Grid, found: Pass) -> Tensor:
    """L_AR: the subject's word looks at the face alone, the style's at everything else. vectors: of each word."""
    penalty = attention_refocusing if form is Refocusing.OFFICIAL else attention_refocusing_per_map
    losses = []
    for i, sample in enumerate(found.samples):
        shot: Shot = sample.about
        wanted = regions(shot.kind, shot.mask.unsqueeze(0).to(found.z0.device), vectors, vectors)
        maps = [each[i : i + 1, :, : wanted.shape[1]] for each in found.maps]
        losses.append(penalty(maps, wanted, grid)[0])
    return torch.stack(losses).mean()


def resemble(
    settings: MagiCaptureSettings,
    decoder: Decoder,
    measure: Measure,
    cap: int,
    detect: Detect | None,
    found: Pass,
) -> Tensor:
    """L_id of the samples that show the person, at timesteps below the cap; 0 for the others."""
    look = found.again() if settings.identity_pass is IdentityPass.SEPARATE else found
    z0, likenesses = look.z0_estimate, [sample.about.likeness for sample in look.samples]
    if settings.layout is FaceLayout.DETECTED:
        assert detect is not None
        likenesses = [_detected(detect, decoder, z0[i : i + 1], each) for i, each in enumerate(likenesses)]
    likenesses = [each and LikenessTarget(each.keypoints, each.embedding.to(z0.device)) for each in likenesses]
    margin = None if settings.decode_whole else settings.decode_margin
    return identity_of_latents(z0, below_cap(likenesses, look.t, cap), decoder, measure, margin).mean()


@torch.no_grad()
def _detected(detect: Detect, decoder: Decoder, z0: Tensor, likeness: LikenessTarget | None) -> LikenessTarget | None:
    if likeness is None:
        return None
    keypoints = detect(as_uint8(decoder.picture(z0)[0]))
    if keypoints is None:
        return None
    return LikenessTarget(torch.from_numpy(np.asarray(keypoints, np.float32)), likeness.embedding)


def _check(
    base: BaseModel,
    people: Sequence[Portrait],
    styles: Sequence[Portrait],
    settings: MagiCaptureSettings,
    measure: Measure | None,
    detect: Detect | None,
) -> Grid:
    """The size of the latents. Raises LikenessError when something is lacking."""
    scale = base.codec.decoder.pixels_per_cell
    for what, found, of_style in (("photo of the person", people, False), ("style photo", styles, True)):
        photos = [portrait.example for portrait in found]
        prompts.require_photos(photos, what)
        require_masks(photos, Mask.FACE_NORMALISED, scale, of_style)
    parse_templates("\n".join((*settings.person_templates, *settings.style_templates)))
    if settings.subject == settings.style:
        raise LikenessError(
            f"The person and the style are both called '{settings.subject}': give each a word of its own."
        )
    height, width = prompts.require_one_size([p.example for p in (*people, *styles)], "of person and style")
    if settings.lambda_id > 0 and measure is None:
        raise LikenessError("The identity loss needs a face recogniser: load one, or set its weight to 0.")
    if settings.lambda_id > 0 and all(portrait.embedding is None for portrait in people):
        raise LikenessError(
            "No face was found in any photo of the person: use photos that show the face larger, or set the identity "
            "loss's weight to 0."
        )
    if settings.layout is FaceLayout.DETECTED and detect is None:
        raise LikenessError("A detected layout needs a face detector: load one, or use the reference layout.")
    return height // scale, width // scale


# In the registry of methods -------------------------------------------------------------------------------------------


def choose(values: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The settings that a graph's choices and photos decide."""
    (person, style), rank = datasets, values["rank"]
    return {
        "subject_start": person.class_word,
        "lora": {"rank": rank, "reach": Reach.ATTENTION_AND_GEGLU},
        "text_lora": {"rank": rank},
        "person_templates": templates(person, values["person_templates"]),
        "style_templates": templates(style, values["style_templates"]),
    }


def make(base: BaseModel, materials: Materials, settings: MagiCaptureSettings, seed: int) -> Recipe:
    person, style = materials.concepts
    people, styles = portraits(person.dataset, materials.measure, materials.device), portraits(style.dataset)
    start = {concept.word: concept.start for concept in materials.concepts if concept.start is not None}
    lora = materials.lora_for(base)
    return magicapture(base, people, styles, settings, seed, materials.measure, materials.detect, start, lora)


TRAINABLE = Trainable(MagiCaptureSettings, make, choose)
