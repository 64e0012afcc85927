"""Every two choices go together, or are refused in a sentence before work begins: each pair in some training of one
step, of all that a recipe and its run offer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces.recognition import FrozenRecogniser
from likeness.training import class_pictures as class_pictures_module
from likeness.training.base.lora import Reach, lora_targets
from likeness.training.base.model import BaseModel
from likeness.training.base.noise import Prediction
from likeness.training.class_pictures import class_pictures, class_size
from likeness.training.command import Configuration, DataSettings, Openers
from likeness.training.command import run as run_command
from likeness.training.config import LoraSettings, Optimiser, Precision, RateSchedule, RunSettings
from likeness.training.data.examples import Example
from likeness.training.data.portraits import Portrait
from likeness.training.engine import Callbacks, make_accelerator, train
from likeness.training.export import TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.objectives.identity import arcface_measure
from likeness.training.recipe import Recipe
from likeness.training.recipes.denoising import Mask
from likeness.training.recipes.dreambooth import (
    DreamBoothSettings,
    dreambooth,
    require_trainable,
)
from likeness.training.recipes.magicapture import (
    FaceLayout,
    IdentityPass,
    MagiCaptureSettings,
    Refocusing,
    magicapture,
)
from likeness.training.recipes.textual_inversion import Tether, TextualInversionSettings, textual_inversion

Choices = Mapping[str, Any]
KEYPOINTS = torch.tensor([[11.0, 13.0], [20.0, 13.0], [16.0, 18.0], [12.0, 22.0], [19.0, 22.0]])
FLAG = [False, True]
RUN: dict[str, list[Any]] = {
    "batch": [1, 2],
    "accumulation": [1, 2],
    "precision": list(Precision),
    "gradient_checkpointing": FLAG,
    "ema": [0.0, 0.5],
    "preview": ["none", "of a prompt", "of none"],
    "cache_latents": [True, False],
    "cache_text": [True, False],
    "cache_megabytes": [1024, 0],
}
BASE = {"sdxl": FLAG, "prediction": list(Prediction)}
PHOTOS = {"photos": ["plain", "captions", "captions without the word", "without masks", "of two sizes"]}
DENOISING = {"mask": list(Mask), "min_snr": [None, 5.0], "captions": FLAG, "flip": [0.0, 1.0]}
DREAMBOOTH = {
    "full": FLAG,
    "text_encoder": FLAG,
    "text_until": [None, 0, 1],
    "text_learning_rate": [None, 1e-5],
    "reach": list(Reach),
    "dropout": [0.0, 0.5],
    "prior_weight": [0.0, 1.0],
    "class_pictures": [0, 2],
    "schedule": list(RateSchedule),
    "warm_up": [0, 5],
}
INVERSION = {
    "vectors": [1, 3],
    "start": ["person", ""],
    "tether": list(Tether),
    "clip": [None, 1.0],
    "schedule": list(RateSchedule),
    "warm_up": [0, 5],
}
MAGICAPTURE = {
    "vectors": [1, 2],
    "lambda_id": [0.0, 0.25],
    "lambda_attention": [0.0, 2.5],
    "lambda_style": [0.0, 2.0],
    "compose": FLAG,
    "refocusing": list(Refocusing),
    "identity_pass": list(IdentityPass),
    "layout": list(FaceLayout),
    "decode_whole": FLAG,
    "decode_margin": [0, 4],
    "map_division": [1, 2, 3],
    "reach": list(Reach),
    "text_reach": list(Reach),
    "inversion_steps": [0, 1],
    "tuning_steps": [0, 1],
}


def every_pair(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Combinations, few of them, in which every two values of different choices meet."""
    names = list(options)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(options[a]))
        for j in range(len(options[b]))
    }
    found = []
    while missing:
        row: dict[str, int] = dict(min(missing, key=repr))
        for name in names:
            if name not in row:
                row[name] = max(range(len(options[name])), key=partial(_news, row, name, missing, names))
        found.append({name: options[name][row[name]] for name in names})
        missing -= {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}
    return found


def _news(row: Mapping[str, int], name: str, missing: set[Any], names: list[str], value: int) -> int:
    pairs = [sorted([(name, value), other], key=lambda part: names.index(part[0])) for other in row.items()]
    return sum(tuple(pair) in missing for pair in pairs)


def _run_settings(choices: Choices) -> RunSettings:
    previews: dict[str, Any] = {"preview_every": int(choices["preview"] != "none")}
    if choices["preview"] == "of a prompt":
        previews["preview_prompts"] = ("a person",)
    return RunSettings(save_every=1, **{name: choices[name] for name in RUN if name != "preview"}, **previews)


def _photos(make_photo: Callable[..., Example], kind: str, word: str) -> list[Example]:
    said = {"captions": f"a photo of a {word} person", "captions without the word": "a photo of a person"}.get(kind, "")
    photos = [make_photo(number, said) for number in range(2)]
    if kind == "without masks":
        return [replace(photo, face_mask=None) for photo in photos]
    return [photos[0], make_photo(1, said, side=64)] if kind == "of two sizes" else photos


def _trained_or_refused(make: Callable[[BaseModel], Recipe], base: BaseModel, run: RunSettings, folder: Any) -> str:
    """The refusal, or nothing once all steps are done and the results written; no work was done for a refusal."""
    begun = []
    try:
        accelerator = make_accelerator(run, cpu=True)
        recipe = make(base)
        watch = Callbacks(progress=lambda done, steps, losses: begun.append(done))
        result = train(base, recipe, run, folder / "run", watch, accelerator)
    except LikenessError as error:
        assert not begun, f"refused after {begun} steps: {error}"
        return str(error)
    steps = sum(phase.steps for phase in recipe.phases)
    assert result.complete and result.steps == steps == len(begun)
    assert all(torch.isfinite(torch.tensor(float(row["total"]))) for row in read_losses(result.losses))
    assert all(
        saved.path.is_file() for saved in recipe.save(folder, "me", TrainingRecord(recipe.name, base.family, steps))
    )
    return ""


