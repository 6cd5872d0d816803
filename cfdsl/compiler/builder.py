"""What the lowering rules write into: steps, streams, buffers, barriers and exchanges of one plan.

The builder knows one protocol rule and applies it everywhere: between a write to shared memory and a read of it by other threads, or
between a read and the next write, there is a barrier among the consumer warps. It inserts a `sync` step exactly where one is needed;
`check` proves afterwards, on its own, that none is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.config import Config
from cfdsl.compiler.geometry import RowTiles, Share, least_stage, tile_rows
from cfdsl.compiler.names import identifier, reserved
from cfdsl.compiler.plan import Arg, Barrier, Exchange, Step, Stream
from cfdsl.dsl.graph import ITEMSIZE, Node, Src
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.place_rules.site import over_all_ctas
from cfdsl.dsl.placement import Placement, Shard
from cfdsl.errors import ConfigError

Flag = tuple[str, str, tuple[str, str] | None]  # status bit, clamped variable, (name, layout) of the cache that it is the length of

UNUSED = 1 << 30  # the first step of a buffer that no step uses yet


@dataclass
class BufferSpec:
    """A buffer before it has an address."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "f32"
    peer_written: bool = False
    first: int = UNUSED
    last: int = -1


@dataclass
class Builder:
    placed: PlacedGraph
    config: Config
    steps: list[Step] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    buffers: dict[str, BufferSpec] = field(default_factory=dict)
    barriers: list[Barrier] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    workspaces: dict[str, Arg] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)  # by node, or by (node, form)
    flags: list[Flag] = field(default_factory=list)
    clears: list[tuple[str, str]] = field(default_factory=list)  # (workspace, share) to zero once read
    hoisted: list[tuple[Node, Node]] = field(default_factory=list)
    slices: set[int] = field(default_factory=set)  # numbers of slices that several groups share
    variables: set[str] = field(default_factory=set)
    lost: set[Node] = field(default_factory=set)  # what was refused, and what depends on it
    dirty: set[str] = field(default_factory=set)  # written since the last sync
    seen: set[str] = field(default_factory=set)  # read since the last sync
    rendezvous_done: bool = False

    # ---- the mesh
    @property
    def ranks(self) -> int:
        return self.placed.mesh.ranks

    @property
    def clusters(self) -> int:
        return self.placed.mesh.clusters

    @property
    def groups(self) -> int:
        """Groups of clusters that hold different slices; the `splits` clusters of a group share one."""
        return self.placed.mesh.groups

    @property
    def splits(self) -> int:
        return self.placed.mesh.splits

    @property
    def threads(self) -> int:
        return 32 * self.config.warps

    def local(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """The shape of one rank's slice of a result (symbolic dims are not allowed here)."""
        placement: Placement = self.placed.placements[node][index]
        shape = [int(dim) for dim in node.types[index].shape]
        if isinstance(placement.grid, Shard):
            shape[placement.grid.dim] = max(1, shape[placement.grid.dim] // self.groups)
        if isinstance(placement.cluster, Shard):
            shape[placement.cluster.dim] //= self.ranks
        return tuple(shape)

    def grid_offset(self, size: int, stride: int) -> Affine:
        """Where this cluster's slice of a grid-sharded dimension starts, in elements: size slices `stride` elements apart."""
        if self.groups <= size:
            return Affine.of(**{"cluster" if self.splits == 1 else "group": size // self.groups * stride})
        self.slices.add(size)  # more groups than slices: neighbours hold the same one
        return Affine.of(**{f"slice{size}": stride})

    def spread(self, node: Node) -> bool:
        """Whether a result is rows of a partition over all CTAs, whose shares may be uneven: `local` does not know their size."""
        placement = self.placed.placements[node][0]
        last = Shard(len(node.types[0].shape) - 1)
        return placement.grid == placement.cluster == last and over_all_ctas(node)

    # ---- names and buffers
    @cached_property
    def taken(self) -> set[str]:
        """Names of launch arguments, and what they are called in generated code."""
        graph = self.placed.graph
        names = {node.attr("name") for node in graph.nodes if node.op in ("input", "weight")} | {name for name, _ in graph.outputs}
        names |= {f"{node.attr('name')}_{kv}" for node in graph.leaves("kv_cache") for kv in "kv"}
        return names | {identifier(name) for name in names}

    def fresh(self, base: str) -> str:
        if reserved(f"{base}2"):  # a whole family of names is taken (n_..., mb_...): no number behind it helps
            base = f"v_{base}"
        name, n = base, 2
        while reserved(name) or name in self.taken or name in self.buffers or name in self.variables or name in self.workspaces:
            name, n = f"{base}{n}", n + 1
        return name

    def buffer(self, base: str, shape: tuple[int, ...], dtype: str = "f32", peer_written: bool = False) -> str:
        name = self.fresh(base)
        self.buffers[name] = BufferSpec(name, shape, dtype, peer_written, first=self.met if peer_written else UNUSED)
        return name

    def variable(self, base: str) -> str:
        name = self.fresh(base)
        self.variables.add(name)
        return name

    def workspace(self, base: str, shape: tuple[int, ...], dtype: str) -> str:
        name = self.fresh(base)
        self.workspaces[name] = Arg(name, shape, dtype, "workspace", mutated=True)
        return name

    # ---- steps
    def step(
        self, op: str, text: str, *, reads: tuple[str, ...] = (), writes: tuple[str, ...] = (), touches: tuple[str, ...] = (),
        joins: bool = False, src: Src | None = None, **params: Any,
    ) -> int:  # fmt: skip
        """Append a step, with a `sync` before it if it reads what others wrote, or writes what others may still read.

        `joins`: it continues what the step before writes, in another part of the buffer. `touches` are buffers that peers write
        during the step: they are only kept alive.
        """
        if (self.dirty & set(reads)) or ((self.dirty | self.seen) & set(writes) and not joins):
            self.sync()
        index = len(self.steps)
        for name in (*reads, *writes, *touches):
            spec = self.buffers[name]
            spec.first, spec.last = min(spec.first, index), max(spec.last, index)
        self.dirty |= set(writes)
        self.seen |= set(reads)
        self.steps.append(Step(op, text, ",".join(writes) or None, tuple(reads), params, src))
        return index

    def insert(self, at: int, step: Step) -> None:
        """Put a step that touches no shared memory before step `at`; what was recorded by number moves along."""
        self.steps.insert(at, step)
        for spec in self.buffers.values():
            spec.first += max(at, 1) <= spec.first < UNUSED  # what is taken from the start stays so
            spec.last += spec.last >= at
        self.exchanges = [replace(exchange, step=exchange.step + (exchange.step >= at)) for exchange in self.exchanges]

    def sync(self) -> None:
        self.steps.append(Step("sync", "barrier among the consumer warps"))
        self.synced()

    @property
    def met(self) -> int:
        """The step from which on no peer pushes what belongs to earlier steps: the one after the last grid barrier, else the first."""
        return max((at + 1 for at, step in enumerate(self.steps) if step.op == "grid_barrier"), default=0)

    def synced(self) -> None:
        """The step just appended has a barrier among the consumer warps in it."""
        self.dirty.clear()
        self.seen.clear()

    def rendezvous(self) -> None:
        """Before the first push: every peer's barriers exist."""
        if not self.rendezvous_done:
            self.step("rendezvous", "every rank of the cluster has initialised its barriers")
            self.rendezvous_done = True

    # ---- exchanges
    def barrier(self, base: str, nbytes: int) -> str:
        name = f"mb_{base}"
        taken = {barrier.name for barrier in self.barriers}
        n = 2
        while name in taken:
            name, n = f"mb_{base}{n}", n + 1
        self.barriers.append(Barrier(name, "exchange", arrivals=1, tx_bytes=nbytes, offset=0))
        return name

    def stream_rows(self, node: Node, weight: str, tiles: RowTiles) -> int:
        stream = Stream(
            weight, (weight,), ITEMSIZE[node.args[1].type.dtype], tiles.rows, tiles.tile_cols, tiles.tiles,
            contiguous=tiles.rows == 1 or tiles.cols == tiles.ld,
            blocks=tiles.run // tiles.block_rows if tiles.block_rows else 1,
            block_rows=tiles.block_rows or tiles.run, block_stride=tiles.block_stride, ld=tiles.ld, src=node.src,
        )  # fmt: skip
        self.streams.append(stream)
        return len(self.streams) - 1

    def share(self, rows: int, cols: int, itemsize: int) -> Share:
        """The partition of `rows` output rows over all CTAs; one per number of rows, so that values of equal length line up.

        A granule is as many rows as one ring stage holds of `cols` columns; one row, if a row takes several stages.
        """
        name = f"rows{rows}"
        granule = tile_rows(cols, itemsize, self.config.stage_bytes, rows)
        if granule == 0:
            expected = f"at least {least_stage(cols, itemsize)}, a piece of a weight row"
            raise ConfigError(name="stage_bytes", value=self.config.stage_bytes, expected=expected)
        if name not in self.shares:
            self.shares[name] = Share(name, rows, granule, self.placed.mesh.ctas)
        return self.shares[name]
