"""One training inside a graph: from sockets and datasets to files, pictures and a tuned MODEL and CLIP.

A training lies in `output/likeness/runs/<name>` and is found there again by what it was made from: cancelled, it goes
on where it stopped; finished, its files are used and nothing is trained. Other inputs get a folder of their own.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..errors import LikenessError, logger
from ..faces import FrozenRecogniser, adopt_analysis, load_recogniser_module, read_photo
from ..storage import write_whole
from ..training.base_model import BaseModel
from ..training.checkpoint_layout import SD1_TEXT, SD2_TEXT, SDXL_TEXT_1, SDXL_TEXT_2, UNET, below, from_open_clip
from ..training.config import Precision, RunSettings, Settings, network_dtype
from ..training.dataset import Dataset
from ..training.dataset_folder import safe_name
from ..training.engine import Watch, make_accelerator, train
from ..training.export import TrainingRecord, store
from ..training.objectives.identity import Measure, arcface_measure
from ..training.previews import sample_pictures
from ..training.recipe import Recipe
from .sockets import base_model, normal_copy

log = logger(__name__)

RUNS = Path("likeness") / "runs"  # below ComfyUI's output
FINISHED = "finished.json"
SAMPLE_SEED = 1
KINDS = ("loras", "embeddings", "checkpoints")  # of results: the host's folders


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training left: file names as the loaders list them, by folder; pictures (n, H, W, 3), 0..1."""

    folder: Path
    loras: tuple[str, ...]
    embeddings: tuple[str, ...]
    checkpoints: tuple[str, ...]
    losses: Tensor
    samples: Tensor


@dataclass(frozen=True, eq=False)
class Job:
    """A training to be run. make: the recipe, once the modules are there; sample_prompts: of the pictures at its end,
    in the words of training."""

    name: str
    model: Any
    clip: Any
    vae: Any
    datasets: Sequence[Dataset]
    run: RunSettings
    method: Settings
    make: Callable[[BaseModel, torch.device], Recipe]
    sample_prompts: Sequence[str]
    also: str = ""  # whatever else decides over the result, for finding the run again

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the sample pictures."""
        height, width = self.datasets[0].samples[0].pixels.shape[:2]
        return height, width


def run_job(job: Job) -> Outcome:
    """Train, or find that it was done. Raises the host's interruption when the artist cancels; the state is kept."""
    import comfy.model_management as host

    with torch.inference_mode(False), torch.enable_grad():
        host.unload_all_models()
        host.soft_empty_cache()
        base = base_model(job.model, job.clip, job.vae, min(job.size), network_dtype(job.method, job.run))
        base.codec = replace(base.codec, in_checkpoints=_vae_for_checkpoints(base.codec.module))
        folder = _folder_of(job, base)
        try:
            if _finished(folder) is None:
                _train(job, base, folder)
            return _outcome(folder)
        finally:
            del base
            gc.collect()
            host.soft_empty_cache()


def _train(job: Job, base: BaseModel, folder: Path) -> None:
    import comfy.model_management as host

    device = host.get_torch_device()
    accelerator = make_accelerator(job.run, cpu=device.type == "cpu")
    base.to(accelerator.device, network_dtype(job.method, job.run))
    host.throw_exception_if_processing_interrupted()
    recipe = job.make(base, accelerator.device)
    result = train(base, recipe, job.run, folder, _watch(folder), accelerator)
    if not result.complete:
        host.throw_exception_if_processing_interrupted()
        raise LikenessError(f"The training stopped after {result.steps} steps: queue it again to go on.")
    record = TrainingRecord(
        recipe.name,
        base.family,
        sum(phase.steps for phase in recipe.phases),
        recipe.trigger_words,
        job.run.seed,
        (job.size[1], job.size[0]),
        base.schedule.prediction,
    )
    pictures = sample_pictures(base, job.sample_prompts, job.size, seed=SAMPLE_SEED)
    with _written_to(folder):
        for number, picture in enumerate(pictures):
            _picture(picture).save(folder / f"sample_{number}.png")
        with TemporaryDirectory(prefix="result-", dir=folder) as temporary:
            published = [_publish(path) for path in recipe.save(Path(temporary), job.name, record)]
        finished = {kind: [name for k, name in published if k == kind] for kind in KINDS}
        write_whole(folder / FINISHED, lambda part: part.write_text(json.dumps(finished, indent=1), encoding="utf-8"))
    log.info("[likeness] Trained %s: %s", job.name, ", ".join(name for _, name in published))


def _watch(folder: Path) -> Watch:
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

    return Watch(progress, preview, host.processing_interrupted)


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


def _folder_of(job: Job, base: BaseModel) -> Path:
    """The folder of a training that was made from the same, else a new one; it exists."""
    import folder_paths

    root, stem = Path(folder_paths.get_output_directory()) / RUNS, safe_name(job.name)
    made_from = _made_from(job, base)
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}_{number}")
        mark = folder / "made_from.txt"
        if mark.is_file() and mark.read_text() == made_from and _is_usable(folder):
            return folder
        if not folder.exists():
            try:
                folder.mkdir(parents=True)
                mark.write_text(made_from)
            except OSError as error:
                raise LikenessError(f"'{folder}' cannot be written to ({error}): free some space.") from error
            return folder
    raise AssertionError


