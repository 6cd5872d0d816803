"""Inputs by multicast on a GPU: the reference's result in float64, and the bits of a kernel that reads its inputs itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from cfdsl.runtime.kernel import Kernel
from fusions.attention_block import attention_block

pytestmark = pytest.mark.gpu

CLUSTER_SIZES = [1, 2, 4, 8, 16]
OUTPUTS = ("y", "cache_k", "cache_v")


def pair(model: str, cluster_size: int, dtype: str = "bf16", **how: Any) -> tuple[Kernel, Kernel]:
    """The same kernel with and without multicast: all other fields of the config that bits could depend on are equal."""
    how = {"qkv": "rows", **how}
    shared = cf.compile(attention_block, model, dtype=dtype, cluster_size=cluster_size, multicast=True, **how)
    assert any(exchange.algorithm == "multicast" for exchange in shared.plan.exchanges)
    fixed = {name: getattr(shared.config, name) for name in ("clusters", "ctas_per_sm", "stages", "stage_bytes", "window", "warps")}
    plain = cf.compile(attention_block, model, dtype=dtype, cluster_size=cluster_size, multicast=False, **{**fixed, **how})
    return shared, plain


def inputs(model: str, dtype: str = "bf16", **how: Any) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = attention_block.example_inputs(
        cf.models.resolve(model), 1, dtype, device="cuda", **{"length": 300, "capacity": 640, **how}
    )
    return made


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in OUTPUTS)


@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
@pytest.mark.parametrize("model", ["smollm2-135m", "tinyllama-1.1b"])  # 72 chunks over 16 ranks: uneven; 256: even
def test_right_and_the_same_bits(model: str, cluster_size: int) -> None:
    shared, plain = pair(model, cluster_size)
    for length in (0, 1, 300, 639):
        tensors, others = inputs(model, length=length), inputs(model, length=length)
        want = attention_block.reference(cf.models.resolve(model), tensors, "f64")
        shared(**tensors)
        plain(**others)
        torch.cuda.synchronize()
        for name in OUTPUTS:
            assert error(tensors[name], want[name]) <= LIMIT["bf16"], (name, length)
        assert same_bits(tensors, others), length
    assert shared.status() == ()


@pytest.mark.parametrize("how", [{"dtype": "f16"}, {"qkv": "split_k"}, {"pdl": False}, {"ctas_per_sm": 1}], ids=str)
def test_other_ways(how: dict[str, Any]) -> None:
    """float16; slices of what has landed; without programmatic launch; with an SM to itself."""
    shared, plain = pair("smollm2-135m", 4, **how)
    dtype = how.get("dtype", "bf16")
    tensors, others = inputs("smollm2-135m", dtype), inputs("smollm2-135m", dtype)
    want = attention_block.reference(cf.models.resolve("smollm2-135m"), tensors, "f64")
    shared(**tensors)
    plain(**others)
    torch.cuda.synchronize()
    assert all(error(tensors[name], want[name]) <= LIMIT[dtype] for name in OUTPUTS)
    assert same_bits(tensors, others)


@pytest.mark.parametrize("cluster_size", [2, 8, 16])
def test_inputs_that_the_kernel_ahead_writes(cluster_size: int) -> None:
    """A chain of launches, each reading what the one before wrote: with programmatic launch a request that comes too early reads old bits.

    The chain runs twice: as a CUDA graph with multicast, and without multicast with a pause after each launch.
    """
    model, links = "smollm2-135m", 12
    shared, plain = pair(model, cluster_size)
    tensors = inputs(model)
    chain = [tensors["x"], *(torch.full_like(tensors["x"], float("nan")) for _ in range(links))]
    scratch = {name: tensors[name].clone() for name in ("cache_k", "cache_v")}

    def run(kernel: Kernel, wait: bool) -> list[torch.Tensor]:
        for y in chain[1:]:
            y.fill_(float("nan"))
        for name, value in scratch.items():
            tensors[name].copy_(value)
        link_all(kernel, wait)
        torch.cuda.synchronize()
        return [y.clone() for y in chain[1:]]

    def link_all(kernel: Kernel, wait: bool) -> None:
        for x, y in zip(chain, chain[1:]):
            kernel(**{**tensors, "x": x, "y": y})
            if wait:
                torch.cuda.synchronize()

    want = run(plain, wait=True)
    assert not any(y.isnan().any() for y in want)
    assert all(torch.equal(y, other) for y, other in zip(run(shared, wait=False), want))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        link_all(shared, wait=False)
    for _ in range(50):
        for y in chain[1:]:
            y.fill_(float("nan"))
        for name, value in scratch.items():
            tensors[name].copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(y, other) for y, other in zip(chain[1:], want))


@pytest.mark.parametrize("cluster_size", [2, 16])
def test_a_thousand_runs_are_bitwise_equal(cluster_size: int) -> None:
    shared, _ = pair("tinyllama-1.1b", cluster_size)
    tensors = inputs("tinyllama-1.1b")
    shared(**tensors)
    want = {name: tensors[name].clone() for name in OUTPUTS}
    differences = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        tensors["y"].fill_(float("nan"))
        shared(**tensors)
        for name, value in want.items():
            differences += (tensors[name].view(torch.int16) != value.view(torch.int16)).sum()
    assert int(differences) == 0
