"""What a device cannot do ends a training in a sentence, whichever device and precision it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from likeness.errors import LikenessError
from likeness.training.config import Precision, RunSettings
from likeness.training.engine import make_accelerator, train
from likeness.training.recipe import Objective
from likeness.training.recipes.dreambooth import DreamBoothSettings, dreambooth


def _failing(base, photos, error: Exception):
    recipe = dreambooth(base, photos, DreamBoothSettings(prior_weight=0, steps=2))

    def loss(_: Any) -> torch.Tensor:
        raise error

    return replace(recipe, phases=[replace(recipe.phases[0], objectives=[Objective("loss", loss)])])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        MemoryError(),
        torch.cuda.OutOfMemoryError(),
    ],
)
def test_full_memory_of_any_device_names_what_to_lower(base, photos, tmp_path, error):
    with pytest.raises(LikenessError, match="ran out of memory at step 0 of 'tuning': turn gradient check") as found:
        train(base, _failing(base, photos, error), RunSettings(), tmp_path)
    assert found.value.__cause__ is error


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT32])
def test_a_precision_that_a_device_lacks_is_named_where_it_was_asked_for(base, photos, tmp_path, precision):
    error = RuntimeError("\"slow_conv2d_cpu\" not implemented for 'BFloat16'")
    asked = precision is Precision.BFLOAT16
    words = r"bfloat16 \('bf16'\) does not work on this device" if asked else "slow_conv2d"
    with pytest.raises(LikenessError if asked else RuntimeError, match=words):
        train(base, _failing(base, photos, error), RunSettings(precision=precision), tmp_path)


def test_float16_on_a_cpu_is_refused_before_anything_else():
    with pytest.raises(LikenessError, match=r"float16 \('fp16'\) does not work on this device .*choose another one"):
        make_accelerator(RunSettings(precision=Precision.FLOAT16), cpu=True)
