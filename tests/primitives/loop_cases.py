"""Cases of collectives in loops: each algorithm, operator and type, with tails."""

from __future__ import annotations

from typing import Any

import loop_kernels
import tensors
from case import Case, Outs
from torch import Tensor

from cfdsl.compiler.collective.designs import design
from cfdsl.compiler.collective.request import KINDS, Collective

CLUSTERS = 2
CALLS = 7  # each set three times and more


def looped(
    kind: str, algorithm: str, ranks: int, shape: tuple[int, ...] = (203,), op: str = "sum", dtype: str = "f32", apart: bool = False
) -> Case:
    """The case of one algorithm, CALLS calls in a row. The variant is the number of calls. `apart`: by CTAs that are no cluster."""
    request = Collective(kind, op, shape, dtype, ranks, CLUSTERS)
    made = design(request, algorithm)
    how = loop_kernels.constant(made)
    ctas = CLUSTERS * ranks
    results = 1
    for dim in request.result_shape:
        results *= dim

    def make(variant: Any) -> list[Tensor]:
        return [tensors.ints(variant)]

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        wrong, looked = outs["wrong"].view(ctas, 2).unbind(1)
        assert looked.tolist() == [variant * results] * ctas, f"{label}: elements looked at, by CTA: {looked.tolist()}"
        assert not wrong.any(), f"{label}: wrong elements, by CTA: {wrong.tolist()}"
        if "sync" in outs:
            assert int(outs["sync"][1]) == 0, f"{label}: status {int(outs['sync'][1])}"

    outs: dict[str, tuple[str, tuple[int, ...]]] = {"wrong": ("i32", (2 * ctas,))}
    if made.offchip:
        outs = {"sync": ("i32", (32 * (1 + CLUSTERS),)), "ws": ("f32", (made.workspace_words(),)), **outs}
    kernel = loop_kernels.looped_offchip if made.offchip else loop_kernels.looped
    what = f"{op} " if request.folds else ""
    long = f" of {shape[0]}" * made.stays
    name = f"loop {kind} {what}{dtype}{long} by {algorithm}, {ranks} {'CTAs' if apart else 'ranks'}"
    return Case(
        name, kernel, (("i32", (1,)),), outs, check, (made, how), make, (CALLS, 1, 2), grid=ctas, cluster=1 if apart else ranks,
        block=32 * made.warps, loose=("ws", "sync"),
    )  # fmt: skip


# With 4 ranks every algorithm, with several warps and tails, so that each barrier matters; every operator and type with one of them; other
# sizes with what differs by size.
LONG = (
    looped("reduce", "push", 4, (403,)), looped("gather", "push", 4, (403,)), looped("reduce_scatter", "push", 4, (1612,)),
    looped("reduce", "scatter_gather", 4, (1203,)), looped("gather", "push", 4, (1030,)), looped("reduce", "push", 2, (1030,)),
    looped("reduce", "bulk", 4, (404,)), looped("gather", "bulk", 8, (1032,)),
    looped("reduce", "push", 16, (700,), "max", "f16"), looped("gather", "push", 8, (2051,), dtype="bf16"),
)  # fmt: skip
LOOPS = (
    *LONG,
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
    *(looped("reduce", "push", 4, (35,), op, dtype) for op in ("max", "min") for dtype in ("f32", "bf16", "f16")),
    *(looped("reduce", "push", ranks, (1030,), dtype="bf16") for ranks in (1, 2, 8, 16)),
    *(looped("reduce", algorithm, ranks, (70,), dtype="f16") for ranks in (1, 2, 8, 16) for algorithm in ("scatter_gather", "doubling")),
    *(looped("gather", algorithm, ranks, (35,), dtype="bf16") for ranks in (1, 2, 8, 16) for algorithm in ("push", "doubling")),
    *(looped("reduce_scatter", "push", ranks, (48,), "max") for ranks in (1, 2, 8, 16)),
    *(looped("broadcast", "push", ranks, (6,)) for ranks in (1, 2, 8, 16)),
    *(looped(kind, "global", ranks, (64,), dtype="bf16") for kind in KINDS for ranks in (1, 2, 8, 16)),
    *(looped(kind, "global", 16, (48,), apart=True) for kind in KINDS),
)
