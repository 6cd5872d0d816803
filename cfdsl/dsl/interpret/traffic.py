"""Bytes that move in one launch, by scope, and the counter that watches the oracle run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cfdsl.dsl.exchange import WORD
from cfdsl.dsl.graph import Node, Src
from cfdsl.dsl.interpret.local import Local, Rank

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExchangeTraffic:
    """One exchange of the whole launch: all clusters and ranks together.

    bytes   cluster scope: pushed to peers, a rank's push to itself excluded, in all rounds.
            grid scope: written to and read back from global memory; a CTA reads the slices of a gathered value that it uses.
    pushed  grid scope: what ranks push to their peers because each of them read a part
    """

    op: str
    scope: str  # "cluster" | "grid"
    values: tuple[str, ...]  # the types that travel
    bytes: int
    src: Src
    pushed: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch.

    weights, inputs, kv_read, kv_write, outputs
                 bytes of device memory that must move once whoever needs them; rope tables count a row per sequence
    l2_bytes     bytes as loaded by all CTAs: what several CTAs load counts several times; a CTA loads a thing once
    exchanges    one row per collective, in program order
    """

    weights: int
    inputs: int
    kv_read: int
    kv_write: int
    outputs: int
    l2_bytes: int
    exchanges: tuple[ExchangeTraffic, ...]

    @property
    def hbm_bytes(self) -> int:
        """Device memory's bytes: the memory's time on a part is this over its rate."""
        return self.weights + self.inputs + self.kv_read + self.kv_write + self.outputs

    @property
    def dsmem_bytes(self) -> int:
        """Bytes pushed between CTAs of a cluster."""
        return sum(row.bytes if row.scope == "cluster" else row.pushed for row in self.exchanges)

    @property
    def grid_bytes(self) -> int:
        """Bytes written to and read from global memory by grid collectives."""
        return sum(row.bytes for row in self.exchanges if row.scope == "grid")


def exchange_row(node: Node, elements: int, pushed: int = 0) -> ExchangeTraffic:
    """The row of collective `node`, from the elements that it moves."""
    scope, _, _ = node.op.partition("_")
    return ExchangeTraffic(node.op, scope, tuple(str(arg.type) for arg in node.args), WORD * elements, node.src, WORD * pushed)


class Counter:
    """Counts what the oracle touches: every leaf's touched bytes once, and every CTA's loads."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        """`roles`: leaf name -> "weight" or "input"."""
        self.roles = roles
        self.marks: dict[str, tuple[Tensor, int]] = {}
        self.row_bytes: dict[tuple[str, object], int] = {}
        self.kv_marks: dict[str, tuple[Tensor, int]] = {}
        self.l2 = 0
        self.kv_write = 0
        self.outputs = 0
        self.rows: list[ExchangeTraffic] = []
        self._loaded: set[object] = set()

    def leaf(self, name: str, data: Tensor) -> Tensor | None:
        """Start watching a leaf; the returned mask (same shape) is to be viewed along with the leaf."""
        mark = data.new_zeros(data.shape).bool()
        self.marks[name] = (mark, data.element_size())
        return mark

    def cache(self, name: str, data: Tensor) -> Tensor:
        """Start watching one tensor of a cache."""
        mark = data.new_zeros(data.shape).bool()
        self.kv_marks[name] = (mark, data.element_size())
        return mark

    def load(self, rank: Rank, local: Local) -> None:
        """A CTA loads `local`, if it is a leaf's bytes, or what an exchange left, and the CTA has not loaded them yet."""
        if local.left_by is not None:
            self._read(rank, local.left_by, local)
        if local.leaf is None or local.mark is None:
            return
        local.mark.fill_(True)
        self._once((rank, local.leaf, local.data.data_ptr(), local.data.numel()), local.data.numel() * local.data.element_size())

    def _read(self, rank: Rank, row: int, local: Local) -> None:
        key = (rank, row, local.data.data_ptr(), local.data.numel())
        if key not in self._loaded:
            self._loaded.add(key)
            self.rows[row] = replace(self.rows[row], bytes=self.rows[row].bytes + WORD * local.data.numel())

    def load_rows(self, rank: Rank, local: Local, batch: object, count: int) -> None:
        """A CTA loads `count` rows of a table, one per sequence of `batch`. Rows may coincide and still count each."""
        if local.leaf is None:
            return
        size = count * local.data.shape[-1] * local.data.element_size()
        self.row_bytes[(local.leaf, batch)] = size
        self._once((rank, local.leaf, batch), size)

    def load_cache(self, marks: tuple[Tensor, Tensor], valid: Tensor, itemsize: int) -> None:
        """A CTA loads those tokens of a cache view (batch, heads, tokens, dim) that `valid` (batch, tokens) names."""
        chosen = valid[:, None, :, None]
        for mark in marks:
            mark.logical_or_(chosen)
            self.l2 += int(valid.sum()) * mark.shape[1] * mark.shape[3] * itemsize

    def _once(self, key: object, size: int) -> None:
        if key not in self._loaded:
            self._loaded.add(key)
            self.l2 += size

    def total(self) -> Traffic:
        """What was counted so far."""
        unique = {"weight": 0, "input": 0}
        for name, (mark, size) in self.marks.items():
            unique[self.roles[name]] += int(mark.sum()) * size
        for (name, _), size in self.row_bytes.items():
            unique[self.roles[name]] += size
        kv_read = sum(int(mark.sum()) * size for mark, size in self.kv_marks.values())
        return Traffic(unique["weight"], unique["input"], kv_read, self.kv_write, self.outputs, self.l2, tuple(self.rows))


class Unwatched(Counter):
    """Lets inputs and weights pass unseen, so that there is no total: `Local`s without a mark are not counted."""

    def leaf(self, name: str, data: Tensor) -> Tensor | None:
        """No mask to view along with the leaf."""
        return None
