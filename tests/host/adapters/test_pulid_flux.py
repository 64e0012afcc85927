"""PuLID on a tiny FLUX through the nodes: its modules, the two halves, steps, masks, other depths and precisions."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from helpers import pulid as files
from helpers.small_world import person, same, sentence
from helpers.windows import in_context_windows
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH = 64


@pytest.fixture(scope="module")
def load(flux_world) -> Any:
    """load(modules, dtype) -> the adapter of a file in models/pulid that fits the world's MODEL."""

    def make(modules: int = 4, dtype: torch.dtype = torch.float32) -> Any:
        name = f"flux {modules} {dtype}.safetensors"
        weights = {key: value.to(dtype) for key, value in files.flux_adapter(WIDTH, modules).items()}
        save_file(weights, flux_world.folder / "pulid" / name)
        return flux_world.run("LikenessLoadIdentityAdapter", adapter_file=f"pulid/{name}")

    return make


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    """(number of the module, images) of every call of a module."""
    from likeness.adapters.pulid import PuLIDFlux

    seen: list[tuple[int, int]] = []
    residual = PuLIDFlux.residual
    monkeypatch.setattr(
        PuLIDFlux,
        "residual",
        lambda self, j, images, made: seen.append((j, len(images))) or residual(self, j, images, made),
    )
    return seen


def options(**inputs: Any) -> Any:
    from likeness.nodes.pulid import PuLIDOptionsNode

    return PuLIDOptionsNode.execute(**inputs).result[0]


# Modules --------------------------------------------------------------------------------------------------------------


def test_the_twenty_modules_of_flux_run_once_a_step(flux_world, load, recipes, calls):
    flux = recipes.tiny_flux(depth=19, depth_single_blocks=38)
    model, report = flux_world.apply(load(20), person(), model=flux)
    assert "PuLID for FLUX" in report and "32 tokens behind 20 blocks" in report
    flux_world.sample(model, steps=1, cfg=1.0)
    assert calls == [(j, 1) for j in range(20)]


def test_models_of_other_depths(flux_world, load, recipes):
    """A pruned one; and one that is deeper than the file."""
    pruned = recipes.tiny_flux(depth=8, depth_single_blocks=38)
    model, report = flux_world.apply(load(20), person(), model=pruned)
    assert "behind 14 blocks" in report and "14 of 20 modules" in report
    assert not same(flux_world.sample(model, steps=1), flux_world.sample(pruned, steps=1))
    text = sentence(flux_world.apply, load(4), person(), model=pruned)
    assert "4 modules" in text and "8 + 38 blocks" in text


def test_schnell_which_has_no_guidance_of_its_own(flux_world, load, recipes):
    schnell = recipes.tiny_flux(depth=3, depth_single_blocks=6, guidance_embed=False)
    model, _ = flux_world.apply(load(), person(), model=schnell)
    assert not same(flux_world.sample(model, cfg=1.0), flux_world.sample(schnell, cfg=1.0))


# Halves and steps -----------------------------------------------------------------------------------------------------


def test_the_unconditioned_half_reads_nobody_whoever_it_is(flux_world, load):
    """What guidance pushes away from is the same for two people."""
    seen: list[Tensor] = []

    def watch(args: dict) -> Tensor:
        seen.append(args["uncond_denoised"].clone())
        return args["denoised"]

    for seed in (1, 2):
        model, _ = flux_world.apply(load(), person(seed=seed))
        model.set_model_sampler_post_cfg_function(watch)
        flux_world.sample(model, steps=1, cfg=2.0)
    model = flux_world.model.clone()
    model.set_model_sampler_post_cfg_function(watch)
    flux_world.sample(model, steps=1, cfg=2.0)
    one, other, without = seen
    assert torch.equal(one, other) and not same(one, without)


