"""What is said when no candidate is left: the class and the line of a mistake that all share, else each reason with its configs."""

from __future__ import annotations

import pytest

import cfdsl as cf
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choose
from cfdsl.compiler.cost.smem import fixed_smem
from cfdsl.compiler.parts import H100_SXM
from cfdsl.errors import ClustersDoNotDivide, Errors, NoLegalConfig, NotResident, SharedMemoryExceeded
from fusions.attention_block import attention_block
from fusions.ffn_block import ffn_block

LLAMA = attention_block.trace("llama-2-7b", qkv="rows")


def test_what_placing_says_on_every_mesh_is_raised_as_it_is() -> None:
    with pytest.raises(ClustersDoNotDivide, match="32 work units cannot be spread over 3 clusters"):
        choose(LLAMA, H100_SXM, {"clusters": 3})


def test_what_all_candidates_share_is_raised_in_its_own_class_with_the_line() -> None:
    given = {"clusters": 32, "cluster_size": 4, "ctas_per_sm": 1, "stages": 12, "stage_bytes": 32768}
    with pytest.raises(Errors) as caught:
        choose(LLAMA, H100_SXM, given)
    resident, memory = caught.value.errors
    assert (type(resident), type(memory)) == (NotResident, SharedMemoryExceeded)
    assert resident.message == "the launch has 32 clusters of 4, but h100-sxm holds 30 at once (CTAs per SM: 1)."
    assert resident.src is not None
    assert "grid_gather(" in resident.src.code
    total = 12 * 32768 + fixed_smem(cf.place(LLAMA, cf.Mesh(32, 4)), Config(32, 4, 12))
    assert memory.message.startswith(f"a CTA needs {total:,} bytes of shared memory, the limit is 232,448: ring 393,216 + terms of ")
    assert memory.message.endswith(f" = {total:,}.")
    assert memory.src is None  # it is the ring that was given


def test_of_several_that_do_not_fit_the_one_that_lacks_least_is_told() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        with cf.clusters(over=1):
            q = cf.linear(x, cf.weight("w", (65536, m.hidden)), shard="out")
            q = cf.cluster_gather(q)
        return cf.outputs(y=q)

    with pytest.raises(SharedMemoryExceeded) as caught:
        choose(cf.fusion(spec).trace("llama-2-7b"), H100_SXM)
    # 16 ranks: 8 warps x 4096 rows, and the whole vector; barriers 2 x 16, and 16 for the gather; 8 floats of scratch
    assert caught.value.message == (
        "a CTA needs 426,112 bytes of shared memory, the limit is 232,448: ring 32,768 + terms of linear 131,072 + cluster_gather 262,144 "
        "+ barriers and scratch 80 + alignment 48 = 426,112."
    )
    assert caught.value.src is not None
    assert caught.value.src.code == "q = cf.cluster_gather(q)"


def test_reasons_that_differ_in_numbers_are_told_once() -> None:
    """Without a class of their own: of what all configs share the line, of the others the configs."""
    graph = ffn_block.trace("llama-3.1-8b")
    with pytest.raises(NoLegalConfig) as caught:
        choose(graph, H100_SXM, {"ctas_per_sm": 2, "warps": 4})
    assert len(caught.value.reasons) == 1
    assert caught.value.src is not None
    assert "w_down" in caught.value.src.code
