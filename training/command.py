"""A whole training from one configuration file: what `likeness train config.toml` runs.

    name = "anna"
    base = "models/sd15.safetensors"  # a checkpoint, a folder in diffusers' layout, or "miniature"
    output = "runs/anna"

    [data]
    person = "photos/anna"          # photos, or a dataset made from them
    style = "photos/pop"            # where the method learns a style too

    [recipe]
    kind = "magicapture"            # any method of `methods.METHODS`, with any of its settings

    [run]
    seed = 1                        # or any other setting of a run

The output folder holds the run and its results. The same command goes on where a run was stopped.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, create_model

from ..adapters import load as load_adapter
from ..errors import LikenessError
from ..faces import FaceAnalysis, load_parser
from ..faces.photo_list import names_of
from ..locks import locked
from ..storage import check_folder, check_name
from ..weights.embedding_files import load_embedding
from .base.model import BaseModel
from .class_pictures import class_pictures
from .config import MethodSettings, RunSettings, Seen, Settings, network_dtype, optimiser_class
from .config_file import read_toml
from .data.captions import parse_templates
from .data.dataset import LARGEST_RESOLUTION, Dataset, DatasetKind, DatasetSettings, build_dataset
from .data.examples import Example
from .data.folder import is_dataset, load_dataset
from .data.photo_files import read_folder
from .data.subjects import read_subjects
from .engine import RUN_IN, Callbacks, make_accelerator, train
from .export import TrainingRecord
from .materials import ConceptPhotos, GroupMaterials, Materials
from .methods import ADAPTERS, GROUPS, METHODS, adapter_method_of, method_of
from .methods.method import ConceptInput, Method
from .people_command import digest_of_people, keypoints_of, measure_of, people_materials
from .recipe import Recipe
from .recipes.adapter_training import AdapterSettings
from .recipes.fastcomposer import FastComposerSettings
from .run_record import digest_of, digest_of_file, is_complete
from .subject_vectors import subject_vectors, vocabulary_beside


class DataSettings(Settings):
    """Where the photos are, and what finds the faces in them."""

    person: Path | None = None
    style: Path | None = None
    person_word: Path | None = Field(default=None, description="An embedding file that the person's word starts from.")
    style_word: Path | None = Field(default=None, description="The same of the style's word.")
    start_from: Path | None = Field(
        default=None, description="A LoRA or adapter file to train further, with its own rank and layers."
    )
    people: Path | None = Field(default=None, description="For adapters: a folder with a folder for each person.")
    encoder: Path | None = Field(default=None, description="A CLIP image encoder, for adapters that read images.")
    eva: Path | None = Field(default=None, description="EVA02-CLIP, for PuLID.")
    control: Path | None = Field(default=None, description="A ControlNet in diffusers' layout, for InstantID.")
    segmenter: Path | None = Field(default=None, description="Mask R-CNN, for people's figures without masks.")
    few_step: Path | None = Field(default=None, description="A LoRA for sampling in a few steps, for PuLID.")
    adapter: Path | None = Field(default=None, description="An identity adapter whose vectors of the photos are tuned.")
    resolution: int = Field(default=512, ge=64, le=LARGEST_RESOLUTION, multiple_of=8)
    faces: str = Field(default="auto", description="A face pack such as buffalo_l, mtcnn or miniature.")
    parser: Path | None = Field(default=None, description="Face parsing weights; none: masks are ellipses.")
    recogniser: Path | None = Field(default=None, description="Weights of the identity loss's recogniser.")


class Configuration(Settings):
    """What a configuration file holds."""

    name: str = Field(min_length=1)
    base: str
    output: Path
    data: DataSettings
    recipe: MethodSettings
    run: RunSettings = RunSettings()


def _configuration() -> type[Configuration]:
    """`Configuration` with the settings of the registered methods, and an entry for every concept that one learns."""
    recipes = reduce(or_, (method.trainable.settings for method in (*METHODS, *ADAPTERS, *GROUPS)))
    entries = {concept.entry: concept for method in METHODS for concept in method.concepts}
    further = {name: (Path | None, None) for entry in entries for name in (entry, f"{entry}_word")}
    new: Any = {name: field for name, field in further.items() if name not in DataSettings.model_fields}
    data: Any = create_model("DataSettings", __base__=DataSettings, **new)
    recipe: Any = recipes, Field(discriminator="kind")
    return create_model("Configuration", __base__=Configuration, data=(data, ...), recipe=recipe)


@dataclass(frozen=True)
class Openers:
    """How names in a configuration become models."""

    base: Callable[[str], BaseModel]
    faces: Callable[[str], FaceAnalysis]


def read_configuration(file: Path) -> Configuration:
    """Raises LikenessError naming the entry that is wrong."""
    try:
        return _configuration().model_validate(read_toml(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LikenessError(
            f"'{file}' is wrong at {where or 'its top level'} ({first['msg']}): correct this entry."
        ) from error


def run(configuration: Configuration, openers: Openers, watch: Callbacks | None = None) -> list[Path]:
    """Train what a configuration says; returns the results' paths, none when the run was stopped."""
    settings, output = configuration.run, configuration.output
    accelerator = make_accelerator(settings)
    optimiser_class(settings.optimiser)  # before anything that takes long
    with ExitStack() as stack:
        if accelerator.is_main_process:
            _check_places(configuration)
            stack.enter_context(locked(output, RUN_IN))
        stopped = stack.enter_context(stopping(accelerator.num_processes == 1))
        base = openers.base(configuration.base)
        base.to(accelerator.device, network_dtype(configuration.recipe, settings))
        base.require_numbers()
        fingerprint = base.fingerprint()
        try:
            with accelerator.main_process_first():  # which makes class images for all
                recipe, data = recipe_of(configuration, base, openers, accelerator.device, stopped)
        except _Stopped:
            _say("Stopped before the first step; the same command resumes from there.")
            return []
        progress = stack.enter_context(_progress(accelerator.is_main_process))
        watch = watch or Callbacks(progress, _keeper(output / "previews"), stopped)
        result = train(base, recipe, settings, output, watch, accelerator, data, fingerprint)
        if not result.complete:
            _say(f"Stopped after {result.steps} steps; the same command resumes from there.")
            return []
        if not accelerator.is_main_process:
            return []
        side = configuration.data.resolution
        record = TrainingRecord(
            recipe.name,
            base.family,
            result.steps,
            recipe.trigger_words,
            settings.seed,
            (side, side),
            base.schedule.prediction,
        )
        return [saved.path for saved in recipe.save(output / "results", configuration.name, record)]


