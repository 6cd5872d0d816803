"""collective(): one exchange among the CTAs of a cluster as a kernel of its own, without writing a fusion."""

from __future__ import annotations

from typing import Any

from cfdsl.compiler.collective.choose import asked_wrongly, candidates, ranked
from cfdsl.compiler.collective.request import Collective, mistakes
from cfdsl.compiler.parts import Part, part_named
from cfdsl.errors import CfdslError, raise_all
from cfdsl.runtime import device, toolchain
from cfdsl.runtime.build import from_lowered
from cfdsl.runtime.kernel import Kernel

ANY_PART = "h100-sxm"  # to say what is wrong with a request on whatever it will run


class CollectiveKernel(Kernel):
    """A compiled collective, called as any Kernel: `kernel(x, y)`, with op "lse" `kernel(x, ml, y)`; `cycles` comes last if it is timed."""

    @property
    def algorithm(self) -> str:
        """The algorithm that was chosen, or asked for."""
        return str(self.lowered.design.algorithm)

    @property
    def smem_bytes(self) -> int:
        """Shared memory of one CTA."""
        return self.plan.smem_bytes

    @property
    def bytes_pushed(self) -> int:
        """Bytes of distributed shared memory that one rank (of a broadcast: rank 0) sends to others in one exchange."""
        return int(self.lowered.design.bytes_pushed)

    @property
    def bytes_global(self) -> int:
        """Bytes of device memory that one rank moves in one exchange; bringing the payload and writing the result do not count."""
        return int(self.lowered.design.bytes_global)


def collective(
    kind: str,
    *,
    op: str = "sum",
    shape: tuple[int, ...],
    dtype: str = "f32",
    cluster: int,
    clusters: int = 1,
    algorithm: str | None = None,
    repeat: int = 1,
    timed: bool = False,
    warps: int | None = None,
    part: Part | str | None = None,
) -> CollectiveKernel:
    """A kernel that does one collective on torch tensors: x (clusters, cluster, *shape) -> y (clusters, cluster, *result shape).

    kind        "reduce": y = op over the ranks of x, on every rank. "reduce_scatter": rank p gets slice p of that, along dimension 0.
                "gather": the ranks' x along dimension 0. "broadcast": rank 0's x.
    op          "sum", "max", "min" (a NaN loses against a number), or "lse": x is o (heads, dim) unnormalised, with ml (clusters, cluster,
                heads, 2): the base-2 maximum and the sum; y is normalised. Sums are in float32 whatever `dtype` is.
    dtype       "f32", "bf16" or "f16", of x and y. With "lse" ml is f32, and x becomes so before it is sent; y is rounded once
    algorithm   None: the cost model's choice for such a launch, see `kernel.stages["choice"]`; or one of `collective_algorithms(...)`
    repeat      exchanges back to back inside of one launch, with the same result; at most 2^31 - 1, or 2^16 if they are timed
    timed       one more output `cycles` (clusters, cluster) i32: the SM's clock from before the first exchange to after the last
    warps       of each CTA: 1, 2, 4 or 8; None: the design's own number, see `kernel.stages["choice"]`. Fewer start and meet sooner, more
                move and combine faster
    part        what to compile for; default: the GPU at hand

    Every rank gets the same bits, and the same on each run. Raises one error with everything that is wrong.
    """
    request = Collective(kind, op, _shape(shape), dtype, cluster, clusters, repeat, timed, warps)
    target = _target(request, algorithm, part)
    toolchain.default_arch(target.arch)  # before what follows: lowering imports what knows CuTe DSL
    from cfdsl.compiler.collective.lower import lower_collective

    kernel = from_lowered(lower_collective(request, target, algorithm), CollectiveKernel)
    if part is None:
        kernel.prepare()
    return kernel


def collective_algorithms(
    kind: str, *, op: str = "sum", shape: tuple[int, ...], dtype: str = "f32", cluster: int, part: Part | str | None = ANY_PART
) -> tuple[str, ...]:
    """The names of the algorithms that can do this, fastest by estimate of a launch first. Raises what is wrong with asking for it.

    part        as for `collective`; the default needs no GPU
    """
    request = Collective(kind, op, _shape(shape), dtype, cluster)
    target = _target(request, None, part)
    raise_all(mistakes(request, target))
    return tuple(c.algorithm for c in ranked(candidates(request, target)))


def _target(request: Collective, algorithm: str | None, part: Part | str | None) -> Part:
    """The part to compile for. Where there is none, that and whatever is wrong with the request on any part is raised at once."""
    try:
        return device.target(part)
    except CfdslError as error:
        raise_all([*asked_wrongly(request, part_named(ANY_PART), algorithm), error])
        raise


def _shape(shape: Any) -> Any:
    """A list of sizes will do as well; of anything else it is said that it is no shape."""
    return tuple(shape) if isinstance(shape, list) else shape
