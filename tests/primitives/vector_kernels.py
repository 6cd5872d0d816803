"""Harness kernels of one CTA without a ring: warp sums, activations, fragments, rotary embedding, the cache's append and clamp."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
import harness
from cutlass import Float32, Int64
from harness import THREADS, WARPS

from primitives import cta, fold, frag, kv, pointwise, rmsnorm, rope, warp

WIDTHS = (1, 2, 4, 8, 16, 32)
TOGETHER = ((2, 8), (4, 16), (8, 16), (8, 32), (32, 32))  # sums at once, lanes in a group


@cute.kernel
def warp_sums(late: cute.Tensor, a: cute.Tensor, b: cute.Tensor, out: cute.Tensor):
    """out (11, 32): `total` of a (32,) over groups of each of WIDTHS lanes, then `totals` of a + v * b for v = 0, 1, ... for TOGETHER."""
    lane = cta.lane()
    for i in cutlass.range_constexpr(len(WIDTHS)):
        out[i, lane] = warp.total(a[lane], WIDTHS[i])
    for i in cutlass.range_constexpr(len(TOGETHER)):
        n, width = TOGETHER[i]
        values = cute.make_rmem_tensor(n, Float32)
        for v in cutlass.range_constexpr(n):
            values[v] = a[lane] + v * b[lane]
        out[len(WIDTHS) + i, lane] = warp.totals(values, n, width)


@cute.kernel
def activations(late: cute.Tensor, x: cute.Tensor, out: cute.Tensor):
    """out (4, THREADS): silu and gelu of x (THREADS,) by scalars, then by fragments of 8."""
    t = cta.thread()
    out[0, t] = pointwise.silu(x[t])
    out[1, t] = pointwise.gelu(x[t])
    if t < THREADS // 8:
        eight = cute.make_rmem_tensor((8, 1), Float32)
        frag.load8(x.iterator + t * 8, eight[(None, 0)])
        silu = frag.hold(pointwise.silu(eight.load()))
        gelu = frag.hold(pointwise.gelu(eight.load()))
        for j in cutlass.range_constexpr(8):
            out[2, t * 8 + j] = silu[j, 0]
            out[3, t * 8 + j] = gelu[j, 0]


@cute.kernel
def folded(
    late: cute.Tensor, src: cute.Tensor, out: cute.Tensor, count: cutlass.Constexpr, stride: cutlass.Constexpr, n: cutlass.Constexpr,
):
    """out: the sum of `count` rows of `n` of src, `stride` apart, and what lies behind it in shared memory, NaN as `enter` left it."""
    size = cutlass.const_expr(cute.size(out))
    smem = cta.arena(4 * size)
    harness.enter(smem, 4 * size, THREADS)
    harness.meet(late)
    row = cta.view(smem, 0, out.element_type, size)
    fold.rows(src.iterator, stride, count, row.iterator, n, fold.SUM, THREADS)
    cta.consumer_sync(WARPS)
    for i in cutlass.range(cta.thread(), size, THREADS, unroll=1):
        out[i] = row[i]


@cute.kernel
def fragment(
    late: cute.Tensor, src: cute.Tensor, dst: cute.Tensor, mean: cute.Tensor, plain: cute.Tensor, shape: cutlass.Constexpr,
    col0: cutlass.Constexpr,
):
    """dst[col0 : col0 + cols] = src[the same], by way of shared memory; plain f32 (cols,) = what lay there; mean (THREADS,) = each
    thread's mean square."""
    nbytes = cutlass.const_expr(4 * shape.cols + 64)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    harness.meet(late)
    scratch = cta.view(smem, 0, Float32, 8)
    kept = cta.view(smem, 64, Float32, shape.cols)
    value = frag.load(src, shape, col0)
    mean[cta.thread()] = rmsnorm.mean_square(value, shape, scratch, shape.cols)
    frag.store(kept, value, shape)
    cta.consumer_sync(WARPS)
    again = frag.hold(frag.load(kept, shape))
    frag.store(dst, again.load(), shape, col0)
    for i in cutlass.range(THREADS - 1 - cta.thread(), shape.cols, THREADS, unroll=1):
        plain[i] = kept[i]
    harness.leave()


@cute.kernel
def rotation(
    late: cute.Tensor, x: cute.Tensor, cos: cute.Tensor, sin: cute.Tensor, position: cute.Tensor, out: cute.Tensor,
    heads: cutlass.Constexpr, dim: cutlass.Constexpr, half: cutlass.Constexpr, interleaved: cutlass.Constexpr,
):
    """out = x (heads * dim,) rotated to position[0] of the tables (positions * half,)."""
    nbytes = cutlass.const_expr(heads * dim * 4)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    harness.meet(late)
    vectors = cta.view(smem, 0, Float32, heads * dim)
    cosine, sine = rope.angles(cos, sin, position[0], half)
    for i in cutlass.range(cta.thread(), heads * dim, THREADS, unroll=1):
        vectors[i] = x[i]
    cta.consumer_sync(WARPS)
    rope.rotate(vectors, heads, dim, half, interleaved, cosine, sine, THREADS)
    cta.consumer_sync(WARPS)
    for i in cutlass.range(cta.thread(), heads * dim, THREADS, unroll=1):
        out[i] = vectors[i]
    harness.leave()


@cute.kernel
def cache_append(
    late: cute.Tensor, k: cute.Tensor, v: cute.Tensor, where: cute.Tensor, keys: cute.Tensor, values: cute.Tensor,
    heads: cutlass.Constexpr, dim: cutlass.Constexpr,
):
    """Append k, v (heads * dim,) to flat caches at element where[0], heads where[1] elements apart."""
    nbytes = cutlass.const_expr(2 * heads * dim * 4)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    harness.meet(late)
    new_k = cta.view(smem, 0, Float32, heads * dim)
    new_v = cta.view(smem, heads * dim * 4, Float32, heads * dim)
    for i in cutlass.range(THREADS - 1 - cta.thread(), heads * dim, THREADS, unroll=1):
        new_k[i] = k[i]
        new_v[i] = v[i]
    cta.consumer_sync(WARPS)
    kv.append(keys, values, new_k, new_v, heads, dim, Int64(where[0]), Int64(where[1]), THREADS)
    harness.leave()


@cute.kernel
def clamps(late: cute.Tensor, value: cute.Tensor, out: cute.Tensor, status: cute.Tensor):
    """out (CTAs,) = value[0] within value[1], value[2]; if it is not, status (8,) word 1 gets both flags, one after the other."""
    block, _, _ = cute.arch.block_idx()
    kept = kv.clamp(value[0], value[1], value[2])
    kv.flag(status.iterator + 1, kv.LENGTH_CLAMPED, kept < value[0])
    kv.flag(status.iterator + 1, kv.POSITION_CLAMPED, kept > value[0])
    if cta.thread() == 0:
        out[block] = kept
