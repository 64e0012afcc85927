"""The real ComfyUI for tests: in this process (`recipes`, `files`) and as a server in its own (`server`)."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import comfyui
import numpy as np
import pytest
from helpers import server as server_module

HERE = Path(__file__).parent

_LOG_AT_START = pytest.StashKey[int]()


@pytest.fixture(scope="module", autouse=True)
def little_to_search() -> None:
    """What earlier modules have imported is not searched for garbage again; see `host_nodes`."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def recipes(host_nodes):
    """The module `recipes.py`: small models with random weights, sampling, diffusers weights in the host's layout."""
    from helpers import recipes

    return recipes


@pytest.fixture(scope="session")
def files(host_nodes):
    """The module `files.py`: checkpoints, adapters and a face recogniser with random weights in official layouts."""
    from helpers import files

    return files


@pytest.fixture(scope="session")
def server_base(tmp_path_factory: pytest.TempPathFactory):
    """The server's base directory. Its models are deleted at the end, because pytest keeps temporary folders."""
    base = tmp_path_factory.mktemp("comfy_server")
    yield base
    shutil.rmtree(base / "models", ignore_errors=True)


@pytest.fixture(scope="session")
def photos() -> dict[str, np.ndarray]:
    """Two photographs that come with packages, (H, W, 3) uint8 RGB: `six people` (insightface) and `astronaut`."""
    import insightface
    import skimage.data
    from PIL import Image

    with Image.open(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg") as picture:
        six = np.asarray(picture.convert("RGB"))
    return {"six people": six, "astronaut": skimage.data.astronaut()}


@pytest.fixture(scope="session")
def known_faces(photos, files) -> dict[str, list]:
    """The `KnownFace`s of each photo, the largest first, as MTCNN finds them."""
    from likeness.faces import load_mtcnn

    analysis = load_mtcnn()
    found = {name: sorted(analysis.find(photo), key=lambda face: -face.area) for name, photo in photos.items()}
    return {
        name: [files.KnownFace(photos[name], face.box, face.keypoints) for face in faces]
        for name, faces in found.items()
    }


@pytest.fixture(scope="session")
def models(server_base: Path, files, known_faces) -> Path:
    """`models/` of the server with the small files: two SD1.5 adapters, and a face pack that knows `photos` by heart.

    All have the names of the published files, so that the workflows run as they are.
    """
    folder = server_base / "models"
    files.write_adapter(folder / "ipadapter" / "ip-adapter-faceid_sd15.bin", files.faceid_sd15())
    files.write_adapter(folder / "ipadapter" / "ip-adapter-plus_sd15.safetensors", files.plus_sd15())
    pack = folder / "insightface" / "models" / "buffalo_l"
    files.write_detector(pack / "det_10g.onnx", [face for faces in known_faces.values() for face in faces])
    files.write_recogniser(pack / "w600k_r50.onnx")
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(models: Path, files) -> str:
    """Name of a 290 MB checkpoint: one UNet level, CLIP-L at full size, TAESD."""
    name = "small_sd15.safetensors"
    files.write_checkpoint(models / "checkpoints" / name, files.SD15_SMALL, clip=True)
    return name


@pytest.fixture(scope="session")
def full_checkpoint(models: Path, files) -> str:
    """Name of a 1.9 GB checkpoint: all of SD1.5's layout, CLIP-L, TAESD."""
    name = "v1-5-pruned-emaonly.safetensors"
    files.write_checkpoint(models / "checkpoints" / name, files.SD15_FULL, clip=True)
    return name


@pytest.fixture(scope="session")
def running_server(host_path: Path, server_base: Path, models: Path):
    node = server_base / "custom_nodes" / "tiny_flux_node.py"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.symlink_to(comfyui.REPOSITORY / "tests" / "helpers" / node.name)
    with server_module.running(host_path, server_base, comfyui.REPOSITORY) as server:
        yield server


@pytest.fixture
def server(running_server, request: pytest.FixtureRequest):
    """The session's real server with the pack in `custom_nodes`; its log of this test is shown when the test fails."""
    request.node.stash[_LOG_AT_START] = running_server.log_file.stat().st_size
    return running_server


@pytest.fixture
def client(server):
    """The client of the session's server."""
    return server.client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    server = getattr(item, "funcargs", {}).get("running_server") or getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        start = item.stash.get(_LOG_AT_START, 0)
        lines = server.log_file.read_bytes()[start:].decode(errors="replace").splitlines()
        report.sections.append(("ComfyUI's log", "\n".join(lines[-80:])))
    return report
