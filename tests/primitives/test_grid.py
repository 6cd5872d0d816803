"""The grid barrier, and what travels through global memory."""

from __future__ import annotations

import cases
import pytest
import tensors
import torch
from expect import ptx_has, right_and_repeatable

from primitives import grid, kv


@pytest.mark.compile
def test_one_release_add_acquire_polls_and_a_reduction_without_an_answer() -> None:
    ptx_has(
        cases.GRID_CASE.program,
        {
            "red.release.gpu.global.add.s32": 1, "ld.acquire.gpu.global.b32": 1, "red.relaxed.gpu.global.add.f32": 1,
            "fence.acq_rel.gpu": 0, "atom.global.or.b32": 1,
        },
    )  # fmt: skip


@pytest.mark.gpu
def test_against_float64() -> None:
    right_and_repeatable(cases.GRID_CASE)


@pytest.mark.gpu
def test_the_counter_is_never_reset() -> None:
    """The same sync words through many launches: the top bit flips once in each, and the other bits come back to 0."""
    case = cases.GRID_CASE
    sync = torch.zeros(8, dtype=torch.int32, device="cuda")
    for launch in range(1, 21):
        inputs = case.inputs(None)
        outs = {name: tensors.poisoned(dtype, *shape) for name, (dtype, shape) in case.outs.items() if name != "sync"}
        outs["acc"].zero_()
        case.program(*inputs, sync, *outs.values())
        case.check({"sync": sync, **outs}, None, inputs, f"launch {launch} on the same sync words")
        want = -(2**31) if launch % 2 else 0
        assert int(sync[0]) == want, f"launch {launch}: the counter is {int(sync[0])}, expected {want}"


@pytest.mark.gpu
def test_a_barrier_that_cannot_complete_gives_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SPIN_LIMIT", 1 << 12)  # the kernel is traced with it: milliseconds instead of seconds
    case = cases.grid_exchange(counted=cases.GRID + 1)
    outs = case.run(case.build(), case.inputs(None))
    assert int(outs["sync"][1]) == kv.BARRIER_TIMED_OUT, f"status {int(outs['sync'][1])} after a barrier that waits for one CTA too many"