@pytest.mark.parametrize(("first", "steps"), [(1, 5), (2, 3), (4, 1), (5, 0), (9, 0)])
@pytest.mark.parametrize("scheduler", ["simple", "beta"])
def test_start_step_is_exact(flux_world, load, calls, first, steps, scheduler):
    model, _ = flux_world.apply(load(), person(), start_at=0.9, options=options(start_step=first))
    flux_world.sample(model, steps=first + steps if first < 5 else 5, cfg=1.0, scheduler=scheduler)
    assert len(calls) == 4 * steps


def test_a_window_by_shares_follows_the_model_s_own_noise_levels(flux_world, load, calls):
    """Half of the sampling is where the host says, shift included."""
    model, _ = flux_world.apply(load(), person(), start_at=0.0, end_at=0.5)
    border = float(flux_world.model.get_model_object("model_sampling").percent_to_sigma(0.5))
    sigmas = torch.tensor([1.0, border + 0.01, border - 0.01, 0.1, 0.0])
    flux_world.sample(model, steps=4, cfg=1.0, sigmas=sigmas)
    assert len(calls) == 4 * 2


@pytest.mark.parametrize("bad", [{"start_step": -1}, {"start_step": 1001}, {"start_step": 1.5}, {"start_step": True}])
def test_start_steps_that_do_not_exist(bad):
    (value,) = bad.values()
    text = sentence(options, **bad)
    assert repr(value) in text and "start_step" in text


def test_options_of_sdxl_have_no_effect_and_the_report_says_so(flux_world, load):
    adapter = load()
    model, report = flux_world.apply(adapter, person(), options=options(method="style"))
    plain, _ = flux_world.apply(adapter, person())
    assert "no effect on FLUX" in report and torch.equal(flux_world.sample(model), flux_world.sample(plain))


# Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (10, 6)])
def test_everywhere_and_nowhere_as_masks(flux_world, load, size):
    """Also where the latent's sides are odd, so that the host pads it to its grid of 2 x 2."""
    adapter, shape = load(), flux_world.latents(1, *size)
    plain, _ = flux_world.apply(adapter, person())
    everywhere, _ = flux_world.apply(adapter, person(), attn_mask=torch.ones(1, 40, 40))
    painted = flux_world.sample(plain, shape=shape)
    assert same(flux_world.sample(everywhere, shape=shape), painted)
    one = torch.zeros(1, 8 * size[0], 8 * size[1])
    one[:, :16, :16] = 1
    corner, _ = flux_world.apply(adapter, person(), attn_mask=one)
    assert not same(flux_world.sample(corner, shape=shape), painted)
    nowhere, report = flux_world.apply(adapter, person(), attn_mask=torch.zeros(1, 40, 40))
    assert "the mask is empty" in report
    assert torch.equal(flux_world.sample(nowhere, shape=shape), flux_world.sample(flux_world.model, shape=shape))


def test_a_token_has_the_mean_of_the_mask_over_it(flux_world, load, calls, monkeypatch):
    """Token (0, 1) covers 16 x 16 pixels, of which the mask has the left half."""
    from likeness.injection.comfy import run

    seen: list[Tensor] = []
    resize = run.resize_mask
    monkeypatch.setattr(run, "resize_mask", lambda *given: seen.append(resize(*given)) or seen[-1])
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :24] = 1
    model, _ = flux_world.apply(load(), person(), attn_mask=mask)
    flux_world.sample(model, steps=1, cfg=1.0)
    assert [tuple(m.shape) for m in seen] == [(1, 4, 4)]
    torch.testing.assert_close(seen[0][0], torch.tensor([1.0, 0.5, 0.0, 0.0]).expand(4, 4))


def test_two_people_in_their_halves(flux_world, load):
    adapter, left = load(), torch.zeros(1, 64, 64)
    left[..., :32] = 1
    one, _ = flux_world.apply(adapter, person(seed=1), attn_mask=left)
    both, _ = flux_world.apply(adapter, person(seed=2), model=one, attn_mask=1 - left)
    other, _ = flux_world.apply(adapter, person(seed=2), attn_mask=1 - left)
    back, _ = flux_world.apply(adapter, person(seed=1), model=other, attn_mask=left)
    painted = flux_world.sample(both)
    assert same(flux_world.sample(back), painted) and not same(flux_world.sample(one), painted)


