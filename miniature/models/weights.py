"""The shipped weights of the miniature world: half precision on disk, single precision in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ...adapters import build
from ...adapters.ip_adapter.adapter import IPAdapter
from ...checks import first_not_finite
from ...errors import LikenessError
from ...faces.iresnet import IResNet
from ...storage import write_whole
from .networks import (
    Module,
    Observer,
    build_judge,
    build_recogniser,
    build_text_encoder,
    build_unet,
    frozen,
)

FOLDER = Path(__file__).parents[1] / "weights"
ADAPTER_FILE = FOLDER / "ip-adapter-faceid_miniature.safetensors"


def load_unet(folder: Path = FOLDER) -> Any:
    """The denoiser, a diffusers `UNet2DConditionModel`, frozen. LikenessError when the file is missing or damaged."""
    return _load(build_unet, folder / "unet.safetensors")


def load_text_encoder(folder: Path = FOLDER) -> Any:
    """The `CLIPTextModel`, frozen. LikenessError when the file is missing or damaged."""
    return _load(build_text_encoder, folder / "text_encoder.safetensors")


def load_recogniser(folder: Path = FOLDER) -> IResNet:
    """The recogniser that conditions, frozen. LikenessError when the file is missing or damaged."""
    return _load(build_recogniser, folder / "recogniser.safetensors")


def load_judge(folder: Path = FOLDER) -> IResNet:
    """The recogniser that judges, frozen. LikenessError when the file is missing or damaged."""
    return _load(build_judge, folder / "judge.safetensors")


def load_observer(folder: Path = FOLDER) -> Observer:
    """The net that finds the face and reads what an image shows, frozen. LikenessError as the others."""
    return _load(Observer, folder / "observer.safetensors")


def load_adapter(folder: Path = FOLDER) -> IPAdapter:
    """The FaceID adapter in single precision, frozen. LikenessError when the file is missing or damaged."""
    file = folder / ADAPTER_FILE.name
    return build(read_tensors(file), file.stem)


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write tensors in half precision, whole or not at all."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: (t.half() if t.is_floating_point() else t).contiguous() for key, t in weights.items()}
    write_whole(file, lambda part: save_file(halves, part))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in single precision. LikenessError when it is missing or damaged."""
    from safetensors.torch import load_file

    with _explained(file):
        weights = load_file(file)
        if broken := first_not_finite(weights):
            raise ValueError(f"{broken} holds NaN or infinity")
        return {key: t.float() if t.is_floating_point() else t for key, t in weights.items()}


def _load(build: Callable[[], Module], file: Path) -> Module:
    weights, module = read_tensors(file), build()
    with _explained(file):
        module.load_state_dict(weights)
    return frozen(module)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise LikenessError(
            f"'{file.name}' of the miniature world is missing or damaged: restore the file '{file}' from the "
            "repository, or retrain it with `python -m likeness.miniature.train`."
        ) from error
