"""Statistics of a vector held as a fragment (see `frag`)."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32

from primitives import cta, warp


@cute.jit
def mean_square(value: cute.TensorSSA, shape: cutlass.Constexpr, scratch: cute.Tensor, cols: cutlass.Constexpr) -> Float32:
    """(sum of squares of the fragment's vector) / `cols`, the same bits in every consumer thread. All consumer threads call it.

    `value` f32 (8, chunks_per_lane) as `frag` spreads it, 0 past its end. `scratch` is f32 (warps,) in shared memory, for this call alone.
    One barrier among the consumer warps. `cols` is the length of the
    whole row, so that slices of a row give terms of its mean.
    """
    squares = Float32((value * value).reduce(cute.ReductionOp.ADD, Float32(0.0), 0))
    squares = warp.total(squares)
    own = cta.warp()  # by all lanes: see there
    if cta.lane() == 0:
        scratch[own] = squares
    cta.consumer_sync(shape.warps)
    total = Float32(0.0)
    for w in cutlass.range_constexpr(shape.warps_per_row):
        total += scratch[w]
    return total * (1.0 / cols)


@cute.jit
def rsqrt(mean: Float32, eps: cutlass.Constexpr) -> Float32:
    """1 / sqrt(mean + eps), in the calling thread."""
    return cute.math.rsqrt(mean + eps)
