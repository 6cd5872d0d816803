"""Cases of collectives in loops: each algorithm, operator and type, with tails."""

from __future__ import annotations

from typing import Any

import loop_kernels
import loop_values
import tensors
from case import Case, Outs, Spec
from torch import Tensor

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.collective.designs import design
from cfdsl.compiler.collective.request import KINDS, Collective

CLUSTERS = 2
CALLS = 7  # each set three times and more


def looped(
    kind: str, algorithm: str, ranks: int, shape: tuple[int, ...] = (203,), op: str = "sum", dtype: str = "f32", apart: bool = False,
    warps: int | None = None,
) -> Case:  # fmt: skip
    """The case of one algorithm, CALLS calls in a row. The variant is the number of calls. `apart`: by CTAs that are no cluster."""
    made = design(Collective(kind, op, shape, dtype, ranks, CLUSTERS, warps=warps), algorithm)
    ctas = CLUSTERS * ranks
    each = 32 * made.warps if made.scalar else loop_values.results(made)  # that a CTA looks at in a call

    def make(variant: Any) -> list[Tensor]:
        return [tensors.ints(variant), *([in_memory(made)] if algorithm == "multicast" else [])]

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        wrong, looked = outs["wrong"].view(ctas, 2).unbind(1)
        assert looked.tolist() == [variant * each] * ctas, f"{label}: elements looked at, by CTA: {looked.tolist()}"
        assert not wrong.any(), f"{label}: wrong elements, by CTA: {wrong.tolist()}"
        if "sync" in outs:
            assert int(outs["sync"][1]) == 0, f"{label}: status {int(outs['sync'][1])}"

    ins: tuple[Spec, ...] = (("i32", (1,)),)
    outs: dict[str, Spec] = {"wrong": ("i32", (2 * ctas,))}
    kernel = loop_kernels.looped
    if made.offchip:
        kernel = loop_kernels.looped_offchip
        outs = {"sync": ("i32", (32 * (1 + CLUSTERS),)), "ws": ("f32", (made.workspace_words(),)), **outs}
    elif algorithm == "multicast":
        kernel, ins = loop_kernels.looped_multicast, (*ins, (dtype, (loop_values.LEVELS * made.sent,)))
    elif made.scalar:
        kernel = loop_kernels.looped_scalar
    return Case(
        name_of(made, apart), kernel, ins, outs, check, (made, loop_kernels.constant(made)), make, (CALLS, 1, 2), grid=ctas,
        cluster=1 if apart else ranks, block=32 * made.warps, loose=("ws", "sync"),
    )  # fmt: skip


def name_of(made: Design, apart: bool) -> str:
    """What is special about a case: rows that stay have their length in it."""
    request = made.request
    what = f"{request.op} " if request.folds else ""
    long = f" of {request.shape[0]}" * made.stays + " in a register" * made.scalar
    return f"loop {request.kind} {what}{request.dtype}{long} by {made.algorithm}, {request.cluster} {'CTAs' if apart else 'ranks'}"


def in_memory(made: Design) -> Tensor:
    """What the calls of a multicast send, flat (LEVELS, elements): `loop_values.value`, which repeats after so many calls."""
    import torch

    call, element = torch.meshgrid(torch.arange(loop_values.LEVELS), torch.arange(made.sent), indexing="ij")
    rank = element // made.request.payload if made.request.kind == "gather" else torch.zeros_like(element)
    value = (call * 7 + rank * 5 + element % made.request.payload * 3) % loop_values.LEVELS
    return value.flatten().to(tensors.torch_dtype(made.request.dtype)).to(tensors.DEVICE)


