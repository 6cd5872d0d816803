"""The kernel plan: plain frozen records between the placed graph and the generated source.

Nothing here is code. A plan says what one CTA does: which bytes its producer warp streams through the ring, which steps its consumer
warps take, which buffers and barriers they use, and which exchanges they take part in. `check` proves the arithmetic of it.
Sizes are in bytes unless a name says otherwise; geometry is in elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from cfdsl.compiler.config import Config
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import Share
from cfdsl.dsl.graph import ITEMSIZE, Dim, Src
from cfdsl.dsl.placement import Mesh

TRACE_ARG = "ws_trace"  # the workspace for a traced kernel's marks
COUNT_BYTES = 8  # the word, and what keeps the mbarriers behind it aligned


@dataclass(frozen=True)
class Arg:
    """One tensor of the launch, in calling order. `role` is input, weight, cache, output or workspace."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    role: str
    mutated: bool = False
    align: int = 16

    @property
    def elements(self) -> int:
        """How many it has, a dimension whose size only the launch knows counted as one."""
        return prod(dim for dim in self.shape if isinstance(dim, int))

    @property
    def loose(self) -> bool:
        """Whether it can have strides that only a call knows: those to the left of a named size, where there is anything to step over."""
        named = [at for at, dim in enumerate(self.shape) if isinstance(dim, str)]
        return bool(named) and any(dim != 1 for dim in self.shape[: max(named)])


@dataclass(frozen=True)
class Ring:
    """`stages` slots of `stage_bytes`; `full[s]` is armed by the producer, `empty[s]` gets one arrival per consumer warp.

    At most `window` tiles are in flight, 0: no limit but the slots; while a CTA has not passed a grid barrier, at most `early` of what is
    needed behind it (0: no limit of its own). How many barriers it has passed stands in a word behind the slots.
    """

    stages: int
    stage_bytes: int
    offset: int = 0
    window: int = 0
    early: int = 0

    @property
    def bytes(self) -> int:
        return self.stages * self.stage_bytes

    @property
    def flight(self) -> int:
        """How many tiles may be in flight."""
        return min(self.window or self.stages, self.stages)

    @property
    def passed(self) -> int:
        """Offset of the word that counts passed grid barriers; 0 if there is none."""
        return self.offset + self.bytes if self.early else 0

    @property
    def end(self) -> int:
        """The first byte behind the slots and the word."""
        return self.offset + self.bytes + (COUNT_BYTES if self.early else 0)


@dataclass(frozen=True)
class Stream:
    """A run of equal tiles in the load stream of each CTA.

    A tile is `rows` rows of `cols` elements of `tensors` (for a KV stream: of keys and of values). `tiles` is the number of tiles of
    the busiest CTA, or None where it depends on the KV length. `contiguous`: one bulk copy per tensor, else one per row.
    `blocks` x `block_rows` is the run of rows a CTA has: blocks of adjacent rows, `block_stride` rows apart.
    """

    name: str
    tensors: tuple[str, ...]
    itemsize: int
    rows: int
    cols: int
    tiles: int | None
    contiguous: bool
    blocks: int = 1
    block_rows: int = 0
    block_stride: int = 0
    ld: int = 0
    src: Src | None = None

    @property
    def copy_bytes(self) -> int:
        """Bytes of one bulk copy."""
        return (self.rows if self.contiguous else 1) * self.cols * self.itemsize

    @property
    def tile_bytes(self) -> int:
        """Bytes that one full tile announces to its full barrier."""
        return len(self.tensors) * self.rows * self.cols * self.itemsize


