"""The attention block in every dataflow, shape of head, rotation and cluster that it is compiled for: right against float64 on a GPU.

One table: each case is compiled without a GPU too, and must not spill.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from cfdsl.runtime.kernel import Kernel
from fusions.attention_block import attention_block

CAPACITY = 1001
LENGTHS = (0, 1, 127, 1000)


@dataclass(frozen=True)
class Case:
    """A model in small, or one of the presets' shapes; the block's options; fields of the config that are given."""

    hidden: int = 512
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> cf.ModelConfig:
        return cf.ModelConfig("small", self.hidden, self.heads, self.kv_heads, self.head_dim, **self.model)

    @property
    def repeats(self) -> bool:
        """Whether all runs have the same bits: atomic adds come in any order."""
        return self.options.get("out") != "atomic"

    def kernel(self, **where: Any) -> Kernel:
        return cf.compile(attention_block, self.config, dtype=self.dtype, **self.options, **self.fields, **where)


def grouped(group: int, **how: Any) -> Case:
    """A KV head to a cluster, with all of its query heads."""
    return Case(heads=2 * group, fields={"clusters": 2}, **how)


ROWS, SPLIT_K = {"qkv": "rows"}, {"qkv": "split_k"}
CASES = {
    "llama-2-7b's sizes": Case(4096, 32, 32, 128),
    "llama-3.1-8b's sizes": Case(4096, 32, 8, 128),
    "head_dim 128, rows": Case(1024, 8, 2, 128, options=ROWS),
    "head_dim 128, split_k, atomic": Case(1024, 8, 2, 128, options={**SPLIT_K, "out": "atomic"}),
    "rows, atomic": Case(options={**ROWS, "out": "atomic"}),
    "split_k, atomic": Case(options={**SPLIT_K, "out": "atomic"}),
    "bthd": Case(options={"layout": "bthd"}),
    "bthd, rows, atomic, head_dim 128": Case(1024, 4, 2, 128, options={**ROWS, "out": "atomic", "layout": "bthd"}),
    "biases": Case(model={"qkv_bias": True}),
    "biases, rows": Case(options=ROWS, model={"qkv_bias": True}),
    "biases, split_k": Case(options=SPLIT_K, model={"qkv_bias": True}),
    "interleaved": Case(model={"rope_style": "interleaved"}),
    "half of a head rotates": Case(model={"rotary_dim": 32}),
    "34 of 128 rotate, interleaved": Case(1024, 4, 2, 128, model={"rotary_dim": 34, "rope_style": "interleaved"}),
    "split_k, clusters of 2": Case(options=SPLIT_K, fields={"cluster_size": 2}),
    "split_k, clusters of 8": Case(options=SPLIT_K, fields={"cluster_size": 8}),
    "split_k, clusters of 16, two rounds": Case(2048, 16, 4, 128, options=SPLIT_K, fields={"cluster_size": 16, "clusters": 4}),
    "a head each": grouped(1),
    "groups of 4, rows": grouped(4, options=ROWS),
    "groups of 5": grouped(5),
    "groups of 7, split_k": grouped(7, options=SPLIT_K),
    "groups of 16": grouped(16),
    "groups of 16, head_dim 128, atomic": grouped(16, hidden=1024, head_dim=128, options={**ROWS, "out": "atomic"}),
    "hidden 448": Case(448, 7, 7),
    "hidden 448, split_k": Case(448, 7, 7, options=SPLIT_K),
    "f16": Case(dtype="f16"),
    "f16, split_k, atomic": Case(dtype="f16", options={**SPLIT_K, "out": "atomic"}),
    "16 warps": Case(fields={"warps": 16}),
    "three splits": Case(fields={"splits": 3, "cluster_size": 4}),
}  # fmt: skip


@pytest.mark.compile
@pytest.mark.parametrize("name", CASES)
def test_it_compiles(name: str) -> None:
    kernel = CASES[name].kernel(part="h100-sxm")
    assert kernel.spills == 0
    assert kernel.paths["cubin"].stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str) -> None:
    """Outputs start as NaN, and so does the cache past its length; the caches hold the new token, and nothing else has changed."""
    case = CASES[name]
    kernel = case.kernel()
    for length in LENGTHS:
        tensors = attention_block.example_inputs(
            case.config, 1, case.dtype, length=length, capacity=CAPACITY, device="cuda", **case.options
        )
        want = attention_block.reference(case.config, tensors, "f64", **case.options)
        runs = []
        for _ in range(3):
            tensors["y"].fill_(float("nan"))
            kernel(**tensors)  # the new token is written again, where it was
            torch.cuda.synchronize()
            runs.append(tensors["y"].clone())
        assert error(runs[0], want["y"]) <= LIMIT[case.dtype], length
        for cache in ("cache_k", "cache_v"):
            assert error(tensors[cache], want[cache]) <= LIMIT[case.dtype], (length, cache)
        if case.repeats:
            assert all(torch.equal(run, runs[0]) for run in runs), length
        else:
            assert all(error(run, want["y"]) <= LIMIT[case.dtype] for run in runs), length
    assert kernel.status() == ()
