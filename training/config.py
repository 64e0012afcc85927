"""What a user chooses about any training; the recipes add their own. Saved in full with every run."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import torch
from pydantic import ConfigDict, Field
from torch import nn

from ..errors import LikenessError
from ..weights.lora import LoraPair
from .base.lora import Reach, add_lora, continue_lora, lora_parameters, lora_targets

# What no training could use is refused before it begins; a hang or full memory would be the answer otherwise.
MOST_STEPS = 1_000_000
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Moment = Annotated[int, Field(ge=0, le=MOST_STEPS)]  # a step, or a number of steps that may be none
Rate = Annotated[float, Field(gt=0, le=1)]  # of learning
Weight = Annotated[float, Field(ge=0, le=1000)]  # of a loss, beside others


M = TypeVar("M", bound="MethodSettings")


class Seen(Flag):
    """What a method may look at in a photo, beside its pixels."""

    CAPTIONS = auto()
    MASKS = auto()
    KEYPOINTS = auto()


class Settings(pydantic.BaseModel):
    """Base of all settings: unknown names and impossible values are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodSettings(Settings):
    """Base of every method's settings, whose `kind` is the method's name in configurations and in run folders.

    phases, words, loras: which fields are numbers of steps, in the order of the phases; the words to be learned, in the
    order of the concepts; and the settings of LoRAs.
    """

    title: ClassVar[str] = ""  # the method's name
    phases: ClassVar[tuple[str, ...]] = ("steps",)
    words: ClassVar[tuple[str, ...]] = ()
    loras: ClassVar[tuple[str, ...]] = ()

    @property
    def steps_of_phases(self) -> dict[str, int]:
        """The settings that are numbers of steps, in the order of the phases."""
        return {name: getattr(self, name) for name in self.phases}

    @classmethod
    def shared_steps(cls, steps: int) -> dict[str, int]:
        """`steps` shared by the phases alike, the last one's share taking what is left over."""
        each = steps // len(cls.phases)
        return dict.fromkeys(cls.phases[:-1], each) | {cls.phases[-1]: steps - each * (len(cls.phases) - 1)}

    @property
    def learned_words(self) -> tuple[str, ...]:
        """What the concepts are called, in their order."""
        return tuple(getattr(self, name) for name in self.words)

    @property
    def idle(self) -> set[str]:
        """The settings that the others leave without any effect on the weights."""
        return set()

    @property
    def deciding(self) -> dict[str, Any]:
        """Those that decide over the weights, which a resumed run must share; the numbers of steps left out."""
        return self.model_dump(mode="json", exclude=self.idle | set(self.steps_of_phases))

    @property
    def sees(self) -> Seen:
        """What of the photos decides over the weights."""
        return ~Seen(0)

    @property
    def trains_all_weights(self) -> bool:
        """Whether the networks themselves are trained, which must then not be rounded beforehand."""
        return False

    @property
    def measures_identity(self) -> bool:
        """Whether a loss looks at the face through a recogniser."""
        return False

    def templates_of(self, concept: int) -> tuple[str, ...]:
        """What is said of a concept's photos that have no caption; empty: what the dataset says."""
        return ()

    def started(self: M) -> M:
        """These settings for a training that starts from a LoRA's file: what the file decides is left out, so that it
        tells no runs apart."""
        return self.model_copy(update={name: LoraSettings(dropout=getattr(self, name).dropout) for name in self.loras})


class Precision(Enum):
    """What the frozen weights are kept in and the passes computed in; trained parameters are always float32."""

    FLOAT32 = "no"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.value]


