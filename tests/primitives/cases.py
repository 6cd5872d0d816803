"""Every case: what the tests compile, run and break, and what `sanitize.py` launches."""

from __future__ import annotations

import functools

from case import Case
from cluster_cases import BROADCASTS, CLUSTER_CASES, GRID, GRID_CASE, PUSHES, SPLIT, SPREAD, grid_exchange
from loop_cases import LOOPS, looped
from ring_cases import ATTEND_CASES, ATTEND_DEEP, ATTEND_SHALLOW, DEEP, PRODUCT_CASES, SHALLOW, Matrix, product
from select_cases import SELECT_CASES
from vector_cases import VECTOR_CASES

__all__ = [
    "ATTEND_CASES", "ATTEND_DEEP", "ATTEND_SHALLOW", "BROADCASTS", "CLUSTER_CASES", "DEEP", "GRID", "GRID_CASE", "LOOPS",
    "PRODUCT_CASES", "PUSHES", "SELECT_CASES", "SHALLOW", "SPLIT", "SPREAD", "VECTOR_CASES", "Case", "Matrix", "by_name", "grid_exchange",
    "looped", "product",
]  # fmt: skip

ALL_CASES = (*VECTOR_CASES, *PRODUCT_CASES, *ATTEND_CASES, *CLUSTER_CASES, GRID_CASE, *LOOPS, *SELECT_CASES)


@functools.cache
def by_name() -> dict[str, Case]:
    """Every case by its name."""
    found = {case.name: case for case in ALL_CASES}
    assert len(found) == len(ALL_CASES), "two cases share a name"
    return found
