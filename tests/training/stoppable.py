"""`likeness train` on a model of a few thousand weights, started by test_command.py and stopped by it: argv is the
configuration."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from likeness.training.command import Openers, read_configuration, run


def models() -> Any:
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    small_base = models().small_base
    openers = Openers(lambda name: small_base(), lambda name: None)  # type: ignore[arg-type, return-value]
    run(read_configuration(Path(sys.argv[1])), openers)