def _check_places(configuration: Configuration) -> None:
    """Raises LikenessError where results could not be written, before any work begins."""
    check_name(configuration.name, "The entry name")
    check_folder(configuration.output, "The folder output")
    for part in ("class", "previews", "results"):
        if (configuration.output / part).exists():
            check_folder(configuration.output / part, "The folder")


def recipe_of(
    configuration: Configuration,
    base: BaseModel,
    openers: Openers,
    device: torch.device,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Recipe, str]:
    """The recipe with its photos, and what tells these apart; faces are measured on the device.

    Raises LikenessError for whatever is missing.
    """

    def go_on() -> None:
        if stopped():
            raise _Stopped

    go_on()
    chosen, data, seed = configuration.recipe, configuration.data, configuration.run.seed
    if isinstance(chosen, AdapterSettings):
        if configuration.run.preview_every:
            raise LikenessError("The training of an adapter shows no previews: set run.preview_every to 0.")
        made = people_materials(data, chosen, openers.faces(data.faces), device, go_on)
        recipe = adapter_method_of(chosen).trainable.make(base, made, chosen, seed)
        return recipe, digest_of_people(made, data)
    if isinstance(chosen, FastComposerSettings):
        photos, digest = _group_photos(data, chosen)
        return GROUPS[0].trainable.make(base, photos, chosen, seed), digest
    method = method_of(chosen)
    words = [_start_word(method, data, concept.entry) for concept in method.concepts]
    also = [digest_of_file(_there(file)) for file in (*words, data.start_from) if file]
    if data.start_from is not None:
        if not method.continues_lora:
            instead = "write data.person_word instead of" if method.learns_words else "remove"
            raise LikenessError(f"{method.title} trains no LoRA: {instead} data.start_from.")
        chosen = chosen.started()
    if chosen.trains_all_weights:
        base.require_vae()
    folders = [_folder_of(method, data, concept) for concept in method.concepts]
    analysis = openers.faces(data.faces)
    measure = measure_of(data, analysis, device) if chosen.measures_identity else None
    concepts, asked = [], zip(method.concepts, folders, words, chosen.learned_words, strict=True)
    for number, (concept, folder, word, trigger) in enumerate(asked):
        if folder is not None:
            kind, templates = concept.kind or DatasetKind.PERSON, chosen.templates_of(number)
            dataset = _dataset(folder, kind, trigger, data, analysis, templates, Seen.CAPTIONS in chosen.sees)
            concepts.append(ConceptPhotos(dataset, trigger, None if word is None else load_embedding(word)))
    if measure is not None:
        also.append(analysis.name if data.recogniser is None else digest_of_file(data.recogniser))

    def generate(base: BaseModel, prompt: str, count: int, size: tuple[int, int]) -> list[Example]:
        folder = configuration.output / "class"
        if len(concepts) > 1:  # each has a class of its own
            folder = folder / hashlib.sha256(prompt.encode()).hexdigest()[:16]
        return class_pictures(base, prompt, count, folder, size, after_each=go_on)

    vectors = None
    if data.adapter is not None:
        if not method.reads_adapter:
            raise LikenessError(f"{method.title} starts from no adapter: remove data.adapter.")
        adapter = load_adapter(_there(data.adapter))
        word = getattr(chosen, "class_word", "")
        vectors = subject_vectors(adapter, concepts[0].dataset, word, partial(vocabulary_beside, data.adapter))
        also.append(digest_of_file(data.adapter))

    detect, complete = partial(keypoints_of, analysis), is_complete(configuration.output, chosen)
    materials = Materials(concepts, generate, device, measure, detect, data.start_from, complete, vectors)
    recipe = method.trainable.make(base, materials, chosen, seed)
    return recipe, digest_of([concept.dataset for concept in concepts], chosen, *also)