@pytest.mark.parametrize("choices", every_pair({**DREAMBOOTH, **DENOISING, **PHOTOS, **RUN, **BASE}))
def test_any_two_choices_of_dreambooth(make_base, make_photo, monkeypatch, tmp_path, choices):
    painted = []

    def paint(base, prompts, size, seed):
        painted.append(seed)
        return torch.rand(1, 3, *size)

    monkeypatch.setattr(class_pictures_module, "sample_pictures", paint)
    own = {name: choices[name] for name in (*DREAMBOOTH, *DENOISING) if name not in ("reach", "dropout")}
    lora = LoraSettings(rank=2, reach=choices["reach"], dropout=choices["dropout"])
    settings = DreamBoothSettings(identifier="xyz", steps=1, lora=lora, **own)
    photos = _photos(make_photo, choices["photos"], "xyz")

    def make(base: BaseModel) -> Recipe:
        require_trainable(base, photos, settings)
        others = []
        if settings.prior_weight > 0:
            size, count = class_size(photos), settings.class_pictures
            others = class_pictures(base, "a person", count, tmp_path / "class", size)
        return dreambooth(base, photos, settings, 0, others)

    base = make_base(choices["sdxl"], choices["prediction"])
    refused = _trained_or_refused(make, base, _run_settings(choices), tmp_path)
    assert not (refused and painted)
    assert bool(refused) == (
        choices["precision"] is Precision.FLOAT16
        or (choices["captions"] and choices["photos"] == "captions without the word")
        or (choices["mask"] is not Mask.NONE and choices["photos"] == "without masks")
        or (choices["prior_weight"] > 0 and (choices["class_pictures"] == 0 or choices["photos"] == "of two sizes"))
        or (choices["batch"] > 1 and choices["photos"] == "of two sizes")
    ), refused


@pytest.mark.parametrize("choices", every_pair({**INVERSION, **DENOISING, **PHOTOS, **RUN, **BASE}))
def test_any_two_choices_of_textual_inversion(make_base, make_photo, tmp_path, choices):
    settings = TextualInversionSettings(
        token="<xyz>", steps=1, **{name: choices[name] for name in (*INVERSION, *DENOISING)}
    )
    photos = _photos(make_photo, choices["photos"], "<xyz>")
    base = make_base(choices["sdxl"], choices["prediction"])
    make = partial(textual_inversion, photos=photos, settings=settings)
    refused = _trained_or_refused(make, base, _run_settings(choices), tmp_path)
    assert bool(refused) == (
        choices["precision"] is Precision.FLOAT16
        or (choices["captions"] and choices["photos"] == "captions without the word")
        or (choices["mask"] is not Mask.NONE and choices["photos"] == "without masks")
        or (choices["batch"] > 1 and choices["photos"] == "of two sizes")
    ), refused


@pytest.mark.parametrize("choices", every_pair({**MAGICAPTURE, "flip": [0.0, 1.0], **RUN, **BASE}))
def test_any_two_choices_of_magicapture(make_base, make_photo, tmp_path, choices):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(588, 16))
    people, styles = ([Portrait(make_photo(n), KEYPOINTS, torch.randn(16))] for n in (1, 2))
    own = {name: choices[name] for name in (*MAGICAPTURE, "flip") if "reach" not in name}
    settings = MagiCaptureSettings(
        lora=LoraSettings(rank=2, reach=choices["reach"]),
        text_lora=LoraSettings(rank=2, reach=choices["text_reach"]),
        **own,
    )
    measure = arcface_measure(FrozenRecogniser(layers, "x")) if choices["lambda_id"] > 0 else None

    def make(base: BaseModel) -> Recipe:
        return magicapture(base, people, styles, settings, 0, measure, lambda picture: KEYPOINTS.numpy())

    base = make_base(choices["sdxl"], choices["prediction"])
    refused = _trained_or_refused(make, base, _run_settings(choices), tmp_path)
    assert bool(refused) == (
        choices["precision"] is Precision.FLOAT16
        or choices["inversion_steps"] == choices["tuning_steps"] == 0
        or (choices["lambda_attention"] > 0 and choices["map_division"] == 3)  # a size that no attention has
    ), refused


def test_cross_attention_of_a_text_encoder_is_its_attention(base):
    [encoder] = base.encoders
    assert lora_targets(encoder, Reach.CROSS_ATTENTION) == lora_targets(encoder, Reach.ATTENTION) != []
    ours = lora_targets(base.unet, Reach.CROSS_ATTENTION)
    assert ours and all(".attn2." in path for path in ours)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (RunSettings(optimiser=Optimiser.PRODIGY), "needs the package prodigyopt"),
        (RunSettings(precision=Precision.FLOAT16), "float16 .* does not work on this device"),
    ],
)
def test_the_command_line_says_what_this_machine_cannot_do_before_it_opens_a_model(tmp_path, run, words):
    def never(name: str) -> Any:
        raise AssertionError("opened")

    recipe = TextualInversionSettings(token="<xyz>")
    data = DataSettings(person=tmp_path)
    configuration = Configuration(name="me", base="", output=tmp_path / "out", data=data, recipe=recipe, run=run)
    with pytest.raises(LikenessError, match=words):
        run_command(configuration, Openers(never, never))
