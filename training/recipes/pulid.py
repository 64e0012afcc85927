"""PuLID in three stages: a person in the image and nothing else changed (arXiv 2404.16022).

    stage 1    L_diff
    stage 2    L_diff + λ_id L_id
    stage 3    L_diff + λ_id L_id + λ_sem L_sem + λ_lay L_lay

L_diff trains on the base model as it is. The others look at images that the base makes in a few steps, with a few-step
LoRA that is switched on for them alone: L_id at the face in the image, L_sem and L_lay at what the cross-attention
layers see with the person and without, from the same noise. The official training code is not published; what the paper
leaves open is decided in the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ... import adapters
from ...adapters.pulid import Background, PuLID
from ...adapters.pulid.face import face_features, pixels_of
from ...errors import LikenessError, logger
from ...weights.families import SDXL
from ..at_once import at_once
from ..base.model import BaseModel, Conditioning
from ..config import Group, Moment, Rate, Steps, Weight
from ..data.alignment_prompts import PROMPTS, SLOT, SUBJECTS, read_prompts
from ..data.people import PersonPhoto
from ..data.portraits import as_uint8
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..fast_branch import QueryProbe, ThroughSteps, load_few_step, sample, switched_on
from ..few_step import FewStep, Sampler
from ..materials import AdapterTrainable, PeopleMaterials
from ..objectives.pulid import Alignment, Reduction, Weights, align_layer, identity_loss
from ..pulid import fresh_pulid, official_weights
from ..recipe import Objective, Pass, Recipe, Sample, generator
from .adapter_training import (
    AdapterSettings,
    EncodedPhotos,
    LiveTerm,
    PeopleStream,
    Shown,
    adapter_phase,
    fresh_weights,
    shown,
    without,
)
from .denoising import denoising_losses
from .prompts import random_choice

log = logger(__name__)
LOOKED_AT, MOST_WITHOUT_FACE = 100, 0.5  # images, and the share of them without a face that is worth a warning


class Version(Enum):
    """Of the encoder; the value is what a user chooses."""

    V1 = "v1"  # 10 tokens
    V1_1 = "v1.1"  # 32 tokens


class AlignBackprop(Enum):
    """How far the alignment's gradient reaches; the value is what a user chooses."""

    LOCAL = "local"  # each step by itself: the memory of one pass
    THROUGH = "through"  # the whole chain of steps


class PuLIDSettings(AdapterSettings):
    """Defaults: weights, prompts and steps are the paper's where it names them; see docs/training.md."""

    title: ClassVar[str] = "PuLID"
    kind: Literal["pulid"] = "pulid"
    stage: Literal[1, 2, 3] = 1
    version: Version = Field(default=Version.V1_1, description="Of a new adapter; one that goes on keeps its own.")
    width: int = Field(default=1024, ge=64, le=8192, multiple_of=64, description="Of a new adapter's encoder.")
    background: Background = Background.WHITE
    steps: Steps = 30_000
    learning_rate: Rate | None = Field(default=None, description="None: 1e-4 in stage 1, 1e-5 later.")  # type: ignore[assignment]
    warm_up: Moment = 500
    clip: float = Field(default=1.0, ge=0, description="Largest norm of the gradients; 0: not clipped.")
    another_photo: float = Field(default=0.0, ge=0, le=1, description="As published, the person is the image's own.")
    lambda_id: Weight = 1.0
    lambda_semantic: Weight = 0.6
    lambda_layout: Weight = 0.1
    reduction: Reduction = Reduction.MSE
    merge_heads: bool = False
    id_prompt: str = "portrait, color, cinematic"
    prompts: Path | None = Field(default=None, description="A file of prompts for the alignment; none: built-in ones.")
    sampler: Sampler = Field(default=Sampler.DDIM, description="Of the few-step model: ddim for SDXL-Lightning.")
    fast_steps: int = Field(default=4, ge=1, le=50)
    few_step_strength: float = Field(default=1.0, ge=0, le=2)
    base_is_few_step: bool = Field(default=False, description="The base model itself samples in a few steps.")
    id_backprop: str = Field(
        default="auto",
        pattern=r"^(auto|all|(last|random):[1-9][0-9]*)$",
        description="Steps that the identity loss reaches: all, last:K or random:K; auto: all for SD1.5, last:1 else.",
    )
    align_backprop: AlignBackprop = AlignBackprop.LOCAL
    every_id: Steps = Field(default=1, description="Steps from one identity loss to the next.")
    every_alignment: Steps = Field(default=1, description="The same of the alignment.")

    @property
    def rate(self) -> float:
        """Of learning."""
        return self.learning_rate or (1e-4 if self.stage == 1 else 1e-5)

    @property
    def identity_weight(self) -> float:
        """λ_id in this stage."""
        return self.lambda_id if self.stage >= 2 else 0.0

    @property
    def alignment_weight(self) -> float:
        """1 where this stage aligns, λ_sem and λ_lay being within the loss."""
        return float(self.stage == 3 and self.lambda_semantic + self.lambda_layout > 0)

    @property
    def samples_fast(self) -> bool:
        """Whether a loss looks at images of a few steps."""
        return self.identity_weight > 0 or self.alignment_weight > 0

    @property
    def measures_identity(self) -> bool:
        return self.identity_weight > 0

    @property
    def idle(self) -> set[str]:
        unused: set[str] = set()
        if not self.identity_weight:
            unused |= {"lambda_id", "id_prompt", "id_backprop", "every_id"}
        if not self.alignment_weight:
            unused |= {"lambda_semantic", "lambda_layout", "reduction", "merge_heads", "prompts"}
            unused |= {"align_backprop", "every_alignment"}
        if not self.samples_fast:
            unused |= {"sampler", "fast_steps", "few_step_strength", "base_is_few_step"}
        return unused


