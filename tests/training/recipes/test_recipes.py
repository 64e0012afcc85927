"""The recipes, run on models of a few thousand weights: what they train, what they leave alone, what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from likeness.errors import LikenessError
from likeness.faces.recognition import FrozenRecogniser
from likeness.training.base.lora import Reach, load_lora
from likeness.training.base.model import Codec
from likeness.training.base.noise import Prediction
from likeness.training.class_pictures import class_pictures, class_size
from likeness.training.config import LoraSettings, Precision, RunSettings
from likeness.training.data.examples import Example
from likeness.training.data.portraits import Portrait
from likeness.training.engine import train
from likeness.training.export import TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.objectives.identity import Measure, arcface_measure
from likeness.training.objectives.magicapture import ShotKind
from likeness.training.recipes.denoising import Mask
from likeness.training.recipes.dreambooth import DreamBoothSettings, dreambooth, start_of
from likeness.training.recipes.magicapture import (
    FaceLayout,
    IdentityPass,
    MagiCaptureSettings,
    Refocusing,
    ShotStream,
    magicapture,
)
from likeness.training.recipes.textual_inversion import Tether, TextualInversionSettings, textual_inversion
from likeness.weights.embedding_files import load_embedding

FAMILIES = pytest.mark.parametrize("sdxl", [False, True], ids=["SD1.5", "SDXL"])
KEYPOINTS = torch.tensor([[11.0, 13.0], [20.0, 13.0], [16.0, 18.0], [12.0, 22.0], [19.0, 22.0]])


def paths(recipe, *where) -> list[Path]:
    """What a recipe saved."""
    return [saved.path for saved in recipe.save(*where)]


def values(base: Any) -> dict[str, torch.Tensor]:
    """All weights of a base model, by a name that LoRA layers and placeholders do not change."""
    found = {}
    for network in base.networks:
        for name, value in network.state_dict().items():
            plain = name.replace(".base_layer", "").replace("token_embedding.table", "token_embedding")
            found[f"{id(network)}.{plain}"] = value.clone()
    return found


def measure() -> Measure:
    torch.manual_seed(7)
    layers = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(588, 16))
    return arcface_measure(FrozenRecogniser(layers, "x"))


def portraits(make_photo: Any, *numbers: int) -> list[Portrait]:
    return [Portrait(make_photo(n), KEYPOINTS, torch.randn(16)) for n in numbers]


@pytest.mark.parametrize(
    ("sdxl", "tether"), [(False, Tether.NONE), (False, Tether.NORM), (True, Tether.DEVIATION)], ids=str
)
def test_textual_inversion_moves_the_new_word_and_nothing_else(make_base, photos, tmp_path, sdxl, tether):
    base = make_base(sdxl)
    before = values(base)
    settings = TextualInversionSettings(token="<me>", vectors=2, steps=3, tether=tether, weight_decay=0)
    recipe = textual_inversion(base, photos, settings)
    rows = [tower.encoder.get_input_embeddings().rows for tower in base.text]
    started = [row.detach().clone() for row in rows]
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    assert all(not torch.equal(row, start) for row, start in zip(rows, started, strict=True))
    after = values(base)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    (file,) = paths(recipe, tmp_path, "me", TrainingRecord("Textual Inversion", base.family, 3))
    assert {k: v.shape[0] for k, v in load_embedding(file).vectors.items()} == (
        {"clip_l": 2, "clip_g": 2} if sdxl else {"clip_l": 2}
    )


@FAMILIES
def test_a_dreambooth_lora_learns_with_its_class_beside_it(make_base, photos, make_photo, tmp_path, sdxl):
    base = make_base(sdxl)
    before = values(base)
    settings = DreamBoothSettings(steps=2, text_encoder=True, min_snr=5.0, mask=Mask.FACE)
    recipe = dreambooth(base, photos, settings, class_photos=[make_photo(9)])
    assert train(base, recipe, RunSettings(batch=2), tmp_path / "run").complete
    row = read_losses(tmp_path / "run" / "losses.csv")[-1]
    assert float(row["total"]) == pytest.approx(float(row["instance"]) + float(row["prior"]), rel=1e-4)
    after = values(base)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(".lora_B." in name and bool(value.any()) for name, value in after.items())
    (file,) = paths(recipe, tmp_path, "me", TrainingRecord("DreamBooth", base.family, 2))
    assert file.stat().st_size > 0


def test_full_dreambooth_changes_the_denoiser_and_rests_the_text_encoder(base, photos, tmp_path):
    before = values(base)
    settings = DreamBoothSettings(full=True, steps=3, text_encoder=True, text_until=1, prior_weight=0)
    recipe = dreambooth(base, photos, settings)
    train(base, recipe, RunSettings(save_every=1), tmp_path / "run")
    changed = {name for name, value in values(base).items() if not torch.equal(before[name], value)}
    assert any(name.startswith(str(id(base.unet))) for name in changed)
    assert any(name.startswith(str(id(base.text[0].encoder))) for name in changed)
    assert paths(recipe, tmp_path, "me", TrainingRecord("DreamBooth", base.family, 3))


def test_the_text_encoder_stops_at_its_step_and_the_denoiser_goes_on(make_base, photos, tmp_path):
    def weights(steps: int, text_until: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        base = make_base(False)
        settings = DreamBoothSettings(
            full=True, steps=steps, text_encoder=True, text_until=text_until, prior_weight=0, weight_decay=0.1
        )
        train(base, dreambooth(base, photos, settings), RunSettings(), tmp_path / f"{steps} {text_until}")
        parts = (base.text[0].encoder, base.unet)
        return tuple(torch.nn.utils.parameters_to_vector(part.parameters()).detach() for part in parts)  # type: ignore[return-value]

    one, rested, trained = weights(1, None), weights(3, 1), weights(3, None)
    assert torch.equal(one[0], rested[0])
    assert not torch.equal(one[0], trained[0]) and not torch.equal(one[1], rested[1])


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_lora_is_trained_further_with_what_it_has(make_base, photos, tmp_path, text_encoder):
    def trained(start: Path | None, **options: Any) -> dict[str, torch.Tensor]:
        base, chosen = make_base(), DreamBoothSettings(steps=2, prior_weight=0, **options)
        recipe = dreambooth(base, photos, chosen, start=start_of(base, chosen, start))
        train(base, recipe, RunSettings(), tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        (file,) = paths(recipe, tmp_path, "me", TrainingRecord("DreamBooth", base.family, 2))
        return load_file(file)

    lora = LoraSettings(rank=3, alpha=6, reach=Reach.TRANSFORMER)
    first = trained(None, lora=lora, text_encoder=True, learning_rate=0.01)
    # Whatever rank and reach are chosen now, the file's own count. Two steps of next to nothing change nothing.
    file = tmp_path / "me.safetensors"
    same = trained(file, learning_rate=1e-9, text_encoder=text_encoder, weight_decay=0)
    assert same.keys() == first.keys()
    for key, value in first.items():
        torch.testing.assert_close(same[key], value, atol=1e-4, rtol=1e-3)
    moved = trained(file, learning_rate=0.01, text_encoder=text_encoder)
    changed = {key.split("_")[1] for key, value in first.items() if not torch.equal(moved[key], value)}
    assert changed == ({"unet", "te"} if text_encoder else {"unet"}), "what is not trained stays in the file"
    with pytest.raises(LikenessError, match="All weights cannot be trained further from a LoRA"):
        trained(file, full=True)


def test_magicapture_trains_a_lora_further(make_base, make_photo, photos, tmp_path):
    base = make_base()
    first = dreambooth(base, photos, DreamBoothSettings(steps=1, prior_weight=0, lora=LoraSettings(rank=3)))
    train(base, first, RunSettings(), tmp_path / "first")
    (file,) = paths(first, tmp_path, "first", TrainingRecord("DreamBooth", base.family, 1))
    base = make_base()
    settings = MagiCaptureSettings(inversion_steps=1, tuning_steps=1, map_division=2, unet_rate=1e-9, lambda_id=0)
    people, styles = portraits(make_photo, 1), portraits(make_photo, 3)
    start = load_lora(file, base.unet, base.encoders)
    recipe = magicapture(base, people, styles, settings, start_lora=start)
    train(base, recipe, RunSettings(), tmp_path / "run")
    lora = load_file(paths(recipe, tmp_path, "me", TrainingRecord("MagiCapture", base.family, 2))[0])
    for key, value in load_file(file).items():
        torch.testing.assert_close(lora[key], value, atol=1e-4, rtol=1e-3)
    ranks = {len(value) for key, value in lora.items() if key.endswith("lora_down.weight")}
    assert ranks == {3} and any(key.startswith("lora_te") for key in lora), "new layers are as large as the old ones"


def test_all_weights_are_trained_from_what_they_were_and_not_from_rounded_ones(base, photos, tmp_path):
    before = values(base)
    settings = DreamBoothSettings(full=True, steps=1, prior_weight=0, learning_rate=1e-9)
    train(base, dreambooth(base, photos, settings), RunSettings(precision=Precision.BFLOAT16), tmp_path)
    for name, value in values(base).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)


def test_class_pictures_are_made_once(base, tmp_path):
    first = class_pictures(base, "a photo of person", 1, tmp_path, (16, 16))
    stamp = next(tmp_path.iterdir()).stat().st_mtime_ns
    again = class_pictures(base, "a photo of person", 2, tmp_path, (16, 16))
    assert len(again) == 2 and torch.equal(first[0].pixels, again[0].pixels)
    assert (tmp_path / "class_00000.png").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "folder"])
def test_a_class_picture_that_cannot_be_read_is_set_aside_and_painted_again(base, tmp_path, content):
    [first] = class_pictures(base, "a photo of person", 1, tmp_path, (16, 16))
    file = tmp_path / "class_00000.png"
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content)
    [again] = class_pictures(base, "a photo of person", 1, tmp_path, (16, 16))
    assert torch.equal(first.pixels, again.pixels)
    kept = tmp_path / "class_00000.damaged.png"
    assert kept.is_dir() if content is None else kept.read_bytes() == content


def test_class_pictures_that_are_no_numbers_are_not_learned_from(base, tmp_path, monkeypatch):
    nothing = torch.full((1, 3, 16, 16), float("nan"))
    monkeypatch.setattr("likeness.training.class_pictures.sample_pictures", lambda *_, **__: nothing)
    with pytest.raises(LikenessError, match="values that are not numbers: choose another precision"):
        class_pictures(base, "a photo of person", 1, tmp_path, (16, 16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sdxl", "prediction"),
    [(False, Prediction.EPSILON), (False, Prediction.VELOCITY), (True, Prediction.EPSILON)],
    ids=["SD1.5", "SD1.5 velocity", "SDXL"],
)
def test_magicapture_runs_both_phases(make_base, make_photo, tmp_path, sdxl, prediction):
    base = make_base(sdxl, prediction)
    before = values(base)
    settings = MagiCaptureSettings(inversion_steps=2, tuning_steps=3, map_division=2, vectors=2)
    recipe = magicapture(base, portraits(make_photo, 1, 2), portraits(make_photo, 3), settings, measure=measure())
    result = train(base, recipe, RunSettings(batch=4, gradient_checkpointing=True), tmp_path / "run")
    assert result.complete and result.steps == 5
    after = values(base)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    rows = read_losses(result.losses)
    assert [row["phase"] for row in rows] == ["inversion"] * 2 + ["tuning"] * 3
    assert all(float(row["identity"]) > 0 and float(row["attention"]) > 0 for row in rows[2:])
    files = paths(recipe, tmp_path, "me", TrainingRecord("MagiCapture", base.family, 5))
    assert [file.name for file in files] == ["me.safetensors", "me-person.safetensors", "me-style.safetensors"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", Refocusing)
def test_refocusing_alone_trains_the_lora(base, make_photo, tmp_path, checkpointing, form):
    settings = MagiCaptureSettings(
        inversion_steps=1, tuning_steps=2, map_division=2, lambda_id=0, lambda_style=0, refocusing=form, weight_decay=0
    )
    recipe = magicapture(base, portraits(make_photo, 1), portraits(make_photo, 3), settings)
    tuning = recipe.phases[1]
    only = [objective for objective in tuning.objectives if objective.name == "attention"]
    object.__setattr__(tuning, "objectives", only)
    train(base, recipe, RunSettings(gradient_checkpointing=checkpointing), tmp_path / "run")
    ups = [v for name, v in base.unet.state_dict().items() if ".lora_B." in name]
    assert any(bool(up.any()) for up in ups)


@pytest.mark.parametrize(
    "options",
    [{"identity_pass": IdentityPass.SEPARATE}, {"layout": FaceLayout.DETECTED}, {"decode_whole": True}],
    ids=["separate pass", "detected", "whole picture"],
)
def test_the_identity_loss_can_go_the_official_ways(base, make_photo, tmp_path, options):
    settings = MagiCaptureSettings(inversion_steps=1, tuning_steps=2, map_division=2, **options)
    recipe = magicapture(
        base,
        portraits(make_photo, 1),
        portraits(make_photo, 3),
        settings,
        measure=measure(),
        detect=lambda picture: KEYPOINTS.numpy(),
    )
    result = train(base, recipe, RunSettings(batch=3), tmp_path / "run")
    assert float(read_losses(result.losses)[-1]["identity"]) > 0


def test_the_identity_loss_leaves_recogniser_and_codec_alone(base, make_photo, tmp_path):
    torch.manual_seed(7)
    recogniser = FrozenRecogniser(
        torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(588, 16)), "x"
    )
    settings = MagiCaptureSettings(inversion_steps=1, tuning_steps=2, map_division=2, decode_whole=True)
    people, styles = portraits(make_photo, 1), portraits(make_photo, 3)
    recipe = magicapture(base, people, styles, settings, measure=arcface_measure(recogniser))
    result = train(base, recipe, RunSettings(batch=3), tmp_path / "run")
    assert float(read_losses(result.losses)[-1]["identity"]) > 0
    parts = [*recogniser.parameters(), *base.codec.module.parameters()]
    assert parts and all(parameter.grad is None for parameter in parts)


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_nothing_is_decoded_without_the_identity_loss(base, make_photo, tmp_path, monkeypatch, weight):
    decoded = []
    decode = base.codec.module.decode
    monkeypatch.setattr(base.codec.module, "decode", lambda z: decoded.append(z) or decode(z))
    people, styles = portraits(make_photo, 1), portraits(make_photo, 3)
    settings = MagiCaptureSettings(inversion_steps=1, tuning_steps=2, map_division=2, lambda_id=weight)
    train(base, magicapture(base, people, styles, settings, measure=measure()), RunSettings(batch=3), tmp_path)
    assert bool(decoded) == (weight > 0)


def test_a_batch_is_the_mean_of_its_samples(make_base, make_photo, tmp_path):
    def losses(batch: int, accumulation: int) -> list[float]:
        base = make_base()
        settings = MagiCaptureSettings(inversion_steps=1, tuning_steps=1, map_division=2)
        people, styles = portraits(make_photo, 1, 2), portraits(make_photo, 3)
        recipe = magicapture(base, people, styles, settings, measure=measure())
        run = RunSettings(batch=batch, accumulation=accumulation)
        result = train(base, recipe, run, tmp_path / f"{batch}")
        return [float(row["total"]) for row in read_losses(result.losses)]

    torch.manual_seed(0)
    together = losses(4, 1)
    torch.manual_seed(0)
    assert losses(1, 4) == pytest.approx(together, rel=1e-4)


def test_reaches_name_the_official_layers(make_unet):
    assert len(LoraSettings(reach=Reach.CROSS_ATTENTION).add_to(make_unet())) == 2 * 4 * 7
    # Self-attention and the gate of the feed-forward come in the official code on top of the paper's cross-attention.
    assert len(LoraSettings(reach=Reach.ATTENTION_AND_GEGLU).add_to(make_unet())) == 2 * 9 * 7


BAD = {
    "no photos": (lambda s, base, p: s["ti"](base, [], token="<me>"), "no photo to train on"),
    "a word that exists": (lambda s, base, p: s["ti"](base, p, token="person"), "already a word"),
    "a template without a place": (lambda s, base, p: s["ti"](base, p, token="<me>", templates=("a face",)), "no {}"),
    "a caption without the word": (
        lambda s, base, p: s["ti"](base, [replace(p[0], caption="a person", name="a.png")], token="<me>"),
        r"caption of a\.png lacks the trigger",
    ),
    "no mask": (lambda s, base, p: s["ti"](base, s["maskless"], token="<me>", mask=Mask.FACE), "no face mask"),
    "a mask of less than a cell": (
        lambda s, base, p: s["ti"](base, [with_mask(p[0], 0, 1)], token="<me>", mask=Mask.FACE_NORMALISED),
        r"a\.png is smaller than the network's cells of 2 pixels",
    ),
    "a style that is all face": (
        lambda s, base, p: s["mc"](base, [Portrait(p[0])], [Portrait(with_mask(p[1], 1, 1))], lambda_id=0),
        r"a\.png leaves nothing but the face",
    ),
    "vectors of another model": (lambda s, base, p: s["ti"](base, p, s["sd15"], token="<me>"), "another base model"),
    "vectors of SD1.5 for SDXL": (
        lambda s, base, p: s["ti"](base, p, s["clip_l alone"], token="<me>"),
        r"needs clip_g \(1, 32\)",
    ),
    "a prompt without the identifier": (lambda s, base, p: s["db"](base, p, prompt="a person"), "no {}"),
    "no class images": (lambda s, base, p: s["db"](base, p), "no class image"),
}


def with_mask(photo: Example, rest: float, corner: float) -> Example:
    """The photo with a mask of one value, but for the pixel beside the first."""
    mask = torch.full_like(photo.face_mask, rest)  # type: ignore[arg-type]
    mask[0, 1, 1] = corner
    return replace(photo, face_mask=mask, name="a.png")


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_trained_is_refused_in_a_sentence(make_base, photos, make_photo, case):
    from likeness.weights.embedding_files import TokenEmbedding

    make, words = case
    services = {
        "ti": lambda base, p, start=None, **options: textual_inversion(
            base, p, TextualInversionSettings(**options), start=start
        ),
        "db": lambda base, p, **options: dreambooth(base, p, DreamBoothSettings(**options)),
        "mc": lambda base, p, styles, **options: magicapture(base, p, styles, MagiCaptureSettings(**options)),
        "maskless": [Example(photos[0].pixels, "")],
        "sd15": TokenEmbedding({"clip_l": torch.zeros(1, 768)}),
        "clip_l alone": TokenEmbedding({"clip_l": torch.zeros(1, 24)}),
    }
    with pytest.raises(LikenessError, match=words):
        make(services, make_base(sdxl=True), photos)


@pytest.mark.parametrize("kind", ["textual inversion", "dreambooth"])
def test_captions_are_used_where_there_are_any_and_templates_elsewhere(base, make_photo, kind):
    photos = [make_photo(0, "<me> in the rain"), make_photo(1)]
    if kind == "dreambooth":
        made = [
            dreambooth(base, photos, DreamBoothSettings(identifier="<me>", prior_weight=0, **changes))
            for changes in ({}, {"captions": False})
        ]
    else:
        made = [
            textual_inversion(base, photos, TextualInversionSettings(token=token, **changes))
            for token, changes in (("<me>", {}), ("<me>2", {"captions": False}))
        ]
    said = [{(s.example is photos[0], s.prompt) for s in map(draw, [recipe] * 40, range(40))} for recipe in made]
    assert [prompt for captioned, prompt in said[0] if captioned] == ["<me> in the rain"]
    assert all("rain" not in prompt for captioned, prompt in said[0] if not captioned)
    assert all("rain" not in prompt for _, prompt in said[1])


def draw(recipe, n):
    """The n-th sample of a recipe's first stream."""
    return recipe.phases[0].streams[0](n, torch.Generator().manual_seed(n))


