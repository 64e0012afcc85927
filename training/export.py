"""Results as files that ComfyUI loads: LoRA, embedding, checkpoint. Nothing is ever overwritten or left half-written.

A file is first written under a temporary name beside its destination and then renamed; when the name is taken by
another file, a number is added. Metadata tells recipe, steps and trigger words, never paths, hosts or a licence nobody
gave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.blip_diffusion.files import VECTORS
from ..adapters.sefi_ide.file import Subject, subject_metadata, subject_tensors
from ..errors import LikenessError
from ..storage import free_names, write_new
from ..weights.checkpoint_layout import checkpoint_weights
from ..weights.concepts import Concept, concept_tensors
from ..weights.embedding_files import TokenEmbedding, embedding_tensors
from ..weights.families import SD2, SDXL, Family
from ..weights.lora import LoraPair
from ..weights.lora_files import SDXL_TEXT_1, SDXL_TEXT_2, TEXT, kohya_text_names, kohya_unet_names, kohya_weights
from .base.noise import Prediction
from .data.names import prompt_stem

SUFFIX = ".safetensors"


class SavedKind(Enum):
    """What a result is; the value is the host's folder for it."""

    LORA = "loras"
    EMBEDDING = "embeddings"
    CHECKPOINT = "checkpoints"
    CONCEPT = "custom_diffusion"
    SUBJECT = "sefi_ide"
    IP_ADAPTER = "ipadapter"
    INSTANTID = "instantid"
    CONTROLNET = "controlnet"
    PHOTOMAKER = "photomaker"
    PHOTOVERSE = "photoverse"
    PULID = "pulid"
    STORYMAKER = "storymaker"
    TUNED_SUBJECT = "blip_diffusion"
    FASTCOMPOSER = "fastcomposer"

    @property
    def label(self) -> str:
        """As users read it."""
        return _LABELS.get(self, "adapter")


_LABELS = {
    SavedKind.LORA: "LoRA",
    SavedKind.EMBEDDING: "embedding",
    SavedKind.CHECKPOINT: "checkpoint",
    SavedKind.CONCEPT: "concept",
    SavedKind.SUBJECT: "subject",
    SavedKind.TUNED_SUBJECT: "subject",
    SavedKind.CONTROLNET: "ControlNet",
}


@dataclass(frozen=True)
class Saved:
    """A result's file, and what it is."""

    path: Path
    kind: SavedKind


@dataclass(frozen=True)
class TrainingRecord:
    """What a file says about its own making.

    recipe: the method's name. resolution: (width, height). extra: further `ss_` entries, without the prefix, such as
    the learning rate.
    """

    recipe: str
    base: Family
    steps: int
    trigger_words: tuple[str, ...] = ()
    seed: int | None = None
    resolution: tuple[int, int] | None = None
    prediction: Prediction = Prediction.EPSILON
    finished: datetime | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


# Metadata -------------------------------------------------------------------------------------------------------------


def _common_metadata(record: TrainingRecord, title: str, kind: str) -> dict[str, str]:
    finished = record.finished or datetime.now(timezone.utc)
    entries = {
        "ss_output_name": title,
        "ss_base_model_version": record.base.kohya,
        "ss_v2": str(record.base is SD2),
        "ss_steps": str(record.steps),
        "ss_training_comment": record.recipe,
        "ss_training_finished_at": str(finished.timestamp()),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": record.base.modelspec + kind,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.date": finished.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": "v" if record.prediction is Prediction.VELOCITY else "epsilon",
        "modelspec.trigger_phrase": ", ".join(record.trigger_words),
    }
    if record.seed is not None:
        entries["ss_seed"] = str(record.seed)
    if record.resolution is not None:
        entries["ss_resolution"] = str(record.resolution)
        entries["modelspec.resolution"] = "{}x{}".format(*record.resolution)
    return entries | {f"ss_{name}": str(value) for name, value in record.extra.items()}


def _lora_metadata(record: TrainingRecord, title: str, pairs: Sequence[LoraPair]) -> dict[str, str]:
    ranks = {pair.rank for pair in pairs}
    alphas = {round(pair.scale * pair.rank, 6) for pair in pairs}
    return _common_metadata(record, title, "/lora") | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }


