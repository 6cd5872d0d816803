"""What a launch moves, as records: loads, pauses between them, and their sums; and how large a CTA's slice of a value is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from cfdsl.dsl.graph import POINTWISE, Dim, Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import AxisPlacement, Mesh, Placement, R, Shard

DEFAULT_SIZES: Mapping[str, int] = {"tokens": 4096}
SLICED_LIKE_X = (*POINTWISE, "rms_norm")  # read of a whole operand what meets their own slice


@dataclass(frozen=True)
class Load:
    """Bytes that come from global memory. `cta`: of the busiest CTA; `unique`: of the launch, each byte once; `streamed`: by the ring.

    `asked`: what the CTA itself asks the L2 for, where a multicast of its peers delivers the rest; None: all of it.
    `copies`: how many CTAs load each byte; all but one find it in the L2.
    """

    name: str
    cta: int
    unique: int
    streamed: bool = True
    asked: int | None = None
    copies: int = 1


@dataclass(frozen=True)
class Pause:
    """Something that consumers do while they eat no tile.

    kind      block (a sum over the CTA's warps), round (read what others wrote), cluster or grid (a collective), multicast (inputs that
              ranks ask for in parts)
    payload   cluster: bytes a rank pushes to its peers; grid: bytes a CTA writes and reads back
    heads     block: heads of the cluster, each of which is a pass over terms
    total     cluster and grid: bytes of the launch, pushed or through global memory
    """

    kind: str
    what: str
    payload: int = 0
    heads: int = 1
    total: int = 0


@dataclass(frozen=True)
class Traffic:
    """Events of the busiest CTA in program order, and sums over the launch."""

    events: tuple[Load | Pause, ...]
    mesh: Mesh
    written: int

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        return tuple(event for event in self.events if isinstance(event, Load))

    @cached_property
    def unique_bytes(self) -> int:
        """Bytes that device memory must move once: weights, caches, inputs, outputs."""
        return sum(load.unique for load in self.loads) + self.written

    @cached_property
    def cta_bytes(self) -> int:
        """Bytes that the busiest CTA takes in."""
        return sum(load.cta for load in self.loads)

    @cached_property
    def repeated_bytes(self) -> float:
        """Those of them that another CTA loads from memory."""
        return sum(load.cta * (1 - 1 / load.copies) for load in self.loads)

    @property
    def l2_bytes(self) -> int:
        """Bytes that all CTAs together ask the L2 for, repeats counted."""
        return sum(load.cta if load.asked is None else load.asked for load in self.loads) * self.mesh.ctas

    @property
    def streams(self) -> bool:
        """Whether there is a load stream for a ring to hold."""
        return any(load.streamed for load in self.loads)

    @property
    def waits_for_grid(self) -> bool:
        """Whether all clusters must run at once: the graph has a grid collective."""
        return any(isinstance(event, Pause) and event.kind == "grid" for event in self.events)

    @property
    def dsmem_bytes(self) -> int:
        """Bytes pushed between the CTAs of clusters."""
        return self._moved("cluster")

    @property
    def grid_bytes(self) -> int:
        """Bytes written to and read from global memory by exchanges over the grid."""
        return self._moved("grid")

    def _moved(self, kind: str) -> int:
        return sum(event.total for event in self.events if isinstance(event, Pause) and event.kind == kind)


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A dimension's size; a symbol without one counts as 1 (a table of which a call reads one row)."""
    return dim if isinstance(dim, int) else sizes.get(dim, DEFAULT_SIZES.get(dim, 1))


def local_elements(shape: tuple[Dim, ...], placement: Placement, mesh: Mesh, sizes: Mapping[str, int], over_all: bool = False) -> int:
    """Elements of the largest slice that a CTA holds. over_all: the grid's slices go to all clusters, and not to groups of splits."""
    extent = [size_of(dim, sizes) for dim in shape]
    for axis, holders in ((placement.grid, mesh.clusters if over_all else mesh.groups), (placement.cluster, mesh.ranks)):
        if isinstance(axis, Shard):
            extent[axis.dim] = ceil(extent[axis.dim] / holders)
    return prod(extent)


def slice_read(placed: PlacedGraph, arg: Node, user: Node, sizes: Mapping[str, int]) -> int:
    """Elements of a whole value that a CTA reads for `user`: those that meet its slice of the result."""
    at = placed.of(user) if user.op in (*SLICED_LIKE_X, "slice_grid", "slice_cluster") else Placement()
    lead = len(user.types[0].shape) - len(arg.type.shape)  # a 1-D weight lies along the last dimension

    def moved(axis: AxisPlacement) -> AxisPlacement:
        sliced = isinstance(axis, Shard) and axis.dim >= lead and arg.type.shape[axis.dim - lead] != 1
        return Shard(axis.dim - lead) if isinstance(axis, Shard) and sliced else R

    return local_elements(arg.type.shape, Placement(moved(at.grid), moved(at.cluster)), placed.mesh, sizes)
