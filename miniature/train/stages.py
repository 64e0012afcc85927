"""The stages of the miniature's training, and the processes that they run in."""

import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import LikenessError
from ...training.loop import Run
from ...training.team import Team, team_of
from ..models.latents import load_codec
from ..models.networks import JUDGE_CROP, RECOGNISER_CROP, build_judge, build_recogniser
from ..models.weights import ADAPTER_FILE, load_recogniser, load_text_encoder, load_unet, save_weights
from .adapter import AdapterTraining
from .base import BaseTraining
from .corpus import Corpus, Order, draw_corpus
from .observer import ObserverTraining, accuracy, admit
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


# The images that each looks at.
NEEDED = {
    Stage.LATENTS: (),
    Stage.RECOGNISER: ("recogniser", "test"),
    Stage.JUDGE: ("judge", "test"),
    Stage.OBSERVER: ("observer", "test"),
    Stage.BASE: ("base",),
    Stage.ADAPTER: ("adapter", "references"),
}
STEPS = {Stage.RECOGNISER: 1100, Stage.JUDGE: 800, Stage.OBSERVER: 1200, Stage.BASE: 3000, Stage.ADAPTER: 800}
# On processors, two trainings of one thread each are faster than one of two threads, and so are two processes on one
# network. The recognisers' normalisation wants whole batches, so they go side by side; the others are a team's work.
SIDE_BY_SIDE = ((Stage.RECOGNISER,), (Stage.JUDGE, Stage.OBSERVER))
TEAMWORK = (Stage.BASE, Stage.ADAPTER)


@dataclass(frozen=True)
class Plan:
    """What all stages share. folder: of images, states and weights. seconds: that each stage may take."""

    folder: Path
    scale: float
    seconds: float
    device: str

    def steps(self, stage: Stage) -> int:
        """How many a stage is to have in all. The observer's shrink as the root: it is quickly taught, and where it
        sees nobody, nothing else can be used."""
        share = math.sqrt(self.scale) if stage is Stage.OBSERVER else self.scale
        return max(1, round(share * STEPS[stage]))

    @property
    def weights(self) -> Path:
        """Where finished weights go."""
        return self.folder / "weights"


def at_once(tasks: Sequence[tuple[Callable, tuple]]) -> None:
    """Do them at once, each in a process of its own; leave with the worst of their exit codes unless all went well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_at_work, args=task) for task in tasks]

    def pass_on(_number: int, _frame: object) -> None:
        for process in processes:
            if process.is_alive():
                process.terminate()

    # A terminal's Ctrl-C reaches them too, SIGTERM this process alone; it waits for them either way.
    before = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on}
    for process in processes:
        process.start()
    before = {number: signal.signal(number, handler) for number, handler in before.items()}
    for process in processes:
        process.join()
    for number, handler in before.items():
        signal.signal(number, handler)
    if codes := [process.exitcode for process in processes if process.exitcode]:
        sys.exit(max(codes))


_STOP: list[int] = []  # signals that have asked this process to stop


def _at_work(task: Callable, arguments: tuple) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: _STOP.append(number))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        task(*arguments)
    except LikenessError as error:
        print(f"likeness: {error}", file=sys.stderr)
        sys.exit(1)
    if _STOP:
        print("likeness: stopped; start again to resume from the saved state.", file=sys.stderr)
        sys.exit(130)


def lane_of_stages(lane: list[Stage], plan: Plan, row: int) -> None:
    """Stages one after the other."""
    for stage in lane:
        if not _STOP:
            TRAINERS[stage](plan, row, Team())


def member_of_team(stage: Stage, plan: Plan, rank: int, size: int, meeting: Path) -> None:
    """One process of the team of a stage."""
    with team_of(rank, size, meeting.absolute()) as team:
        TRAINERS[stage](plan, rank, team)


def draw(folder: Path, name: str, workers: int = 1) -> Corpus:
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


def _go(stage: Stage, run: Run, loss: Callable, seconds: float, row: int) -> dict[str, float]:
    """Resume, train with a progress bar, and say what it took."""
    run.resume()
    began, first = time.monotonic(), run.step
    hidden = run.team.rank > 0
    with tqdm(total=run.steps, initial=run.step, desc=stage.value, unit="step", position=row, disable=hidden) as bar:

        def report(step: int, value: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)

        run.go(loss, report, seconds, cancelled=lambda: bool(_STOP))
    return {"steps": run.step, "steps_of_this_start": run.step - first, "seconds": round(time.monotonic() - began)}


def _finish(stage: Stage, plan: Plan, team: Team, facts: dict, **figures: float) -> None:
    """Add a line to the run's log: what a model card is written from."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {plan.device}, torch {torch.__version__}"
    entry = {"stage": stage.value, "machine": machine, "processes": team.size, **facts, **figures}
    with (plan.folder / "diary.jsonl").open("a") as diary:
        diary.write(json.dumps(entry) + "\n")