def _with_hashes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """A1111 tells networks apart by the hash of their tensors, and by an older one of 64 KiB of the file."""
    from safetensors.torch import save

    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(dict(tensors), training)
    body = 8 + int.from_bytes(content[:8], "little")
    return metadata | {
        "sshs_model_hash": hashlib.sha256(content[body:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


# Files ----------------------------------------------------------------------------------------------------------------


def write_safetensors(
    tensors: Mapping[str, Tensor], folder: Path, name: str, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors to a file of this name in the folder, whole or not at all; returns its path.

    A number is added when something else has the name. A file that holds these very tensors stays, and is the one: so a
    result that was written just before a crash is not written twice. Characters that file systems or prompts cannot
    hold become underscores. Raises LikenessError when a tensor holds NaN or infinity, and when the disk is full or
    read-only.
    """
    from safetensors.torch import save_file

    broken = next((key for key, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise LikenessError(
            f"The result holds values that are not numbers ({broken}) and was not saved: lower the learning rate and "
            "train again from the last saved step."
        )
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return store(folder, prompt_stem(name), lambda part: save_file(plain, part, dict(metadata or {})))
    except Exception as error:
        raise LikenessError(
            f"'{name}' could not be saved in the folder '{folder.name}' ({error}): free some space or choose a folder "
            "that can be written to."
        ) from error


def store(folder: Path, stem: str, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a .safetensors file of this name, or a numbered one where others have it; returns the path.

    Where one of these others holds the same tensors, it is that one's, and nothing is added.
    """
    new = write_new(folder, stem, SUFFIX, write)
    for name in free_names(stem, SUFFIX):
        if name == new.name:
            return new
        if _same_tensors(new, folder / name):
            new.unlink()
            return folder / name
    raise AssertionError("it has one of these names")


def _same_tensors(one: Path, other: Path) -> bool:
    """Whether two .safetensors files hold the same tensors, whatever their metadata."""
    from safetensors import SafetensorError, safe_open

    if not other.is_file():  # a folder or a pipe has the name
        return False
    try:
        with safe_open(one, "pt") as mine, safe_open(other, "pt") as theirs:
            return set(mine.keys()) == set(theirs.keys()) and all(
                _same(mine.get_tensor(key), theirs.get_tensor(key))
                for key in mine.keys()  # noqa: SIM118
            )
    except (OSError, SafetensorError):  # a file that is not whole, or none of this kind
        return False


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _as(dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def save_lora(
    unet: nn.Module,
    unet_pairs: Mapping[str, LoraPair],
    folder: Path,
    name: str,
    record: TrainingRecord,
    text_encoders: Sequence[nn.Module] = (),
    text_pairs: Sequence[Mapping[str, LoraPair]] = (),
    dtype: torch.dtype = torch.float16,
) -> Path:
    """A LoRA with kohya's keys; returns its path. text_pairs: one mapping per text encoder, empty ones allowed."""
    tensors = kohya_weights(unet_pairs, kohya_unet_names(unet))
    components = (SDXL_TEXT_1, SDXL_TEXT_2) if len(text_encoders) > 1 else (TEXT,)
    for encoder, pairs, component in zip(text_encoders, text_pairs, components, strict=False):
        tensors |= kohya_weights(pairs, kohya_text_names(encoder, component))
    every = [*unet_pairs.values(), *(pair for pairs in text_pairs for pair in pairs.values())]
    tensors = {key: value.detach().cpu().contiguous() for key, value in _as(dtype, tensors).items()}
    metadata = _with_hashes(tensors, _lora_metadata(record, name, every))
    return write_safetensors(tensors, folder, name, metadata)


def save_embedding(embedding: TokenEmbedding, folder: Path, name: str, record: TrainingRecord) -> Path:
    """A textual-inversion file, float32; returns its path. Prompts call it `embedding:` and the file's name."""
    metadata = _common_metadata(record, name, "/textual-inversion")
    return write_safetensors(_as(torch.float32, embedding_tensors(embedding)), folder, name, metadata)


def save_concept(concept: Concept, folder: Path, name: str, record: TrainingRecord) -> Path:
    """A Custom Diffusion file, float32, with the words in it; returns its path."""
    metadata = _common_metadata(record, name, "/custom-diffusion") | dict(concept.metadata)
    return write_safetensors(_as(torch.float32, concept_tensors(concept)), folder, name, metadata)


def save_subject(subject: Subject, folder: Path, name: str, record: TrainingRecord) -> Path:
    """A SeFi-IDE subject, float32; returns its path."""
    metadata = _common_metadata(record, name, "/sefi-ide") | subject_metadata(subject)
    return write_safetensors(_as(torch.float32, subject_tensors(subject)), folder, name, metadata)


def save_adapter(
    weights: Mapping[str, Tensor],
    folder: Path,
    name: str,
    record: TrainingRecord,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """An adapter, or another network, in its official layout; returns its path."""
    entries = _common_metadata(record, name, "/adapter") | dict(metadata or {})
    return write_safetensors(_as(dtype, weights), folder, name, entries)


def save_tuned_subject(
    vectors: Tensor,
    unet_pairs: Mapping[str, LoraPair],
    unet: Mapping[str, Tensor],
    told: Mapping[str, str],
    folder: Path,
    name: str,
    record: TrainingRecord,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """A subject of BLIP-Diffusion: its vectors (n, dim), float32, with a LoRA or all weights of the UNet; returns its
    path. told: metadata that the adapter reads."""
    tensors = {VECTORS: vectors.float().unsqueeze(0)}
    for path, pair in unet_pairs.items():
        halves = {"lora_A": pair.down, "lora_B": pair.up * pair.scale}
        tensors |= {f"unet.{path}.{half}.weight": value.to(dtype) for half, value in halves.items()}
    tensors |= {f"unet.{key}": value for key, value in _as(dtype, unet).items()}
    metadata = _common_metadata(record, name, "/blip-diffusion") | dict(told)
    return write_safetensors(tensors, folder, name, metadata)


def save_checkpoint(
    unet: Any,
    vae: Mapping[str, Tensor],
    text_encoders: Sequence[Any],
    folder: Path,
    name: str,
    record: TrainingRecord,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """A full single-file checkpoint; returns its path. vae: its weights under original names.

    SDXL models that predict velocity carry the key `v_pred`.
    """
    tensors = _as(dtype, checkpoint_weights(unet, vae, text_encoders, record.base))
    if record.base is SDXL and record.prediction is Prediction.VELOCITY:
        tensors["v_pred"] = torch.tensor([])
    return write_safetensors(tensors, folder, name, _common_metadata(record, name, ""))
