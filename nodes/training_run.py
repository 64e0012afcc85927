"""One training inside a graph: from sockets and datasets to files, images and a tuned MODEL and CLIP.

A training lies in `output/likeness/runs/<name>` and is found there again by what its weights were made from: cancelled,
it goes on where it stopped; finished, nothing is trained, and what is missing of its files and sample images is made
from the saved state. More steps go on from it in a folder of their own, and so do other inputs from nothing.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import load
from ..errors import LikenessError, logger
from ..faces import FrozenRecogniser, adopt_analysis, load_recogniser_module, read_photo
from ..injection.comfy import apply_effects
from ..injection.comfy.concepts import apply_concept
from ..injection.comfy.words import with_words
from ..locks import locked, sweep, temporary_folder
from ..storage import check_folder, check_name, free_names, set_aside, write_whole
from ..training.base.model import BaseModel
from ..training.config import MethodSettings, Precision, RunSettings, Seen, Settings, network_dtype
from ..training.data.dataset import Dataset
from ..training.engine import RUN_IN, Callbacks, make_accelerator, train
from ..training.export import Saved, SavedKind, TrainingRecord, store
from ..training.objectives.identity import Measure, arcface_measure
from ..training.previews import sample_pictures
from ..training.recipe import Recipe
from ..training.run_record import AnotherMethod, RunRecord, branch, digest_of, is_complete, read_record, steps_done
from ..weights.checkpoint_layout import UNET, below, from_open_clip
from ..weights.concepts import load_concept
from ..weights.embedding_files import TokenEmbedding
from ..weights.families import CLIP_L, TRAINABLE
from .sockets import base_from_sockets, normal_copy

log = logger(__name__)

RUNS = Path("likeness") / "runs"  # below ComfyUI's output
FINISHED = "finished.json"
RESULT = "result-"  # folders of files on their way to the host's
SAMPLE_SEED = 1


@dataclass(frozen=True, eq=False)
class TrainingOutcome:
    """What a training left: file names as the loaders list them, by what they are; images (n, H, W, 3), 0..1.

    reads_captions: whether it was told anything by the photos' captions.
    """

    folder: Path
    files: Mapping[SavedKind, Sequence[str]]
    losses: Tensor
    samples: Tensor
    reads_captions: bool = True

    @property
    def embeddings(self) -> Sequence[str]:
        return self.files.get(SavedKind.EMBEDDING, ())

    def lines(self) -> list[str]:
        """A line about each file."""
        return [f"{kind.label}: {name}" for kind in SavedKind for name in self.files.get(kind, ())]


class Finished(Settings):
    """What was made of a finished training. files: names by kind, of each name that it was asked for under. prompts: of
    the sample images."""

    files: dict[str, dict[str, list[str]]] = {}
    prompts: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training to be run. make: the recipe, once the modules are there on a device, and whether all its steps were
    made already; sample_prompts: of the images at its end, in the words of training."""

    name: str
    model: Any
    clip: Any
    vae: Any
    datasets: Sequence[Dataset]
    run: RunSettings
    method: MethodSettings
    make: Callable[[BaseModel, torch.device, bool], Recipe]
    sample_prompts: Sequence[str]
    also: Sequence[str] = ()  # digests of whatever else decides over the result, for finding the run again

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the sample images."""
        height, width = self.datasets[0].pictures[0].pixels.shape[:2]
        return height, width


def run_job(job: TrainingJob) -> TrainingOutcome:
    """Train, or find that it was done. Raises the host's interruption when the user cancels; the state is kept."""
    import comfy.model_management as host

    check_name(job.name, "The name")
    check_folder(_root(), "The folder of trainings")
    accelerator = make_accelerator(job.run, cpu=host.get_torch_device().type == "cpu")
    with torch.inference_mode(False), torch.enable_grad():
        host.unload_all_models()
        host.soft_empty_cache()
        base = base_from_sockets(job.model, job.clip, job.vae, min(job.size), network_dtype(job.method, job.run))
        base.codec = replace(base.codec, in_checkpoints=_vae_for_checkpoints(base.codec.module))
        record = RunRecord(base.fingerprint(), digest_of(job.datasets, job.method, *job.also), job.method, job.run)
        folder = _folder_of(job.name, record)
        try:
            if (outcome := _outcome(folder, job)) is None:
                with locked(folder, RUN_IN):
                    _train(job, base, folder, record, accelerator)
                outcome = _outcome(folder, job)
            if outcome is None:
                raise LikenessError(f"The files in '{folder}' disappear while they are written: queue it again.")
            return outcome
        finally:
            del base
            gc.collect()
            host.soft_empty_cache()


