"""Face restorers: called as their authors call them, the same every time, and files that are none told by name."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import restorers as small

from likeness.errors import LikenessError
from likeness.restoration import restorers
from likeness.restoration.codeformer import adaptive_instance_norm, codeformer
from likeness.restoration.restorers import Wishes, load_restorer, precision_of, restorer_of
from likeness.restoration.spandrel_files import architectures, described

KINDS = ("codeformer", "gfpgan", "restoreformer")
SIDE = 64


def restorer(kind: str, seed: int = 0):
    return restorer_of(getattr(small, kind)(seed), f"{kind}.pth")


def faces(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class Echo(torch.nn.Module):
    """Gives back what it was given, as each network gives its image."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.scale = kind, torch.nn.Parameter(torch.ones(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, x, *wishes, **options):
        self.seen.append(x)
        return restorers_result(self.kind, x * self.scale)


def restorers_result(kind, x):
    from likeness.restoration.codeformer import CodeFormerFace

    return CodeFormerFace(x, x, x) if kind == "codeformer" else (x, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_ramp_goes_in_as_minus_one_to_one_and_comes_back_as_it_was(kind):
    """GFPGAN and CodeFormer by spandrel's own call would see 0..1, and give a washed-out image."""
    made = restorer(kind)
    echo = Echo(kind)
    ramp = torch.linspace(0, 1, SIDE).expand(1, 3, SIDE, SIDE) * torch.tensor([1.0, 0.5, 0.25]).reshape(1, 3, 1, 1)
    restored = restorers.FaceRestorer(echo, made.kind, "echo").restore(ramp)
    assert torch.allclose(restored, ramp, atol=1e-6)
    assert echo.seen[0].min() == -1 and echo.seen[0].max() == 1
    assert torch.allclose(echo.seen[0], ramp * 2 - 1)


@pytest.mark.parametrize("kind", ["gfpgan", "codeformer"])
def test_the_result_is_not_spandrels_call_but_the_official_one(kind):
    made, x = restorer(kind), faces(count=1)
    out = made.network(
        x * 2 - 1, **({"randomize_noise": False, "return_rgb": False} if kind == "gfpgan" else {"w": 0.5})
    )
    assert torch.allclose(made.restore(x), (out[0].clamp(-1, 1) + 1) / 2, atol=1e-6)
    raw = made.network(x, **({"randomize_noise": False, "return_rgb": False} if kind == "gfpgan" else {"w": 0.5}))
    assert not torch.allclose(made.restore(x), raw[0].clamp(0, 1), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_faces_give_the_same_result_and_each_its_own(kind):
    made, x = restorer(kind), faces()
    first = made.restore(x)
    torch.manual_seed(5)
    assert torch.equal(made.restore(x), first)
    assert torch.allclose(made.restore(x[1:]), first[1:], atol=1e-5)
    assert first.dtype is torch.float32 and first.min() >= 0 and first.max() <= 1


def test_gfpgan_by_its_official_default_is_another_every_time():
    network, x = restorer("gfpgan").network, faces(count=1)
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "weight") and tuple(module.weight.shape) == (1,):  # of the noise; zero at the start
                module.weight.fill_(1.0)
        assert not torch.equal(network(x)[0], network(x)[0])


def test_fidelity_and_adain_reach_codeformer():
    made, x = restorer("codeformer"), faces(count=1)
    plain = made.restore(x, Wishes(0.0))
    assert not torch.allclose(made.restore(x, Wishes(1.0)), plain)
    assert not torch.allclose(made.restore(x, Wishes(0.0, adain=False)), plain)
    assert torch.equal(restorer("gfpgan").restore(x, Wishes(0.0)), restorer("gfpgan").restore(x, Wishes(1.0)))


@pytest.mark.parametrize(("asked", "taken"), [(-0.5, 0.0), (1.5, 1.0)])
def test_a_fidelity_out_of_range_is_clamped_with_a_warning(asked, taken, caplog):
    made, x = restorer("codeformer"), faces(count=1)
    assert torch.equal(made.restore(x, Wishes(asked)), made.restore(x, Wishes(taken)))
    assert f"fidelity is {asked} and {taken} was used" in caplog.text


def test_adain_gives_the_features_the_other_ones_statistics():
    content, style = torch.randn(2, 3, 8, 8) * 3 + 1, torch.randn(2, 3, 8, 8) * 0.5 - 2
    made = adaptive_instance_norm(content, style)
    assert torch.allclose(made.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(made.std((2, 3)), style.std((2, 3)), atol=1e-3)


def test_float16_becomes_float32_with_a_note_and_bfloat16_works():
    dtype, note = precision_of(torch.float16, "GFPGAN")
    assert dtype is torch.float32 and "overflows in float16" in note
    assert precision_of(torch.bfloat16, "GFPGAN") == (torch.bfloat16, "")
    for kind in KINDS:
        made, x = restorer(kind), faces(count=1)
        exact = made.restore(x)
        made.network.to(torch.bfloat16)
        assert (made.restore(x) - exact).abs().mean() < 0.1


def test_gradients_reach_what_the_official_code_leaves_them():
    network, x = codeformer(small.codeformer()), faces(count=1).requires_grad_()
    assert not network(x, 1.0, False).image.requires_grad  # codes are chosen, and encoder features detached
    network(x, 0.0, True).image.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


# --- files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapper", [None, "params_ema", "params", "state_dict"])
def test_files_are_read_however_they_are_wrapped(tmp_path, kind, wrapper):
    weights = getattr(small, kind)()
    content = weights if wrapper is None else {wrapper: {f"module.{key}": value for key, value in weights.items()}}
    torch.save(content, tmp_path / "x.pth")
    made = load_restorer(tmp_path / "x.pth")
    assert made.kind.title.lower() == kind and made.name == "x.pth" and made.kind.licence
    assert not any(parameter.requires_grad for parameter in made.network.parameters())


def test_averaged_weights_come_before_the_others(tmp_path):
    torch.save({"params": small.codeformer(1), "params_ema": small.codeformer(2)}, tmp_path / "x.pth")
    x = faces(count=1)
    assert torch.equal(load_restorer(tmp_path / "x.pth").restore(x), restorer("codeformer", 2).restore(x))


def test_safetensors_are_read_too(tmp_path):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in small.codeformer().items()}, tmp_path / "x.safetensors")
    assert load_restorer(tmp_path / "x.safetensors").kind is restorers.CODEFORMER


