"""The launch's tensors: where workspaces lie in the one that the host hands over, and which gaps `launch` has to look for."""

from __future__ import annotations

import re

import pytest

from cfdsl.compiler.emit.launch import launch
from cfdsl.compiler.launch import launch_args, places
from cfdsl.compiler.plan import TRACE_ARG, Arg

X = Arg("x", (1, 64), "bf16", "input")
CACHE = Arg("cache_k", (1, 2, "tokens", 64), "bf16", "cache", mutated=True)
SYNC = Arg("ws_sync", (8,), "i32", "workspace", mutated=True)
SUM = Arg("ws_sum", (33,), "f32", "workspace", mutated=True)
BEST = Arg("ws_best", (4,), "i32", "workspace", mutated=True)
MARKS = Arg(TRACE_ARG, (4, 5, 3), "i32", "workspace", mutated=True)


def test_workspaces_start_at_cache_lines() -> None:
    """8 words and 33 words: one line of 128 bytes, and two."""
    assert places((X, SYNC, SUM, BEST)) == {"ws_sync": 0, "ws_sum": 128, "ws_best": 384}
    assert launch_args((X, SYNC, SUM, BEST)) == (X, Arg("workspace", (128,), "i32", "workspace", mutated=True, align=128))


def test_marks_have_a_tensor_of_their_own() -> None:
    assert places((X, SYNC, MARKS)) == {"ws_sync": 0}
    assert launch_args((X, SYNC, MARKS)) == (X, Arg("workspace", (32,), "i32", "workspace", mutated=True, align=128), MARKS)


def test_without_workspaces_there_is_none() -> None:
    assert places((X, CACHE)) == {}
    assert launch_args((X, CACHE)) == (X, CACHE)


def test_the_kernel_gets_vectors_in_the_order_of_the_plan() -> None:
    source = launch("some", (X, CACHE, SYNC, SUM, MARKS), threads=96, sizes=("Int32(cache_k.shape[2])",), pdl=False)
    body = re.sub(r"\s+", " ", source)
    params = ", ".join(f"{name}: cute.Tensor" for name in ("x", "cache_k", "workspace", "ws_trace"))
    assert f"def launch( {params}, stream: cuda.CUstream, )" in body
    assert (
        "kernel( host.flat(x), host.flat(cache_k), host.room(workspace, 0, Int32, 8), host.room(workspace, 128, Float32, 33), "
        "host.flat(ws_trace), Int32(cache_k.shape[2]), ).launch( grid=[CTAS * host.gapless(cache_k), 1, 1], block=[96, 1, 1], "
        "cluster=[RANKS, 1, 1], stream=stream, use_pdl=False, min_blocks_per_mp=1, )"
    ) in body


def test_an_argument_called_workspace_is_another_one() -> None:
    source = launch("some", (Arg("workspace", (64,), "bf16", "input"), SYNC), threads=32)
    assert "workspace_: cute.Tensor, workspace: cute.Tensor, stream" in source
    assert "host.flat(workspace_), host.room(workspace, 0, Int32, 8)," in source
    assert "grid=[CTAS, 1, 1]" in source


@pytest.mark.parametrize(
    ("shape", "loose"),
    [
        ((1, 2, "tokens", 64), True),  # the stride of a head is tokens * 64
        ((1, "tokens", 2, 64), False),  # only the stride of the batch is not known before, and there is one sequence
        ((3, "tokens", 2, 64), True),
        (("positions", 64), False),
        ((1, 64), False),
    ],
)
def test_which_strides_only_a_call_knows(shape: tuple[int | str, ...], loose: bool) -> None:
    assert Arg("t", shape, "bf16", "input").loose is loose
