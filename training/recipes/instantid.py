"""InstantID: tokens of a face for the denoiser, and an IdentityNet that places it (arXiv 2401.07519).

    L = E ‖ε − ε_θ(z_t, t, c_text, T, IdentityNet(z_t, t, T, keypoints))‖²,    T = Resampler(e)

Trained are the Resampler, K' and V' of every cross-attention layer, and IdentityNet, a ControlNet that reads T in place
of the text. It begins as a copy of the UNet's first half, or as the file it goes on from. The person is left out as an
embedding of zeros; the keypoints stay. There is no official training code: rates and decay are those that are reported
to reproduce it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ... import adapters
from ...adapters.effects import ControlContext
from ...adapters.instantid import ID_DIM, InstantID
from ...adapters.types import IdentityTokens
from ...errors import LikenessError
from ...faces import draw_keypoints
from ...injection.diffusers.control import Controlled, ControlNet
from ...injection.diffusers.place import Place
from ...injection.plan import Role, check_fit
from ...injection.sites import sites_of_diffusers_unet
from ...weights.files import read_weights
from ..base.model import BaseModel
from ..config import Group, Rate
from ..data.people import PersonPhoto
from ..export import Saved, SavedKind, TrainingRecord, save_adapter
from ..ip_adapter import fresh_key_values, fresh_resampler, image_projection, text_width
from ..materials import AdapterTrainable, PeopleMaterials
from ..recipe import Recipe, Sample
from .adapter_training import (
    AdapterSettings,
    EncodedPhotos,
    LiveTerm,
    PeopleStream,
    adapter_phase,
    fresh_weights,
    reconstruction,
    shown,
    without,
)

TOKENS = 16
_HINT_CHANNELS = (16, 32, 96, 256)  # of the layers that read the hint, each but the first halving it
_NAME = "instantid"  # in the file's name, by which it is told from FaceID Portrait


class InstantIDSettings(AdapterSettings):
    """Defaults: a rate and a decay that are reported to reproduce it."""

    title: ClassVar[str] = "InstantID"
    kind: Literal["instantid"] = "instantid"
    learning_rate: Rate = 1e-5
    another_photo: float = 0.0


def instantid(base: BaseModel, materials: PeopleMaterials, settings: InstantIDSettings, seed: int = 0) -> Recipe:
    """The recipe, for every UNet with cross-attention; published files are for SDXL."""
    embedding = materials.people.photos[0].embedding
    if embedding is None or len(embedding) != ID_DIM:
        raise LikenessError(
            f"InstantID reads embeddings of {ID_DIM} numbers, as antelopev2 makes them: write antelopev2 into "
            "data.faces."
        )
    adapter = _start(materials.start, base) if materials.start else _fresh(base, seed)
    net = identity_net(base, materials.control)
    adapter.float().requires_grad_(True)
    net.float().requires_grad_(True)
    parameters = dict(adapter.named_parameters())
    live, control = LiveTerm(base.unet, adapter), LiveControl(base.unet, net)
    photos = EncodedPhotos(_encode)

    def begin() -> list[Group]:
        device = base.unet.device
        adapter.to(device)
        net.to(device)
        rate, decay = settings.learning_rate, settings.weight_decay
        return [
            Group("adapter", parameters, rate, decay),
            Group("identitynet", dict(net.named_parameters()), rate, decay),
        ]

    def show(samples: Sequence[Sample]) -> None:
        people = shown(samples)
        ids = photos.of([person.reference for person in people], base.unet.device)["id"]
        tokens = adapter.image_proj(without(ids, [person.dropped for person in people]).unsqueeze(1))
        live.show(tokens)
        control.show(tokens, torch.cat([hint_of(person.target) for person in people]))

    training = adapter_phase(
        base,
        settings,
        PeopleStream(materials.people, settings.drop, settings.another_photo, seed),
        [reconstruction()],
        begin=begin,
        hooks=lambda: photos.kept_with(live.at_work, control.at_work),
        show=show,
    )

    def save(folder: Path, name: str, record: TrainingRecord) -> list[Saved]:
        if _NAME not in name.lower():
            name = f"{name}-{_NAME}"
        about = {"recogniser": materials.people.recogniser or ""}
        return [
            Saved(save_adapter(adapter.state_dict(), folder, name, record, about), SavedKind.INSTANTID),
            Saved(save_adapter(net.state_dict(), folder, f"{name}-identitynet", record), SavedKind.CONTROLNET),
        ]

    return Recipe(settings.title, settings, [training], (), save)


def _start(file: Path, base: BaseModel) -> InstantID:
    adapter = adapters.load(file, system=InstantID.title)
    assert isinstance(adapter, InstantID)
    check_fit(adapter, sites_of_diffusers_unet(base.unet), type(base.unet).__name__)
    return adapter


def _fresh(base: BaseModel, seed: int) -> InstantID:
    with fresh_weights(seed):
        network = fresh_resampler(ID_DIM, text_width(base.unet), TOKENS)
        return InstantID(fresh_key_values(base.unet) | image_projection(network), _NAME)


def _encode(photo: PersonPhoto) -> Mapping[str, Tensor]:
    assert photo.embedding is not None
    return {"id": photo.embedding}


def hint_of(photo: PersonPhoto, *others: PersonPhoto) -> Tensor:
    """The image of a photo's keypoints that IdentityNet sees, those of others in it too: (1, 3, H, W), 0..1."""
    height, width = photo.example.size
    drawn = draw_keypoints([each.keypoints.numpy() for each in (photo, *others)], width, height)
    return torch.from_numpy(np.ascontiguousarray(drawn)).permute(2, 0, 1)[None].float() / 255


# IdentityNet ----------------------------------------------------------------------------------------------------------


def identity_net(base: BaseModel, start: Path | None = None) -> Any:
    """A ControlNet of this UNet's sizes that adds nothing yet, or that of a file or folder in diffusers' layout.

    Raises LikenessError when the file is another network's.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    halvings = base.codec.decoder.pixels_per_cell.bit_length() - 1
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=_HINT_CHANNELS[: halvings + 1])
    if start is not None:
        file = next(iter(sorted(start.glob("*.safetensors"))), start) if start.is_dir() else start
        weights, _ = read_weights(file)
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            raise LikenessError(
                f"'{start.name}' is not an IdentityNet of this base model in diffusers' layout: write ControlNetModel "
                "of InstantX/InstantID, or an earlier result, into data.control."
            ) from error
    return net


class LiveControl:
    """A ControlNet that runs before each call of the UNet, with gradient."""

    def __init__(self, unet: nn.Module, net: Any) -> None:
        self._unet, self._net = unet, net
        self._controlled: Any = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Until this is left."""
        nobody = IdentityTokens(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
        pair = ControlContext(_NAME, nobody), ControlNet(self._net, torch.zeros(1, 3, 8, 8))
        self._controlled = Controlled(self._unet, [pair], Place((Role.COND,)))
        self._net.train()
        if getattr(self._unet, "is_gradient_checkpointing", False):
            self._net.enable_gradient_checkpointing()
        try:
            yield
        finally:
            self._controlled.eject()
            self._net.eval()
            self._net.disable_gradient_checkpointing()

    def show(self, tokens: Tensor, hints: Tensor) -> None:
        """What it reads at the next passes: (batch, n, dim), and images (batch, 3, H, W), 0..1."""
        context = ControlContext(_NAME, IdentityTokens(tokens, tokens[:1].detach()))
        self._controlled.pairs = [(context, ControlNet(self._net, hints))]


TRAINABLE = AdapterTrainable(InstantIDSettings, instantid)
