"""The engine: runs any recipe's phases on a base model. It knows no method, no loss and no host by name.

Every step draws its samples, noises their latents, lets the denoiser predict once, and sums the objectives' weighted
losses. Nothing random is carried from step to step: sample n of a stream draws all of its chances from a generator
seeded by (seed, phase, stream, n), whichever process it falls to. So a resumed run repeats an unbroken one, and two
processes train what one does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device_errors import is_out_of_memory, lacks_precision
from ..errors import LikenessError
from ..injection.key_values import separate_values
from ..locks import locked, sweep, temporary_folder
from ..storage import PART, check_folder
from .base.model import BaseModel, Conditioning, Posterior
from .cache import TensorCache
from .config import Group, Precision, RunSettings, make_optimiser, network_dtype
from .loop import Average, Run
from .loss_log import LossLog
from .previews import sample_pictures
from .probe import AttentionProbe, Maps
from .recipe import Objective, Pass, Phase, Recipe, Recording, Sample, generator, seed_of
from .run_record import RunRecord, read_record, steps_done

RUN_IN = "The run in"  # as messages call a folder
CACHE = "cache-"  # folders of what is computed once, gone when the training ends
MIXED = "A batch cannot hold photos of different sizes: crop them all to one size, or train with a batch of 1."
LEAST_SCALE = 1e-4  # of float16's losses: below it, every step has been skipped for long

# Who watches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Callbacks:
    """The outside of a training. progress: steps done, steps in all, losses by name. preview: called with the phase's
    name, the step and images (n, 3, H, W) 0..1. cancelled: asked before every step; the state is kept."""

    progress: Callable[[int, int, Mapping[str, float]], None] = lambda done, steps, losses: None
    preview: Callable[[str, int, Tensor], None] = lambda phase, step, pictures: None
    cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended: complete or cancelled, after how many of its steps, and where its losses lie."""

    complete: bool
    steps: int
    losses: Path


# Running --------------------------------------------------------------------------------------------------------------


def train(
    base: BaseModel,
    recipe: Recipe,
    settings: RunSettings,
    folder: Path,
    watch: Callbacks | None = None,
    accelerator: Any = None,
    data: str = "",
    fingerprint: str = "",
) -> TrainingResult:
    """Run a recipe in a run folder, from its beginning or from where it stopped there.

    The base's modules become the trained ones. The folder gets the settings, the state of every phase, the losses as
    CSV and image, and previews. Raises LikenessError when the folder is another training's or another process works
    in it, when the base model or the loss is not a number, and when the disk is full; the last good state is kept.
    accelerator: `accelerate`'s, where the caller made one already. data: from `digest_of`, so that a run is resumed
    with its own photos alone. fingerprint: the base's, where it was asked before the recipe was made.
    """
    empty = next((phase for phase in recipe.phases if phase.steps < 1), None)
    if empty is not None:
        raise LikenessError(f"The phase '{empty.name}' has {empty.steps} steps: give it at least one.")
    for phase in recipe.phases:
        _check_sizes(phase, settings.batch)
    watch = watch or Callbacks()
    accelerator = accelerator or make_accelerator(settings)
    total, before, complete = sum(phase.steps for phase in recipe.phases), 0, True
    with ExitStack() as stack:
        stack.enter_context(_own_rng())
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                check_folder(folder, "The folder of the training")
                stack.enter_context(locked(folder, RUN_IN))
                sweep(folder, CACHE, alone=True)
                for part in folder.rglob(f".*{PART}"):  # files that were under way when a process was killed
                    part.unlink(missing_ok=True)
                _claim(folder, RunRecord(fingerprint or base.fingerprint(), data, recipe.settings, settings))
            folder.mkdir(parents=True, exist_ok=True)  # on other machines
        base.to(accelerator.device, network_dtype(recipe.settings, settings))
        base.require_numbers()
        names = list(dict.fromkeys(objective.name for phase in recipe.phases for objective in phase.objectives))
        log = LossLog(folder, names, accelerator.is_main_process)
        cache = stack.enter_context(temporary_folder(folder, CACHE))
        latents = TensorCache(cache / "latents", settings.cache_megabytes, settings.cache_latents)
        for number, phase in enumerate(recipe.phases):
            texts = TensorCache(cache / f"texts-{number}", settings.cache_megabytes, settings.cache_text)
            worker = _Worker(base, phase, settings, accelerator, latents, texts)
            reporter = _Reporter(worker, watch, log, before, total)
            run = worker.open(folder / f"{number + 1}-{phase.name}")
            log.keep_until(phase.name, run.step)
            stop = functools.partial(_agreed, accelerator, watch)
            try:
                with worker.at_work():
                    complete = run.go(worker.loss, reporter.report, cancelled=stop)
            except Exception as error:
                where = f"at step {run.step} of '{phase.name}'"
                if is_out_of_memory(error):
                    raise LikenessError(
                        f"The {accelerator.device.type} ran out of memory {where}: turn gradient checkpointing on and "
                        "start again, and the training resumes from its last saved state; or start a new training "
                        "with bf16, a smaller batch, rank or resolution."
                    ) from error
                if settings.precision is not Precision.FLOAT32 and lacks_precision(error):
                    raise _no_precision(settings, accelerator.device.type) from error
                raise
            before += run.step
            if not complete:
                break
            worker.keep_average()
        log.draw()
    return TrainingResult(complete, before, log.file)