@pytest.mark.parametrize("method", ["offset", "index", "uxo"])
def test_a_reference_latent_is_left_as_it_is(flux_world, load, recipes, method):
    """Behind every block with a module the image's own tokens have changed, and none beside them."""
    from likeness.injection.comfy import dit

    seen: list[tuple[Tensor, Tensor]] = []
    call = dit.BlockPatch.__call__

    def watch(self: Any, args: dict, extra: dict) -> dict:
        before: list[Tensor] = []

        def block(given: dict) -> dict:
            out = extra["original_block"](given)
            before.append(out["img"].clone())
            return out

        out = call(self, args, {**extra, "original_block": block})
        seen.append((before[0], out["img"].clone()))  # the next single block writes into it
        return out

    model, _ = flux_world.apply(load(), person())
    told = {"reference_latents": [torch.randn(flux_world.latents(1, 4, 6))], "reference_latents_method": method}
    text = flux_world.conditioning(seed=1, **told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit.BlockPatch, "__call__", watch)
        recipes.sample(model, text, text, steps=1, cfg=1.0, shape=flux_world.latents(1, 8, 8))
    assert len(seen) == 4
    for before, after in seen:
        changed = (before != after).any(dim=-1)[0]
        first = len(changed) - 16 - 6  # behind the text, where there is one
        assert changed.tolist() == [False] * first + [True] * 16 + [False] * 6


# Precision and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_hears_the_person(flux_world, load, recipes, dtype):
    """As one in full precision, up to rounding."""
    half = recipes.tiny_flux(depth=3, depth_single_blocks=6, dtype=dtype)
    whole = recipes.tiny_flux(depth=3, depth_single_blocks=6)
    whole.model.diffusion_model.load_state_dict(half.model.diffusion_model.state_dict())
    found, expected, nobody = (
        flux_world.sample(model, steps=2, cfg=1.0)
        for model in (*(flux_world.apply(load(dtype=dtype), person(), model=m)[0] for m in (half, whole)), whole)
    )
    assert found.isfinite().all()
    assert (found - expected).norm() < 0.35 * (expected - nobody).norm()


class PackedLinear(nn.Module):
    """A layer as GGUF loaders make them: bytes that only the layer itself can read."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.scale = float(plain.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((plain.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def packed(model: Any) -> dict[str, Tensor]:
    """Pack the layers of a model's blocks; returns what the model's weights stand for now."""
    net = model.model.diffusion_model
    means = dict(net.state_dict())
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and "_blocks." in name:
            owner, _, last = name.rpartition(".")
            new = PackedLinear(layer)
            setattr(net.get_submodule(owner), last, new)
            means[f"{name}.weight"] = new.weight.float() * new.scale
    return means


def test_packed_weights_as_of_gguf(flux_world, load, recipes):
    """The model's own precision says nothing then; modules are not packed."""
    plain = recipes.tiny_flux(depth=3, depth_single_blocks=6)
    model = recipes.tiny_flux(depth=3, depth_single_blocks=6)
    plain.model.diffusion_model.load_state_dict(packed(model))
    model.model.diffusion_model.dtype = torch.uint8
    model.model.manual_cast_dtype = torch.float32
    adapter = load()
    found, expected, nobody = (
        flux_world.sample(m, steps=2, cfg=1.0)
        for m in (*(flux_world.apply(adapter, person(), model=m)[0] for m in (model, plain)), plain)
    )
    assert (found - expected).norm() < 1e-3 * (expected - nobody).norm()


