"""The small world of `small_world.py`, with its files where the nodes look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import blip_diffusion, pulid, small_world
from torch import Tensor

# The tests import it by this name.

KINDS = (
    *("ipadapter", "instantid", "pulid", "storymaker", "blip_diffusion"),
    *("likeness_embeds", "clip_vision", "facexlib"),
)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    """Where the worlds keep their files; adapters are added as tests ask for them."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        (folder / kind).mkdir()
    pulid.companions(folder)
    blip_diffusion.vocabulary(folder / "blip_diffusion")
    return folder


@pytest.fixture(scope="session")
def built_world(recipes, models_folder) -> Any:
    """The world itself, which no test changes."""
    return small_world.World(recipes, models_folder)


@pytest.fixture(scope="session")
def built_flux_world(recipes, models_folder) -> Any:
    """That of FLUX."""
    return small_world.FluxWorld(recipes, models_folder)


@pytest.fixture(scope="module")
def world_folders(models_folder) -> Any:
    """The host's model folders are those of the worlds."""
    import folder_paths

    from likeness.models_download import register_folders

    register_folders()
    before = {kind: folder_paths.folder_names_and_paths[kind] for kind in KINDS}
    for kind in KINDS:
        folder_paths.folder_names_and_paths[kind] = ([str(models_folder / kind)], before[kind][1])
    folder_paths.filename_list_cache.clear()
    yield
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def world(built_world, world_folders) -> Any:
    """The world, while the host looks into its folders."""
    return built_world


@pytest.fixture(scope="module")
def flux_world(built_flux_world, world_folders) -> Any:
    """That of FLUX, while the host looks into its folders."""
    return built_flux_world


@pytest.fixture(scope="module")
def plain(world) -> Tensor:
    """What the MODEL samples without anybody's identity."""
    return world.sample(world.model)