def _is_usable(folder: Path) -> bool:
    """Whether a training is unfinished, or its files are still where they were put."""
    finished = _finished(folder) or {}
    return all(_find(kind, name) for kind, names in finished.items() for name in names)


def _finished(folder: Path) -> dict[str, list[str]] | None:
    """The names of a training's files by kind; None where it is unfinished, or a crash has damaged the list: its end
    is then made again from the saved state."""
    try:
        return json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _made_from(job: Job, base: BaseModel) -> str:
    digest = hashlib.sha256()
    digest.update(repr((base.fingerprint(), job.size, job.also)).encode())
    digest.update(repr((job.run.deciding, job.run.preview_prompts)).encode() + job.method.model_dump_json().encode())
    for dataset in job.datasets:
        digest.update(dataset.digest().encode())
    return digest.hexdigest()


def _places(kind: str) -> list[Path]:
    """Where results of a kind may go, best first: a models folder, and one below the output."""
    import folder_paths

    return [*map(Path, folder_paths.get_folder_paths(kind)), Path(folder_paths.get_output_directory()) / kind]


def _find(kind: str, name: str) -> Path | None:
    return next((place / name for place in _places(kind) if (place / name).is_file()), None)


def _publish(path: Path) -> tuple[str, str]:
    """Put a result among the host's models, under a free name: its kind of folder and that name."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kind = _kind(file.keys())
    reasons = []
    for place in _places(kind):
        try:
            place.mkdir(parents=True, exist_ok=True)
            target = store(place, path.stem, lambda part: shutil.copyfile(path, part))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
            continue
        return kind, target.name
    raise LikenessError(f"The result could not be written ({'; '.join(reasons)}): make one of these folders writable.")


def _kind(keys: Sequence[str]) -> str:
    if any(key.startswith("lora_") for key in keys):
        return "loras"
    return "checkpoints" if any(key.startswith(UNET) for key in keys) else "embeddings"


def _outcome(folder: Path) -> Outcome:
    def picture(path: Path) -> Tensor:
        return torch.from_numpy(read_photo(path)).float() / 255

    finished = _finished(folder) or {}
    loras, embeddings, checkpoints = (tuple(finished.get(kind, ())) for kind in KINDS)  # older runs lack checkpoints
    samples = [picture(path) for path in sorted(folder.glob("sample_*.png"))]
    return Outcome(
        folder,
        loras,
        embeddings,
        checkpoints,
        picture(folder / "losses.png")[None],
        torch.stack(samples) if samples else torch.zeros(1, 64, 64, 3),
    )


def apply_results(model: Any, clip: Any, outcome: Outcome) -> tuple[Any, Any]:
    """MODEL and CLIP with the trained LoRAs at strength 1, as Load LoRA applies them, or a checkpoint's weights."""
    import comfy.sd

    for name in outcome.loras:
        model, clip = comfy.sd.load_lora_for_models(model, clip, _result("loras", name), 1.0, 1.0)
    for name in outcome.checkpoints:
        weights = _result("checkpoints", name)
        model = _with_weights(model, {f"diffusion_model.{k}": v for k, v in below(weights, UNET).items()})
        text = clip.clone()
        text.patcher = _with_weights(clip.patcher, _clip_weights(weights))
        clip = text
    return model, clip


def _result(kind: str, name: str) -> dict[str, Tensor]:
    import comfy.utils

    path = _find(kind, name)
    if path is None:
        raise LikenessError(f"The trained file {name!r} is gone: queue the training again.")
    return comfy.utils.load_torch_file(str(path), safe_load=True)


def _with_weights(patcher: Any, weights: Mapping[str, Tensor]) -> Any:
    """A clone in which these weights stand in place of its own, whatever was patched onto those."""
    clone = patcher.clone()
    clone.add_patches({name: ("set", (value,)) for name, value in weights.items()})
    return clone


def _clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's text encoders under the host's names."""
    found = {}
    for prefix, kind in ((SD1_TEXT, "clip_l"), (SDXL_TEXT_1, "clip_l"), (SD2_TEXT, "clip_h"), (SDXL_TEXT_2, "clip_g")):
        part = below(weights, prefix)
        if part and prefix in (SD2_TEXT, SDXL_TEXT_2):
            part = from_open_clip(part)
        found |= {f"{kind}.transformer.{name}": value for name, value in part.items()}
    return found


def _vae_for_checkpoints(module: Any) -> Callable[[], Mapping[str, Tensor]] | None:
    """The host's VAE module keeps a checkpoint's names; None for codecs that Load Checkpoint would not know again."""
    known = ("decoder.mid.block_1.conv1.weight", "taesd_decoder.1.weight")
    return module.state_dict if any(name in module.state_dict() for name in known) else None


# --- what the machine and the face analysis offer


def automatic_precision() -> Precision:
    """bfloat16 where the graphics card has it, float16 on others, float32 on a processor."""
    import comfy.model_management as host

    device = host.get_torch_device()
    if device.type == "cpu":
        return Precision.FLOAT32
    return Precision.BFLOAT16 if host.should_use_bf16(device) else Precision.FLOAT16


def measure_on(face_analysis: Any, device: torch.device) -> Measure:
    """A face analysis' recogniser with gradient to the picture. LikenessError when it has none."""
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
            f"{analysis.name} has no recogniser that a training can learn from: choose an InsightFace pack or "
            "facexlib, or set identity_weight to 0."
        )
    return arcface_measure(load_recogniser_module(file).to(device))
