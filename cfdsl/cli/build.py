"""From a request to what the compiler and the runtime make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cfdsl.cli.request import Request
from cfdsl.errors import CfdslError, attempt

if TYPE_CHECKING:
    from cfdsl.compiler.cost import Candidate, Choice
    from cfdsl.compiler.stages import Lowered
    from cfdsl.runtime.kernel import Kernel


def choice_for(request: Request) -> Choice:
    """The cost model's table for the requested KV length."""
    from cfdsl.compiler.settle import settle

    graph = request.fusion.trace(request.model, request.batch, request.dtype, **request.options)
    return settle(graph, request.part, request.overrides, sizes(request))


def weighed_for(request: Request) -> tuple[Sequence[Candidate], list[CfdslError]]:
    """Every config that was weighed, best first, also where none fits; and what keeps the fusion from being compiled."""
    from cfdsl.compiler.cost import weighed
    from cfdsl.compiler.limits import limits
    from cfdsl.compiler.schedule import schedule
    from cfdsl.compiler.settle import settle
    from cfdsl.dsl.place import place

    graph = request.fusion.trace(request.model, request.batch, request.dtype, **request.options)
    asked = (graph, request.part, request.overrides, sizes(request))
    errors: list[CfdslError] = []
    choice = attempt(errors, settle, *asked)
    if choice is not None:
        config = choice.config
        attempt(errors, schedule, place(graph, config.mesh), config)
        return choice.rows, errors
    rows = weighed(*asked)
    beyond = [limit.error for limit in limits(graph)]
    return rows if any(row.smem_bytes for row in rows) else [], [*beyond, *errors]


def sizes(request: Request) -> dict[str, int]:
    """Sizes of run-time dimensions to estimate with: a cache that is exactly as long as the request's KV length."""
    return {"tokens": max(request.kv_len, 1)}


def lower_for(request: Request) -> Lowered:
    """All stages up to generated source."""
    from cfdsl.compiler.stages import lower
    from cfdsl.runtime.toolchain import default_arch

    default_arch(request.part.arch)
    asked = (request.fusion, request.model, request.batch, request.dtype, request.part)
    return lower(*asked, request.overrides, request.options, sizes(request))


def kernel_for(request: Request, lowered: Lowered | None = None) -> Kernel:
    """The compiled kernel, from the cache where it is there."""
    from cfdsl.runtime.build import from_lowered

    return from_lowered(lowered or lower_for(request))


def kernel_record(kernel: Kernel, seconds: float) -> dict[str, Any]:
    """What the toolchain says of a kernel. `seconds`: how long getting it took, just now."""
    paths = {name: str(path) for name, path in kernel.paths.items()}
    return {
        "name": kernel.name,
        "cached": not kernel.cold,
        "seconds": seconds,
        "compile_seconds": kernel.compile_seconds,
        "registers": kernel.registers,
        "spills": kernel.spills,
        "stack": kernel.stack,
        "smem_bytes": kernel.plan.smem_bytes,
        "threads": kernel.plan.threads,
        "grid": kernel.plan.grid,
        "files": paths,
    }