def _train_recogniser(plan: Plan, row: int, team: Team) -> None:
    _train_either(Stage.RECOGNISER, build_recogniser, RECOGNISER_CROP, Augmentation(), 1, plan, row, team)


def _train_judge(plan: Plan, row: int, team: Team) -> None:
    _train_either(Stage.JUDGE, build_judge, JUDGE_CROP, _JUDGE_LOOK, 2, plan, row, team)


def _train_either(stage, build, crop, look, seed, plan: Plan, row: int, team: Team) -> None:
    corpus, folder = draw(plan.folder, stage.value), plan.folder / stage.value
    training = RecogniserTraining(build, crop, corpus, load_codec(), folder, plan.steps(stage), look, seed, plan.device)
    facts = _go(stage, training.run, training.loss, plan.seconds, row)
    net = training.net
    with training.run.averages["net"].applied(net):
        save_weights(net.state_dict(), plan.weights / f"{stage.value}.safetensors")
        test = draw(plan.folder, "test")
        right, accepted = verification(embed_corpus(net.cpu(), crop, test), test.person)
    _finish(stage, plan, team, facts, verification=right, accepted_at_one_percent=accepted)


def _train_observer(plan: Plan, row: int, team: Team) -> None:
    folder, steps = plan.folder / "observer", plan.steps(Stage.OBSERVER)
    training = ObserverTraining(draw(plan.folder, "observer"), load_codec(), folder, steps, 3, plan.device)
    facts = _go(Stage.OBSERVER, training.run, training.loss, plan.seconds, row)
    net = training.net
    with training.run.averages["net"].applied(net):
        admit(net.cpu(), training.corpus)
        save_weights(net.state_dict(), plan.weights / "observer.safetensors")
        figures = accuracy(net, draw(plan.folder, "test"))
    _finish(Stage.OBSERVER, plan, team, facts, **figures)


def _train_base(plan: Plan, row: int, team: Team) -> None:
    folder, steps = plan.folder / "base", plan.steps(Stage.BASE)
    training = BaseTraining(draw(plan.folder, "base"), load_codec(), folder, steps, team=team, device=plan.device)
    facts = _go(Stage.BASE, training.run, training.loss, plan.seconds, row)
    if team.rank:
        return
    for name, module in (("unet", training.unet), ("text_encoder", training.text_encoder)):
        with training.run.averages[name].applied(module):
            save_weights(module.state_dict(), plan.weights / f"{name}.safetensors")
    _finish(Stage.BASE, plan, team, facts)


def _train_adapter(plan: Plan, row: int, team: Team) -> None:
    photos = draw(plan.folder, "references")
    embeddings = embed_corpus(load_recogniser(plan.weights), RECOGNISER_CROP, photos, jitter=_ALIGNMENT_ERROR)
    embeddings = embeddings.reshape(photos.order.count, photos.order.each, -1)
    targets, folder, steps = draw(plan.folder, "adapter"), plan.folder / "adapter", plan.steps(Stage.ADAPTER)
    unet, text_encoder = load_unet(plan.weights), load_text_encoder(plan.weights)
    training = AdapterTraining(
        unet, text_encoder, targets, embeddings, load_codec(), folder, steps, 4, team, plan.device
    )
    facts = _go(Stage.ADAPTER, training.run, training.loss, plan.seconds, row)
    if team.rank:
        return
    save_weights(training.weights(), plan.weights / ADAPTER_FILE.name)
    _finish(Stage.ADAPTER, plan, team, facts)


TRAINERS: dict[Stage, Callable[[Plan, int, Team], None]] = {
    Stage.RECOGNISER: _train_recogniser,
    Stage.JUDGE: _train_judge,
    Stage.OBSERVER: _train_observer,
    Stage.BASE: _train_base,
    Stage.ADAPTER: _train_adapter,
}
