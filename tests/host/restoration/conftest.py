"""The restoration nodes in the host's process, small networks in the models folders, and faces that cost little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import restorers as small


@pytest.fixture(scope="session")
def nodes(host_nodes):
    """Node classes by id."""
    from likeness.nodes import faces, masks, restoration

    return {node.GET_SCHEMA().node_id: node for node in (*faces.NODES, *masks.NODES, *restoration.NODES)}


@pytest.fixture
def run(nodes):
    """`run("RestoreFaces", ...)` gives the node's outputs."""
    return lambda node, /, **inputs: nodes[f"Likeness{node}"].execute(**inputs).result


@pytest.fixture
def places(host_nodes, tmp_path, monkeypatch):
    """The host with empty models folders."""
    import folder_paths

    from likeness import models_download

    models_download.register_folders()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    for kind in (*models_download.OUR_KINDS, "upscale_models"):
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    models_download.register_folders()
    return SimpleNamespace(models=tmp_path / "models")


@pytest.fixture
def files(places):
    """Small restorers under their published names."""
    folder = places.models / "facerestore_models"
    folder.mkdir(parents=True)
    names = {
        "GFPGANv1.4.pth": small.gfpgan(),
        "codeformer.pth": small.codeformer(),
        "RestoreFormer.pth": small.restoreformer(),
    }
    for name, weights in names.items():
        torch.save({"params_ema": weights}, folder / name)
    return folder


@pytest.fixture(scope="session")
def upscale_model():
    """What ComfyUI's Load Upscale Model gives."""

    def load(scale: int = 2):
        from likeness.restoration.spandrel_files import described

        return described(small.esrgan(scale=scale), "x").eval()

    return load


@pytest.fixture(scope="session")
def photo():
    """Two faces in the places where the analysis by colour would see one: (1, 64, 60, 3)."""
    return torch.rand(1, 64, 60, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
