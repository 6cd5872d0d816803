"""The GPU at hand: which part it is, what it holds at once, and whether a CUDA graph is being captured."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cfdsl.compiler.config import CLUSTER_SIZES
from cfdsl.compiler.parts import PARTS, Part, Residency, part_named
from cfdsl.errors import ArgumentError, NoTarget

# The driver compiles this for the device that it is asked about. It stands for any kernel: only its shared memory matters here.
_PROBE = b".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry probe() { ret; }\n\0"
_PROBE_THREADS = 288


def part_at_hand() -> Part:
    """The part that the current CUDA device is, with the residency of clusters that its driver reports.

    NoTarget, with the names of the known parts, if there is no device: nothing is guessed. UnknownPart for a device in no table.
    """
    if not torch.cuda.is_available():
        raise NoTarget(needs=f"a GPU to compile for, or the name of a part ({', '.join(PARTS)})")
    index = torch.cuda.current_device()
    return Part.from_device(*_identity(index), resident=residency(index))


def target(part: object) -> Part:
    """What to compile for: a Part, one by its name, or (None) the GPU at hand.

    Raises ArgumentError for anything else, UnknownPart for a name or a device in no table, NoTarget where there is no device.
    """
    if part is None:
        return part_at_hand()
    if not isinstance(part, Part | str):
        expected = f"a Part, the name of one ({', '.join(PARTS)}), or None for the GPU at hand"
        raise ArgumentError(argument="part", expected=expected, got=repr(part))
    return part_named(part)


def _identity(index: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count


@functools.cache
def residency(index: int) -> Residency:
    """Clusters that CUDA device `index` runs at once, by CTAs per SM (1, 2) and cluster size, each CTA as large as that allows."""
    part = Part.from_device(*_identity(index))
    sizes = [size for size in CLUSTER_SIZES if size <= part.cluster_limit]

    def ask(size: int, smem: int) -> int:
        return resident_clusters(_PROBE, "probe", cluster=size, clusters=1, threads=_PROBE_THREADS, smem=smem, device=index)

    return {ctas: {size: ask(size, part.smem_budget(ctas)) for size in sizes} for ctas in (1, 2)}


def capturing() -> bool:
    """Whether the current stream is being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def resident_clusters(cubin: bytes, kernel: str, *, cluster: int, clusters: int, threads: int, smem: int, device: int) -> int:
    """How many clusters of this kernel the CUDA device holds at once, from the driver's occupancy query.

    `smem`: dynamic shared memory per CTA in bytes; `threads`: per CTA; `clusters`: of the launch that is asked about.
    """
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # makes the device's primary context current in this thread
        library = _ok(driver.cuLibraryLoadData(cubin, [], [], 0, [], [], 0))
        try:
            entry = _ok(driver.cuLibraryGetKernel(library, kernel.encode()))
            function = _ok(driver.cuKernelGetFunction(entry))
            attributes = driver.CUfunction_attribute
            _ok(driver.cuFuncSetAttribute(function, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, smem))
            _ok(driver.cuFuncSetAttribute(function, attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1))
            answer = driver.cuOccupancyMaxActiveClusters(function, _launch(cluster, clusters, threads, smem))
            too_large = answer[0] == driver.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE  # some boards take no clusters at all
            return 0 if too_large else int(_ok(answer))
        finally:
            _ok(driver.cuLibraryUnload(library))


def _launch(cluster: int, clusters: int, threads: int, smem: int) -> Any:
    from cuda.bindings import driver

    dimension = driver.CUlaunchAttribute()
    dimension.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    dimension.value.clusterDim.x, dimension.value.clusterDim.y, dimension.value.clusterDim.z = cluster, 1, 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster * clusters, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = smem
    config.hStream = 0
    config.attrs = [dimension]
    config.numAttrs = 1
    return config


def _ok(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver answered {status.name}")
    return values[0] if values else None