def _group_photos(data: DataSettings, chosen: FastComposerSettings) -> tuple[GroupMaterials, str]:
    """Photos of several people with masks and the file to start from, and what tells them apart."""
    if data.people is None:
        raise LikenessError(
            f"{chosen.title} learns from photos of several people with masks: write their folder into data.people."
        )
    start = data.start_from or data.encoder
    if start is None:
        raise LikenessError(
            f"{chosen.title} starts from an image encoder: write the file of CLIP ViT-L/14 into data.encoder, or that "
            "of a FastComposer adapter into data.start_from."
        )
    photos = read_subjects(data.people, chosen.marker, data.resolution)
    print(photos.report())
    return GroupMaterials(photos, start), digest_of([], chosen, photos.digest(), digest_of_file(_there(start)))


def _folder_of(method: Method, data: DataSettings, concept: ConceptInput) -> Path | None:
    """Where a concept's photos are; None for one that may be left out."""
    if data.people is not None:
        raise LikenessError(f"{method.title} learns no folder of people: write data.{concept.entry} instead.")
    folder = getattr(data, concept.entry)
    if folder is None and not concept.optional:
        raise LikenessError(
            f"{method.title} needs photos of a {concept.entry}: write their folder into data.{concept.entry}."
        )
    return folder


def _start_word(method: Method, data: DataSettings, entry: str) -> Path | None:
    """The embedding that a concept's word starts from."""
    file = getattr(data, f"{entry}_word")
    if file is not None and not method.learns_words:
        raise LikenessError(f"{method.title} does not learn vectors of a word: remove data.{entry}_word.")
    return file


def _there(file: Path) -> Path:
    if not file.is_file():
        raise LikenessError(f"There is no file '{file}' to start from: write where it is into the configuration.")
    return file


def _dataset(
    folder: Path,
    kind: DatasetKind,
    trigger: str,
    data: DataSettings,
    analysis: FaceAnalysis,
    templates: tuple[str, ...] = (),
    captions: bool = True,
) -> Dataset:
    """A dataset that is there, or one made of a folder of photos; what was found is printed.

    templates: of photos without a caption. captions: whether this training reads those that lie beside the photos.
    """
    if not folder.is_dir():
        raise LikenessError(f"There is no folder '{folder}': write where the photos are into the configuration.")
    if is_dataset(folder):
        dataset = load_dataset(folder)
        unread = [] if captions else [sample.name for sample in dataset.pictures if sample.is_captioned]
        if unread:
            print(f"This training does not read captions, such as those of {names_of(unread)}.")
    else:
        settings = DatasetSettings(
            kind, trigger, resolution=data.resolution, templates=parse_templates("\n".join(templates))
        )
        found = read_folder(folder, captions)
        parser = None if data.parser is None else load_parser(data.parser)
        dataset = build_dataset(
            found.photos, settings, analysis, parser, unreadable=found.unreadable, notes=found.notes
        )
    print(dataset.report())
    return dataset


class _Stopped(Exception):
    """The process was told to stop before the training began."""


@contextmanager
def stopping(alone: bool = True) -> Iterator[Callable[[], bool]]:
    """Whether this process was told to stop: with Ctrl-C, by a system that ends it, or as its terminal was closed.

    The run then ends after its step, with its state saved. A second Ctrl-C ends a process that works alone at once; of
    several the launcher tells each again. Signals that whoever started this lets it ignore (nohup) stay ignored, and
    all handlers are put back on leaving.
    """
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        if asked and alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        with suppress(OSError):  # the terminal is gone
            os.write(2, b"\nStopping after this step ...\n")

    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set any
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        print(text)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[..., None]]:
    from tqdm import tqdm

    bar = tqdm(unit="step", disable=not shown)

    def progress(done: int, total: int, losses: Any) -> None:
        bar.total = total
        with suppress(OSError):  # the terminal is gone
            bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
            bar.update(done - bar.n)

    try:
        yield progress
    finally:
        with suppress(OSError):
            bar.close()


def _keeper(folder: Path) -> Callable[..., None]:
    def keep(phase: str, step: int, pictures: Any) -> None:
        from PIL import Image

        from .data.portraits import as_uint8

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(pictures):
                Image.fromarray(as_uint8(picture)).save(folder / f"{phase}_{step:06d}_{number}.png")
        except OSError as error:
            raise LikenessError(
                f"The sample images could not be written to '{folder}' ({error}): free some space and start again; "
                "the training resumes from its last saved state."
            ) from error

    return keep
