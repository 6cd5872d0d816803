"""Everything that can be placed is lowered to a plan that passes the checks, or refused."""

from __future__ import annotations

from itertools import product

import pytest
from plans import block, norm

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.parts import H100_SXM
from cfdsl.errors import ClustersDoNotDivide, ConfigError, Errors, NotLowered, NotResident, ShardDoesNotDivide, SharedMemoryExceeded


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_all_dataflows_and_meshes_pass_the_checks(model: str, layout: str) -> None:
    m = cf.PRESETS[model]
    lowered = 0
    for qkv in ("rows", "split_k"):
        for out in ("gather", "atomic"):
            for ranks in (1, 2, 4, 8, 16):
                for clusters in sorted({1, m.kv_heads, m.kv_heads // 2 or 1, m.heads if out == "gather" else m.kv_heads}):
                    try:  # a PlanError is none of these
                        check(block(model, clusters, ranks, qkv, out, layout, stages=2, ctas_per_sm=1), H100_SXM)
                        lowered += 1
                    except REFUSALS:
                        continue
    assert lowered >= 20


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_the_default_dataflow_passes_the_checks_on_all_meshes(model: str, layout: str) -> None:
    """Rows over the grid, with up to 8 clusters for a group of heads."""
    m = cf.PRESETS[model]
    lowered = 0
    for ranks, splits, groups in product((1, 2, 4, 8, 16), (1, 2, 3, 8), sorted({1, m.kv_heads // 2 or 1, m.kv_heads})):
        if ranks * splits * groups > 132:
            continue  # not resident
        try:
            plan = block(model, groups * splits, ranks, "grid", layout=layout, splits=splits, stages=2, ctas_per_sm=1)
            check(plan, H100_SXM)
        except REFUSALS:
            continue
        assert sum(step.op == "grid_barrier" for step in plan.steps) == 2
        lowered += 1
    assert lowered >= 15


REFUSALS = (ConfigError, NotLowered, ShardDoesNotDivide, ClustersDoNotDivide, SharedMemoryExceeded, NotResident, Errors)


@pytest.mark.parametrize("batch", [1, 2, 7, 132])
def test_rms_norm_of_every_batch(batch: int) -> None:
    for model in cf.PRESETS:
        for ranks in (1, 2, 4, 8):
            check(norm(model, batch, ranks), H100_SXM)
