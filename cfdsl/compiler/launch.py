"""The tensors of a launch: the caller's, and one for all of the kernel's own memory, where each workspace has a place.

One tensor and not one per workspace: the host describes and checks every tensor of a launch in every call.
"""

from __future__ import annotations

from collections.abc import Sequence

from cfdsl.compiler.plan import TRACE_ARG, Arg
from cfdsl.dsl.graph import ITEMSIZE

WORKSPACE = "workspace"  # its name in generated code
LINE = 128  # bytes of a cache line: no two workspaces have one in common


def places(args: Sequence[Arg]) -> dict[str, int]:
    """Where each workspace of a plan's arguments starts in the one tensor, in bytes; the memory for marks is not in it."""
    found, end = {}, 0
    for arg in _own(args):
        found[arg.name] = end
        end += _lines(arg)
    return found


def launch_args(args: Sequence[Arg]) -> tuple[Arg, ...]:
    """What `launch` takes in the order of a plan's arguments: the caller's tensors, the workspace if there is any, the memory for marks.

    That has a tensor of its own, so that each recorded launch can have another. The workspace is i32, to be zero before the first launch.
    """
    given = [arg for arg in args if arg.role != "workspace"]
    nbytes = sum(map(_lines, _own(args)))
    whole = [Arg(WORKSPACE, (nbytes // 4,), "i32", "workspace", mutated=True, align=LINE)] if nbytes else []
    return (*given, *whole, *(arg for arg in args if arg.name == TRACE_ARG))


def _own(args: Sequence[Arg]) -> list[Arg]:
    return [arg for arg in args if arg.role == "workspace" and arg.name != TRACE_ARG]


def _lines(arg: Arg) -> int:
    """Bytes of whole cache lines."""
    return -(-arg.elements * ITEMSIZE[arg.dtype] // LINE) * LINE
