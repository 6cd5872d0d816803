"""cfdsl.collective without a GPU: compiled kernels, their attributes, arguments and cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cfdsl as cf
from cfdsl.errors import AlgorithmUnsupported, ArgumentError, Errors, NoTarget, UnknownPart

PART = "h100-sxm"


@pytest.mark.compile
def test_a_kernel_and_what_it_says_of_itself(own_cache: Path, forget: Callable[[], None]) -> None:
    kernel = cf.collective("reduce", shape=(128,), cluster=4, clusters=2, algorithm="push", timed=True, repeat=5, part=PART)
    assert [(arg.name, arg.shape, arg.role) for arg in kernel.args] == [
        ("x", (2, 4, 128), "input"), ("y", (2, 4, 128), "output"), ("cycles", (2, 4), "output"),
    ]  # fmt: skip
    assert (kernel.algorithm, kernel.bytes_pushed, kernel.bytes_global) == ("push", 3 * 512, 0)
    assert kernel.smem_bytes == kernel.plan.smem_bytes
    assert repr(kernel).endswith(": f32, 2 clusters x 4 ranks, h100-sxm>")
    assert kernel.spills == 0
    assert kernel.stack == 0
    assert kernel.source.count("collectives.cluster_reduce(") == 1
    assert "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32" in kernel.ptx
    assert "%clock64" in kernel.ptx
    assert list(kernel.stages)[:2] == ["choice", "plan"]
    assert kernel.cold
    assert cf.collective("reduce", shape=(128,), cluster=4, clusters=2, algorithm="push", timed=True, repeat=5, part=PART) is kernel
    forget()
    again = cf.collective("reduce", shape=(128,), cluster=4, clusters=2, algorithm="push", timed=True, repeat=5, part=PART)
    assert not again.cold


@pytest.mark.compile
@pytest.mark.parametrize(
    ("kind", "algorithm", "instruction"),
    [
        ("gather", "bulk", "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"),
        ("gather", "multicast", "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"),
        ("broadcast", "global", "ld.acquire.gpu.global.b32"),
        ("reduce_scatter", "push", "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"),
        ("reduce", "doubling", "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"),
    ],
)
def test_instructions(kind: str, algorithm: str, instruction: str) -> None:
    kernel = cf.collective(kind, shape=(64, 4), dtype="bf16", cluster=4, algorithm=algorithm, part=PART)
    assert instruction in kernel.ptx
    clusterwide = len(re.findall(r"barrier\.cluster\.wait", kernel.ptx))
    assert clusterwide == {"bulk": 2, "global": 0}.get(algorithm, 1), "one meeting at the start, and one more after bulk copies"


@pytest.mark.compile
def test_lse_takes_the_statistics_and_off_chip_has_a_workspace() -> None:
    kernel = cf.collective("reduce", op="lse", shape=(4, 64), cluster=4, algorithm="global", part=PART)
    assert [arg.name for arg in kernel.args] == ["x", "ml", "y"]
    assert [arg.name for arg in kernel.plan.args] == ["x", "ml", "y", "ws_sync", "ws_rows"]
    assert [arg.name for arg in kernel.workspace_args] == ["workspace"]
    assert kernel.status() == ()


@pytest.mark.compile
@pytest.mark.parametrize("algorithm", ["push", "bulk", "scatter_gather", "doubling", "global"])
def test_lse_of_halves_is_in_float32_between_its_ends(algorithm: str) -> None:
    kernel = cf.collective("reduce", op="lse", shape=(8, 68), dtype="bf16", cluster=4, algorithm=algorithm, part=PART)
    assert [(arg.name, arg.dtype) for arg in kernel.args] == [("x", "bf16"), ("ml", "f32"), ("y", "bf16")]
    assert "ld.global.b16" in kernel.ptx
    assert len(re.findall(r"st\.global\.v2\.b32", kernel.ptx)) == 1, "y is written four halves at a time"
    assert kernel.ptx.count("cvt.rn.bf16x2.f32") == 2, "each element of y is rounded once"
    assert (kernel.spills, kernel.stack) == (0, 0)
    wide = cf.collective("reduce", op="lse", shape=(8, 68), cluster=4, algorithm=algorithm, part=PART)
    assert (kernel.bytes_pushed, kernel.smem_bytes) == (wide.bytes_pushed, wide.smem_bytes)


@pytest.mark.compile
@pytest.mark.parametrize(("algorithm", "warps"), [("multicast", 2), ("push", 1), ("global", 8)])
def test_a_kernel_has_the_warps_that_it_was_asked_for(algorithm: str, warps: int) -> None:
    kernel = cf.collective("gather", shape=(512,), cluster=4, algorithm=algorithm, warps=warps, part=PART)
    assert f".reqntid {32 * warps}" in kernel.ptx
    assert kernel.config.warps == warps
    assert f"{warps} warps" in kernel.stages["choice"]


@pytest.mark.compile
def test_arguments_are_checked_as_those_of_fusions() -> None:
    kernel = cf.collective("gather", shape=(8,), cluster=2, algorithm="push", part=PART)
    with pytest.raises(Errors, match=r"(?s)'x' must be.*float32 tensor of shape \(1, 2, 8\).*'y' must be.*\(1, 2, 16\)"):
        kernel(torch.zeros(1, 2, 9), torch.zeros(1, 2, 8))


def test_mistakes_need_no_compiler() -> None:
    with pytest.raises(ArgumentError, match="'kind' must be one of reduce, reduce_scatter, gather, broadcast"):
        cf.collective("allreduce", shape=(8,), cluster=2, part=PART)
    with pytest.raises(AlgorithmUnsupported):
        cf.collective("broadcast", shape=(8,), cluster=2, algorithm="doubling", part=PART)


@pytest.mark.parametrize("part", [None, "a100"])
def test_a_missing_target_hides_no_other_mistake(monkeypatch: pytest.MonkeyPatch, part: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Errors) as caught:
        cf.collective("reduce", op="average", shape=(True,), cluster="4", algorithm="ring", part=part)  # type: ignore[arg-type]
    *asked, target = caught.value.errors
    assert [error.message for error in asked] == [
        "argument 'op' must be one of sum, max, min, lse, got 'average'.",
        "argument 'cluster' must be a number of CTAs, got '4'.",
        "argument 'shape' must be a tuple of at least one positive integer, got (True,).",
        "argument 'algorithm' must be one of push, bulk, scatter_gather, doubling, multicast, global, or None, got 'ring'.",
    ]
    assert type(target) is (UnknownPart if part else NoTarget)
    with pytest.raises((NoTarget, UnknownPart)):
        cf.collective("reduce", shape=(4,), cluster=4, part=part)


@pytest.mark.parametrize("value", [[], {}, None, 2.0, "2"])
def test_values_of_any_type_are_mistakes_and_no_tracebacks(value: object) -> None:
    asked: dict[str, Any] = {"kind": value, "op": value, "shape": (8,), "dtype": value, "cluster": value, "part": PART}
    wrong = ["kind", "op", "dtype", "cluster"]
    for ask, more in ((cf.collective_algorithms, {}), (cf.collective, {"clusters": value, "repeat": value})):
        with pytest.raises(Errors) as caught:
            ask(**asked, **more)  # type: ignore[operator]
        assert [error.argument for error in caught.value.errors] == [*wrong, *more]
    with pytest.raises(ArgumentError, match="'algorithm' must be one of push"):
        cf.collective("reduce", shape=(8,), cluster=2, algorithm=value or [], part=PART)  # type: ignore[arg-type]


def test_a_part_is_a_part_a_name_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says = r"'part' must be a Part, the name of one \(h100-sxm, .*\), or None for the GPU at hand, got 3"
    for ask in (cf.collective, cf.collective_algorithms):
        with pytest.raises(ArgumentError, match=says):
            ask("reduce", shape=(8,), cluster=2, part=3)
        with pytest.raises(NoTarget):
            ask("reduce", shape=(8,), cluster=2, part=None)


@pytest.mark.compile
def test_arguments_that_are_no_tensors_are_named() -> None:
    kernel = cf.collective("gather", shape=(8,), cluster=2, algorithm="push", part=PART)
    for wrong, got in (("a", "a str"), (None, "None")):
        with pytest.raises(Errors, match=rf"(?s)'x' must be a float32 tensor of shape \(1, 2, 8\), got {got}.*'y' must be.*got {got}"):
            kernel(wrong, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("repeat", "timed", "says"),
    [
        (0, False, "an integer from 1 to 2147483647 (calls are counted in 32 bits), got 0"),
        (2**31, False, "an integer from 1 to 2147483647 (calls are counted in 32 bits), got 2147483648"),
        (2**16 + 1, True, "an integer from 1 to 65536 with timed=True (cycles are counted in 32 bits), got 65537"),
    ],
)
def test_how_many_exchanges_a_launch_may_do(repeat: int, timed: bool, says: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"argument 'repeat' must be {says}")):
        cf.collective("reduce", shape=(8,), cluster=2, repeat=repeat, timed=timed, part=PART)


@pytest.mark.parametrize("timed", ["yes", 1, None, []])
def test_timed_is_true_or_false(timed: object) -> None:
    with pytest.raises(ArgumentError, match="argument 'timed' must be True or False, got "):
        cf.collective("reduce", shape=(8,), cluster=2, timed=timed, part=PART)  # type: ignore[arg-type]


def test_which_algorithms() -> None:
    found = cf.collective_algorithms("reduce", shape=(128,), cluster=4)
    assert found[0] == "push"
    assert set(found) == {"push", "bulk", "scatter_gather", "doubling", "global"}
    assert set(cf.collective_algorithms("gather", shape=(3,), cluster=4)) == {"push", "doubling", "global"}
