"""What tests of compiled kernels say about their PTX and cubin, and about their results."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cases import Case
from harness import Program
from tensors import same_bits

from cfdsl.runtime.artifacts import disassemble, read_cubin

RUNS = 4
FRAME = {"barrier.cluster.arrive": 1, "barrier.cluster.arrive.relaxed": 1, "barrier.cluster.wait": 2}  # of `meet` and `leave`


def instructions(program: Program) -> Counter[str]:
    """How often each instruction, by its full name, stands in a program's PTX."""
    return Counter(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)", program.ptx, re.M))


def ptx_has(program: Program, wanted: Mapping[str, int | None]) -> None:
    """These instructions stand in the PTX, so many times (None: at least once; 0: never)."""
    found = instructions(program)
    for name, count in wanted.items():
        if count is None:
            assert found[name], f"no {name} among {sorted(found)}"
        else:
            assert found[name] == count, f"{found[name]} x {name}, expected {count}; all: {dict(sorted(found.items()))}"


def no_local_memory(program: Program) -> None:
    """No array of a thread, and no spilled register, lives in memory."""
    found = [name for name in instructions(program) if name.startswith(("ld.local", "st.local"))]
    assert not found, f"local memory: {found}"
    stack = read_cubin(program.cubin).stack
    assert stack == 0, f"{stack} bytes of stack per thread"


def only_the_frames_cluster_barriers(program: Program) -> None:
    """The primitive adds no barrier of the whole cluster to those of the harness."""
    found = {name: count for name, count in instructions(program).items() if name.startswith("barrier.cluster")}
    assert found == FRAME, f"barriers of the cluster: {found}, of which {FRAME} are the harness's"


def no_shuffle_in_a_branch(program: Program) -> None:
    """The assembler found no shuffle that some lanes may reach without the others: it would make them wait there for the rest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(program.cubin)
        found = divergent_shuffles(disassemble(path))
    assert found == [], f"shuffles in a branch: {found}"


def divergent_shuffles(sass: str) -> list[str]:
    """The shuffles that stand behind a WARPSYNC.COLLECTIVE."""
    return re.findall(r"WARPSYNC\.COLLECTIVE[^\n]*\n\s*/\*\w+\*/\s*(SHFL[^;]*)", sass)


def right_and_repeatable(case: Case) -> None:
    """Right against float64 on each variant of fresh inputs, and the same bits in a few more runs on the same ones."""
    for variant in case.variants:
        label = case.name if variant is None else f"{case.name}, variant {variant}"
        inputs = case.inputs(variant)
        first = case.run(case.program, inputs)
        case.check(first, variant, inputs, label)
        for run in range(1, RUNS):
            again = case.run(case.program, inputs)
            for name in case.outs:
                if name in case.loose:
                    continue
                assert same_bits(again[name], first[name]), f"{label}: run {run} gave other bits in {name} than the first"
