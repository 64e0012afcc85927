"""`python -m likeness.miniature.train`: every network of the miniature world from nothing but drawn images.

Can be stopped at any moment and started again: each stage resumes from its last saved state.
"""

import math
import os
import uuid
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..models.latents import fit_codec, save_codec
from ..models.weights import FOLDER
from .stages import NEEDED, SIDE_BY_SIDE, TEAMWORK, Plan, Stage, at_once, draw, lane_of_stages, member_of_team


def train(
    stages: Annotated[list[Stage] | None, typer.Argument(help="Which networks; default: all.")] = None,
    folder: Annotated[Path, typer.Option(help="Images, states and weights of the run.")] = Path("miniature-run"),
    scale: Annotated[float, typer.Option(help="Steps as a part of the full number; 0.2 takes about 45 minutes.")] = 1,
    minutes: Annotated[float, typer.Option(help="Stop each stage after this many; start again to resume.")] = math.inf,
    processes: Annotated[int, typer.Option(help="How many work at a time; 0: one a core, one on a GPU.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    install: Annotated[bool, typer.Option(help="Put the weights into the pack, in place of the shipped ones.")] = False,
) -> None:
    """Retrain the miniature world."""
    chosen, plan = set(stages or Stage), Plan(folder, scale, 60 * minutes, device)
    cores = os.cpu_count() or 1
    size = processes or (cores if device == "cpu" else 1)
    plan.weights.mkdir(parents=True, exist_ok=True)
    if Stage.LATENTS in chosen and not (plan.weights / "latents.safetensors").exists():
        save_codec(fit_codec(), plan.weights / "latents.safetensors")
    for name in sorted({name for stage in chosen for name in NEEDED[stage]}):
        draw(folder, name, cores)
    lanes = [[stage for stage in lane if stage in chosen] for lane in SIDE_BY_SIDE]
    if size == 1:
        lanes = [[stage for lane in lanes for stage in lane]]
    at_once([(lane_of_stages, (lane, plan, row)) for row, lane in enumerate(lanes) if lane])
    for stage in TEAMWORK:
        if stage in chosen:
            meeting = folder / f"meeting-{uuid.uuid4().hex}"
            at_once([(member_of_team, (stage, plan, rank, size, meeting)) for rank in range(size)])
            meeting.unlink(missing_ok=True)
    if install:
        for file in plan.weights.glob("*.safetensors"):
            (FOLDER / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(train)
    app()
