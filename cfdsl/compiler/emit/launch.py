"""The source of `launch`, the function that the host calls: it hands the tensors to the kernel and starts it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cfdsl.compiler.emit.context import DTYPES, WIDTH
from cfdsl.compiler.launch import WORKSPACE, launch_args, places
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import Arg


def launch(title: str, args: Sequence[Arg], *, threads: int, sizes: Sequence[str] = (), pdl: bool = True) -> str:
    """`launch(tensors of launch_args(args)..., stream)`, which calls `kernel` with a vector for each of `args` and then `sizes`.

    A tensor with gaps is told from its strides, of which a call checks no more than what is known when compiling: of the others here. To
    refuse, the grid is empty, which CUDA does not launch.
    """
    at = places(args)
    passed = [_room(arg, at[arg.name]) if arg.name in at else f"host.flat({name(arg.name)})" for arg in args]
    loose = [name(arg.name) for arg in args if arg.loose]
    ctas = f"CTAS * host.gapless({', '.join(loose)})" if loose else "CTAS"
    why = "    # Where a tensor has gaps there are no CTAs: CUDA refuses the launch, and the caller says why.\n" if loose else ""
    shape = [f"grid=[{ctas}, 1, 1]", f"block=[{threads}, 1, 1]", "cluster=[RANKS, 1, 1]"]
    params = [f"{name(arg.name) if arg.role != 'workspace' else arg.name}: cute.Tensor" for arg in launch_args(args)]
    return (
        f'kernel.set_name_prefix("cfdsl_{title}", remove_cutlass_symbol=True, keep_mangled_name=False)\n\n\n'
        f"@cute.jit\ndef launch(\n{wrapped([*params, 'stream: cuda.CUstream'])}\n):\n"
        f"{why}    kernel(\n{wrapped([*passed, *sizes], 8)}\n    ).launch(\n"
        f"{wrapped([*shape, 'stream=stream', f'use_pdl={pdl}', 'min_blocks_per_mp=1'], 8)}\n    )"
    )


def _room(arg: Arg, at: int) -> str:
    return f"host.room({WORKSPACE}, {at}, {DTYPES[arg.dtype]}, {arg.elements})"


def wrapped(parts: Sequence[str], indent: int = 4) -> str:
    """Arguments or parameters over as many lines as they take, none of them torn."""
    glued = ", ".join(part.replace(" ", "\0") for part in parts) + ","
    margin = " " * indent
    return textwrap.fill(glued, WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False).replace("\0", " ")
