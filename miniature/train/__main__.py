"""`python -m likeness.miniature.train`: every network of the miniature world from nothing but drawn pictures.

Can be stopped at any moment and started again: each stage goes on from its last saved state.
"""

import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from ...errors import LikenessError
from ...training.loop import Run
from ..corpus import Corpus, Order, draw_corpus
from ..latents import fit_codec, load_codec, save_codec
from ..networks import JUDGE_CROP, RECOGNISER_CROP, build_judge, build_recogniser
from ..weights import ADAPTER_FILE, load_recogniser, load_text_encoder, load_unet, save_weights
from .adapter import AdapterTraining
from .base import BaseTraining
from .observer import ObserverTraining, accuracy
from .recogniser import Augmentation, RecogniserTraining, embed_corpus, verification

# Drawn for training, by nobody else. Every split has its own people (see `people.SPLITS`).
CORPORA = {
    "base": Order("base", 16000, 3),
    "recogniser": Order("recogniser", 4000, 12),
    "judge": Order("judge", 4000, 12),
    "observer": Order("base", 16000, 3),
    "adapter": Order("adapter", 4000, 6),
    "references": Order("adapter", 4000, 4, photos=True),
    "test": Order("test", 100, 12),
}
_ALIGNMENT_ERROR = 0.5  # pixels by which the observer misses a keypoint: references are embedded with as much
# What the judge looks through differs from what the recogniser does, so that the two err differently.
_JUDGE_LOOK = Augmentation(jitter=0.6, light=0.2, tint=0.1, noise=0.02, blurred=0.3, coded=0.4)


class Stage(Enum):
    """A network, in the order in which they need each other. The value is the name of its folder."""

    LATENTS = "latents"
    RECOGNISER = "recogniser"
    JUDGE = "judge"
    OBSERVER = "observer"
    BASE = "base"
    ADAPTER = "adapter"


STEPS = {Stage.RECOGNISER: 1900, Stage.JUDGE: 1900, Stage.OBSERVER: 1200, Stage.BASE: 12000, Stage.ADAPTER: 5000}
# Without a GPU, two trainings of one thread each are faster than one of two threads.
SIDE_BY_SIDE = ((Stage.RECOGNISER, Stage.JUDGE, Stage.OBSERVER), (Stage.BASE,))


def train(
    stages: Annotated[list[Stage] | None, typer.Argument(help="Which networks; default: all.")] = None,
    folder: Annotated[Path, typer.Option(help="Pictures, states and weights of the run.")] = Path("miniature-run"),
    scale: Annotated[float, typer.Option(help="Steps as a part of the full number; 0.25 takes about 45 minutes.")] = 1,
    minutes: Annotated[float, typer.Option(help="Stop each stage after so many; start again to go on.")] = math.inf,
    threads: Annotated[int, typer.Option(help="Of a stage that runs alone; 0 means all cores.")] = 0,
    install: Annotated[bool, typer.Option(help="Put the weights into the pack, in place of the shipped ones.")] = False,
) -> None:
    """Retrain the miniature world."""
    chosen = set(stages or Stage)
    workers = os.cpu_count() or 1
    if Stage.LATENTS in chosen and not (folder / "weights" / "latents.safetensors").exists():
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        save_codec(fit_codec(), folder / "weights" / "latents.safetensors")
    for name in ("base", "recogniser", "judge", "adapter", "references", "test"):
        _draw(folder, name, workers)
    lanes = [[stage for stage in lane if stage in chosen] for lane in SIDE_BY_SIDE]
    lanes = [lane for lane in lanes if lane]
    if len(lanes) > 1 and workers > 1:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_lane, args=(lane, folder, scale, minutes, 1, row)) for row, lane in enumerate(lanes)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(1)
    else:
        for lane in lanes:
            _lane(lane, folder, scale, minutes, threads or workers, 0)
    if Stage.ADAPTER in chosen:
        _lane([Stage.ADAPTER], folder, scale, minutes, threads or workers, 0)
    if install:
        for file in (folder / "weights").glob("*.safetensors"):
            target = ADAPTER_FILE.parent if file.name != "latents.safetensors" else ADAPTER_FILE.parent.parent
            (target / file.name).write_bytes(file.read_bytes())


def _draw(folder: Path, name: str, workers: int = 1) -> Corpus:
    order = CORPORA[name]
    bar: tqdm | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, desc=f"drawing {name}", unit="shard")
        bar.update(done - bar.n)

    try:
        return draw_corpus(order, folder / "corpus", workers, progress)
    finally:
        if bar is not None:
            bar.close()


