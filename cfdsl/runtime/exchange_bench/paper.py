"""Table 1 of the ClusterFusion paper (arXiv 2508.18850), how it is read here, and the cases that are counted as it counts.

The paper does not document its set-up. Read here as: the size is the total data of 32 clusters of 4 CTAs, each collective is one launch,
and its time includes the launch. 32 KB are then 256 bytes per CTA, and 256 KB are 2 KB. The other reading, that the size is of one cluster
(8 KB and 64 KB per CTA), is measured and printed too. Elements are f16, as in the paper's released kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.runtime.exchange_bench.cases import OFF_CHIP, Case

CLUSTERS, CLUSTER_SIZE = 32, 4
READINGS = {
    "total": f"size: total data of {CLUSTERS} clusters of {CLUSTER_SIZE}, one launch each",
    "cluster": "size: data of one cluster",
}


@dataclass(frozen=True)
class PaperRow:
    """Microseconds of one collective, launch included, on an H100, as printed in the paper. `size` in bytes."""

    operator: str
    size: int
    on_chip_us: float
    off_chip_us: float

    def payload(self, reading: str) -> int:
        """Bytes per CTA."""
        return self.size // (CLUSTER_SIZE * (CLUSTERS if reading == "total" else 1))


TABLE = (
    PaperRow("sum", 32 << 10, 6.77, 8.03),
    PaperRow("sum", 256 << 10, 9.17, 22.44),
    PaperRow("gather", 32 << 10, 3.90, 6.26),
    PaperRow("gather", 256 << 10, 4.15, 6.61),
)


def cases(row: PaperRow, reading: str) -> tuple[Case, Case]:
    """Ours at equal counting: by the chosen algorithm, and through global memory."""
    case = Case(row.operator, CLUSTER_SIZE, row.payload(reading), CLUSTERS, None, "f16", launches_only=True)
    return case, case.with_algorithm(OFF_CHIP)
