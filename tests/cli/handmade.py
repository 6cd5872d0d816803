"""A placed graph and a kernel plan written by hand: Llama-2-7B's attention block, so that pictures and tables have something to show."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfdsl.compiler.config import Config
from cfdsl.compiler.plan import Arg, Barrier, Buffer, Exchange, KernelPlan, Ring, Step, Stream
from cfdsl.dsl.graph import Graph, Node, Src, Type
from cfdsl.dsl.placement import Mesh, Partial, Placement, R, ReduceOp, Shard

FILE = "fusions/attention_block.py"


@dataclass(frozen=True)
class HandPlaced:
    """What the command line reads of a placed graph."""

    graph: Graph
    mesh: Mesh
    placements: dict[Node, tuple[Placement, ...]] = field(default_factory=dict)

    def of(self, node: Node) -> Placement:
        (only,) = self.placements[node]
        return only


class Hand:
    """Builds nodes line by line and remembers their placements."""

    def __init__(self) -> None:
        self.line = 10
        self.placements: dict[Node, tuple[Placement, ...]] = {}

    def node(
        self,
        code: str,
        op: str,
        args: tuple[Node, ...],
        shape: tuple,
        grid=R,
        cluster=R,
        dtype: str = "f32",
        same_line: bool = False,
        **attrs,
    ) -> Node:
        self.line += 0 if same_line else 1
        node = Node(op, args, attrs, (Type(shape, dtype),), Src(FILE, self.line, code))
        self.placements[node] = (Placement(grid, cluster),)
        return node

    def exchange(self, code: str, op: str, args: tuple[Node, ...], shapes: list[tuple], grid=R, cluster=R, **attrs) -> list[Node]:
        self.line += 1
        types = tuple(Type(shape, "f32") for shape in shapes)
        node = Node(op, args, attrs, types, Src(FILE, self.line, code))
        self.placements[node] = tuple(Placement(grid, cluster) for _ in types)
        if len(shapes) == 1:
            return [node]
        items = [Node("item", (node,), {"index": index}, (type_,), node.src) for index, type_ in enumerate(types)]
        for item in items:
            self.placements[item] = (Placement(grid, cluster),)
        return items


def placed(ranks: int = 2) -> HandPlaced:
    """The attention block on 32 clusters of `ranks`."""
    hand = Hand()
    n = hand.node
    x = n("x = cf.input(...)", "input", (), (1, 4096), dtype="bf16", name="x")
    residual = n("residual = cf.input(...)", "input", (), (1, 4096), dtype="bf16", name="residual")
    length = n("length = cf.input(...)", "input", (), (1,), dtype="i32", name="length")
    h = n("h = x + residual", "add", (x, residual), (1, 4096))
    norm = n("w", "weight", (), (4096,), dtype="bf16", name="norm")
    normed = n("n = cf.rms_norm(h, w, m.norm_eps)", "rms_norm", (h, norm), (1, 4096), eps=1e-5)
    head, rank = Shard(1), Shard(2)
    projected = []
    for name in "qkv":
        w = n("weights", "weight", (), (4096, 4096), dtype="bf16", name=f"w{name}")
        split = n("weights", "split_heads", (w,), (32, 128, 4096), dtype="bf16", heads=32)
        mine = n("weights", "slice_grid", (split,), (32, 128, 4096), Shard(0), dtype="bf16", dim=0)
        code = f"{name} = cf.linear(n, w{name}[head], shard=how)"
        projected.append(n(code, "linear", (normed, mine), (1, 32, 128), head, rank, shard="out"))
    q, k, v = hand.exchange("q, k, v = exchange(q, k, v)", "cluster_gather", tuple(projected), [(1, 32, 128)] * 3, head)
    q = n("q, k = cf.rope(q, cos, sin, pos), cf.rope(k, cos, sin, pos)", "rope", (q,), (1, 32, 128), head, style="half")
    k = n("q, k = cf.rope(q, cos, sin, pos), cf.rope(k, cos, sin, pos)", "rope", (k,), (1, 32, 128), head, same_line=True, style="half")
    cache = n("cache", "kv_cache", (), (1, 32, "tokens", 128), dtype="bf16", name="cache")
    mine = n("cache", "slice_grid", (cache,), (1, 32, "tokens", 128), head, dtype="bf16", dim=1)
    kept = n("cache = cache[head].append(k, v, at=length)", "append", (mine, k, v, length), (1, 32, "tokens", 128), head, dtype="bf16")
    o = n("o = cf.attend(q, cache)", "attend", (q, kept), (1, 32, 128), head, Partial(ReduceOp.LSE), shard="tokens")
    (o,) = hand.exchange("o = cf.cluster_reduce_scatter(o, dim=2)", "cluster_reduce_scatter", (o,), [(1, 32, 128)], head, rank, dim=2)
    (o,) = hand.exchange("o = cf.grid_gather(o)", "grid_gather", (o,), [(1, 32, 128)])
    merged = n("o", "merge_heads", (o,), (1, 4096))
    wo = n("wo", "weight", (), (4096, 4096), dtype="bf16", name="wo")
    y = n("y = cf.linear(o, wo)", "linear", (merged, wo), (1, 4096), Shard(1), Shard(1), shard="out")
    y = n("y = y + h", "add", (y, h), (1, 4096), Shard(1), Shard(1))
    return HandPlaced(Graph("attention_block", (("y", y),), (kept,), 32), Mesh(32, ranks), hand.placements)


def plan(ranks: int = 2) -> KernelPlan:
    """The plan that belongs to `placed(ranks)`; its arithmetic is right for any power of two up to 16."""
    rows, ring, ctas = 128 // ranks, Ring(6, 16384), 32 * ranks
    at = ring.bytes
    qkv = [Stream(f"w{name}", (f"w{name}",), 2, 2, 4096, rows // 2, True, 1, rows, 0, 4096) for name in "qkv"]
    kv = Stream("kv", ("cache_k", "cache_v"), 2, 32, 128, None, True, 1)
    wo = Stream("wo", ("wo",), 2, 2, 4096, rows // 2, True, 1, rows, 0, 4096)
    tx = 128 * 3 * 4
    out = 4 * 128 + 8 * ranks
    buffers = (
        Buffer("xn", (8, 16), "f32", at, 0, 4),
        Buffer("part", (8, 3 * rows), "f32", at + 512, 1, 4),
        Buffer("qkv", (3, 128), "f32", at + 512 + 96 * 128, 4, 7, True),
        Buffer("om", (16, 128), "f32", at + 512, 7, 8),
        Buffer("box", (ranks, 128 // ranks + 2), "f32", at + 512 + 96 * 128 + 1536, 8, 9, True),
    )
    top = at + 512 + 96 * 128 + 1536 + out
    top = -(-top // 16) * 16
    barriers = (
        Barrier("full", "full", 1, 16384, top, 6, None),
        Barrier("empty", "empty", 8, 0, top + 48, 6, None),
        Barrier("qkv_ready", "exchange", 1, tx, top + 96),
        Barrier("o_ready", "exchange", 1, out, top + 104),
    )
    gather = Exchange(
        "gather_qkv", "cluster", "gather", None, "push", ("q", "k", "v"), tx // ranks, tx // ranks * (ranks - 1), tx, "qkv_ready", 4,
        total=tx // ranks * (ranks - 1) * ctas,
    )  # fmt: skip
    sent, wrote = out - out // ranks, 512 // ranks
    reduce = Exchange("reduce_o", "cluster", "reduce_scatter", "lse", "push", ("o",), out, sent, out, "o_ready", 8, total=sent * ctas)
    grid = Exchange(
        "gather_o", "grid", "gather", None, "grid_barrier", ("o",), wrote, wrote, 16384, None, 10, total=(wrote + 16384) * ctas
    )
    steps = (
        Step("norm", "h = x + residual; n = rms_norm(h)", "xn"),
        *(Step("gemv", f"{name} = linear(n, w{name})", "part", (), {"stream": index}) for index, name in enumerate("qkv")),
        Step("push_gather", "q, k, v to every rank", "qkv", ("part",)),
        Step("rope", "rotate q and k", "qkv", ("qkv",)),
        Step("append", "k, v into the cache at length", None, ("qkv",)),
        Step("attend", "online softmax over this rank's tokens", "om", (), {"stream": 3}),
        Step("push_reduce", "(m, l, o) of dims to their rank", "box", ("om",)),
        Step("combine", "combine the ranks' terms in rank order", None, ("box",)),
        Step("grid_gather", "o through L2, grid barrier", "o", ()),
        Step("gemv", "y = linear(o, wo) + h", "y", (), {"stream": 4}),
    )
    config = Config(32, ranks, 6)
    args = (
        *(Arg(name, (1, 4096), "bf16", "input") for name in ("x", "residual")),
        Arg("length", (1,), "i32", "input"),
        Arg("norm", (4096,), "bf16", "weight"),
        *(Arg(f"w{name}", (4096, 4096), "bf16", "weight", align=128) for name in "qkvo"),
        *(Arg(f"cache_{name}", (1, 32, "tokens", 128), "bf16", "cache", True, 128) for name in "kv"),
        Arg("y", (1, 4096), "bf16", "output", True),
        Arg("ws_sync", (8,), "i32", "workspace", True),
    )
    return KernelPlan(
        "attention_block", "llama-2-7b", "bf16", Mesh(32, ranks), config, args, ring, (*qkv, kv, wo), buffers, barriers, steps,
        (gather, reduce, grid), top + 112, True,
    )  # fmt: skip
