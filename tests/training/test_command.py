"""`likeness train`: from a configuration file and a folder of photos to files."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_method import TOY
from PIL import Image
from safetensors.torch import load_file

from likeness.adapters.sefi_ide.file import load_subject
from likeness.errors import LikenessError
from likeness.training import command, methods
from likeness.training.command import Openers, read_configuration, run, stopping
from likeness.training.data.dataset import DatasetKind, DatasetSettings, build_dataset
from likeness.training.data.folder import save_dataset
from likeness.training.data.photo_files import read_folder
from likeness.training.engine import Callbacks
from likeness.training.loss_log import read_losses
from likeness.training.methods import METHODS
from likeness.weights.concepts import load_concept
from likeness.weights.embedding_files import load_embedding

CONFIGURATION = """
name = "anna"
base = "small"
output = "{folder}/run"
[data]
person = "{folder}/photos"
resolution = 64
[recipe]
kind = "{kind}"
{recipe}
[run]
save_every = 1
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two photos with masks beside them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(random.integers(0, 255, (192, 192, 3), np.uint8)).save(photos / f"{name}.png")
        mask = np.zeros((192, 192), np.uint8)
        mask[40:150, 50:140] = 255
        Image.fromarray(mask).save(photos / f"{name}.mask.png")
    return tmp_path


def configuration(folder: Path, kind: str, recipe: str) -> Path:
    file = folder / "config.toml"
    file.write_text(CONFIGURATION.format(folder=folder.as_posix(), kind=kind, recipe=recipe))
    return file


def openers(make_base: Any) -> Openers:
    return Openers(lambda name: make_base(), lambda name: None)  # type: ignore[arg-type, return-value]


def test_two_concepts_are_learned_together_beside_a_folder_of_their_class(make_base, folder):
    shutil.copytree(folder / "photos", folder / "second")
    (folder / "class").mkdir()
    Image.fromarray(np.full((96, 128, 3), 200, np.uint8)).save(folder / "class" / "a.png")
    recipe = f"""modifier = "<anna>"
modifier_2 = "<rex>"
class_words = ["person", "forest"]
start = ["person", "forest"]
class_folder = "{(folder / "class").as_posix()}"
steps = 2
"""
    file = configuration(folder, "custom_diffusion", recipe)
    second = f'resolution = 64\nsecond = "{(folder / "second").as_posix()}"'
    file.write_text(file.read_text().replace("resolution = 64", second))
    results = run(read_configuration(file), openers(make_base))
    assert [path.name for path in results] == ["anna.safetensors", "anna-anna.safetensors", "anna-rex.safetensors"]
    assert load_concept(results[0]).phrases == ["<anna> person", "<rex> forest"]
    assert run(read_configuration(file), openers(make_base)) == results, "it is there already"
    (folder / "class" / "a.txt").write_text("a person")
    with pytest.raises(LikenessError, match="class_files"):
        run(read_configuration(file), openers(make_base))


def test_a_subject_is_learned_from_a_folder_and_goes_on_from_an_embedding(make_base, folder):
    recipe = 'placeholder = "<anna>"\nplain_embedding = true\nsteps = 2'
    file = configuration(folder, "sefi_ide", recipe)
    subject, lossy = run(read_configuration(file), openers(make_base))
    assert (subject.name, lossy.name) == ("anna.safetensors", "anna-lossy.safetensors")
    assert load_subject(subject).placeholder == "<anna>"
    assert run(read_configuration(file), openers(make_base)) == [subject, lossy], "it is there already"
    shutil.move(lossy, folder / "start.safetensors")
    shutil.rmtree(folder / "run")
    start = f'resolution = 64\nperson_word = "{(folder / "start.safetensors").as_posix()}"'
    file.write_text(file.read_text().replace("resolution = 64", start))
    assert len(run(read_configuration(file), openers(make_base))) == 2