def _lane(lane: list[Stage], folder: Path, scale: float, minutes: float, threads: int, row: int) -> None:
    """Stages one after the other in this process."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        for stage in lane:
            TRAINERS[stage](folder, max(1, round(scale * STEPS[stage])), 60 * minutes, row)
    except LikenessError as error:
        print(f"likeness: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("likeness: stopped; start again to go on from the saved state.", file=sys.stderr)
        sys.exit(130)


def _go(stage: Stage, run: Run, loss: Callable, seconds: float, row: int) -> dict[str, float]:
    """Resume, train with a progress bar, and say what it took."""
    run.resume()
    began, first = time.monotonic(), run.step
    with tqdm(total=run.steps, initial=run.step, desc=stage.value, unit="step", position=row) as bar:

        def report(step: int, value: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)

        run.go(loss, report, seconds)
    return {"steps": run.step, "steps_of_this_start": run.step - first, "seconds": round(time.monotonic() - began)}


def _finish(stage: Stage, folder: Path, facts: dict, **figures: float) -> None:
    """Add a line to the run's diary: what a model card is written from."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    entry = {"stage": stage.value, "machine": machine, **facts, **figures}
    with (folder / "diary.jsonl").open("a") as diary:
        diary.write(json.dumps(entry) + "\n")


def _train_recogniser(folder: Path, steps: int, seconds: float, row: int) -> None:
    _train_either(Stage.RECOGNISER, build_recogniser, RECOGNISER_CROP, Augmentation(), folder, steps, seconds, row)


def _train_judge(folder: Path, steps: int, seconds: float, row: int) -> None:
    _train_either(Stage.JUDGE, build_judge, JUDGE_CROP, _JUDGE_LOOK, folder, steps, seconds, row)


def _train_either(stage, build, crop, look, folder, steps, seconds, row) -> None:
    corpus = _draw(folder, stage.value)
    seed = {Stage.RECOGNISER: 1, Stage.JUDGE: 2}[stage]
    training = RecogniserTraining(build, crop, corpus, load_codec(), folder / stage.value, steps, look, seed)
    facts = _go(stage, training.run, training.loss, seconds, row)
    net = training.net
    with training.run.averages["net"].applied(net):
        save_weights(net.state_dict(), folder / "weights" / f"{stage.value}.safetensors")
        test = _draw(folder, "test")
        right, accepted = verification(embed_corpus(net, crop, test), test.person)
    _finish(stage, folder, facts, verification=right, accepted_at_one_percent=accepted)


def _train_observer(folder: Path, steps: int, seconds: float, row: int) -> None:
    training = ObserverTraining(_draw(folder, "observer"), load_codec(), folder / "observer", steps, seed=3)
    facts = _go(Stage.OBSERVER, training.run, training.loss, seconds, row)
    with training.run.averages["net"].applied(training.net):
        save_weights(training.net.state_dict(), folder / "weights" / "observer.safetensors")
        figures = accuracy(training.net, _draw(folder, "test"))
    _finish(Stage.OBSERVER, folder, facts, **figures)


def _train_base(folder: Path, steps: int, seconds: float, row: int) -> None:
    training = BaseTraining(_draw(folder, "base"), load_codec(), folder / "base", steps)
    facts = _go(Stage.BASE, training.run, training.loss, seconds, row)
    for name, module in (("unet", training.unet), ("text_encoder", training.text_encoder)):
        with training.run.averages[name].applied(module):
            save_weights(module.state_dict(), folder / "weights" / f"{name}.safetensors")
    _finish(Stage.BASE, folder, facts)


def _train_adapter(folder: Path, steps: int, seconds: float, row: int) -> None:
    weights = folder / "weights"
    photos = _draw(folder, "references")
    embeddings = embed_corpus(load_recogniser(weights), RECOGNISER_CROP, photos, jitter=_ALIGNMENT_ERROR)
    embeddings = embeddings.reshape(photos.order.count, photos.order.each, -1)
    targets = _draw(folder, "adapter")
    training = AdapterTraining(
        load_unet(weights), load_text_encoder(weights), targets, embeddings, load_codec(), folder / "adapter", steps, 4
    )
    facts = _go(Stage.ADAPTER, training.run, training.loss, seconds, row)
    save_weights(training.weights(), weights / ADAPTER_FILE.name)
    _finish(Stage.ADAPTER, folder, facts)


TRAINERS: dict[Stage, Callable[[Path, int, float, int], None]] = {
    Stage.RECOGNISER: _train_recogniser,
    Stage.JUDGE: _train_judge,
    Stage.OBSERVER: _train_observer,
    Stage.BASE: _train_base,
    Stage.ADAPTER: _train_adapter,
}

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(train)
    app()
