"""`likeness train`: a word, a LoRA or a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import one_line
from ..storage import check_folder, check_name
from . import opening


def train(config: Annotated[Path, typer.Argument(help="A TOML file; see docs/training.md.")]) -> None:
    """Train a word, a LoRA or a whole model on photos. Stopped with Ctrl-C, the same command resumes it."""
    from ..miniature.models.base_model import base_model
    from ..training.base.files import load_base
    from ..training.command import Openers, read_configuration, run

    configuration = read_configuration(config)
    check_name(configuration.name, "The entry 'name'")
    check_folder(configuration.output, "The folder in 'output'")
    openers = Openers(lambda name: base_model() if name == "miniature" else load_base(Path(name)), opening.open_faces)
    for path in run(configuration, openers):
        print(one_line(path))