def test_all_weights_need_a_vae_that_a_checkpoint_can_hold(base, photos):
    base.codec = Codec(base.codec.encode, base.codec.decoder, torch.nn.Identity())
    with pytest.raises(LikenessError, match="train a LoRA"):
        dreambooth(base, photos, DreamBoothSettings(full=True, prior_weight=0))


def test_magicapture_refuses_photos_of_mixed_sizes(base, make_photo):
    mixed = [Portrait(make_photo(1)), Portrait(make_photo(2, side=64))]
    with pytest.raises(LikenessError, match="different sizes"):
        magicapture(base, mixed, mixed, MagiCaptureSettings(lambda_id=0))


def test_each_phase_of_magicapture_runs_alone(make_base, make_photo, tmp_path):
    people, styles = portraits(make_photo, 1), portraits(make_photo, 2)
    options: dict[str, Any] = {"lambda_id": 0, "map_division": 2, "style_start": "person"}
    base, other = make_base(), make_base()
    words = magicapture(base, people, styles, MagiCaptureSettings(inversion_steps=2, tuning_steps=0, **options))
    assert train(base, words, RunSettings(), tmp_path / "words").steps == 2
    files = paths(words, tmp_path, "me", TrainingRecord("MagiCapture", base.family, 2))
    assert sorted(file.name for file in files) == ["me-person.safetensors", "me-style.safetensors"]
    learned = dict(zip(("<sks>", "<style1>"), map(load_embedding, files), strict=True))
    settings = MagiCaptureSettings(inversion_steps=0, tuning_steps=1, rows_rate=1e-9, **options)
    tuning = magicapture(other, people, styles, settings, start=learned)
    assert [phase.name for phase in tuning.phases] == ["tuning"]
    assert train(other, tuning, RunSettings(), tmp_path / "tuning").steps == 1
    lora, *rows = paths(tuning, tmp_path, "me", TrainingRecord("MagiCapture", base.family, 1))
    assert lora.name == "me.safetensors"
    for file, before in zip(rows, learned.values(), strict=True):
        torch.testing.assert_close(load_embedding(file).vectors, before.vectors, atol=1e-6, rtol=0)
    none = magicapture(make_base(), people, styles, MagiCaptureSettings(inversion_steps=0, tuning_steps=0, **options))
    with pytest.raises(LikenessError, match="has 0 steps"):
        train(make_base(), none, RunSettings(), tmp_path / "none")


