"""onnxruntime sessions: which provider runs them, opened once per file and provider."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..errors import LikenessError, logger
from .onnx_file import tidy_model

log = logger(__name__)


class Provider(Enum):
    """Where face models run. The CPU is fast enough for single images and takes no GPU memory."""

    AUTO = "auto"
    CPU = "CPU"
    CUDA = "CUDA"
    ROCM = "ROCm"
    COREML = "CoreML"
    DIRECTML = "DirectML"
    OPENVINO = "OpenVINO"


_CPU = "CPUExecutionProvider"
_RUNTIME_NAMES = {
    Provider.CPU: (_CPU,),
    Provider.CUDA: ("CUDAExecutionProvider",),
    Provider.ROCM: ("ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    Provider.COREML: ("CoreMLExecutionProvider",),
    Provider.DIRECTML: ("DmlExecutionProvider",),
    Provider.OPENVINO: ("OpenVINOExecutionProvider",),
}
_AUTOMATIC = (Provider.CUDA, Provider.ROCM, Provider.DIRECTML, Provider.OPENVINO)  # CoreML recompiles at every size


def provider_names(wanted: Provider, available: Sequence[str]) -> list[str]:
    """onnxruntime's names for a choice, best first and the CPU last; warns once when the choice is missing."""
    choices = _AUTOMATIC if wanted is Provider.AUTO else (wanted,)
    names = [name for choice in choices for name in _RUNTIME_NAMES[choice] if name in available]
    if not names and wanted is not Provider.AUTO:
        _warn(f"onnxruntime has no {wanted.value} provider here (it has {', '.join(available)}): using the CPU.")
    return [*(name for name in names if name != _CPU), _CPU]


@cache
def _warn(text: str) -> None:
    log.warning(text)


def open_session(path: Path | str, provider: Provider = Provider.AUTO, tidy: bool = False) -> Any:
    """An onnxruntime session of a file, shared by all who ask for the same file (unchanged) and provider.

    `tidy` leaves out inputs that no node reads; see `tidy_model`.
    """
    path = Path(path)
    return _open(str(path.resolve()), path.stat().st_mtime_ns, provider, tidy)


@lru_cache(maxsize=16)
def _open(path: str, _changed: int, provider: Provider, tidy: bool) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise LikenessError(
            "The face models are .onnx files, but onnxruntime is not installed: "
            "pip install onnxruntime, or choose another face analysis."
        ) from None
    names = provider_names(provider, onnxruntime.get_available_providers())
    model = tidy_model(path) if tidy else path
    try:
        session = onnxruntime.InferenceSession(model, providers=names)
    except Exception as error:
        raise LikenessError(
            f"The face model {Path(path).name} cannot be opened by onnxruntime ({str(error)[:200]}): download it again."
        ) from error
    running = session.get_providers()
    if names[0] not in running:  # a CUDA provider whose libraries do not fit falls back without a word
        _warn(f"{Path(path).name} runs on {running[0]} instead of {names[0]}, which could not start.")
    return session
