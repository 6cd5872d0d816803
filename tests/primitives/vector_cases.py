"""Cases of one CTA without a ring: warp, pointwise, frag, rmsnorm, rope, kv."""

from __future__ import annotations

import math
from typing import Any

import tensors
import torch
import vector_kernels
from case import Case, Outs
from harness import THREADS
from tensors import assert_close, random
from torch import Tensor

from primitives import kv, stream


def _check_warp_sums(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
    a, b = (x.double() for x in ins)
    rows = [a.view(-1, w).sum(1, keepdim=True).expand(-1, w).reshape(32) for w in vector_kernels.WIDTHS]
    for n, width in vector_kernels.TOGETHER:
        which = torch.arange(32, device=a.device) % width // (width // n)  # the upper bits of a lane's place say whose sum it has
        sums = [x.view(-1, width).sum(1, keepdim=True).expand(-1, width).reshape(32) for x in (a, b)]
        rows.append(sums[0] + which * sums[1])
    assert_close(outs["out"], torch.stack(rows), 5e-4, label)


def _activation_inputs(variant: Any) -> list[Tensor]:
    x = random("f32", THREADS, scale=4.0)
    x[:6] = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e-6, -88.0])
    return [x]


def _check_activations(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
    x = ins[0].double()
    silu, gelu = torch.nn.functional.silu(x), torch.nn.functional.gelu(x, approximate="tanh")
    assert_close(outs["out"][0::2], torch.stack([silu, silu]), 1e-6 * (1 + x.abs()), f"{label}: silu (scalar, fragment)")
    assert_close(outs["out"][1::2], torch.stack([gelu, gelu]), 1e-6 + 4e-4 * x.abs(), f"{label}: gelu (scalar, fragment)")


def _fragment(name: str, source: str, target: str, cols: int, per_row: int, col0: int) -> Case:
    shape = stream.Rows(cols=cols, ld=cols, rows=8, warps_per_row=per_row)

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        values = ins[0][col0 : col0 + cols]
        want = torch.full_like(outs["dst"], float("nan"))
        want[col0 : col0 + cols] = values.float().to(want.dtype)
        assert_close(outs["dst"], want, 0.0, f"{label}: dst (NaN outside of the {cols} columns from {col0})")
        assert_close(outs["plain"], values.float(), 0.0, f"{label}: what frag.store put into shared memory")
        mean = values.double().square().mean()
        assert_close(outs["mean"], mean.expand(THREADS), 2e-6 * float(mean), f"{label}: mean square, per thread")
        assert len(outs["mean"].unique()) == 1, f"{label}: threads disagree about the mean square: {outs['mean'].unique().tolist()}"

    size = col0 + cols + 16
    return Case(
        f"fragment {name}", vector_kernels.fragment, ((source, (size,)),),
        {"dst": (target, (size,)), "mean": ("f32", (THREADS,)), "plain": ("f32", (cols,))}, check, (shape, col0),
    )  # fmt: skip


def _rotation(name: str, heads: int, dim: int, half: int, interleaved: bool) -> Case:
    positions = 7

    def make(position: int) -> list[Tensor]:
        angle = torch.rand(positions * half, device=tensors.DEVICE) * 2 * math.pi
        return [random("f32", heads * dim), angle.cos(), angle.sin(), tensors.ints(position)]

    def check(outs: Outs, position: int, ins: list[Tensor], label: str) -> None:
        x, cos, sin = ins[0].double().view(heads, dim), *(t.double().view(positions, half)[position] for t in ins[1:3])
        lo = torch.arange(half, device=tensors.DEVICE) * (2 if interleaved else 1)
        hi = lo + (1 if interleaved else half)
        want = x.clone()
        want[:, lo], want[:, hi] = x[:, lo] * cos - x[:, hi] * sin, x[:, hi] * cos + x[:, lo] * sin
        assert_close(outs["out"].view(heads, dim), want, 2e-6, f"{label}: (head, dimension)")

    table = ("f32", (positions * half,))
    return Case(
        f"rope {name}", vector_kernels.rotation, (("f32", (heads * dim,)), table, table, ("i32", (1,))), {"out": ("f32", (heads * dim,))},
        check, (heads, dim, half, interleaved), make, variants=(0, 5),
    )  # fmt: skip


def _folded(src: str, dst: str, count: int, n: int) -> Case:
    stride = -(-n // 8) * 8
    ends = -(-n * tensors.torch_dtype(dst).itemsize // 16) * 16 // tensors.torch_dtype(dst).itemsize  # the row's last vector

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        terms = ins[0].view(count, stride)[:, :n].double()
        assert_close(outs["out"][:n], terms.sum(0).float().to(outs["out"].dtype), 0.0, label)
        behind = outs["out"][ends:].isnan()
        assert behind.all(), f"{label}: {int((~behind).sum())} elements written behind the row"

    def make(variant: Any) -> list[Tensor]:
        return [(random("f32", count * stride) * 16).round().to(tensors.torch_dtype(src))]  # whole numbers: sums are exact

    size = ends + 16
    return Case(
        f"fold {count} of {n} {src} to {dst}", vector_kernels.folded, ((src, (count * stride,)),), {"out": (dst, (size,))}, check,
        (count, stride, n), make,
    )  # fmt: skip


def _cache_append(dtype: str) -> Case:
    heads, dim, tokens = 3, 64, 5
    layouts = {"bhtd": (dim, tokens * dim), "bthd": (heads * dim, dim)}  # token and head stride

    def make(variant: tuple[str, int]) -> list[Tensor]:
        token, head = layouts[variant[0]]
        return [random("f32", heads * dim), random("f32", heads * dim), tensors.ints(variant[1] * token, head)]

    def check(outs: Outs, variant: tuple[str, int], ins: list[Tensor], label: str) -> None:
        for name, new in (("keys", ins[0]), ("values", ins[1])):
            want = torch.full_like(outs[name], float("nan"))
            whole = want.view(heads, tokens, dim) if variant[0] == "bhtd" else want.view(tokens, heads, dim).transpose(0, 1)
            whole[:, variant[1]] = new.view(heads, dim).to(want.dtype)
            assert_close(outs[name], want, 0.0, f"{label}: {name}, NaN but for the new token")

    cache = (dtype, (heads * tokens * dim,))
    new = ("f32", (heads * dim,))
    return Case(
        f"kv.append {dtype}", vector_kernels.cache_append, (new, new, ("i32", (2,))), {"keys": cache, "values": cache}, check,
        (heads, dim), make, variants=(("bhtd", 0), ("bhtd", 4), ("bthd", 0), ("bthd", 4)),
    )  # fmt: skip


def _check_clamps(outs: Outs, variant: tuple[int, int, int], ins: list[Tensor], label: str) -> None:
    value, low, high = variant
    flags = kv.LENGTH_CLAMPED * (value > high) + kv.POSITION_CLAMPED * (value < low)
    assert outs["out"].tolist() == [min(max(value, low), high)] * 2, f"{label}: got {outs['out'].tolist()} for value, low, high {variant}"
    assert outs["status"].tolist() == [0, flags, *[0] * 6], f"{label}: status {outs['status'].tolist()}, expected flags {flags}"


VECTOR_CASES = (
    Case("warp", vector_kernels.warp_sums, (("f32", (32,)), ("f32", (32,))), {"out": ("f32", (11, 32))}, _check_warp_sums, block=32),
    Case("activations", vector_kernels.activations, (("f32", (THREADS,)),), {"out": ("f32", (4, THREADS))}, _check_activations,
         make=_activation_inputs),
    _fragment("8 warps a row, ragged", "bf16", "f16", 576, 8, 64),
    _fragment("1 warp a row, ragged", "f32", "bf16", 576, 1, 8),
    _fragment("4 warps a row", "f16", "f32", 2048, 4, 0),
    _fragment("fewer chunks than lanes", "bf16", "bf16", 64, 2, 16),
    _rotation("half", 3, 128, 64, False),
    _rotation("interleaved", 16, 64, 32, True),
    _rotation("partial, half", 2, 64, 24, False),
    _rotation("partial, interleaved", 5, 128, 32, True),
    _folded("bf16", "f32", 1, 36),  # 8 to a vector of the source: half of the last one is behind the row
    _folded("f16", "f32", 2, 2049),
    _folded("f32", "bf16", 3, 37),
    _folded("bf16", "bf16", 4, 35),
    _cache_append("bf16"),
    _cache_append("f16"),
    Case("kv.clamp", vector_kernels.clamps, (("i32", (3,)),), {"out": ("i32", (2,)), "status": ("i32", (8,))}, _check_clamps,
         make=lambda v: [tensors.ints(*v)], variants=tuple((value, 0, 9) for value in (5, 0, 9, 10, -1, 2**31 - 1, -(2**31))),
         grid=2),
)  # fmt: skip