@dataclass(frozen=True)
class Buffer:
    """A named piece of shared memory, live from step `first` to step `last` inclusive; `peer_written`: what peers send lands in it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    first: int
    last: int
    peer_written: bool = False
    align: int = 16

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Barrier:
    """An mbarrier (or `count` of them): arrivals per phase, and the transaction bytes a phase waits for."""

    name: str
    kind: str  # "full" | "empty" | "exchange"
    arrivals: int
    tx_bytes: int
    offset: int
    count: int = 1
    phases: int | None = 1  # None: depends on the KV length


@dataclass(frozen=True)
class Exchange:
    """One collective, or one round of it. Bytes are those of one rank, over the grid of the busiest (see `moved`)."""

    name: str
    scope: str  # "cluster" | "grid"
    op: str  # gather | reduce | reduce_scatter
    monoid: str | None  # sum | lse | argmax
    algorithm: str  # push | multicast | grid_barrier | atomic
    values: tuple[str, ...]
    payload: int  # bytes one rank contributes
    sent_bytes: int  # bytes one rank pushes to peers, itself excluded (cluster) or writes to global memory (grid)
    received_bytes: int  # bytes that arrive at one rank, from itself too (cluster), or that it reads back (grid)
    barrier: str | None
    step: int
    src: Src | None = None
    total: int = 0  # bytes of the launch: pushed to peers (cluster), or written to and read from global memory (grid)


@dataclass(frozen=True)
class Step:
    """One thing all consumer warps do, in order. `op` names an emitter; `params` hold its geometry."""

    op: str
    text: str
    out: str | None = None
    ins: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    src: Src | None = None

    @property
    def trees(self) -> tuple[Expr, ...]:
        """The expressions that it evaluates."""
        return (*((self.params["tree"],) if "tree" in self.params else ()), *(tree for tree, _, _ in self.params.get("parts", ())))

    @property
    def reads(self) -> tuple[str, ...]:
        """Everything that it reads by name: of global memory, shared memory, and variables."""
        keys = {"fetch": ("workspace",), "terms_push": ("outs", "stats"), "store_index": ("pairs",)}.get(self.op, ())
        return (*(self.params[key] for key in keys), *(leaf.name for tree in self.trees for leaf in tree.walk()))


@dataclass(frozen=True)
class KernelPlan:
    """Everything the emitter and the launcher need to know, and everything the checks check."""

    name: str
    model: str
    dtype: str
    mesh: Mesh
    config: Config
    args: tuple[Arg, ...]
    ring: Ring | None
    streams: tuple[Stream, ...]
    buffers: tuple[Buffer, ...]
    barriers: tuple[Barrier, ...]
    steps: tuple[Step, ...]
    exchanges: tuple[Exchange, ...]
    smem_bytes: int
    needs_residency: bool  # a grid barrier: every cluster must be resident at once
    shares: tuple[Share, ...] = ()  # partitions of rows over all CTAs
    slices: tuple[int, ...] = ()  # numbers of slices that are fewer than the groups of clusters: the coordinates `sliceN`

    @property
    def threads(self) -> int:
        return 32 * (self.config.warps + (1 if self.ring else 0))

    @property
    def early_steps(self) -> int:
        """How many steps at the start read nothing that the kernel before may still write: with PDL they do not wait for its end."""
        return next((i for i, step in enumerate(self.steps) if not step.params.get("early")), len(self.steps))

    def coordinates(self, cta: int) -> dict[str, int]:
        """What affine offsets are multiples of, in one CTA (see `affine`): all but the indices that it reads from device memory."""
        return self.everywhere[cta]

    @cached_property
    def everywhere(self) -> tuple[dict[str, int], ...]:
        """The coordinates of all CTAs."""
        found = []
        for cta in range(self.mesh.ctas):
            cluster, rank = divmod(cta, self.mesh.ranks)
            group, split = divmod(cluster, self.mesh.splits)
            at = {"cluster": cluster, "rank": rank, "group": group, "split": split}
            at |= {f"slice{n}": cluster // (self.mesh.clusters // n) for n in self.slices}
            found.append(at | {share.symbol: share.bounds(cta)[0] // share.granule for share in self.shares})
        return tuple(found)

    @property
    def grid(self) -> int:
        return self.mesh.ctas
