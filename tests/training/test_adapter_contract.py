"""What every adapter's training keeps to: it trains nothing but its own, goes on bit for bit after a crash, and its
file, in the official layout, is loaded by the same loader as any other and gives what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blip_diffusion
from helpers.people import few_step_lora, people_materials, some_people, toy_clip_file
from safetensors.torch import load_file, save_file

from likeness import adapters
from likeness.training import methods
from likeness.training.config import RunSettings
from likeness.training.engine import Callbacks, train
from likeness.training.export import Saved, SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.recipe import Recipe, generator
from likeness.training.recipes.pulid import PuLIDSettings

STEPS = 3
# What is trained in tests, by the kind of its method: settings.
PULID = {"width": 64, "fast_steps": 2, "warm_up": 0, "sampler": "lcm"}
CASES: dict[str, list[dict[str, Any]]] = {
    "ip_adapter": [{"layout": "faceid", "rank": 2}, {"layout": "base"}, {"layout": "plus"}],
    "pulid": [
        {"stage": 1, "version": "v1", **PULID},
        {"stage": 1, **PULID},
        {"stage": 2, **PULID},
        {"stage": 3, **PULID},
    ],
    "instantid": [{}],
    "photomaker": [
        {"rank": 2, "encoder_rate": 1e-2, "encoder_layers": 1, "smallest_face": 0, "masked_share": share}
        for share in (0.0, 1.0)
    ],
    "photoverse": [
        {"rank": 2, "hidden": hidden, "warm_up": 0, "lambda_face": face, "adapter": kind, "maps": maps}
        for face, kind, maps, hidden in ((1.0, "elite", 5, 8), (0.0, "literal", 2, None))
    ],
    "blip_diffusion_encoder": [{"unet": False, "dropout": False, "random_background": mask} for mask in (True, False)],
    "storymaker": [{"rank": 2, "drop_face": 0.0, "drop_body": 0.0}],
}
EACH = pytest.mark.parametrize(
    ("method", "values"),
    [(method, values) for method in methods.ADAPTERS for values in CASES[method.kind]],
    ids=lambda value: getattr(value, "kind", None) or "-".join(map(str, value.values())) or "usual",
)


@pytest.fixture
def make_base(make_base, make_unet, method) -> Any:
    """A base model that a method can be trained on."""

    def make() -> Any:
        base = make_base()
        if method.kind == "storymaker":  # looks at a quarter of the latent's sides
            levels = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
            ups = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
            base.unet = make_unet(down_block_types=levels, up_block_types=ups, block_out_channels=(16, 32, 32)).eval()
        if method.kind == "blip_diffusion_encoder":  # whose heads are 64 wide
            base.unet = make_unet(cross_attention_dim=64).eval()
            base.text[0].encoder = wider_text_encoder(base.text[0].encoder)
        return base

    return make


def wider_text_encoder(like: Any) -> Any:
    """The same, 64 wide."""
    torch.manual_seed(1)
    return type(like)(type(like.config)(**{**like.config.to_dict(), "hidden_size": 64})).eval()


@pytest.fixture
def extra(values, make_base, tmp_path) -> dict[str, Any]:
    """Files that a case starts from."""
    if "encoder_layers" in values:
        return {"encoder": toy_clip_file(tmp_path / "clip.safetensors")}
    if "random_background" in values:
        (tmp_path / "whole results").mkdir()
        for folder in (tmp_path, tmp_path / "whole results"):
            blip_diffusion.vocabulary(folder)
        save_file(blip_diffusion.encoder(64), tmp_path / "encoder.safetensors")
        return {"start": tmp_path / "encoder.safetensors"}
    if values.get("stage", 1) == 1:
        return {}
    base = make_base()
    start = methods.adapter_method_of(PuLIDSettings()).trainable.make(  # type: ignore[union-attr]
        base, people_materials(), PuLIDSettings(width=64), 0
    )
    (saved,) = saved_by(start, base, tmp_path / "start")
    return {"start": saved.path, "few_step": few_step_lora(base.unet, tmp_path / "few.safetensors")}


class Killed(BaseException):
    """The process ends here."""


def recipe_of(method: Any, values: dict[str, Any], base: Any, **given: Any) -> Recipe:
    kind = method.trainable.settings
    # Rates at which a few steps are seen, and every condition is left out now and then.
    usual = {"learning_rate": 1e-2, "drop": {"person": 0.2, "text": 0.2, "both": 0.2}}
    settings = kind(**usual, **dict.fromkeys(kind.phases, STEPS), **values)
    width = 512 if method.kind == "instantid" else 16  # of the recogniser
    return method.trainable.make(base, people_materials(some_people(width=width), **given), settings, 0)


def saved_by(recipe: Recipe, base: Any, folder: Path) -> list[Saved]:
    return recipe.save(folder, "result", TrainingRecord(recipe.name, base.family, STEPS))


def answer(base: Any, recipe: Recipe) -> torch.Tensor:
    """The denoiser's, to samples of the last phase."""
    phase = recipe.phases[-1]
    phase.begin()
    samples = [phase.streams[0](n, generator(n)) for n in range(3)]
    z, t = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([400, 10, 900])
    with torch.no_grad(), phase.hooks():  # type: ignore[misc]
        assert phase.show is not None
        phase.show(samples)
        said = [sample.prompt for sample in samples]
        conditioning = base.encode(said) if base.staged is None else base.staged(said, t)
        ids = torch.zeros(3, 6) if base.is_sdxl else None
        return base.predict(z, t, conditioning, ids)


