"""BLIP-Diffusion's subject encoder, trained further (arXiv 2305.14720, stage 2).

    L = E ‖ε − ε_θ(z_t, t, c(a [v] person, caption))‖²       v = the encoder's, of the subject on another background

The photo is the target; the encoder sees its subject on a random background, so that the vectors hold the subject
alone. In 0.15 of the samples there are no vectors. Trained are queries, Q-Former and projection, and the UNet; the
tower and, unlike officially, the text encoder stay as they are, so that every SD1.5 checkpoint's own can be used.
LAVIS has no code of this stage; what the paper leaves open is decided in the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ... import adapters
from ...adapters.blip_diffusion import BlipDiffusion
from ...adapters.blip_diffusion.files import to_hub
from ...adapters.blip_diffusion.networks import SubjectEncoder
from ...adapters.blip_diffusion.words import WordPieces
from ...adapters.image_prep import pixel_values
from ...adapters.text_encoder import inserted
from ...errors import LikenessError
from ..base.model import BaseModel, Conditioning
from ..config import Group, Rate
from ..data.people import PersonPhoto
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..materials import AdapterTrainable, PeopleMaterials
from ..objectives.reconstruction import squared_error
from ..recipe import Objective, Recipe, Sample, generator
from ..subject_vectors import vocabulary_beside
from .adapter_training import AdapterSettings, DropRates, PeopleStream, Shown, adapter_phase, shown
from .blip_diffusion import require_base
from .prompts import happens


class BlipDiffusionEncoderSettings(AdapterSettings):
    """Defaults are the paper's."""

    title: ClassVar[str] = "BLIP-Diffusion"
    kind: Literal["blip_diffusion_encoder"] = "blip_diffusion_encoder"
    learning_rate: Rate = 2e-6
    drop: DropRates = DropRates(person=0.15, text=0.0, both=0.0)
    another_photo: float = Field(default=0.0, ge=0, le=1, description="Officially the photo itself is shown.")
    class_word: str = Field(default="person", description="What the photos show, for encoder and prompt.")
    random_background: bool = Field(default=True, description="Outside of the mask beside a photo.")
    dropout: bool = Field(default=True, description="Of Q-Former and projection, 0.1.")
    unet: bool = Field(default=True, description="Train the UNet too; it is part of the file then.")

    @property
    def trains_encoder(self) -> bool:
        return True

    @property
    def trains_all_weights(self) -> bool:
        return False  # the file holds no VAE; the UNet is made float32 as training begins


def blip_diffusion_encoder(
    base: BaseModel, materials: PeopleMaterials, settings: BlipDiffusionEncoderSettings, seed: int = 0
) -> Recipe:
    """The recipe, on SD1.x. Raises LikenessError without an encoder to go on from."""
    encoder, words = _encoder(materials)
    require_base(base, encoder.dim)
    ids, mask = words.batch([settings.class_word])
    last = f"encoder.layer.{len(encoder.encoder.layer) - 1}."  # type: ignore[arg-type]
    idle = ("visual_encoder.", f"{last}intermediate.", f"{last}output.")  # nobody reads the words behind the last layer
    trained = {name: parameter for name, parameter in encoder.named_parameters() if not name.startswith(idle)}
    now: list[Shown] = []

    def vectors_of(seen: Sequence[Shown]) -> Tensor:
        images = torch.cat([pixel_values(reference(one, settings), encoder.image_size) for one in seen])
        device = encoder.query_tokens.device
        return encoder(images.to(device), *(part.expand(len(seen), -1).to(device) for part in (ids, mask)))

    def staged(prompts: Sequence[str], _t: Tensor) -> Conditioning:
        """The prompts with the vectors of the batch's subjects in them."""
        parts = []
        for prompt, one, vectors in zip(prompts, now, vectors_of(now), strict=True):
            part = base.encode([prompt]) if one.dropped else _with_vectors(base, prompt, vectors)
            nothing = 0 * vectors.sum()  # so that a batch without any subject has a gradient, too
            parts.append(Conditioning(part.states + nothing) if one.dropped else part)
        return Conditioning.joined(parts)

    def begin() -> list[Group]:
        encoder.float().to(base.unet.device)
        groups = [Group("encoder", trained, settings.learning_rate, settings.weight_decay)]
        if settings.unet:
            unet = dict(base.unet.float().named_parameters())
            groups.append(Group("unet", unet, settings.learning_rate, settings.weight_decay))
        return groups

    def show(samples: Sequence[Sample]) -> None:
        now[:] = shown(samples)

    @contextmanager
    def at_work() -> Iterator[None]:
        base.staged = staged
        encoder.train(settings.dropout)
        try:
            yield
        finally:
            base.staged = None
            encoder.eval()

    def caption(photo: PersonPhoto) -> str:
        said = photo.example.caption
        return f"a {settings.class_word}, {said}" if said else f"a {settings.class_word}"

    training = adapter_phase(
        base,
        settings,
        PeopleStream(materials.people, settings.drop, settings.another_photo, seed, caption),
        [Objective("reconstruction", lambda f: squared_error(f.prediction, f.target).mean())],
        begin=begin,
        hooks=at_work,
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        weights = {f"qformer.{key}": value for key, value in to_hub(encoder.state_dict()).items()}
        if settings.unet:
            weights |= {f"unet.{key}": value for key, value in base.unet.state_dict().items()}
        return [Saved(save_adapter(weights, folder, name, record), SavedKind.TUNED_SUBJECT)]

    return Recipe(settings.title, settings, [training], (), save)


def _encoder(materials: PeopleMaterials) -> tuple[SubjectEncoder, WordPieces]:
    start = materials.start
    if start is None:
        raise LikenessError(
            "BLIP-Diffusion's encoder is trained further from a published one: write its file into data.start_from."
        )
    adapter = adapters.load(start)
    if not isinstance(adapter, BlipDiffusion) or adapter.encoder is None:
        raise LikenessError(
            f"'{start.name}' is {adapter.title}, which holds no subject encoder of BLIP-Diffusion: write another file "
            "into data.start_from."
        )
    return adapter.encoder, vocabulary_beside(start)


def reference(one: Shown, settings: BlipDiffusionEncoderSettings) -> Tensor:
    """What the encoder sees of a sample, (1, H, W, 3), 0..1: a plain colour or noise outside of the mask, where there
    is one."""
    example = one.reference.example
    image, mask = (example.pixels + 1) / 2, example.face_mask
    if mask is not None and settings.random_background:
        random = generator(one.seed, "background")
        plain = happens(0.5, random)
        background = torch.rand((3, 1, 1) if plain else image.shape, generator=random)
        image = torch.where(mask > 0.5, image, background)
    return image.permute(1, 2, 0).unsqueeze(0)


def _with_vectors(base: BaseModel, prompt: str, vectors: Tensor) -> Conditioning:
    """A prompt in one window, with vectors (n, dim) behind its first word."""
    tower = base.text[0]
    tokenizer = tower.tokenizer
    found = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    length = min(tokenizer.model_max_length, tower.encoder.config.max_position_embeddings)
    end, count = tokenizer.eos_token_id, len(vectors)
    words = [*found[:1], *[end] * count, *found[1:]][: length - 2]
    ids = [tokenizer.bos_token_id, *words, end]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    start = 1 + len(found[:1])
    places = [(0, start + number, vector) for number, vector in enumerate(vectors)]
    with inserted(tower.encoder.get_input_embeddings(), places):
        return base.encode_ids([[torch.tensor([ids], device=tower.encoder.device)]])


TRAINABLE = AdapterTrainable(BlipDiffusionEncoderSettings, blip_diffusion_encoder)
