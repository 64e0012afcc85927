"""The methods behind the Train nodes: a recipe's settings from what a user chooses, and the recipe itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from ..errors import LikenessError
from ..training.base.lora import Reach, load_lora
from ..training.base.model import BaseModel
from ..training.config import LoraSettings, Precision, RunSettings, Settings
from ..training.data.captions import renamed
from ..training.data.dataset import Dataset
from ..training.data.examples import Example
from ..training.data.portraits import portraits
from ..training.recipe import Recipe
from ..training.recipes.denoising import Mask
from ..training.recipes.dreambooth import (
    DreamBoothSettings,
    class_pictures,
    class_size,
    dreambooth,
    require_trainable,
    start_of,
)
from ..training.recipes.magicapture import MagiCaptureSettings, magicapture
from ..training.recipes.textual_inversion import Tether, TextualInversionSettings, textual_inversion
from ..training.run_record import digest_of_file
from .choices import member
from .progress import counter
from .training_run import Job, Outcome, automatic_precision, measure_on, run_job

CLASS_PICTURES = Path("likeness") / "class_pictures"  # below ComfyUI's output


class Tuned(Enum):
    """What DreamBooth trains: a LoRA beside the weights, or these."""

    LORA = "LoRA"
    ALL = "all weights (checkpoint)"


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


def run_settings(
    seed: int,
    batch: int,
    precision: str,
    checkpointing: bool,
    save_every: int,
    preview_every: int,
    prompts: Sequence[str],
) -> RunSettings:
    """How a training runs, whatever it trains."""
    return _checked(
        RunSettings,
        seed=seed,
        batch=batch,
        precision=member(PrecisionChoice, precision, "precision").chosen,
        gradient_checkpointing=checkpointing,
        save_every=save_every,
        preview_every=preview_every,
        preview_prompts=tuple(prompts),
    )


def _checked(kind: type[S], **values: Any) -> S:
    """Settings of a method; LikenessError naming the first value that is impossible."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LikenessError(f"The setting {where} cannot be {first['input']!r}: {first['msg']}.") from None


def placeholder(dataset: Dataset) -> str:
    """What a dataset's trigger word is called while it is learned: in brackets, because rare words such as ohwx are
    words of CLIP already, and would be two things at once."""
    return f"<{dataset.trigger.strip('<>')}>"


def _with_placeholders(run: RunSettings, *datasets: Dataset) -> RunSettings:
    """The settings with placeholders in the preview prompts."""
    prompts = run.preview_prompts
    for dataset in datasets:
        prompts = tuple(renamed(prompt, dataset.trigger, placeholder(dataset)) for prompt in prompts)
    return run.model_copy(update={"preview_prompts": prompts})


def train_textual_inversion(
    sockets: Sockets, name: str, dataset: Dataset, run: RunSettings, *, tether: str, mask: str, **chosen: Any
) -> Outcome:
    """One embedding. chosen: further settings by the recipe's names."""
    method = _checked(
        TextualInversionSettings,
        token=placeholder(dataset),
        tether=member(Tether, tether, "tether"),
        mask=member(Mask, mask, "mask"),
        captions=True,
        **chosen,
    )

    run = _with_placeholders(run, dataset)

    def make(base: BaseModel, device: torch.device, complete: bool) -> Recipe:
        return textual_inversion(base, dataset.called(method.token).examples(), method, run.seed)

    return run_job(Job(name, *sockets, [dataset], run, method, make, run.preview_prompts))


def train_dreambooth(
    sockets: Sockets,
    name: str,
    dataset: Dataset,
    run: RunSettings,
    *,
    rank: int,
    layers: str,
    mask: str,
    tuned: str,
    start_from: Path | None,
    **chosen: Any,
) -> Outcome:
    """One LoRA, or one checkpoint. start_from: a LoRA that is trained further, whose rank and layers stand in the place
    of those chosen. chosen: further settings by the recipe's names."""
    method = _checked(
        DreamBoothSettings,
        full=member(Tuned, tuned, "tuned") is Tuned.ALL,
        identifier=dataset.trigger,
        class_prompt=f"a photo of a {dataset.class_word}",
        lora=LoraSettings() if start_from else _checked(LoraSettings, rank=rank, reach=member(Reach, layers, "layers")),
        mask=member(Mask, mask, "mask"),
        captions=True,
        **chosen,
    )

    def make(base: BaseModel, device: torch.device, complete: bool) -> Recipe:
        start = start_of(base, method, start_from)
        examples = dataset.examples()
        require_trainable(base, examples, method)
        others = examples  # in the place of class pictures, where nothing is left to be learned from them
        if method.prior_weight > 0 and not complete:
            others = _class_pictures(base, method, class_size(examples))
        return dreambooth(base, examples, method, run.seed, others, start)

    also = _also(start_from)
    return run_job(Job(name, *sockets, [dataset], run, method, make, run.preview_prompts, also))


def _also(start_from: Path | None) -> list[str]:
    return [] if start_from is None else [digest_of_file(start_from)]


def _class_pictures(base: BaseModel, method: DreamBoothSettings, size: tuple[int, int]) -> list[Example]:
    """What the untouched model makes of the class: painted once for all trainings of this model, prompt and size."""
    import folder_paths

    painted = repr((base.fingerprint(), method.class_prompt, size))
    folder = (
        Path(folder_paths.get_output_directory()) / CLASS_PICTURES / hashlib.sha256(painted.encode()).hexdigest()[:16]
    )
    count = method.class_pictures
    return class_pictures(base, method.class_prompt, count, folder, size, after_each=counter(count))


def train_magicapture(
    sockets: Sockets,
    name: str,
    person: Dataset,
    style: Dataset,
    run: RunSettings,
    face_analysis: Any,
    templates: tuple[tuple[str, ...], tuple[str, ...]],
    *,
    rank: int,
    identity_weight: float,
    attention_weight: float,
    start_from: Path | None,
    **chosen: Any,
) -> Outcome:
    """A LoRA and two embeddings. face_analysis: None where nobody asks for likeness. templates: person's, style's.
    start_from: a LoRA that the second phase trains further, with its own rank."""
    method = _checked(
        MagiCaptureSettings,
        subject=placeholder(person),
        style=placeholder(style),
        subject_start=person.class_word,
        lora=LoraSettings() if start_from else _checked(LoraSettings, rank=rank, reach=Reach.ATTENTION_AND_GEGLU),
        text_lora=LoraSettings() if start_from else _checked(LoraSettings, rank=rank),
        lambda_id=identity_weight,
        lambda_attention=attention_weight,
        person_templates=templates[0],
        style_templates=templates[1],
        **chosen,
    )
    run = _with_placeholders(run, person, style)

    def make(base: BaseModel, device: torch.device, complete: bool) -> Recipe:
        measure = None if face_analysis is None else measure_on(face_analysis, device)
        people = portraits(person, measure, device)
        lora = None if start_from is None else load_lora(start_from, base.unet, base.encoders)
        return magicapture(base, people, portraits(style), method, run.seed, measure, start_lora=lora)

    also = _also(start_from) + ([] if face_analysis is None else [str(getattr(face_analysis, "name", "other"))])
    return run_job(Job(name, *sockets, [person, style], run, method, make, run.preview_prompts, also))