@EACH
def test_a_killed_training_goes_on_bit_for_bit_and_its_file_loads_back(method, values, extra, make_base, tmp_path):
    settings = RunSettings(save_every=1, batch=2)
    base = make_base()
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    recipe = recipe_of(method, values, base, **extra)
    whole = train(base, recipe, settings, tmp_path / "whole")
    assert whole.complete and base.staged is None
    saved = saved_by(recipe, base, tmp_path / "whole results")
    after = {name.replace(".base_layer", ""): value for name, value in base.unet.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the base model is not trained"

    def die(done: int, total: int, losses: Any) -> None:
        if done == total - 2:
            raise Killed

    killed = make_base()
    with pytest.raises(Killed):
        train(killed, recipe_of(method, values, killed, **extra), settings, tmp_path / "cut", Callbacks(progress=die))
    again = make_base()
    resumed = recipe_of(method, values, again, **extra)
    assert train(again, resumed, settings, tmp_path / "cut").complete
    found = [load_file(result.path) for result in saved_by(resumed, again, tmp_path / "cut results")]
    wanted = [load_file(result.path) for result in saved]
    assert [one.keys() for one in found] == [one.keys() for one in wanted]
    assert all(torch.equal(one[key], other[key]) for one, other in zip(found, wanted, strict=True) for key in one)
    assert read_losses(whole.losses) == read_losses(tmp_path / "cut" / "losses.csv")

    files = {result.kind: result.path for result in saved}
    control = files.pop(SavedKind.CONTROLNET, None)
    (file,) = files.values()
    assert adapters.load(file, folder=next(iter(files)).value).title
    untrained = make_base()
    first = answer(untrained, recipe_of(method, values, untrained, **extra))
    fresh = make_base()
    loaded = recipe_of(method, values, fresh, **{**extra, "start": file, "control": control})
    learned = answer(base, recipe)
    torch.testing.assert_close(answer(fresh, loaded), learned, atol=5e-3, rtol=2e-2)
    assert not torch.allclose(first, learned, atol=2e-2), "the training changed nothing that could be lost"


@EACH
def test_gradient_checkpointing_changes_nothing(method, values, extra, make_base, tmp_path):
    losses = []
    for checkpointing in (False, True):
        base = make_base()
        settings = RunSettings(gradient_checkpointing=checkpointing)
        result = train(base, recipe_of(method, values, base, **extra), settings, tmp_path / str(checkpointing))
        losses.append(torch.tensor([float(row["total"]) for row in read_losses(result.losses)]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@EACH
def test_its_settings_lead_back_to_the_method(method, values):
    settings = method.trainable.settings(**values)
    assert methods.adapter_method_of(settings) is method and settings.title == method.title