def test_person_and_style_need_words_of_their_own(base, make_photo):
    shown = [Portrait(make_photo(1))]
    with pytest.raises(LikenessError, match="both called '<me>'"):
        magicapture(base, shown, shown, MagiCaptureSettings(lambda_id=0, subject="<me>", style="<me>"))


def test_a_style_photo_without_a_face_is_learned_from_but_never_composed_with(base, make_photo):
    faceless = replace(make_photo(3), face_mask=torch.zeros(1, 32, 32))
    people, styles = portraits(make_photo, 1), [Portrait(faceless), Portrait(make_photo(2))]
    settings = MagiCaptureSettings(lambda_id=0, map_division=2)
    assert magicapture(base, people, styles, settings).phases
    items = ShotStream(people, styles, settings, (16, 16), seed=0, pairs=True).items()
    assert {j for kind, _, j in items if kind is ShotKind.STYLE} == {0, 1}
    assert [j for kind, _, j in items if kind is ShotKind.BOTH] == [1]
    alone = ShotStream(people, styles[:1], settings, (16, 16), seed=0, pairs=True).items()
    assert all(kind is not ShotKind.BOTH for kind, _, _ in alone)


def test_a_person_without_a_face_is_refused_where_a_style_is_not(base, make_photo):
    faceless = [Portrait(replace(make_photo(3), face_mask=torch.zeros(1, 32, 32)))]
    with pytest.raises(LikenessError, match="no face mask"):
        magicapture(base, faceless, portraits(make_photo, 1), MagiCaptureSettings(lambda_id=0))


