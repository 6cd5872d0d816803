"""Random small specs: every op that the types and placements allow is taken, whatever the compiler makes of it.

A spec is a list of numbers. Each four of them are one line: an op, and which of the values so far, sizes and options it takes. A line that
the language refuses is left out, so that what remains is a spec which the oracle can run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

import cfdsl as cf
from cfdsl.dsl.graph import Graph, Node
from cfdsl.dsl.interpret.run import leaf_tensors
from cfdsl.dsl.place import _place
from cfdsl.dsl.placement import Partial, Placement
from cfdsl.dsl.trace import Tracer, current

Line = tuple[int, int, int, int]
SIZES = (64, 128, 192, 320)
UNITS = 4
NAMED = {"tokens": 40, "positions": 48}
TORCH = {"bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}


@dataclass
class _Writer:
    """A spec being written: its values so far, and where they are placed."""

    mesh: cf.Mesh
    values: list[cf.Value] = field(default_factory=list)
    placements: dict[Node, tuple[Placement, ...]] = field(default_factory=dict)
    leaves: int = 0
    kept: int = 0  # nodes of the lines that were taken
    axis: Any = None

    def pick(self, i: int) -> cf.Value:
        """One of the values, late ones more often."""
        return self.values[-1 - i % len(self.values) % 5 % len(self.values)]

    def size(self, i: int) -> int:
        return SIZES[i % len(SIZES)]

    def name(self) -> str:
        self.leaves += 1
        return f"t{self.leaves}"

    def placements_of(self, value: cf.Value) -> Placement:
        """Where a value would be placed that no line has kept yet."""
        self._place(value.node, SimpleNamespace(over=current("placements").over))
        return self.placements[value.node][0]

    def weight(self, *shape: int, dtype: str | None = None) -> cf.Value:
        return cf.weight(self.name(), shape, dtype)

    def input(self, *shape: int, dtype: str | None = None) -> cf.Value:
        return cf.input(self.name(), shape, dtype)

    def take(self, made: Any) -> None:
        """Keep what a line made, if the language takes it."""
        tracer = current("take")
        results = list(made) if isinstance(made, tuple) else [made]
        refused = bool(tracer.errors) or any(not isinstance(value, cf.Value) or value.poisoned for value in results)
        tracer.errors.clear()
        known = dict(self.placements)
        try:
            for value in () if refused else results:
                self._place(value.node, SimpleNamespace(over=tracer.over))
        except cf.CfdslError:
            refused = True
        if refused:
            self.placements = known
            self._forget(tracer)
        else:
            self.values += results
            self.kept = len(tracer.order)

    def _forget(self, tracer: Tracer) -> None:
        """As if the line had not been written: what nothing needs is placed too."""
        lost = set(tracer.order[self.kept :])
        del tracer.order[self.kept :]
        tracer.effects[:] = [node for node in tracer.effects if node not in lost]
        tracer._same = {key: node for key, node in tracer._same.items() if node not in lost}

    def _place(self, node: Node, graph: Any) -> None:
        for arg in node.args:
            if arg not in self.placements:
                self._place(arg, graph)
        self.placements[node] = _place(node, self.placements, graph, self.mesh)

    @property
    def finished(self) -> list[cf.Value]:
        """The values that can be outputs."""
        axes = [(value, self.placements[value.node][0]) for value in self.values if value.dtype != "i32"]
        return [value for value, at in axes if not any(isinstance(axis, Partial) for axis in (at.grid, at.cluster, at.split))]


def _matrix(w: _Writer, rows: int, cols: int, how: int) -> cf.Value:
    """A weight (rows, cols) of a linear, or something that passes for one."""
    makers: Sequence[Callable[[], cf.Value]] = (
        lambda: w.weight(rows, cols),
        lambda: w.weight(rows, cols),
        lambda: w.weight(rows, cols)[w.axis] if w.axis else w.weight(rows, cols),
        lambda: w.weight(rows, cols)[:, w.axis] if w.axis else w.weight(rows, cols),
        lambda: w.weight(rows, cols).split_heads(rows // 64 or 1),
        lambda: w.weight(rows, cols).split_heads(rows // 16)[w.axis] if w.axis else w.weight(rows, cols),
        lambda: w.weight(rows, cols)[w.axis].split_heads(rows // 16) if w.axis else w.weight(rows, cols),
        lambda: w.weight(rows, cols).split_heads(rows // 16)[:, w.axis] if w.axis else w.weight(rows, cols),
        lambda: cf.reshape(w.weight(rows * 2, cols // 2), (rows, cols)),
        lambda: cf.reshape(w.weight(rows * cols), (rows, cols)),
        lambda: cf.reshape(w.weight(rows // 2, cols * 2), (rows, cols)),
        lambda: cf.split(w.weight(2 * rows, cols), (rows, rows), dim=0)[1],
        lambda: cf.split(w.weight(rows, 2 * cols), (cols, cols), dim=1)[1],
        lambda: cf.silu(w.weight(rows, cols)),
        lambda: w.weight(rows, cols) + w.weight(rows, cols),
        lambda: w.weight(rows, cols) * w.weight(1, cols),
        lambda: cf.cast(w.weight(rows, cols, dtype="f32"), "bf16"),
        lambda: cf.cast(w.weight(rows, cols), "f32"),
        lambda: cf.concat([w.weight(rows // 2, cols), w.weight(rows // 2, cols)], dim=0),
        lambda: w.input(rows, cols),
    )
    return makers[how % len(makers)]()


def _bias(w: _Writer, matrix: cf.Value, how: int) -> cf.Value | None:
    shape = [int(dim) for dim in matrix.shape[:-1]]
    rows = shape[0] * (shape[1] if len(shape) == 2 else 1)
    makers: Sequence[Callable[[], cf.Value | None]] = (
        lambda: None,
        lambda: None,
        lambda: w.weight(*shape),
        lambda: w.weight(*shape)[w.axis] if w.axis else None,
        lambda: w.weight(rows).split_heads(shape[0])[w.axis] if w.axis and len(shape) == 2 else w.weight(*shape),
        lambda: cf.reshape(w.weight(rows), shape),
        lambda: cf.silu(w.weight(*shape)),
        lambda: w.weight(*shape) + w.weight(*shape),
        lambda: cf.cast(w.weight(*shape), "f32"),
        lambda: w.input(*shape),
        lambda: cf.split(w.weight(2 * rows), (rows, rows), dim=0)[1],
    )
    return makers[how % len(makers)]()


def _linear(w: _Writer, i: int, j: int, k: int) -> Any:
    x = w.pick(i)
    matrix = _matrix(w, w.size(j), int(x.shape[-1]), j // len(SIZES))
    return cf.linear(x, matrix, _bias(w, matrix, k // 3), shard=(None, "out", "in")[k % 3])


def _terms(w: _Writer, i: int, j: int, k: int) -> Any:
    """A product whose contraction is cut: over the clusters, over the ranks, or over both; and mostly what makes a value of it."""
    x, matrix = w.pick(i), w.weight(w.size(j), int(w.pick(i).shape[-1]))
    if k % 3:
        x, matrix = x[:, w.axis], matrix[:, w.axis]
    y = cf.linear(x, matrix, shard=("in", "out", None)[k // 3 % 3])
    if k // 3 % 3 == 0:
        y = cf.cluster_reduce_scatter(y, dim=-1) if k // 9 % 2 else cf.cluster_reduce(y)
    if k % 3 and k % 5:
        y = cf.grid_reduce_scatter(y, dim=-1) if k // 9 % 3 else cf.grid_reduce(y)
    return y


def _norm(w: _Writer, i: int, j: int, k: int) -> Any:
    x = w.pick(i)
    n = int(x.shape[-1])
    scale = (w.weight(n), w.weight(n), cf.silu(w.weight(n)), w.input(n), w.weight(n) * w.weight(n))[j % 5]
    if k % 3 == 0:
        return cf.rms_norm(x, scale, 1e-5)
    return cf.rms_norm(x, scale, 1e-5, cf.cluster_reduce(cf.mean_square(x)))


def _vector(w: _Writer, i: int, j: int, k: int) -> cf.Value:
    """Something that an elementwise op may meet a value with."""
    x = w.pick(i)
    n = int(x.shape[-1])
    return (w.pick(j), w.weight(n), w.input(1, n), w.input(*map(int, x.shape)), cf.silu(w.weight(n)), w.weight(2, n), w.weight(1, 1))[k % 7]


def _heads(w: _Writer, i: int, j: int, k: int) -> Any:
    x = w.pick(i)
    return cf.merge_heads(x) if len(x.shape) == 3 else cf.split_heads(x, max(1, int(x.shape[-1]) // (16, 32, 64)[j % 3]))


def _reshape(w: _Writer, i: int, j: int, k: int) -> Any:
    x = w.pick(i)
    n = 1
    for dim in x.shape:
        n *= int(dim)
    return cf.reshape(x, ((1, n), (1, n // 32, 32), (1, 2, n // 2), (n,), (2, n // 2))[j % 5])


def _split(w: _Writer, i: int, j: int, k: int) -> Any:
    x, dim = w.pick(i), (-1, 1, 0)[k % 3] % len(w.pick(i).shape)
    size = int(x.shape[dim])
    first = (size // 2, size // 4, 8, 4)[j % 4]
    return cf.split(x, (first, size - first), dim)


def _concat(w: _Writer, i: int, j: int, k: int) -> Any:
    return cf.concat([w.pick(i), _vector(w, i, j, k)], dim=(-1, 0)[j % 2])


def _sliced(w: _Writer, i: int, j: int, k: int) -> Any:
    x = w.pick(i)
    return x[:, w.axis] if k % 2 else cf.shard(x, (-1, 1)[j % 2])


def _exchange(w: _Writer, i: int, j: int, k: int) -> Any:
    calls: Sequence[Callable[..., Any]] = (
        cf.cluster_gather, cf.cluster_reduce, cf.grid_gather, cf.grid_reduce, lambda x: cf.cluster_reduce_scatter(x, dim=-1),
        lambda x: cf.grid_reduce_scatter(x, dim=-1),
    )  # fmt: skip
    call = calls[k % len(calls)]
    if j % 4 == 0 and k % len(calls) < 4:
        return call(w.pick(i), w.pick(i + 1))
    return call(w.pick(i))


def _found(w: _Writer, i: int, j: int, k: int) -> Any:
    if k % 2:
        return cf.embedding(w.input(1, dtype="i32"), w.weight(48, w.size(j)))
    return cf.grid_reduce(cf.argmax(w.pick(i)))


def _attention(w: _Writer, i: int, j: int, k: int) -> Any:
    """Decode attention of 8 query heads over 4 of keys and values, with a cache of its own."""
    def heads(n: int, like: int) -> cf.Value:
        x = w.pick(like)
        made = cf.reshape(x, (1, n, 64)) if x.shape in ((1, 64 * n), (1, n // 2, 128)) else w.input(1, n, 64)
        return made if w.axis is None or w.placements_of(made) != Placement() else made[:, w.axis]

    q, key, value = heads(8, i), heads(4, j), heads(4, k)
    at = w.input(1, dtype="i32")
    if j % 2:
        style = ("half", "interleaved")[k % 2]
        cos, sin = (cf.input(w.name(), (("positions", 48)[k % 4 == 0], 16), "f32") for _ in range(2))
        q = cf.rope(q, cos, sin, at, style=style, rotary_dim=32)
        key = cf.rope(key, cos, sin, at, style=style, rotary_dim=32)
    cache = cf.kv_cache(w.name(), 1, 4, ("tokens", 40)[i % 3 == 0], 64, ("bhtd", "bthd")[i % 2])
    cache = (cache if w.axis is None else cache[w.axis]).append(key, value, at=at)
    everywhere = "all" if w.mesh.splits > 1 else ("cluster", "all")[k % 2]
    o = cf.attend(q, cache, shard="tokens", across=everywhere) if i % 5 else cf.attend(q, cache)
    if j % 3 == 0:
        return o
    o = cf.cluster_reduce_scatter(o, dim=2) if j % 3 == 1 else cf.cluster_reduce(o)
    return cf.grid_reduce(o) if everywhere == "all" and i % 5 else o


OPS: Sequence[Callable[[_Writer, int, int, int], Any]] = (
    _linear, _linear, _linear, _terms, _terms, _attention, _norm, _heads, _reshape, _split, _concat, _sliced, _exchange, _exchange,
    _exchange, _found,
    lambda w, i, j, k: w.pick(i) + _vector(w, i, j, k),
    lambda w, i, j, k: w.pick(i) * _vector(w, i, j, k),
    lambda w, i, j, k: (cf.silu, cf.gelu)[k % 2](w.pick(i)),
    lambda w, i, j, k: cf.cast(w.pick(i), ("bf16", "f32")[k % 2]),
    lambda w, i, j, k: w.input(1, w.size(j), dtype=("bf16", "f32")[k % 2]),
)  # fmt: skip


def random_spec(lines: Sequence[Line], block: tuple[int, int], mesh: cf.Mesh) -> cf.Fusion:
    """The spec of `lines`, of which those of the half-open range `block` are in a clusters block of UNITS units."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        w = _Writer(mesh)
        w.take(w.input(1, 64))
        first, last = block
        for op, i, j, k in lines[:first]:
            _line(w, op, i, j, k)
        if first < last:
            with cf.clusters(over=UNITS) as w.axis:
                for op, i, j, k in lines[first:last]:
                    _line(w, op, i, j, k)
            w.axis = None
        for op, i, j, k in lines[last:]:
            _line(w, op, i, j, k)
        done = w.finished
        return cf.outputs(y=done[-1], **({"z": done[-2]} if len(done) > 1 and len(lines) % 2 else {}))

    return spec


def _line(w: _Writer, op: int, i: int, j: int, k: int) -> None:
    try:
        made = OPS[op % len(OPS)](w, i, j, k)
    except (cf.CfdslError, TypeError, AttributeError, ZeroDivisionError, IndexError):  # a size or an axis that is not there
        made = None
    except Exception as error:
        if type(error).__name__ != "Poisoned":
            raise
        made = None
    w.take(made)


def random_tensors(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors for a graph: caches are of 40 tokens, tables of 48 rows, and indices within both."""
    make = torch.Generator().manual_seed(seed)
    found = {}
    for name, declared in leaf_tensors(graph):
        shape = [NAMED[dim] if isinstance(dim, str) else dim for dim in declared.shape]
        if declared.dtype == "i32":
            found[name] = torch.randint(0, 40, shape, generator=make, dtype=torch.int32)
        else:
            scale = 1.0 if len(shape) < 2 or shape[0] == 1 else shape[-1] ** -0.5
            found[name] = (torch.randn(shape, generator=make) * scale).to(TORCH[declared.dtype])
    return found