REFUSED = {
    "GFPGAN of the original": ["conv_body_first.0.weight", "stylegan_decoder.style_mlp.1.weight", "toRGB.0.weight"],
    "discriminator that trained Real-ESRGAN": ["conv0.weight", "conv1.weight_orig", "conv9.weight"],
    "discriminator that trained CodeFormer": ["main.0.weight", "main.2.weight", "main.3.running_mean"],
    "discriminator that trained GFPGAN": ["conv_body.0.0.weight", "final_conv.0.weight", "final_linear.0.weight"],
    "discriminator of eyes or mouth": ["conv1.0.weight", "final_conv.0.weight"],
    "codebook without its transformer": [
        *("encoder.blocks.0.weight", "generator.blocks.0.weight", "quantize.embedding.weight")
    ],
}


@pytest.mark.parametrize("says", REFUSED)
def test_files_that_many_have_by_mistake_are_refused_by_name(tmp_path, says):
    torch.save({key: torch.zeros(3, 3) for key in REFUSED[says]}, tmp_path / "x.pth")
    with pytest.raises(LikenessError, match=f"'x.pth' is .*{says}.*choose"):
        load_restorer(tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["model.diffusion_model.input_blocks.0.0.weight", "double_blocks.0.img_mod.lin.weight"])
def test_a_checkpoint_among_the_restorers_is_said(tmp_path, key):
    torch.save({"state_dict": {key: torch.zeros(3, 3)}}, tmp_path / "x.pth")
    with pytest.raises(LikenessError, match=r"'x.pth' is a model that generates images.*choose GFPGANv1.3.pth"):
        load_restorer(tmp_path / "x.pth")