def _check_sizes(phase: Phase, batch: int) -> None:
    """LikenessError where photos of several sizes would meet in a batch, whenever that would be."""
    sizes = {example.size for stream in phase.streams for example in getattr(stream, "examples", ())}
    if len(sizes) > 1 and batch * len(phase.streams) > 1:
        raise LikenessError(MIXED)


def make_accelerator(settings: RunSettings, cpu: bool = False) -> Any:
    """accelerate's view of devices, processes and precision. An earlier training's in this process is forgotten."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=settings.precision.value, cpu=cpu)
    except ValueError as error:
        raise _no_precision(settings, error) from error
    if settings.precision is Precision.FLOAT16 and accelerator.device.type == "cpu":
        raise _no_precision(settings, "cpu")  # which has no autocast to it
    return accelerator


def _no_precision(settings: RunSettings, why: object) -> LikenessError:
    chosen = settings.precision
    return LikenessError(
        f"The precision {str(chosen.dtype).removeprefix('torch.')} ('{chosen.value}') does not work on this device "
        f"({why}): choose another one, such as float32."
    )


def _claim(folder: Path, record: RunRecord) -> None:
    """Write what this training is into its folder. LikenessError when another one is there."""
    earlier = read_record(folder, type(record.method))
    if earlier is not None:
        why = record.difference(earlier, steps_done(folder, earlier.method))
        if why:
            raise LikenessError(f"The run in '{folder}' was started with {why}, or choose a new folder.")
    try:
        record.write(folder)
    except OSError as error:
        raise LikenessError(
            f"The run folder '{folder}' cannot be written to ({error}): choose another one, or free some space."
        ) from error


@contextmanager
def _own_rng() -> Iterator[None]:
    """The caller's global random numbers, as they were, on leaving."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _agreed(accelerator: Any, watch: Callbacks) -> bool:
    """Whether any process was told to stop."""
    stop = watch.cancelled()
    if accelerator.num_processes == 1:
        return stop
    return bool(accelerator.reduce(torch.tensor(float(stop), device=accelerator.device), "sum") > 0)


class _Trained(nn.Module):
    """Parameters that live in other modules, as a checkpoint holds them."""

    def __init__(self, groups: Sequence[Group]) -> None:
        super().__init__()
        for group in groups:
            for name, parameter in group.parameters.items():
                self.register_parameter(f"{group.name}/{name}".replace(".", "/"), parameter)


