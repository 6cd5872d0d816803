"""The schedule a spec does not state: everything about a launch that may be tuned without changing what is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cfdsl.dsl.placement import Mesh

CLUSTER_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Config:
    """One way to run a fusion on a part. Chosen by the cost model, or given field by field.

    clusters        thread-block clusters in the grid
    cluster_size    CTAs (ranks) of a cluster
    splits          clusters that share one unit of work by splitting its tokens; `clusters` is a multiple of it
    stages          slots of the shared-memory ring that holds tiles in flight
    stage_bytes     bytes of one slot
    window          bytes in flight at most, in slots (0: all): beyond what keeps the memory busy they only make its queue longer
    early           of them, what is needed behind a grid barrier that the CTA has not passed yet (0: as many as `window`)
    warps           consumer warps of a CTA (one more warp is the producer of the load stream)
    ctas_per_sm     CTAs that must fit on one SM together, so that a successor's ring fills in this kernel's tail
    pdl             programmatic dependent launch
    multicast       inputs shared by all ranks come by TMA multicast: each rank loads 1/N and sends it to all
    evict_first     L2 evict-first on weights, which are read once
    stamp_cluster   write the cluster size on the kernel, so that ptxas drops the run-time tests around cluster barriers
    trace           note when each CTA finished each step, for `Kernel.trace`; costs some time, and nothing where it is off
    """

    clusters: int
    cluster_size: int
    stages: int
    stage_bytes: int = 16384
    warps: int = 8
    ctas_per_sm: int = 2
    pdl: bool = True
    multicast: bool = False
    evict_first: bool = True
    stamp_cluster: bool = True
    splits: int = 1
    window: int = 6
    early: int = 0
    trace: bool = False

    @property
    def groups(self) -> int:
        """Holders of different units."""
        return self.clusters // self.splits

    @property
    def mesh(self) -> Mesh:
        """What values are placed on."""
        return Mesh(self.clusters, self.cluster_size, self.splits)

    @property
    def ctas(self) -> int:
        return self.clusters * self.cluster_size

    def with_(self, **fields: object) -> Config:
        return replace(self, **fields)  # type: ignore[arg-type]
