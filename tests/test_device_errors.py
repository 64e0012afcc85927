"""Full memory and missing precision are known whoever says so, and nothing else is taken for them."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from likeness.device_errors import full_memory_said, is_out_of_memory, lacks_precision
from likeness.errors import LikenessError


def _too_large() -> Exception:
    try:
        np.empty(1 << 60, np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError("a large machine")


FULL = [
    MemoryError(),
    _too_large(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 16777216 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Could not allocate tensor with 41943040 bytes. There is not enough GPU video memory available!"),
    RuntimeError("Native API failed. Native API returns: -5 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1638400"),
    Exception("[ONNXRuntimeError] : 1 : FAIL : bad allocation"),
    Exception("OpenCV(4.10.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 97200000 bytes"),
    RuntimeError("std::bad_alloc"),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (77x768 and 1024x320)"),
    RuntimeError("The size of tensor a (4) must match the size of tensor b (3) at non-singleton dimension 1"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "out of memory.png"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("memory"),
    LikenessError("The memory of the card was out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: f"{type(error).__name__}: {error}"[:50])
def test_full_memory_is_known_and_said(error):
    assert is_out_of_memory(error) and not lacks_precision(error)
    with pytest.raises(LikenessError, match="buy more") as found, full_memory_said(lambda: "buy more"):
        raise error
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", OTHER, ids=lambda error: f"{type(error).__name__}: {error}"[:50])
def test_other_errors_stay_what_they_are(error):
    assert not is_out_of_memory(error) and not lacks_precision(error)
    with pytest.raises(type(error)) as found, full_memory_said(lambda: "buy more"):
        raise error
    assert found.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'"),
        RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'"),
        TypeError("BFloat16 is not supported on MPS"),
        RuntimeError("MPS BFloat16 not supported"),
        RuntimeError("this device does not support bfloat16"),
    ],
)
def test_missing_precision_is_known(error):
    assert lacks_precision(error) and not is_out_of_memory(error)