@dataclass
class _SharedRun(Run):
    """A `Run` whose step is several batches in several processes, through accelerate."""

    accelerator: Any = None
    batches: int = 1
    then: Callable[[], None] | None = None

    def gradients(self, loss_of: Callable[[int, torch.Generator], Tensor]) -> float:
        value = torch.zeros((), device=self.accelerator.device)
        for number in range(self.step * self.batches, (self.step + 1) * self.batches):
            loss = loss_of(number, self.generator(number)) / self.batches
            self.accelerator.backward(loss)
            value += loss.detach()
        if self.accelerator.num_processes > 1:
            self._agree_on_gradients()
        trained = self.trained()
        if self.accelerator.num_processes > 1:
            value = self.accelerator.reduce(value, "mean")
            gradients = [parameter.grad for parameter in trained]
            flat = nn.utils.parameters_to_vector(gradients)  # type: ignore[arg-type]
            nn.utils.vector_to_parameters(self.accelerator.reduce(flat, "mean"), gradients)  # type: ignore[arg-type]
        value = self.finite(float(value))
        # Of this phase's optimiser alone: accelerate would repeat it for an earlier one that holds the same parameters.
        self.accelerator.unscale_gradients(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, self.clip)
        if self.accelerator.scaler is None:  # which, where there is one, skips steps of infinite gradients
            self.finite(float(norm), "gradient")
        return value

    def _agree_on_gradients(self) -> None:
        """Parameters that had no part in this process's batch, as those of a person who was left out, but in another's
        get a gradient of zeros, because the processes exchange what all of them have."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        had = torch.tensor([float(p.grad is not None) for p in parameters], device=self.accelerator.device)
        for parameter, some in zip(parameters, (self.accelerator.reduce(had, "sum") > 0).tolist(), strict=True):
            if some and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def after_step(self) -> None:
        if self.then is not None:
            self.then()
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            raise LikenessError(
                f"The gradients are still not finite in float16 at step {self.step}: start a new training with bf16 "
                "or float32, or with a lower learning rate."
            )

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return super().state() | ({} if scaler is None else {"scaler": scaler.state_dict()})

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if self.accelerator.scaler is not None and "scaler" in state:  # states of older versions have none
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def save(self) -> None:
        super().save()
        self.accelerator.wait_for_everyone()

    @property
    def writes(self) -> bool:
        return self.accelerator.is_main_process


class _Worker:
    """One phase at work in one process."""

    def __init__(
        self,
        base: BaseModel,
        phase: Phase,
        settings: RunSettings,
        accelerator: Any,
        latents: TensorCache,
        texts: TensorCache,
    ) -> None:
        self.base, self.phase, self.settings, self.accelerator = base, phase, settings, accelerator
        self._latents, self._texts = latents, texts
        self._probe: AttentionProbe | None = None
        self._terms = torch.zeros(len(self._objectives), device=accelerator.device)
        torch.manual_seed(seed_of(settings.seed, phase.name))
        self._groups = list(phase.begin())
        for network in base.networks:
            network.requires_grad_(False)
        base.codec.module.requires_grad_(False)
        for group in self._groups:
            _set_trainable(group, True)
        self._trained = _Trained(self._groups)

    @property
    def _objectives(self) -> list[Objective]:
        return [objective for objective in self.phase.objectives if objective.weight != 0]

    def open(self, folder: Path) -> _SharedRun:
        """The phase's run, where it left off."""
        settings, averages = self.settings, {}
        if settings.ema:
            averages["trained"] = Average(self._trained, settings.ema)
        optimiser = make_optimiser(settings.optimiser, self._groups)
        self._run = _SharedRun(
            folder,
            {"trained": self._trained},
            self.accelerator.prepare(optimiser),
            self.phase.steps,
            settings.seed,
            factor=lambda _progress, step: self.phase.factor(step),
            averages=averages,
            clip=self.phase.clip,
            save_every=settings.save_every,
            accelerator=self.accelerator,
            batches=settings.accumulation,
            then=self._after_step,
        )
        self._run.resume()
        return self._run

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The networks in training mode, with checkpointing and probe; in evaluation mode on leaving."""
        base, recording = self.base, self.phase.recording
        for network in base.networks:
            network.train()
        if self.settings.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()
            for encoder in base.encoders:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
        if recording is not None:
            self._probe = AttentionProbe(base.unet, recording.sites)
        try:
            with ExitStack() as attached:
                if base.staged is not None:
                    attached.enter_context(separate_values(base.unet))
                if self.phase.hooks is not None:
                    attached.enter_context(self.phase.hooks())
                yield
        finally:
            if self._probe is not None:
                self._probe.detach()
            if self.settings.gradient_checkpointing:
                base.unet.disable_gradient_checkpointing()
                for encoder in base.encoders:
                    encoder.gradient_checkpointing_disable()
            for network in base.networks:
                network.eval()

    def keep_average(self) -> None:
        """End the phase with the averaged weights, where an average was kept."""
        for average in self._run.averages.values():
            self._trained.load_state_dict(average.shadow)

    def losses(self) -> dict[str, float]:
        """The objectives' values at the last step, over all processes, unweighted."""
        values = self.accelerator.reduce(self._terms, "mean").tolist()
        self._terms = torch.zeros_like(self._terms)
        return dict(zip([objective.name for objective in self._objectives], values, strict=True))

    def loss(self, number: int, _random: torch.Generator) -> Tensor:
        """The weighted sum of the objectives over batch `number` of the phase."""
        self._rest(number // self.settings.accumulation)
        torch.manual_seed(
            seed_of(self.settings.seed, self.phase.name, number, self.accelerator.process_index)
        )  # dropout
        found = self._denoise(number)
        losses = [objective.loss(found) for objective in self._objectives]
        self._terms += torch.stack([loss.detach() for loss in losses]) / self.settings.accumulation
        weights = [objective.weight for objective in self._objectives]
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()

    def _rest(self, step: int) -> None:
        for group in self._groups:
            if group.until is not None:
                _set_trainable(group, step < group.until)

    def _after_step(self) -> None:
        if self.phase.after_step is not None:
            groups = zip(self._groups, self._run.optimizer.param_groups, strict=True)
            with torch.no_grad():
                self.phase.after_step({group.name: settings["lr"] for group, settings in groups})

    # A batch ----------------------------------------------------------------------------------------------------------

    def _denoise(self, number: int) -> Pass:
        accelerator, settings, phase = self.accelerator, self.settings, self.phase
        first = (number * accelerator.num_processes + accelerator.process_index) * settings.batch
        chances, samples, numbers = [], [], []
        for index, stream in enumerate(phase.streams):
            for n in range(first, first + settings.batch):
                chances.append(generator(settings.seed, phase.name, index, n))
                samples.append(stream(n, chances[-1]))
                numbers.append(n)
        z0 = self._stack([self._posterior(s).sample(g) for s, g in zip(samples, chances, strict=True)])
        noise = self._stack([torch.randn(z0.shape[1:], generator=g)[None] for g in chances])
        t = self._timesteps(chances, numbers)
        if phase.show is not None:
            with accelerator.autocast():
                phase.show(samples)
        conditioning, time_ids = self._encode(samples, t), self._time_ids(samples)
        step = number // settings.accumulation
        progress = step / phase.steps

        def look(t: Tensor, conditioning: Conditioning, recording: Recording | None = None) -> Pass:
            z_t = self.base.schedule.add_noise(z0, noise, t)
            recorded = nullcontext(Maps())
            if recording is not None and self._probe is not None:
                at = recording.positions(samples)
                recorded = self._probe.comparing(at, conditioning.mask, conditioning.reference)
            with recorded as maps, accelerator.autocast():
                prediction = self.base.predict(z_t, t, conditioning, time_ids)
            noised = z0, noise, t, z_t
            return Pass(
                samples,
                self.base.schedule,
                progress,
                *noised,
                prediction,
                maps.of_prompt,
                again,
                maps.of_reference,
                step,
            )

        def again() -> Pass:
            other = self._timesteps(chances, numbers)
            unchanged = self.base.staged is None and phase.fuse is None  # a graph serves one backward pass
            return look(other, conditioning if unchanged else self._encode(samples, other))

        return look(t, conditioning, phase.recording)

    def _timesteps(self, chances: Sequence[torch.Generator], numbers: Sequence[int]) -> Tensor:
        drawn = [self.phase.timestep(random, n) for random, n in zip(chances, numbers, strict=True)]
        return torch.tensor(drawn, device=self.accelerator.device)

    def _stack(self, latents: Sequence[Tensor]) -> Tensor:
        sizes = {tuple(latent.shape[-2:]) for latent in latents}
        if len(sizes) > 1:
            raise LikenessError(MIXED)
        return torch.cat(list(latents)).to(self.accelerator.device)

    def _posterior(self, sample: Sample) -> Posterior:
        def encode() -> dict[str, Tensor]:
            pixels = sample.example.pixels.flip(-1) if sample.flipped else sample.example.pixels
            with torch.no_grad():
                found = self.base.codec.encode(pixels.unsqueeze(0).to(self.accelerator.device))
            return {"mean": found.mean} if found.std is None else {"mean": found.mean, "std": found.std}

        if not sample.recurs:
            return Posterior(**{name: value.cpu() for name, value in encode().items()})
        return Posterior(**self._latents.get((sample.example, sample.flipped), encode))

    def _encode(self, samples: Sequence[Sample], t: Tensor) -> Conditioning:
        """The prompts, and what the phase makes of them."""
        text = self._prompts(samples, t)
        if self.phase.fuse is None:
            return text
        with self.accelerator.autocast():
            return self.phase.fuse(samples, text)

    def _prompts(self, samples: Sequence[Sample], t: Tensor) -> Conditioning:
        """With gradient while anything in the text encoders is trained; from the cache otherwise."""
        prompts = [sample.prompt for sample in samples]
        if self.base.staged is not None:
            with self.accelerator.autocast():
                return self.base.staged(prompts, t)
        if any(p.requires_grad for encoder in self.base.encoders for p in encoder.parameters()):
            with self.accelerator.autocast():
                return self.base.encode(prompts)
        found = [self._texts.get(prompt, functools.partial(self._read, prompt)) for prompt in prompts]
        device = self.accelerator.device
        return Conditioning.joined([Conditioning(**{name: v.to(device) for name, v in f.items()}) for f in found])

    def _read(self, prompt: str) -> dict[str, Tensor]:
        with torch.no_grad(), self.accelerator.autocast():
            found = self.base.encode([prompt])
        return {"states": found.states} if found.pooled is None else {"states": found.states, "pooled": found.pooled}

    def _time_ids(self, samples: Sequence[Sample]) -> Tensor | None:
        if not self.base.is_sdxl:
            return None
        rows = [(*(s.example.original_size or s.example.size), *s.example.crop, *s.example.size) for s in samples]
        return torch.tensor(rows, dtype=torch.float32, device=self.accelerator.device)


def _set_trainable(group: Group, wanted: bool) -> None:
    for parameter in group.parameters.values():
        parameter.requires_grad_(wanted)


@dataclass
class _Reporter:
    """Tells the log and the watch of every step."""

    worker: _Worker
    watch: Callbacks
    log: LossLog
    before: int
    total: int

    def report(self, step: int, loss: float) -> None:
        worker, phase, every = self.worker, self.worker.phase, self.worker.settings.preview_every
        losses = {**worker.losses(), "total": loss}
        self.log.add(phase.name, step, losses)
        self.watch.progress(self.before + step, self.total, losses)
        if every and (self.before + step) % every == 0 and worker.accelerator.is_main_process:
            prompts = worker.settings.preview_prompts
            self.watch.preview(phase.name, step, sample_pictures(worker.base, prompts, seed=worker.settings.seed))
