"""The small world of `small_world.py`, with its files where the nodes look for them."""

from __future__ import annotations

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
def built_world(recipes, tmp_path_factory) -> Any:
    """The world itself, which no test changes; adapters are added to its folder as tests ask for them."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        (folder / kind).mkdir()
    pulid.companions(folder)
    blip_diffusion.vocabulary(folder / "blip_diffusion")
    return small_world.World(recipes, folder)


@pytest.fixture(scope="module")
def world(built_world) -> Any:
    """The world, while the host's model folders are those of the world."""
    import folder_paths

    from likeness.models_download import register_folders

    register_folders()
    before = {kind: folder_paths.folder_names_and_paths[kind] for kind in KINDS}
    for kind in KINDS:
        folder_paths.folder_names_and_paths[kind] = ([str(built_world.folder / kind)], before[kind][1])
    folder_paths.filename_list_cache.clear()
    yield built_world
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def plain(world) -> Tensor:
    """What the MODEL samples without anybody's identity."""
    return world.sample(world.model)