class Optimiser(Enum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw 8-bit"  # with bitsandbytes
    PRODIGY = "prodigy"  # with prodigyopt


class RateSchedule(Enum):
    CONSTANT = "constant"
    LINEAR = "linear"  # to 0
    COSINE = "cosine"  # to 0

    def factor(self, steps: int, warm_up: int = 0, ahead: int = 0) -> Callable[[int], float]:
        """What the learning rate of each step is multiplied by. ahead: steps by which the schedule precedes the
        optimiser (1 for trainers that step the schedule first)."""

        def factor(step: int) -> float:
            progress = min(1.0, (step + ahead) / steps)
            rising = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
            if self is RateSchedule.LINEAR:
                return rising * (1 - progress)
            return rising * (0.5 + 0.5 * math.cos(math.pi * progress) if self is RateSchedule.COSINE else 1.0)

        return factor


class LoraSettings(Settings):
    """A LoRA's size and reach."""

    rank: int = Field(default=4, ge=1, le=1024)
    alpha: float | None = Field(
        default=None, gt=0, le=10_000, description="None: the rank, so that the change is not scaled."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    reach: Reach = Reach.ATTENTION

    def add_to(self, model: nn.Module, start: Mapping[str, LoraPair] | None = None) -> dict[str, nn.Parameter]:
        """Give the model trainable layers that change nothing yet, or those of a LoRA to start from, whose size and
        reach count; returns their parameters by name."""
        if start:
            continue_lora(model, start, self.dropout)
        else:
            add_lora(model, lora_targets(model, self.reach), self.rank, self.alpha, self.dropout)
        return lora_parameters(model)


class RunSettings(Settings):
    """How a training runs, whatever it trains."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    batch: int = Field(default=1, ge=1, le=256)
    accumulation: int = Field(default=1, ge=1, le=1024, description="Batches per step.")
    precision: Precision = Precision.FLOAT32
    optimiser: Optimiser = Optimiser.ADAMW
    gradient_checkpointing: bool = False
    ema: float = Field(default=0.0, ge=0, lt=1, description="Decay of the weights' moving average (EMA); 0: none.")
    save_every: Steps = 200
    preview_every: Moment = Field(default=0, description="Steps between sample images; 0: none.")
    preview_prompts: tuple[str, ...] = Field(default=(), max_length=100)
    cache_latents: bool = True
    cache_text: bool = True
    cache_megabytes: int = Field(
        default=1024, ge=0, le=10_000_000, description="What a cache may hold in memory; the rest goes to disk."
    )

    @property
    def deciding(self) -> dict[str, Any]:
        """Those that decide over the weights, which a resumed run must share."""
        return self.model_dump(mode="json", include={"seed", "batch", "accumulation", "precision", "optimiser", "ema"})


def network_dtype(method: MethodSettings, run: RunSettings) -> torch.dtype:
    """What the networks are kept in: the run's precision where they are frozen."""
    return torch.float32 if method.trains_all_weights else run.precision.dtype


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. until: the step after which they rest; None: never."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    until: int | None = None


def make_optimiser(kind: Optimiser, groups: Iterable[Group]) -> torch.optim.Optimizer:
    """Betas .9/.999, eps 1e-8. Raises LikenessError when the optimiser's package is not installed.

    AdamW reads and writes what it holds once a step where the device has a kernel for it, else several times.
    """
    settings: list[dict[str, Any]] = [
        {"params": list(group.parameters.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    if kind is Optimiser.ADAMW:
        with suppress(RuntimeError):  # no such kernel
            return torch.optim.AdamW(settings, fused=True)
    return optimiser_class(kind)(settings)


def optimiser_class(kind: Optimiser) -> Callable[..., torch.optim.Optimizer]:
    """Raises LikenessError when the optimiser's package is not installed."""
    if kind is Optimiser.ADAMW:
        return torch.optim.AdamW
    package, name = {
        Optimiser.ADAMW_8BIT: ("bitsandbytes.optim", "AdamW8bit"),
        Optimiser.PRODIGY: ("prodigyopt", "Prodigy"),
    }[kind]
    try:
        return getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise LikenessError(
            f"The optimiser '{kind.value}' needs the package {package.split('.')[0]}, which is not installed here: "
            "install it, or choose 'adamw'."
        ) from error