def _train(job: TrainingJob, base: BaseModel, folder: Path, record: RunRecord, accelerator: Any) -> None:
    """Make what is missing: steps, sample images, files."""
    import comfy.model_management as host

    base.to(accelerator.device, network_dtype(job.method, job.run))
    base.require_numbers()
    host.throw_exception_if_processing_interrupted()
    recipe = job.make(base, accelerator.device, is_complete(folder, job.method))
    result = train(base, recipe, job.run, folder, _watch(folder), accelerator, record.data, record.base)
    if not result.complete:
        host.throw_exception_if_processing_interrupted()
        raise LikenessError(f"The training stopped after {result.steps} steps: queue it again to go on.")
    about = TrainingRecord(
        recipe.name,
        base.family,
        sum(phase.steps for phase in recipe.phases),
        recipe.trigger_words,
        job.run.seed,
        (job.size[1], job.size[0]),
        base.schedule.prediction,
    )
    finished = _finished(folder)
    with _written_to(folder):
        if _samples(folder, job) is None:
            with recipe.reading():
                pictures = sample_pictures(base, job.sample_prompts, job.size, seed=SAMPLE_SEED)
            _keep_samples(folder, pictures)
            finished = finished.model_copy(update={"prompts": tuple(job.sample_prompts)})
            _note(folder, finished)
        if not _are_there(finished.files.get(job.name)):
            sweep(folder, RESULT, alone=True)
            with temporary_folder(folder, RESULT) as temporary:
                published = [(saved.kind, _publish(saved)) for saved in recipe.save(temporary, job.name, about)]
            files = {kind.value: [name for k, name in published if k is kind] for kind in SavedKind}
            _note(folder, finished.model_copy(update={"files": {**finished.files, job.name: files}}))
            log.info("[likeness] Trained %s: %s", job.name, ", ".join(name for _, name in published))


def _watch(folder: Path) -> Callbacks:
    """Progress bar, preview and cancel of the host."""
    import comfy.model_management as host
    from comfy.utils import ProgressBar

    bar, shown = ProgressBar(1), []

    def progress(done: int, steps: int, losses: Mapping[str, float]) -> None:
        bar.update_absolute(done, steps, ("JPEG", shown[-1], 512) if shown else None)

    def preview(phase: str, step: int, pictures: Tensor) -> None:
        shown[:] = [_picture(torch.cat(list(pictures), -1))]
        places = folder / "previews"
        with _written_to(folder):
            places.mkdir(exist_ok=True)
            shown[0].save(places / f"{phase}_{step:06d}.png")

    return Callbacks(progress, preview, host.processing_interrupted)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Says what to do when a run's folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise LikenessError(
            f"'{folder}' cannot be written to ({error}): free some space and queue it again, the training goes on from "
            "its last saved state."
        ) from error


def _picture(pixels: Tensor) -> Any:
    """(3, H, W), 0..1, as PIL has it."""
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


# --- folders and files


def _root() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory()) / RUNS


def _folder_of(name: str, record: RunRecord) -> Path:
    """The folder of the training that was made from the same, under whatever name; else one of a training that can be
    prolonged to it; else a new one. A finished training keeps its folder, and its state is prolonged in another."""
    root, found = _root(), []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        earlier = _record_in(folder, record)
        if earlier is None:
            continue
        done = steps_done(folder, earlier.method)
        if not record.difference(earlier, done):
            same = earlier.method.steps_of_phases == record.method.steps_of_phases
            found.append((same, sum(done), folder.name == name, folder))
    same, steps, _, best = max(found, default=(False, 0, False, None))
    if best is not None and (same or not (best / FINISHED).exists()):
        return best
    folder = _new_folder(root, name)
    with _written_to(folder):
        if best is not None and steps:
            branch(best, folder)
            log.info("[likeness] %s goes on from the %d steps of %s.", folder.name, steps, best.name)
        record.write(folder)
    return folder