def pulid(base: BaseModel, materials: PeopleMaterials, settings: PuLIDSettings, seed: int = 0) -> Recipe:
    """The recipe, on SD1.x and SDXL."""
    adapter = _start(materials.start) if materials.start else _fresh(base, materials, settings, seed)
    adapter.float().requires_grad_(True)
    parameters = dict(adapter.named_parameters())
    evidence = Evidence(adapter, materials, settings)
    live = LiveTerm(base.unet, adapter)

    def tokens_of(people: Sequence[Shown], dropped: Sequence[bool]) -> Tensor:
        return evidence.tokens([person.reference for person in people], dropped, base.unet.device)

    fast = None
    if settings.samples_fast:
        fast = FastLosses(base, live, tokens_of, evidence.faces, list(parameters.values()), materials, settings)

    def begin() -> list[Group]:
        adapter.to(base.unet.device)
        return [Group("adapter", parameters, settings.rate, settings.weight_decay)]

    def show(samples: Sequence[Sample]) -> None:
        people = shown(samples)
        live.show(tokens_of(people, [person.dropped for person in people]))

    def denoising(found: Pass) -> Tensor:
        loss = denoising_losses(found).mean()
        # Where further losses follow, the memory of this pass is freed before they begin.
        return loss if fast is None else at_once([loss], list(parameters.values()))

    objectives = [Objective("reconstruction", denoising)]
    attached: list[Callable[[], AbstractContextManager[Any]]] = [live.at_work]
    if fast is not None:
        objectives.append(Objective("identity", fast.identity, settings.identity_weight))
        objectives.append(Objective("alignment", fast.alignment, settings.alignment_weight))
        attached += [evidence.faces.kept, fast.probe.attached]

    training = adapter_phase(
        base,
        settings,
        PeopleStream(materials.people, settings.drop, settings.another_photo, seed),
        objectives,
        begin=begin,
        hooks=lambda: evidence.photos.kept_with(*attached),
        show=show,
        name=f"stage-{settings.stage}",
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        about = {
            "pulid.version": adapter.title,
            "pulid.base": base.family.title,
            "pulid.token_width": str(adapter.id_adapter.dim),
            "pulid.stage": str(settings.stage),
            "pulid.recogniser": materials.people.recogniser or "",
            "pulid.lambda": f"id {settings.identity_weight:g}, semantic {settings.lambda_semantic:g}, layout "
            f"{settings.lambda_layout:g}",
            "pulid.few_step": materials.few_step.name if materials.few_step else "",
        }
        path = save_adapter(official_weights(adapter), folder, name, record, about)
        return [Saved(path, SavedKind.PULID)]

    return Recipe(settings.title, settings, [training], (), save)


def _start(file: Path) -> PuLID:
    """The adapter that is trained further."""
    adapter = adapters.load(file)
    if not isinstance(adapter, PuLID):
        raise LikenessError(
            f"'{file.name}' is an adapter of {adapter.title}, not of PuLID for SD1.5 or SDXL: write another file into "
            "data.start_from."
        )
    return adapter


def _fresh(base: BaseModel, materials: PeopleMaterials, settings: PuLIDSettings, seed: int) -> PuLID:
    if settings.stage > 1:
        raise LikenessError(
            f"Stage {settings.stage} goes on from an adapter that knows people already: write the result of stage "
            f"{settings.stage - 1}, or a published file, into data.start_from."
        )
    embedding, (hidden, pooled) = materials.people.photos[0].embedding, materials.require_eva().widths
    assert embedding is not None
    with fresh_weights(seed):
        weights = fresh_pulid(
            base.unet, len(embedding) + pooled, hidden, settings.version is Version.V1_1, settings.width
        )
    return PuLID(weights, "pulid")


# Whose identity -------------------------------------------------------------------------------------------------------


class Evidence:
    """What the adapter is shown of photos, and where the identity loss finds their faces."""

    def __init__(self, adapter: PuLID, materials: PeopleMaterials, settings: PuLIDSettings) -> None:
        self._encoder, self._eva = adapter.id_adapter, materials.require_eva()
        self._parse = None
        if settings.background is Background.WHITE:
            if materials.parse is None:
                raise LikenessError(
                    "PuLID sees faces before white, which needs a face parser: write its file into data.parser, or set "
                    "recipe.background to 'as in the photo'."
                )
            self._parse = materials.parse
        embedding = materials.people.photos[0].embedding
        width = (0 if embedding is None else len(embedding)) + self._eva.widths[1]
        if (width, self._eva.widths[0]) != (self._encoder.id_dim, self._encoder.hidden_dim):
            raise LikenessError(
                f"The adapter reads {self._encoder.id_dim} and {self._encoder.hidden_dim} numbers of a face, and the "
                f"recogniser and EVA02-CLIP make {width} and {self._eva.widths[0]}: use antelopev2 as data.faces and "
                "the image encoder that it was made for as data.eva."
            )
        self.photos = EncodedPhotos(self._encode)
        self.faces = EncodedPhotos(lambda photo: _reference_face(photo, materials))

    def tokens(self, photos: Sequence[PersonPhoto], dropped: Sequence[bool], device: torch.device) -> Tensor:
        """(batch, n, dim), with gradient to the encoder. People who are left out are zeros before it."""
        found = self.photos.of(photos, device)
        hidden = [without(found[f"hidden_{i}"], dropped) for i in range(len(found) - 1)]
        return self._encoder(without(found["id"], dropped), hidden)

    def _encode(self, photo: PersonPhoto) -> Mapping[str, Tensor]:
        crop = (photo.portrait * 255).round().byte()
        labels = None if self._parse is None else self._parse(crop)
        seen = self._eva.encode_pixels(pixels_of(face_features(crop, labels), self._eva.image_size)).to("cpu")
        assert photo.embedding is not None
        pooled = F.normalize(seen.pooled.float(), dim=-1)[0]
        hidden = {f"hidden_{i}": states[0].float() for i, states in enumerate(seen.hidden)}
        return {"id": torch.cat([photo.embedding, pooled]), **hidden}


def _reference_face(photo: PersonPhoto, materials: PeopleMaterials) -> Mapping[str, Tensor]:
    """φ of a photo's face, by the recogniser of the loss."""
    assert materials.measure is not None
    picture = photo.example.pixels[None].to(materials.device) / 2 + 0.5
    return {"face": materials.measure(picture, photo.keypoints[None])[0]}


# The fast branch ------------------------------------------------------------------------------------------------------


class FastLosses:
    """L_id and L_align of images that are made in a few steps. Each makes its gradients before it returns."""

    def __init__(
        self,
        base: BaseModel,
        live: LiveTerm,
        tokens_of: Callable[[Sequence[Shown], Sequence[bool]], Tensor],
        faces: EncodedPhotos,
        parameters: Sequence[torch.nn.Parameter],
        materials: PeopleMaterials,
        settings: PuLIDSettings,
    ) -> None:
        """faces: φ of photos, as `face`."""
        self.faces = faces
        self.base, self.live, self.tokens_of, self.settings = base, live, tokens_of, settings
        self.parameters, self.materials = parameters, materials
        if materials.few_step is None and not settings.base_is_few_step:
            raise LikenessError(
                f"Stage {settings.stage} looks at images made in a few steps: write a few-step LoRA for this base "
                "model, such as LCM-LoRA or SDXL-Lightning's, into data.few_step, or set recipe.base_is_few_step where "
                "the base model itself is one."
            )
        self._lora = {} if materials.few_step is None else load_few_step(materials.few_step, base.unet)
        self.branch = FewStep.of(settings.sampler, base.schedule, settings.fast_steps)
        self.weights = Weights(settings.lambda_semantic, settings.lambda_layout, settings.lambda_id)
        words = settings.id_backprop
        self.through = ThroughSteps.of(("last:1" if base.family is SDXL else "all") if words == "auto" else words)
        self.prompts = PROMPTS if settings.prompts is None else read_prompts(settings.prompts)
        self.probe = QueryProbe(base.unet)
        self._looked_at = self._without_face = 0
        if settings.identity_weight and (materials.measure is None or materials.detect is None):
            raise LikenessError(
                "The identity loss needs a detector and a recogniser it can backpropagate through: name a face "
                "analysis in data.faces and the recogniser's file in data.recogniser, or set recipe.lambda_id to 0."
            )

    # L_id

    def identity(self, found: Pass) -> Tensor:
        """1 − cos of the face in the image and the person's, over the images in which a face is found."""
        people = shown(found.samples)
        if self._is_idle(found, self.settings.every_id):
            return torch.zeros((), device=found.z0.device)
        with self._fast():
            return at_once(self._identity(found, people), self.parameters)

    def _identity(self, found: Pass, people: Sequence[Shown]) -> Iterator[Tensor]:
        drawn = Drawn.of(people, "identity", found.z0, self.branch)
        predict = self._predictor([self.settings.id_prompt] * len(people), found)
        self.live.show(self.tokens_of(people, [False] * len(people)))
        through = self.through.steps(self.settings.fast_steps, generator(people[0].seed, "steps"))
        z0 = sample(self.branch, predict, drawn.start, drawn.between, through)
        pictures = self._decode(z0.float())
        points = [self._largest_face(picture) for picture in pictures]
        seen = torch.tensor([each is not None for each in points], device=z0.device)
        self._count(seen)
        if not bool(seen.any()):
            yield 0 * z0.sum()
            return
        keypoints = torch.stack([each for each in points if each is not None])
        measure = self.materials.measure
        assert measure is not None
        generated = measure(pictures[seen], keypoints)
        references = [person.reference for person, is_there in zip(people, seen.tolist(), strict=True) if is_there]
        wanted = self.faces.of(references, generated.device)["face"].to(generated)
        yield identity_loss(generated, wanted, torch.ones(len(wanted), dtype=torch.bool))

    def _decode(self, latents: Tensor) -> Tensor:
        """Images 0..1, with gradient to the latents; the decoder's activations are computed again where the UNet's
        are."""
        picture = self.base.codec.decoder.picture
        if getattr(self.base.unet, "is_gradient_checkpointing", False):
            return checkpoint(picture, latents, use_reentrant=False)  # type: ignore[return-value]
        return picture(latents)

    def _largest_face(self, picture: Tensor) -> Tensor | None:
        assert self.materials.detect is not None
        found = self.materials.detect(as_uint8(picture))
        return None if found is None else torch.from_numpy(found).float()

    def _count(self, seen: Tensor) -> None:
        self._looked_at += len(seen)
        self._without_face += int((~seen).sum())
        if self._looked_at >= LOOKED_AT:
            if self._without_face > MOST_WITHOUT_FACE * self._looked_at:
                log.warning(
                    "No face was found in %d of the last %d images of the identity loss: train stage 1 longer, or "
                    "choose a base model and few-step LoRA that make photos.", self._without_face, self._looked_at,
                )  # fmt: skip
            self._looked_at = self._without_face = 0

    # L_align

    def alignment(self, found: Pass) -> Tensor:
        """λ_sem L_sem + λ_lay L_lay, the means over steps and layers."""
        if self._is_idle(found, self.settings.every_alignment):
            return torch.zeros((), device=found.z0.device)
        with self._fast():
            return at_once(self._alignment(found, shown(found.samples)), self.parameters)

    def _alignment(self, found: Pass, people: Sequence[Shown]) -> Iterator[Tensor]:
        local = self.settings.align_backprop is AlignBackprop.LOCAL
        drawn = Drawn.of(people, "alignment", found.z0, self.branch)
        predict = self._predictor([self._prompt_of(person) for person in people], found)
        nobody = [False] * len(people)
        x, bare = self.branch.begin(drawn.start), self.branch.begin(drawn.start)
        losses: list[Tensor] = []
        if not local:
            self.live.show(self.tokens_of(people, nobody))
        for step in range(self.settings.fast_steps):
            with torch.no_grad(), self.live.switched_off(), self.probe.recording() as alone:
                prediction = predict(self.branch.model_input(bare, step), step)
            bare = self.branch.update(bare, prediction, step, drawn.between[step])
            if local:  # whose graph goes with each step's
                x = x.detach()
                self.live.show(self.tokens_of(people, nobody))
            with self.probe.recording() as accompanied:
                prediction = predict(self.branch.model_input(x, step), step)
            x = self.branch.update(x, prediction, step, drawn.between[step])
            loss = self._aligned(accompanied, alone) / self.settings.fast_steps
            if local:
                del accompanied, prediction
                x = x.detach()
                yield loss
            else:
                losses.append(loss)
        if not local:
            yield torch.stack(losses).sum()

    def _aligned(self, accompanied: Sequence[tuple[Tensor, Tensor]], alone: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean over layers at one step."""
        layers = [
            align_layer(with_person, bare, keys, self.settings.reduction, self.settings.merge_heads)
            for (with_person, _), (bare, keys) in zip(accompanied, alone, strict=True)
        ]
        semantic, layout = (torch.stack(each).mean() for each in zip(*layers, strict=True))
        return self.weights.alignment(Alignment(semantic, layout))

    def _prompt_of(self, person: Shown) -> str:
        random = generator(person.seed, "prompt")
        prompt = random_choice(self.prompts, random)
        return prompt.replace(SLOT, random_choice(SUBJECTS, random))

    # Both

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """The few-step LoRA on, in the precision of the run."""
        unet = self.base.unet
        half = torch.autocast(unet.device.type, unet.dtype, enabled=unet.dtype != torch.float32)
        with half, switched_on(unet, self._lora, self.settings.few_step_strength):
            yield

    def _predictor(self, prompts: Sequence[str], found: Pass) -> Callable[[Tensor, int], Tensor]:
        """What the denoiser makes of latents at a step, for these prompts."""
        base, scale = self.base, self.base.codec.decoder.pixels_per_cell
        with torch.no_grad():
            conditioning: Conditioning = base.encode(list(prompts))
        height, width = (side * scale for side in found.z0.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(prompts), dtype=torch.float32)
        time_ids = sizes.to(found.z0.device) if base.is_sdxl else None

        def predict(x: Tensor, step: int) -> Tensor:
            t = torch.full((len(x),), self.branch.timesteps[step], device=x.device)
            return base.predict(x, t, conditioning, time_ids).float()

        return predict

    @staticmethod
    def _is_idle(found: Pass, every: int) -> bool:
        return found.step % every != 0


class Drawn:
    """The noise of a few-step sampling, each sample's its own: the start, and what is added between the steps."""

    def __init__(self, start: Tensor, between: list[Tensor | None]) -> None:
        self.start, self.between = start, between

    @classmethod
    def of(cls, people: Sequence[Shown], what: str, like: Tensor, branch: FewStep) -> Drawn:
        """Shared by both paths of the alignment, which would differ by chance otherwise."""
        chances = [generator(person.seed, what) for person in people]

        def noise() -> Tensor:
            return torch.stack([torch.randn(like.shape[1:], generator=random) for random in chances]).to(like.device)

        steps = len(branch.timesteps)
        start = noise()
        return cls(start, [noise() if branch.sampler.draws_noise and n + 1 < steps else None for n in range(steps)])


TRAINABLE = AdapterTrainable(PuLIDSettings, pulid)
