"""What is behind the Train nodes: a method's settings from what a user chooses, and the training itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from ..errors import LikenessError
from ..injection.comfy import BareAdapter, ManagedAdapter
from ..training.base.model import BaseModel
from ..training.class_pictures import class_pictures
from ..training.config import MethodSettings, Precision, RunSettings, Settings
from ..training.data.captions import renamed
from ..training.data.dataset import Dataset
from ..training.data.examples import Example
from ..training.materials import ConceptPhotos, Materials
from ..training.methods.method import Method, placeholder
from ..training.recipe import Recipe
from ..training.run_record import digest_of_file
from ..training.subject_vectors import subject_vectors
from .adapter_socket import as_managed
from .choices import member
from .companions import find_vocabulary
from .progress import counter
from .training_run import TrainingJob, TrainingOutcome, automatic_precision, measure_on, run_job

CLASS_PICTURES = Path("likeness") / "class_pictures"  # below ComfyUI's output
S = TypeVar("S", bound=Settings)
Sockets = tuple[Any, Any, Any]  # MODEL, CLIP, VAE


class PrecisionChoice(Enum):
    """What the frozen weights are computed in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def chosen(self) -> Precision:
        """AUTO: what the machine does best."""
        return automatic_precision() if self is PrecisionChoice.AUTO else Precision[self.name]


def train_method(
    method: Method,
    sockets: Sockets,
    name: str,
    datasets: Sequence[Dataset],
    values: Mapping[str, Any],
    prompts: Sequence[str],
    face_analysis: Any = None,
    start_from: Path | None = None,
    adapter: Any = None,
) -> TrainingOutcome:
    """Train by a method. values: of all choices, by the node's inputs. prompts: of the sample images, about the
    datasets' trigger words. face_analysis: None where nobody asks for likeness. start_from: a LoRA that is trained
    further, whose ranks and layers stand in the place of those chosen. adapter: which makes the vectors to start from.
    """
    settings = settings_of(method, values, datasets)
    if start_from is not None:
        settings = settings.started()
    for dataset, word in zip(datasets, settings.learned_words, strict=False):
        prompts = [renamed(prompt, dataset.trigger, word) for prompt in prompts]
    run = _checked(
        RunSettings,
        seed=values["seed"],
        batch=values["batch_size"],
        precision=member(PrecisionChoice, values["precision"], "precision").chosen,
        gradient_checkpointing=values["gradient_checkpointing"],
        save_every=values["save_every"],
        preview_every=values["preview_every"],
        preview_prompts=tuple(prompts),
    )

    managed = None if adapter is None else as_managed(adapter)
    vectors = None if managed is None else _vectors(managed, datasets[0])

    def make(base: BaseModel, device: torch.device, complete: bool) -> Recipe:
        measure = None if face_analysis is None else measure_on(face_analysis, device)
        concepts = [ConceptPhotos(*each) for each in zip(datasets, settings.learned_words, strict=False)]
        materials = Materials(concepts, _class_pictures, device, measure, None, start_from, complete, vectors)
        return method.trainable.make(base, materials, settings, run.seed)

    also = [] if start_from is None else [digest_of_file(start_from)]
    also += [] if face_analysis is None else [str(getattr(face_analysis, "name", "other"))]
    also += [] if managed is None else [managed.adapter.fingerprint]
    return run_job(TrainingJob(name, *sockets, datasets, run, settings, make, run.preview_prompts, also))


def _vectors(adapter: ManagedAdapter | BareAdapter, dataset: Dataset) -> torch.Tensor:
    """What an adapter makes of a dataset's photos, while it is where ComfyUI computes."""
    if isinstance(adapter, ManagedAdapter):
        adapter.load()
    return subject_vectors(adapter.adapter, dataset, dataset.class_word, find_vocabulary)


def settings_of(method: Method, values: Mapping[str, Any], datasets: Sequence[Dataset]) -> MethodSettings:
    """A method's settings from the choices in its node; LikenessError naming the first that is impossible."""
    kind, chosen = method.trainable.settings, {}
    for knob in method.knobs:
        if knob.setting:
            _put(chosen, knob.setting, values[knob.name])
    for name, dataset in zip(kind.words, datasets, strict=False):
        chosen[name] = placeholder(dataset.trigger) if method.learns_words else dataset.trigger
    return _checked(kind, **chosen | method.trainable.choose(values, datasets))


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *above, name = path.split(".")
    for part in above:
        values = values.setdefault(part, {})
    values[name] = value


def _checked(kind: type[S], **values: Any) -> S:
    """Settings; LikenessError naming the first value that is impossible."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LikenessError(f"The setting {where} cannot be {first['input']!r}: {first['msg']}.") from None


def _class_pictures(base: BaseModel, prompt: str, count: int, size: tuple[int, int]) -> list[Example]:
    """What the untouched model makes of a class: generated once for all trainings of this model, prompt and size."""
    import folder_paths

    key = hashlib.sha256(repr((base.fingerprint(), prompt, size)).encode()).hexdigest()[:16]
    folder = Path(folder_paths.get_output_directory()) / CLASS_PICTURES / key
    return class_pictures(base, prompt, count, folder, size, after_each=counter(count))
