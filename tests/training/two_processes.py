"""Half of a training: run by accelerate as two processes of one run (see test_engine.py): argv is its folder, and which
one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from likeness.training.config import RunSettings
from likeness.training.engine import train

sys.path.append(str(Path(__file__).parents[1]))


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    models, tests = module("conftest"), module("test_engine")
    base = models.small_base()
    photos = [models.small_photo(number) for number in range(3)]
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    recipe = tests.SHARED[sys.argv[2]](base, photos)
    train(base, recipe, RunSettings(batch=1), Path(sys.argv[1]), accelerator=accelerator)