def test_a_word_is_learned_from_a_folder_and_results_are_never_overwritten(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1')
    (first,) = run(read_configuration(file), openers(make_base))
    whole = first.read_bytes()
    assert run(read_configuration(file), openers(make_base)) == [first], "it is there already"
    first.write_bytes(b"precious")
    (second,) = run(read_configuration(file), openers(make_base))
    assert first.name == "anna.safetensors" and first.read_bytes() == b"precious"
    assert second.name == "anna_2.safetensors" and len(second.read_bytes()) == len(whole)
    assert (folder / "run" / "losses.csv").exists()


def said(monkeypatch, kind: str) -> list[str]:
    """What the photos are called once the recipe is made; nothing is trained."""
    captions: list[str] = []

    def recipe(base, photos, *_):
        captions.extend(photo.caption for photo in photos)
        raise LikenessError("enough")

    monkeypatch.setattr(importlib.import_module(f"likeness.training.recipes.{kind}"), kind, recipe)
    return captions


@pytest.mark.parametrize(
    ("kind", "recipe", "template"),
    [
        ("textual_inversion", 'token = "ohwx"', "a portrait of a ohwx person"),
        ("textual_inversion", 'token = "ohwx"\ntemplates = ["one {}"]', "one ohwx"),
        ("dreambooth", 'prior_weight = 0\nprompt = "here is {}"', "here is ohwx"),
    ],
)
def test_captions_beside_the_photos_are_used_as_in_the_graph(
    make_base, folder, monkeypatch, capsys, kind, recipe, template
):
    (folder / "photos" / "one.txt").write_text("{} in the rain")
    (folder / "photos" / "three.caption").write_text("nobody")
    captions = said(monkeypatch, kind)
    with pytest.raises(LikenessError, match="enough"):
        run(read_configuration(configuration(folder, kind, recipe)), openers(make_base))
    assert captions == ["ohwx in the rain", template]
    assert "three.caption: not used, because no image has this name" in capsys.readouterr().out


def test_captions_that_are_not_wanted_are_not_read_and_that_is_said(make_base, folder, monkeypatch, capsys):
    (folder / "photos" / "one.txt").write_text("without the word")
    captions = said(monkeypatch, "dreambooth")
    with pytest.raises(LikenessError, match="enough"):
        run(
            read_configuration(configuration(folder, "dreambooth", "prior_weight = 0\ncaptions = false")),
            openers(make_base),
        )
    assert len(captions) == 2 and "without the word" not in captions
    assert "one.txt: this training does not read captions" in capsys.readouterr().out


def test_a_dataset_of_another_trigger_word_is_renamed(make_base, folder, monkeypatch, capsys):
    made = build_dataset(
        read_folder(folder / "photos").photos, DatasetSettings(DatasetKind.PERSON, "ohwx", resolution=64)
    )
    place = save_dataset(made, folder / "saved")
    (place / "001_one.txt").write_text("OHWX in the rain")
    captions = said(monkeypatch, "textual_inversion")
    file = configuration(folder, "textual_inversion", 'token = "<anna>"')
    file.write_text(file.read_text().replace("/photos", "/saved"))
    with pytest.raises(LikenessError, match="enough"):
        run(read_configuration(file), openers(make_base))
    assert captions == ["<anna> in the rain", "a portrait of a <anna> person"]


def test_dreambooth_makes_its_class_pictures_in_the_run_folder(make_base, folder):
    (result,) = run(
        read_configuration(configuration(folder, "dreambooth", "steps = 1\nclass_pictures = 1")), openers(make_base)
    )
    assert result.exists() and len(list((folder / "run" / "class").iterdir())) == 1


@pytest.mark.parametrize(
    ("kind", "recipe", "words"),
    [
        ("textual_inversion", "", "recipe.textual_inversion.token"),
        ("textual_inversion", 'token = "<a>"\nlearning_rate = -1', "learning_rate"),
        ("textual_inversion", 'token = "<a>"\nstepps = 1', "stepps"),
        ("hypernetwork", "", "recipe"),
        ("dreambooth", "steps =", "TOML"),
    ],
)
def test_a_wrong_entry_is_named(folder, kind, recipe, words):
    with pytest.raises(LikenessError, match=words):
        read_configuration(configuration(folder, kind, recipe))


def test_a_run_goes_on_with_its_own_photos_only(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1')
    run(read_configuration(file), openers(make_base))
    mask = np.zeros((192, 192), np.uint8)
    mask[60:120, 50:140] = 255
    Image.fromarray(mask).save(folder / "photos" / "two.mask.png")
    with pytest.raises(LikenessError, match="other photos, masks or captions"):
        run(read_configuration(file), openers(make_base))


def test_masks_that_nobody_looks_at_and_more_steps_start_nothing_anew(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1')
    run(read_configuration(file), openers(make_base))
    mask = np.zeros((192, 192), np.uint8)
    mask[30:150, 40:150] = 255
    Image.fromarray(mask).save(folder / "photos" / "two.mask.png")
    (folder / "photos" / "two.png").rename(folder / "photos" / "zwei.png")
    (folder / "photos" / "two.mask.png").rename(folder / "photos" / "zwei.mask.png")
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 3')
    steps = []
    watch = Callbacks(progress=lambda done, total, losses: steps.append(done))
    (result,) = run(read_configuration(file), openers(make_base), watch)
    assert steps == [2, 3] and result.name == "anna_2.safetensors"


# Being stopped --------------------------------------------------------------------------------------------------------


class Stoppable:
    """`stoppable.py` as a process that has made a step."""

    def __init__(self, folder: Path, *launcher: str, **options: Any) -> None:
        file = configuration(folder, "dreambooth", "prior_weight = 0\nsteps = 100000")
        file.write_text(file.read_text().replace("save_every = 1", "save_every = 100000"))
        command = [sys.executable, *launcher, str(Path(__file__).with_name("stoppable.py")), str(file)]
        self.folder = folder / "run"
        self.process = subprocess.Popen(command, **options)
        until = time.monotonic() + 200
        while not list(self.folder.glob("losses.csv")) or len(read_losses(self.folder / "losses.csv")) < 2:
            assert self.process.poll() is None and time.monotonic() < until
            time.sleep(0.1)

    def steps(self) -> int:
        return torch.load(self.folder / "1-tuning" / "state.pt", weights_only=True)["step"]

    def litter(self) -> list[str]:
        return [path.name for path in self.folder.glob("cache-*")] + [path.name for path in self.folder.rglob("*.part")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_run_that_is_told_to_stop_saves_its_state(folder):
    at_work = Stoppable(folder)
    at_work.process.terminate()
    assert at_work.process.wait(60) == 0
    assert at_work.steps() == len(read_losses(at_work.folder / "losses.csv")) >= 2
    assert at_work.litter() == [] and not (at_work.folder / "running.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_a_run_whose_terminal_is_closed_saves_its_state(folder):
    """Then SIGHUP comes, and nothing can be printed any more."""
    ours, theirs = os.openpty()
    at_work = Stoppable(folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    os.close(ours)
    at_work.process.send_signal(signal.SIGHUP)  # which the system sends to a terminal's own session
    at_work.process.wait(60)
    assert at_work.steps() == len(read_losses(at_work.folder / "losses.csv")) >= 2
    assert at_work.litter() == []


def test_what_a_killed_run_left_is_cleared_away_and_it_goes_on(make_base, folder):
    at_work = Stoppable(folder)
    at_work.process.kill()
    at_work.process.wait()
    assert at_work.litter(), "a cache"
    file = configuration(folder, "dreambooth", "prior_weight = 0\nsteps = 2")
    assert run(read_configuration(file), openers(make_base))
    assert at_work.litter() == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_team_that_is_told_to_stop_saves_its_state(folder):
    options = "--multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", *options.split(), "--main_process_port", "0"]
    at_work = Stoppable(folder, *launcher, env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    at_work.process.send_signal(signal.SIGTERM)
    at_work.process.wait(100)
    assert at_work.steps() == len(read_losses(at_work.folder / "losses.csv")) >= 2
    assert at_work.litter() == []


def test_signal_handlers_are_put_back_and_ignored_signals_stay_ignored():
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.getsignal(getattr(signal, name)) for name in names]
    term = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping() as stopped:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            assert stopped()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with stopping(alone=False) as stopped:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert stopped()
    finally:
        signal.signal(signal.SIGTERM, term)
    assert [signal.getsignal(getattr(signal, name)) for name in names] == before
    answers: list[bool] = []

    def elsewhere() -> None:
        with stopping() as stopped:
            answers.append(stopped())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False], "only the main thread can set handlers"


def test_a_run_stops_between_two_class_pictures(make_base, folder, monkeypatch, capsys):
    from likeness.training import class_pictures

    paint = class_pictures.sample_pictures

    def paint_and_stop(*arguments: Any, **options: Any) -> torch.Tensor:
        signal.raise_signal(signal.SIGTERM)
        return paint(*arguments, **options, steps=1)

    monkeypatch.setattr(class_pictures, "sample_pictures", paint_and_stop)
    monkeypatch.setattr(command, "train", None)
    file = configuration(folder, "dreambooth", "steps = 1\nclass_pictures = 5")
    assert run(read_configuration(file), openers(make_base)) == []
    assert "Stopped before the first step" in capsys.readouterr().out
    assert [path.name for path in (folder / "run" / "class").iterdir()] == ["class_00000.png"]


# Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "..", "NUL", "x" * 300, "a\\b", " ", "a:b"])
def test_a_name_that_no_file_can_have_is_refused_before_any_work(folder, name):
    chosen = read_configuration(configuration(folder, "textual_inversion", 'token = "<a>"'))
    with pytest.raises(LikenessError, match="The entry name"):
        run(chosen.model_copy(update={"name": name}), Openers(no_work, no_work))
    assert not (folder / "run").exists()


@pytest.mark.parametrize("place", ["file", "below a file", "too long", "results", "full"])
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(folder, place, monkeypatch):
    chosen = read_configuration(configuration(folder, "textual_inversion", 'token = "<a>"'))
    (folder / "file").touch()
    output = {
        "file": folder / "file",
        "below a file": folder / "file" / "run",
        "too long": folder / ("x" * 300),
    }.get(place, folder / "run")
    if place == "results":
        output.mkdir()
        (output / "results").touch()
    if place == "full":

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LikenessError, match=r"^The folder (output )?'.*: choose another folder"):
        run(chosen.model_copy(update={"output": output}), Openers(no_work, no_work))


def no_work(_: str) -> Any:
    raise AssertionError("work was begun")


def test_a_word_goes_on_from_the_file_of_an_earlier_training(make_base, folder):
    file = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1\nlearning_rate = 0.1')
    (first,) = run(read_configuration(file), openers(make_base))
    settled = load_embedding(first).vectors["clip_l"]
    again = configuration(folder, "textual_inversion", 'token = "<anna>"\nsteps = 1\nlearning_rate = 1e-9')
    text = (
        again.read_text()
        .replace("/run", "/more")
        .replace("resolution = 64", f'resolution = 64\nperson_word = "{first.as_posix()}"')
    )
    again.write_text(text)
    (second,) = run(read_configuration(again), openers(make_base))
    torch.testing.assert_close(load_embedding(second).vectors["clip_l"], settled, atol=1e-6, rtol=0)
    again.write_text(text.replace('kind = "textual_inversion"\ntoken = "<anna>"', 'kind = "dreambooth"'))
    with pytest.raises(LikenessError, match=r"remove data\.person_word"):
        run(read_configuration(again), openers(make_base))


def test_a_lora_is_trained_further_from_the_file_of_an_earlier_training(make_base, folder):
    recipe = "prior_weight = 0\nsteps = 1\nlora = { rank = 3 }"
    (first,) = run(read_configuration(configuration(folder, "dreambooth", recipe)), openers(make_base))
    file = configuration(folder, "dreambooth", "prior_weight = 0\nsteps = 1")
    text = file.read_text().replace("/run", "/more")
    text = text.replace("resolution = 64", f'resolution = 64\nstart_from = "{first.as_posix()}"')
    file.write_text(text)
    (second,) = run(read_configuration(file), openers(make_base))
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys() and all(one[key].shape == two[key].shape for key in one)
    file.write_text(text.replace("steps = 1", "steps = 1\nlora = { rank = 9 }"))
    assert run(read_configuration(file), openers(make_base)) == [second], "its rank is the file's"
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(LikenessError, match="damaged, truncated"):
        run(read_configuration(file), openers(make_base))
    file.write_text(text.replace(first.name, "gone.safetensors"))
    with pytest.raises(LikenessError, match=r"no file '.*gone\.safetensors' to start from"):
        run(read_configuration(file), openers(make_base))
    file.write_text(text.replace('"dreambooth"', '"textual_inversion"\ntoken = "<a>"').replace("prior_weight = 0", ""))
    with pytest.raises(LikenessError, match=r"write data\.person_word instead of data\.start_from"):
        run(read_configuration(file), openers(make_base))


def test_magicapture_asks_for_a_style(make_base, folder):
    chosen = read_configuration(configuration(folder, "magicapture", ""))
    with pytest.raises(LikenessError, match=r"data\.style"):
        run(chosen, openers(make_base))


def test_a_method_of_several_concepts_learns_each_from_a_folder_of_its_own(make_base, folder, monkeypatch):
    """The configuration's entries, the datasets and the results follow from the registry's one line."""
    monkeypatch.setattr(command, "METHODS", [*METHODS, TOY])
    monkeypatch.setattr(methods, "METHODS", [*METHODS, TOY])
    shutil.copytree(folder / "photos", folder / "places")
    file = configuration(folder, "toy_stages", 'person = "<anna>"\nplace = "<rome>"\nsteps = 2')
    file.write_text(file.read_text().replace("resolution", f'place = "{(folder / "places").as_posix()}"\nresolution'))
    results = run(read_configuration(file), openers(make_base))
    assert [result.name for result in results] == ["anna.safetensors", "anna_2.safetensors"]
    first, second = (load_embedding(result).vectors["clip_l"] for result in results)
    assert not torch.equal(first, second)


def test_a_concept_without_photos_is_asked_for(make_base, folder, monkeypatch):
    monkeypatch.setattr(command, "METHODS", [*METHODS, TOY])
    monkeypatch.setattr(methods, "METHODS", [*METHODS, TOY])
    file = configuration(folder, "toy_stages", 'person = "<anna>"\nplace = "<rome>"\nsteps = 2')
    with pytest.raises(LikenessError, match=r"needs photos of a place: write their folder into data\.place"):
        run(read_configuration(file), openers(make_base))