@pytest.fixture
def no_cache():
    """spandrel's registries as they are found anew."""
    from likeness.restoration import spandrel_files

    def forget():
        spandrel_files.extra_registry.cache_clear()
        spandrel_files.architectures.cache_clear()

    forget()
    yield
    forget()


def test_an_extra_package_of_another_version_is_named_and_the_others_are_read(tmp_path, monkeypatch, caplog, no_cache):
    package = tmp_path / "spandrel_extra_arches"
    package.mkdir()
    (package / "__init__.py").write_text("from spandrel import NO_SUCH_NAME")
    monkeypatch.delitem(sys.modules, "spandrel_extra_arches", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert restorer("restoreformer").kind is restorers.RESTOREFORMER
    assert "spandrel_extra_arches is installed but cannot be loaded" in caplog.text


def test_an_unknown_file_is_told_which_architectures_are_known(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(LikenessError, match=r"no known architecture: known are CodeFormer,.*ESRGAN.*GFPGAN") as said:
        load_restorer(tmp_path / "x.pth")
    assert "spandrel_extra_arches" in str(said.value) and "non-commercial" in str(said.value)
    torch.save({"params": {}}, tmp_path / "empty.pth")
    with pytest.raises(LikenessError, match="holds no weights"):
        load_restorer(tmp_path / "empty.pth")


def test_a_network_for_super_resolution_is_sent_where_it_belongs():
    with pytest.raises(LikenessError, match=r"ESRGAN, which restores no faces.*Upscale Portrait"):
        restorer_of(small.esrgan(), "x.pth")


def test_weights_that_do_not_fit_are_said(tmp_path):
    for kind, lost in (("codeformer", "feat_emb.weight"), ("gfpgan", "final_linear.weight")):
        weights = getattr(small, kind)()
        del weights[lost]
        with pytest.raises(LikenessError, match="do not fit"):
            restorer_of(weights, "x.pth")
    cut = {key: value for key, value in small.restoreformer().items() if not key.startswith("decoder.up.0")}
    with pytest.raises(LikenessError, match=r"'x.pth' do not fit RestoreFormer"):
        restorer_of(cut, "x.pth")


def test_spandrels_descriptions_are_adopted():
    descriptor = described(small.restoreformer(), "x")
    assert restorers.adopted_restorer(descriptor).kind is restorers.RESTOREFORMER
    for value in ("x", type("Patcher", (), {"model": torch.nn.Linear(1, 1)})()):
        with pytest.raises(LikenessError, match=r"holds a (str|Patcher): connect Load Face Restorer"):
            restorers.adopted_restorer(value)


def test_without_spandrel_what_to_install_is_said(monkeypatch):
    from likeness.restoration import spandrel_files

    monkeypatch.setitem(sys.modules, "spandrel", None)
    spandrel_files.spandrel.cache_clear()
    spandrel_files.architectures.cache_clear()
    with pytest.raises(LikenessError, match=r"spandrel \(MIT licence\).*pip install"):
        spandrel_files.described({"a": torch.zeros(1)}, "x")
    monkeypatch.undo()
    spandrel_files.spandrel.cache_clear()
    assert "GFPGAN" in architectures()


def test_nothing_of_the_old_packages_is_imported():
    import subprocess

    said = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, likeness.restoration.restore, likeness.restoration.restorers, likeness.restoration.upscale, "
            "likeness.restoration.crops, likeness.restoration.preview\n"
            "print([n for n in ('basicsr', 'gfpgan', 'realesrgan', 'facexlib', 'insightface', 'spandrel') "
            "if n in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