# With 4 ranks every algorithm, with several warps and tails, so that each barrier matters; every operator and type with one of them; other
# sizes with what differs by size.
LONG = (
    looped("reduce", "push", 4, (403,)), looped("gather", "push", 4, (403,)), looped("reduce_scatter", "push", 4, (1612,)),
    looped("reduce", "scatter_gather", 4, (1203,)), looped("gather", "push", 4, (1030,)), looped("reduce", "push", 2, (1030,)),
    looped("reduce", "bulk", 4, (404,)), looped("gather", "bulk", 8, (1032,)),
    looped("reduce", "push", 16, (700,), "max", "f16"), looped("gather", "push", 8, (2051,), dtype="bf16"),
)  # fmt: skip
# One f32 from register to register, whose every thread reads a whole landing place; each size, and each operator that has such a way.
SCALARS = tuple(
    looped("reduce", "push", ranks, (1,), op, warps=4) for ranks, op in ((1, "sum"), (2, "max"), (4, "sum"), (8, "min"), (16, "sum"))
)
MULTICASTS = (
    looped("gather", "multicast", 1, (64,)),  # an ordinary bulk copy, on a barrier that is armed again
    looped("gather", "multicast", 4, (204,)),  # as many chunks from each rank
    looped("gather", "multicast", 16, (72,), dtype="bf16"),  # the widest mask
    looped("broadcast", "multicast", 4, (404,)),  # 101 chunks, which 4 ranks cannot share evenly
    looped("broadcast", "multicast", 8, (136,), dtype="f16"),  # 17 chunks: all ranks but one send two
)  # fmt: skip
# Softmax terms: (maximum, sum) travel behind the outputs of each head, in rows of their own width.
TERMS = (
    looped("reduce", "push", 4, (3, 64), "lse"), looped("reduce", "bulk", 4, (3, 64), "lse"),
    looped("reduce", "push", 4, (8, 64), "lse"),  # the own term stays
    looped("reduce", "scatter_gather", 4, (4, 64), "lse"),  # a head to each rank
    looped("reduce", "scatter_gather", 4, (16, 64), "lse"),  # pieces of terms, and of results, that stay
    looped("reduce", "doubling", 4, (7, 64), "lse"),  # terms of terms, normalised in the last round alone
    looped("reduce", "global", 4, (3, 64), "lse"),
    looped("reduce_scatter", "push", 4, (8, 64), "lse"), looped("reduce_scatter", "global", 4, (8, 64), "lse"),
    looped("reduce_scatter", "bulk", 4, (16, 64), "lse"),  # pieces that stay
    looped("reduce", "push", 1, (3, 12), "lse"),  # normalising is all that is left to do
    looped("reduce", "push", 16, (5, 12), "lse"), looped("reduce", "doubling", 16, (5, 12), "lse"),  # the most terms, by rank and as a tree
    looped("reduce", "scatter_gather", 8, (8, 12), "lse"),
)  # fmt: skip
# Every operator goes through each way of folding: of pieces, as a tree with halves at its ends, off the chip.
PICKS = (
    looped("reduce", "scatter_gather", 4, (1003,), "min", "bf16"), looped("reduce", "doubling", 4, (803,), "max", "f16"),
    looped("reduce_scatter", "global", 4, (828,), "min", "bf16"),
)  # fmt: skip
# Bulk copies go to peers, from 0 of them to 15, and the own row by stores: of one vector, and of more than there are threads.
BULKS = (
    looped("reduce", "bulk", 1, (72,), dtype="bf16"), looped("reduce", "bulk", 2, (72,), dtype="bf16"), looped("reduce", "bulk", 16, (72,)),
    looped("reduce", "bulk", 2, (252,), warps=1), looped("reduce_scatter", "bulk", 1, (64,)), looped("reduce_scatter", "bulk", 16, (64,)),
    looped("gather", "bulk", 1, (36,)), looped("gather", "bulk", 2, (36,)), looped("gather", "bulk", 16, (36,)),
    looped("broadcast", "bulk", 1, (404,)), looped("broadcast", "bulk", 16, (404,)),
)  # fmt: skip
LOOPS = (
    *LONG, *SCALARS, *MULTICASTS, *TERMS, *PICKS,
    *(looped("reduce", algorithm, 4) for algorithm in ("push", "global")),
    looped("reduce", "scatter_gather", 4, (1003,)),
    looped("reduce", "doubling", 4, (803,)),
    looped("reduce", "doubling", 4, (804,), dtype="bf16"),  # half of the last vector of the source is behind its row in f32
    looped("reduce", "bulk", 4, (204,)),
    *(looped("reduce_scatter", algorithm, 4, (412,)) for algorithm in ("push", "global")),
    looped("reduce_scatter", "bulk", 4, (416,)),
    *(looped("gather", algorithm, 4) for algorithm in ("push", "doubling", "global")),
    looped("gather", "bulk", 4, (204,)),
    *(looped("broadcast", algorithm, 4) for algorithm in ("push", "global")),
    looped("broadcast", "bulk", 4, (204,)),
    *(looped("reduce", "push", 4, (150,), op, dtype) for op in ("max", "min") for dtype in ("f32", "bf16", "f16")),
    *(looped("reduce", "push", ranks, (1030,), dtype="bf16") for ranks in (1, 2, 8, 16)),
    *(looped("reduce", algorithm, ranks, (70,), dtype="f16") for ranks in (1, 2, 8, 16) for algorithm in ("scatter_gather", "doubling")),
    *(looped("gather", algorithm, ranks, (35,), dtype="bf16") for ranks in (1, 2, 8, 16) for algorithm in ("push", "doubling")),
    *(looped("reduce_scatter", "push", ranks, (48,), "max") for ranks in (1, 2, 8, 16)),
    *(looped("broadcast", "push", ranks, (6,)) for ranks in (1, 2, 8, 16)),
    *BULKS,
    *(looped(kind, "global", ranks, (64,), dtype="bf16") for kind in KINDS for ranks in (1, 2, 8, 16)),
    *(looped(kind, "global", 16, (48,), apart=True) for kind in KINDS),
)
