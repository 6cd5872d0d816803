"""What no shipped fusion does, on a GPU: weights under views, computed biases, sums over the grid, caches and tables of a fixed size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf

MODEL = cf.PRESETS["smollm2-135m"]
ROWS, COLS = 640, 576

SPECS: dict[str, cf.Fusion] = {}


def spec(fn: Callable[..., cf.Outputs]) -> cf.Fusion:
    made = SPECS[fn.__name__] = cf.fusion(fn)
    return made


@spec
def views_of_weights(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """Rows of another shape in memory, and a cluster's rows by heads, with biases that are computed."""
    x = cf.input("x", (batch, COLS))
    y = cf.linear(x, cf.reshape(cf.weight("w", (2 * ROWS, COLS // 2)), (ROWS, COLS)), cf.silu(cf.weight("b", (ROWS,))), shard="out")
    with cf.clusters(over=5) as axis:
        bias = cf.weight("c", (ROWS,)).split_heads(10)[axis] + cf.weight("d", (10, 64))
        z = cf.linear(x, cf.weight("v", (ROWS, COLS))[axis].split_heads(10), bias, shard="out")
    return cf.outputs(y=y, z=z)


@spec
def sums_over_the_grid(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """All ranks of a cluster have its term, and one adds it; two outputs read the sum."""
    x, w = cf.input("x", (batch, COLS)), cf.weight("w", (ROWS, COLS))
    with cf.clusters(over=9) as axis:
        total = cf.grid_reduce_scatter(cf.linear(x[:, axis], w[:, axis]), dim=1)
    return cf.outputs(y=total, z=cf.silu(total))


@spec
def sums_in_two_rounds(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """Two values in one exchange, too much for one round where there are several ranks."""
    x = cf.input("x", (batch, COLS))
    with cf.clusters(over=1):
        a, b = (cf.linear(x, cf.weight(name, (1024, COLS)), shard="in") for name in ("w", "v"))
        a, b = cf.cluster_reduce(a, b)
        y = cf.cluster_gather(cf.linear(cf.silu(a) * b, cf.weight("o", (64, 1024)), shard="out"))
    return cf.outputs(y=y)


@spec
def fixed_sizes(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """A cache with room for 64 tokens, and tables of 128 rows."""
    q, k, n = cf.input("q", (batch, 9, 64)), cf.input("k", (batch, 3, 64)), cf.input("n", (batch,), "i32")
    cos, sin = (cf.weight(name, (128, 32), "f32") for name in ("cos", "sin"))
    with cf.clusters(over=3) as head:
        k = cf.rope(k[:, head], cos, sin, n)
        cache = cf.kv_cache("cache", batch, 3, 64, 64)[head].append(k, cf.input("v", (batch, 3, 64))[:, head], at=n)
        o = cf.cluster_reduce(cf.attend(cf.rope(q[:, head], cos, sin, n), cache, shard="tokens"))
    return cf.outputs(y=o)


def tensors_of(fusion: cf.Fusion, device: str) -> dict[str, torch.Tensor]:
    """Random tensors of the size that they have in a model; a cache of 40 tokens."""
    from cfdsl.dsl.interpret import leaf_tensors

    make, found = torch.Generator().manual_seed(0), {}
    for name, declared in leaf_tensors(fusion.trace(MODEL)):
        shape = [int(dim) for dim in declared.shape]
        if declared.dtype == "i32":
            found[name] = torch.tensor([40], dtype=torch.int32)
        else:
            scale = shape[-1] ** -0.5 if len(shape) == 2 and shape[0] > 1 and declared.dtype == "bf16" else 1.0
            found[name] = (torch.randn(shape, generator=make) * scale).to({"bf16": torch.bfloat16, "f32": torch.float32}[declared.dtype])
    return {name: tensor.to(device) for name, tensor in found.items()}


def fields(name: str) -> dict[str, int]:
    return {"cluster_size": {"sums_over_the_grid": 2, "sums_in_two_rounds": 8}.get(name, 4)}


@pytest.mark.compile
@pytest.mark.parametrize("name", SPECS)
def test_they_compile(name: str) -> None:
    assert cf.compile(SPECS[name], MODEL, part="h100-sxm", **fields(name)).spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECS)
def test_on_the_gpu(name: str) -> None:
    fusion = SPECS[name]
    kernel = cf.compile(fusion, MODEL, **fields(name))
    host, there = tensors_of(fusion, "cpu"), tensors_of(fusion, "cuda")
    mesh = cf.Mesh(kernel.config.clusters, kernel.config.cluster_size)
    want = cf.interpret(fusion.trace(MODEL), host, mesh, precision="f64", round_outputs=False)
    for arg in kernel.args:
        if arg.role == "output":
            there[arg.name] = torch.full([int(dim) for dim in arg.shape], float("nan"), dtype=torch.bfloat16, device="cuda")
    for _ in range(3):  # a sum that was not cleared would grow
        kernel(**there)
        torch.cuda.synchronize()
        for output, value in {**want.outputs, **want.caches}.items():
            assert error(there[output].cpu(), value) <= LIMIT["bf16"], output
    assert kernel.status() == ()
