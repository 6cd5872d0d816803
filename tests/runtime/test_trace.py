"""Traced kernels, without a GPU: what is in their machine code, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cfdsl as cf
from cfdsl.compiler.emit import marks
from cfdsl.errors import NotTraced, RecordingFull
from cfdsl.runtime import recording as runtime_recording
from cfdsl.runtime.kernel import Kernel
from cfdsl.runtime.recording import recording
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

TIMERS = ("%globaltimer", "%smid", "%clock")


@pytest.mark.compile
def test_only_a_traced_kernel_reads_timers(own_cache: Path) -> None:
    plain, traced = (cf.compile(attention_block, "smollm2-135m", part="h100-sxm", trace=trace) for trace in (False, True))
    assert not any(timer in plain.ptx for timer in TIMERS)
    assert all(timer in traced.ptx for timer in TIMERS)
    marks = traced.plan.args[-1].shape[1]
    assert traced.ptx.count("%clock") == marks  # none was dropped, merged or repeated
    assert traced.ptx.count("%globaltimer") == traced.ptx.count("%smid") == 4  # both ends of both lanes
    assert (plain.spills, traced.spills) == (0, 0)
    assert traced.stack == plain.stack
    assert plain.config.with_(trace=True) == traced.config
    assert plain.key != traced.key
    assert [arg.name for arg in traced.args] == [arg.name for arg in plain.args]  # called alike


@pytest.mark.compile
def test_a_kernel_without_marks_has_no_timeline(own_cache: Path) -> None:
    kernels = [cf.compile(rms_norm, "llama-2-7b", part="h100-sxm", warps=warps) for warps in (4, 8)]
    with pytest.raises(NotTraced, match="compiled without trace"):
        kernels[0].trace()
    with pytest.raises(cf.Errors) as caught, recording(kernels):
        pass
    assert all(kernel.name in str(caught.value) for kernel in kernels)


class HostTorch:
    """Of torch, what a recording uses, on a machine without a GPU."""

    Tensor, int32 = torch.Tensor, torch.int32
    cuda = SimpleNamespace(synchronize=lambda *device: None)

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)


@pytest.mark.compile
def test_each_recorded_launch_has_memory_of_its_own(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = cf.compile(rms_norm, "llama-2-7b", part="h100-sxm", cluster_size=2, trace=True)
    found, shape = marks(kernel.plan), kernel.plan.args[-1].shape
    launched: list[tuple[torch.Tensor, ...]] = []

    def function(*tensors: torch.Tensor) -> None:
        """As the kernel would: launch n starts n us after the epoch, and is at mark k 100 k ns later; a cycle is half a ns."""
        launched.append(tensors)
        words, at = tensors[-1], 1000 * len(launched)
        for k in range(len(found)):
            words[:, k, 0] = 2 * (at + 100 * k)
            words[:, k, 1], words[:, k, 2] = at + 100 * k, 1

    monkeypatch.setattr(runtime_recording, "torch", HostTorch)
    monkeypatch.setattr(kernel, "prepare", lambda: None)
    own = tuple(torch.zeros(tuple(map(int, arg.shape)), dtype=torch.int32) for arg in kernel.workspace_args)
    kernel._function, kernel._workspace = function, own
    args = [torch.zeros(1) for _ in kernel.args]
    with recording([kernel, kernel], launches=2) as made:
        kernel(*args)
        kernel(*args)
        with pytest.raises(RecordingFull, match="room for 2 launches"):
            call_past_the_checks(kernel, args)
    assert kernel._function is function
    kernel(*args)
    first, second, after = launched
    assert first[: len(args)] == tuple(args)
    assert first[-1].shape == second[-1].shape == torch.Size(shape)
    assert first[-1] is not own[-1]
    assert first[-1].data_ptr() != second[-1].data_ptr()
    assert after[-1] is own[-1]
    assert first[-2] is own[-2]
    (name, one), (_, two) = made.timeline()
    assert name == "rms_norm"
    assert {record.cta for record in one} == {0, 1}
    assert {record.end_ns - record.start_ns for record in (*one, *two)} == {100}
    assert min(record.start_ns for record in two) - min(record.start_ns for record in one) == 1000
    monkeypatch.setattr(kernel, "_function", function)
    assert [record.step for record in kernel.trace(*args, warmup=1)] == [*range(1, len(found) - 1)] * 2


def call_past_the_checks(kernel: Kernel, args: list[torch.Tensor]) -> None:
    """A call past `Kernel._launch`, which would first look at the arguments, and those here are not on a GPU."""
    kernel._function(*args, *kernel._workspace)


def test_the_option_is_a_field_of_the_config() -> None:
    with pytest.raises(cf.CfdslError, match="trace='yes', it must be true or false"):
        cf.compile(rms_norm, "llama-2-7b", part="h100-sxm", trace="yes")
    assert cf.Config(clusters=1, cluster_size=1, stages=4).trace is False
    assert callable(Kernel.trace)