def test_photos_of_mixed_sizes_are_refused_before_class_pictures_are_painted(base, make_photo):
    mixed = [make_photo(1, "ohwx person"), make_photo(2, "ohwx person", side=64)]
    with pytest.raises(LikenessError, match=r"32x32, 64x64.*prior"):
        class_size(mixed)
    assert class_size(mixed[1:]) == (64, 64)
    with pytest.raises(LikenessError, match="photos and class images have different sizes"):
        dreambooth(base, mixed[:1], DreamBoothSettings(), class_photos=mixed[1:])


def test_magicapture_refuses_an_identity_loss_without_faces(base, make_photo):
    people = [Portrait(make_photo(1))]
    with pytest.raises(LikenessError, match="No face was found"):
        magicapture(base, people, people, MagiCaptureSettings(), measure=measure())
    with pytest.raises(LikenessError, match="recogniser"):
        magicapture(base, people, people, MagiCaptureSettings())


def test_a_batch_of_mixed_sizes_is_refused(base, make_photo, tmp_path: Path):
    recipe = textual_inversion(base, [make_photo(1), make_photo(2, side=64)], TextualInversionSettings(token="<me>"))
    with pytest.raises(LikenessError, match="different sizes"):
        train(base, recipe, RunSettings(batch=2), tmp_path)