def _record_in(folder: Path, wanted: RunRecord) -> RunRecord | None:
    """That of a run folder, where it may be the wanted one."""
    try:
        found = read_record(folder, type(wanted.method))
    except AnotherMethod:
        return None
    except LikenessError as error:
        log.warning("[likeness] %s", error)
        return None
    return None if found is None or wanted.difference(found, ()) else found


def _new_folder(root: Path, name: str) -> Path:
    for candidate in free_names(name, ""):
        try:
            (root / candidate).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise LikenessError(f"'{root / candidate}' cannot be written to ({error}): free some space.") from error
        return root / candidate
    raise AssertionError("names never run out")


def _finished(folder: Path) -> Finished:
    """What was made of a training so far. A note that was damaged is set aside: what it told is made again from the
    saved state."""
    file = folder / FINISHED
    try:
        return Finished.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Finished()
    except (OSError, ValueError) as error:
        with _written_to(folder):
            log.warning("[likeness] '%s' cannot be read (%s): it is now %s.", file, error, set_aside(file).name)
        return Finished()


def _note(folder: Path, finished: Finished) -> None:
    write_whole(folder / FINISHED, lambda part: part.write_text(finished.model_dump_json(indent=1), encoding="utf-8"))


def _are_there(files: Mapping[str, Sequence[str]] | None) -> bool:
    """Whether the files of a training are still where they were put."""
    return files is not None and all(_find(kind, name) for kind, names in files.items() for name in names)


def _keep_samples(folder: Path, pictures: Tensor) -> None:
    for old in folder.glob("sample_*.png"):
        old.unlink()
    for number, picture in enumerate(pictures):
        write_whole(folder / f"sample_{number}.png", partial(_picture(picture).save, format="png"))


def _samples(folder: Path, job: TrainingJob) -> Tensor | None:
    """The images of these sample prompts; None where one is missing, or they are of others."""
    if _finished(folder).prompts != tuple(job.sample_prompts):
        return None
    try:
        pictures = [_pixels(folder / f"sample_{number}.png") for number in range(len(job.sample_prompts))]
    except LikenessError:
        return None
    return torch.stack(pictures) if pictures else torch.zeros(1, 64, 64, 3)


def _pixels(file: Path) -> Tensor:
    """(H, W, 3), 0..1."""
    return torch.from_numpy(read_photo(file)).float() / 255


def _places(kind: str) -> list[Path]:
    """Where results of a kind may go, best first: a models folder, and one below the output."""
    import folder_paths

    return [*map(Path, folder_paths.get_folder_paths(kind)), Path(folder_paths.get_output_directory()) / kind]


def _find(kind: str, name: str) -> Path | None:
    return next((place / name for place in _places(kind) if (place / name).is_file()), None)


def _publish(saved: Saved) -> str:
    """Put a result among the host's models, under a free name, which is returned."""
    reasons = []
    for place in _places(saved.kind.value):
        try:
            place.mkdir(parents=True, exist_ok=True)
            target = store(place, saved.path.stem, lambda part: shutil.copyfile(saved.path, part))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
            continue
        return target.name
    raise LikenessError(f"The result could not be written ({'; '.join(reasons)}): make one of these folders writable.")


def _outcome(folder: Path, job: TrainingJob) -> TrainingOutcome | None:
    """What a training left under the job's name; None where something of it is missing."""
    files, samples = _finished(folder).files.get(job.name), _samples(folder, job)
    if files is None or samples is None or not _are_there(files):
        return None
    try:
        losses = _pixels(folder / "losses.png")[None]
    except LikenessError:
        return None
    found = {kind: tuple(files.get(kind.value, ())) for kind in SavedKind}
    return TrainingOutcome(folder, found, losses, samples, Seen.CAPTIONS in job.method.sees)


