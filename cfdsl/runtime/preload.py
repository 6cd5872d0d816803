"""Load a compiled kernel onto a device without running it.

The CUDA code of a kernel is loaded by its first launch, which must therefore not be one that is being captured. So the first launch is
recorded into a graph of our own that is then thrown away: it loads everything and runs nothing, and needs no real weights.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cfdsl.compiler.plan import Arg

_CUDA = 2  # DLPack's device type
_TYPES = {"bf16": (4, 16), "f16": (2, 16), "f32": (2, 32), "i32": (0, 32), "i64": (0, 64)}  # DLPack's type code and bits
_SCRATCH = 1 << 12


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("index", ctypes.c_int))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Standin:
    """A tensor by description only: `shape` and `dtype` at an address on a CUDA device, never to be read. `value` is what to pass."""

    def __init__(self, shape: Sequence[int], dtype: str, address: int, index: int = 0, strides: Sequence[int] | None = None) -> None:
        import tvm_ffi

        if strides is None:
            strides = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
        rank = ctypes.c_int64 * len(shape)
        self._shape, self._strides = rank(*shape), rank(*strides)  # kept alive: the description points to them
        code, bits = _TYPES[dtype]
        self._managed = _Managed(
            _Tensor(address, _Device(_CUDA, index), len(shape), _Type(code, bits, 1), self._shape, self._strides, 0), None, None
        )
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.value: Any = tvm_ffi.from_dlpack(capsule(ctypes.addressof(self._managed), b"dltensor", None))


def onto_device(function: Callable[..., None], args: Sequence[Arg], workspace: Sequence[torch.Tensor], index: int) -> None:
    """Load the kernel behind `function` onto CUDA device `index`. Named sizes count as 1. The current stream must not be capturing."""
    from cuda.bindings import driver

    with torch.cuda.device(index), torch.cuda.stream(torch.cuda.Stream(index)):
        scratch = torch.zeros(_SCRATCH, dtype=torch.uint8, device=f"cuda:{index}")
        shapes = [[1 if isinstance(dim, str) else dim for dim in arg.shape] for arg in args]
        standins = [Standin(shape, arg.dtype, scratch.data_ptr(), index) for arg, shape in zip(args, shapes)]
        stream = torch.cuda.current_stream()
        stream.synchronize()
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _ok(driver.cuStreamBeginCapture(stream.cuda_stream, relaxed))
        try:
            _record(function, [standin.value for standin in standins], workspace, stream)
        finally:
            _, graph = driver.cuStreamEndCapture(stream.cuda_stream)
            if graph:
                driver.cuGraphDestroy(graph)


def _record(function: Callable[..., None], args: Sequence[Any], workspace: Sequence[torch.Tensor], stream: torch.cuda.Stream) -> None:
    import tvm_ffi

    # A launch takes its stream from the torch tensors among its arguments; stand-ins are not torch tensors, so it is also said.
    with tvm_ffi.use_torch_stream(torch.cuda.stream(stream)):
        function(*args, *workspace)


def _ok(result: tuple[Any, ...]) -> None:
    if int(result[0]) != 0:
        raise RuntimeError(f"the CUDA driver answered {result[0].name}")
