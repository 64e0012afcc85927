"""What we load ourselves is managed as what the host's loaders load: the same patcher, and made again for a device."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.adapters import load
from likeness.errors import LikenessError


@pytest.fixture
def loaded(host_nodes):
    """MODEL, CLIP and VAE of Load Miniature, loaded as the executor runs nodes."""
    from likeness.nodes.miniature import LoadMiniature

    with torch.inference_mode():
        return SimpleNamespace(**dict(zip(("model", "clip", "vae"), LoadMiniature.execute().result, strict=True)))


def _patchers(loaded: Any) -> list[Any]:
    return [loaded.model, loaded.clip.patcher, loaded.vae.patcher]


def test_the_hosts_own_patcher_manages_miniature_and_adapters(host_nodes, files, monkeypatch, tmp_path):
    import comfy.model_patcher as patchers

    from likeness.injection.comfy import ManagedAdapter
    from likeness.nodes.miniature import LoadMiniature

    class Core(patchers.ModelPatcher):
        """As the host puts its dynamic one there when it starts, long after we were imported."""

    monkeypatch.setattr(patchers, "CoreModelPatcher", Core, raising=False)
    model, _, vae = LoadMiniature.execute().result
    files.write_adapter(tmp_path / "a.safetensors", files.plus_sd15())
    adapter = ManagedAdapter(load(tmp_path / "a.safetensors"))
    assert all(type(patcher) is Core for patcher in (model, vae.patcher, adapter.patcher))
    monkeypatch.delattr(patchers, "CoreModelPatcher")  # hosts before 0.16
    adapter = ManagedAdapter(load(tmp_path / "a.safetensors"))
    assert type(adapter.patcher) is patchers.ModelPatcher


def test_each_is_made_again_with_weights_of_its_own(loaded):
    for patcher in _patchers(loaded):
        make, arguments = patcher.cached_patcher_init
        again = make(*arguments)
        assert type(again.model) is type(patcher.model)
        mine, theirs = patcher.model.state_dict(), again.model.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())
        assert not {v.data_ptr() for v in mine.values()} & {v.data_ptr() for v in theirs.values() if v.numel()}
        assert make(*arguments, disable_dynamic=hasattr(patcher, "is_dynamic")) is not None


def _sampled(nodes: Any, model: Any, clip: Any, vae: Any) -> torch.Tensor:
    with torch.inference_mode():
        [latent] = nodes.EmptyLatentImage().generate(128, 128)
        said = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a person"))
        [result] = nodes.KSampler().sample(model, 5, 2, 2.0, "euler", "normal", said, said, latent, denoise=1.0)
        [picture] = nodes.VAEDecode().decode(vae, result)
    return picture.clone()


def test_device_selection_and_multi_gpu_take_the_miniature(host_nodes, loaded, monkeypatch):
    import comfy.model_management as mm

    if not hasattr(loaded.model, "deepclone_multigpu"):  # hosts before 0.23 have no such nodes
        return
    nodes = importlib.import_module("comfy_extras.nodes_multigpu")
    card = torch.device("cuda", 0)  # weights go there when they are used, so that none is needed to choose it
    monkeypatch.setattr(mm, "resolve_gpu_device_option", lambda option: card)
    own = [patcher.model for patcher in _patchers(loaded)]
    wanted = _sampled(host_nodes, loaded.model, loaded.clip, loaded.vae)
    with torch.inference_mode():
        model = nodes.SelectModelDeviceNode.execute(loaded.model, "gpu:0").result[0]
        clip = nodes.SelectCLIPDeviceNode.execute(loaded.clip, "gpu:0").result[0]
        vae = nodes.SelectVAEDeviceNode.execute(loaded.vae, "gpu:0").result[0]
    chosen = (model, clip.patcher, vae.patcher)
    assert vae.first_stage_model is vae.patcher.model
    assert all(patcher.load_device == card for patcher in chosen), "the host could not make them again"
    assert not {id(patcher.model) for patcher in chosen} & set(map(id, own))
    assert [patcher.model for patcher in _patchers(loaded)] == own
    for patcher in chosen:
        patcher.load_device = torch.device("cpu")
    vae.device = torch.device("cpu")
    assert torch.equal(_sampled(host_nodes, model, clip, vae), wanted)
    clone = loaded.model.deepclone_multigpu()  # as MultiGPU CFG Split makes one for each card
    assert clone.model is not loaded.model.model
    with torch.inference_mode():
        [latent] = host_nodes.EmptyLatentImage().generate(64, 64)
        said = clip.encode_from_tokens_scheduled(clip.tokenize("a person"))
        with pytest.raises(LikenessError, match="128x128 pixels"):  # what is around sampling is around the clone's
            host_nodes.KSampler().sample(clone, 5, 1, 2.0, "euler", "normal", said, said, latent, denoise=1.0)
    mm.unload_all_models()