def apply_results(model: Any, clip: Any, outcome: TrainingOutcome) -> tuple[Any, Any]:
    """MODEL and CLIP with the trained LoRAs at strength 1, as Load LoRA applies them, with concepts, or a checkpoint's
    weights."""
    import comfy.sd

    for name in outcome.files.get(SavedKind.LORA, ()):
        model, clip = comfy.sd.load_lora_for_models(model, clip, _result(SavedKind.LORA, name), 1.0, 1.0)
    for name in outcome.files.get(SavedKind.CONCEPT, ()):
        model, clip, *_ = apply_concept(model, clip, load_concept(_there(SavedKind.CONCEPT, name)))
    for name in outcome.files.get(SavedKind.TUNED_SUBJECT, ()):
        model, clip = with_tuned_subject(model, clip, load(_there(SavedKind.TUNED_SUBJECT, name)))
    for name in outcome.files.get(SavedKind.CHECKPOINT, ()):
        weights = _result(SavedKind.CHECKPOINT, name)
        model = _with_weights(model, {f"diffusion_model.{k}": v for k, v in below(weights, UNET).items()})
        text = clip.clone()
        text.patcher = _with_weights(clip.patcher, _clip_weights(weights))
        clip = text
    return model, clip


def with_tuned_subject(model: Any, clip: Any, adapter: Any) -> tuple[Any, Any]:
    """MODEL with the UNet of a subject's file, and CLIP that knows the subject by the word it was trained under."""
    unet, vectors = adapter.unet(), adapter.vectors.detach().cpu()
    model = model if unet is None else apply_effects(model, [unet]).model
    return model, with_words(clip, {adapter.word: TokenEmbedding({CLIP_L.name: vectors})})


def _result(kind: SavedKind, name: str) -> dict[str, Tensor]:
    import comfy.utils

    return comfy.utils.load_torch_file(str(_there(kind, name)), safe_load=True)


def _there(kind: SavedKind, name: str) -> Path:
    path = _find(kind.value, name)
    if path is None:
        raise LikenessError(f"The trained file {name!r} is gone: queue the training again.")
    return path


def _with_weights(patcher: Any, weights: Mapping[str, Tensor]) -> Any:
    """A clone in which these weights stand in place of its own, whatever was patched onto those."""
    clone = patcher.clone()
    clone.add_patches({name: ("set", (value,)) for name, value in weights.items()})
    return clone


def _clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's text encoders under the host's names."""
    found = {}
    for prefix, kind in (text for family in TRAINABLE for text in family.texts):
        part = below(weights, prefix)
        if part and kind.open_clip:
            part = from_open_clip(part)
        found |= {f"{kind.name}.transformer.{name}": value for name, value in part.items()}
    return found


def _vae_for_checkpoints(module: Any) -> Callable[[], Mapping[str, Tensor]] | None:
    """The host's VAE module keeps a checkpoint's names; None for codecs that Load Checkpoint would not know again."""
    known = ("decoder.mid.block_1.conv1.weight", "taesd_decoder.1.weight")
    return module.state_dict if any(name in module.state_dict() for name in known) else None


# --- what the machine and the face analysis offer


def automatic_precision() -> Precision:
    """bfloat16 where the GPU has it, float16 on others, float32 on a CPU."""
    import comfy.model_management as host

    device = host.get_torch_device()
    if device.type == "cpu":
        return Precision.FLOAT32
    return Precision.BFLOAT16 if host.should_use_bf16(device) else Precision.FLOAT16


def measure_on(face_analysis: Any, device: torch.device) -> Measure:
    """A face analysis' recogniser with gradient to the image. LikenessError when it has none."""
    analysis = adopt_analysis(face_analysis)
    recogniser: Any = analysis.recogniser
    module = getattr(recogniser, "module", None)
    if isinstance(module, FrozenRecogniser):
        twin = normal_copy(module).to(device)
        own = hasattr(recogniser, "measure")  # crops of its own
        return replace(recogniser, module=twin).measure if own else arcface_measure(twin)
    file = getattr(getattr(recogniser, "session", None), "_model_path", None)
    file = file or getattr(getattr(recogniser, "model", None), "model_file", None)
    if file is None or not str(file).endswith(".onnx"):
        raise LikenessError(
            f"{analysis.name} has no recogniser that training can use: choose an InsightFace pack, dlib "
            "or facexlib, or set identity_weight to 0."
        )
    return arcface_measure(load_recogniser_module(file).to(device))
