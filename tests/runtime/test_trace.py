"""Traced kernels, without a GPU: what is in their machine code, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import cfdsl as cf
from cfdsl.errors import NotTraced
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


def test_the_option_is_a_field_of_the_config() -> None:
    with pytest.raises(cf.CfdslError, match="trace=yes, it must be true or false"):
        cf.compile(rms_norm, "llama-2-7b", part="h100-sxm", trace="yes")
    assert cf.Config(clusters=1, cluster_size=1, stages=4).trace is False
    assert callable(Kernel.trace)