def test_prepared_tokens_come_and_go_with_the_model_and_the_adapter_stays_away(flux_world, load):
    import comfy.model_management as management

    from likeness.injection.comfy.managed import PreparedTokens

    adapter = load()
    before = dict(flux_world.model.additional_models)
    one, _ = flux_world.apply(adapter, person(seed=1))
    both, _ = flux_world.apply(adapter, person(seed=2), model=one)
    along = [patcher.model for patcher in both.get_additional_models()]
    assert len(along) == 2 and all(isinstance(module, PreparedTokens) for module in along)
    assert dict(flux_world.model.additional_models) == before
    management.unload_all_models()
    loaded: list[list[Any]] = []

    def look(args: dict[str, Any]) -> Any:
        patchers = [entry.model for entry in management.current_loaded_models]  # None of one that has gone
        loaded.append([patcher.model for patcher in patchers if patcher is not None])
        return args["denoised"]

    both.set_model_sampler_post_cfg_function(look)
    flux_world.sample(both, steps=1)
    assert all(any(module is one for one in loaded[0]) for module in (both.model, *along))
    assert not any(one is adapter.adapter for one in loaded[0])
    management.unload_all_models()
    gone = [weakref.ref(module) for module in along]
    loaded.clear()
    del one, both, along
    gc.collect()
    assert not any(reference() for reference in gone)


def test_what_was_made_of_the_tokens_serves_every_strength_and_place(flux_world, load, monkeypatch):
    from likeness.adapters.pulid import PuLIDFlux
    from likeness.injection.comfy import rescale
    from likeness.injection.comfy.apply import with_scopes

    made: list[int] = []
    prepare = PuLIDFlux.prepare
    monkeypatch.setattr(PuLIDFlux, "prepare", lambda self, j, tokens: made.append(j) or prepare(self, j, tokens))
    model, _ = flux_world.apply(load(), person())
    count = len(made)
    assert count == 2 * 4
    flux_world.sample(rescale(model, 0.5), steps=1)
    flux_world.sample(with_scopes(model, lambda scope: scope), steps=1)
    flux_world.sample(model, steps=2)
    assert len(made) == count


def test_a_compiled_model_paints_the_same(flux_world, load):
    """Traced by TorchDynamo as Torch Compile has it; the graph is run as it is, which needs no compiler here."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, _ = flux_world.apply(load(), person())
    expected = flux_world.sample(model, cfg=1.0)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    torch._dynamo.reset()
    found = flux_world.sample(compiled, cfg=1.0)
    torch._dynamo.reset()
    assert same(found, expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_windows_over_a_side_of_the_image_see_their_part_of_the_mask(flux_world, load, dim):
    """Half by half, with nothing between them: in the half without the person the image is the one of nobody."""
    shape, mask = flux_world.latents(1, 8, 8), torch.zeros(1, 8, 8)
    mask.narrow(dim - 1, 4, 4).fill_(1)
    model, _ = flux_world.apply(load(), person(), attn_mask=mask)
    painted, nobody = (
        flux_world.sample(in_context_windows(m, 4, dim=dim), shape=shape, cfg=1.0) for m in (model, flux_world.model)
    )
    one, other = painted.split(4, dim), nobody.split(4, dim)
    assert same(one[0], other[0]) and not same(one[1], other[1])


# Refused --------------------------------------------------------------------------------------------------------------


def test_a_flux_file_on_sdxl_and_the_reverse(flux_world, load, recipes):
    text = sentence(flux_world.apply, load(), person(), model=recipes.tiny_sdxl())
    assert "made for FLUX" in text and "the connected MODEL is" in text
    name = "pulid/sdxl.safetensors"
    save_file(files.adapter(files.official.SDXL), flux_world.folder / name)
    sdxl = flux_world.run("LikenessLoadIdentityAdapter", adapter_file=name)
    text = sentence(flux_world.apply, sdxl, person())
    assert "made for SDXL" in text and "the connected MODEL is Flux" in text


def test_a_flux_of_another_width_is_refused_by_name(flux_world, load, recipes):
    text = sentence(flux_world.apply, load(), person(), model=recipes.tiny_flux(hidden_size=32, num_heads=2))
    assert "64 wide" in text and "32 wide" in text


@pytest.mark.parametrize("wrong", [{"weight": float("nan")}, {"start_at": 0.8, "end_at": 0.2}, {"attn_mask": "left"}])
def test_wrong_values_are_refused_before_sampling(flux_world, load, wrong):
    assert sentence(flux_world.apply, load(), person(), **wrong)
