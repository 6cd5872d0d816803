"""Rotary embedding, the KV cache, and attention over the tokens of a rank."""

from __future__ import annotations

import math
from typing import Any

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.geometry import head_groups, least_kv_stage, tile_tokens, token_groups
from cfdsl.compiler.lowering.values import Cache, Softmax, Vector
from cfdsl.compiler.lowering.vectors import materialise
from cfdsl.compiler.plan import Stream
from cfdsl.dsl.graph import ITEMSIZE, Node, leaf_of
from cfdsl.dsl.placement import Partial
from cfdsl.errors import ConfigError, NotLowered


def early_scalars(b: Builder) -> None:
    """Lengths, positions and rope angles: fetched first of all, so that their latency hides behind the projections."""
    for node in (node for node in b.placed.graph.nodes if node not in b.lost):
        if node.op == "append":
            clamped(b, node.args[3], "tokens", node.args[0])
        if node.op == "rope":
            angles(b, node)


def clamped(b: Builder, length: Node, base: str, cache: Node) -> str:
    """The variable with a length argument, brought into 0 to the capacity of `cache`."""
    cache = leaf_of(cache)
    key = (length, cache, "clamped")  # of two caches with one length, each has its own capacity
    if key not in b.values:
        name = b.variable(base)
        b.step("length", f"{name} = {length.attr('name')}, within 0 and the cache's capacity", src=length.src, out=name,
               length=length.attr("name"), cache=cache.attr("name"), layout=cache.attr("layout"))  # fmt: skip
        b.values[key] = name
        b.flags.append(("LENGTH_CLAMPED", name, (cache.attr("name"), cache.attr("layout"))))
    return str(b.values[key])


def angles(b: Builder, node: Node) -> tuple[str, str]:
    """The variables with this thread's cosine and sine."""
    cos, sin, pos = node.args[1:4]
    key = (cos, sin, pos, "angles")
    if key not in b.values:
        pair = (b.variable("cosine"), b.variable("sine"))
        b.flags.append(("POSITION_CLAMPED", pair[0].replace("cosine", "position"), None))
        half = int(cos.type.shape[-1])
        if half > b.threads:
            raise ConfigError(name="warps", value=b.config.warps, expected=f"at least {-(-half // 32)}: {half} angles", src=node.src)
        b.step("angles", f"{pair[0]}, {pair[1]} = row {pos.attr('name')} of the tables", src=node.src, out=pair,
               cos=cos.attr("name"), sin=sin.attr("name"), pos=pos.attr("name"), half=half)  # fmt: skip
        b.values[key] = pair
    cosine, sine = b.values[key]
    return cosine, sine


def _used_elsewhere(b: Builder, x: Node, user: Node) -> bool:
    """Whether somebody besides `user` reads `x`, or what `x` is a view of: the same shared memory."""
    graph = b.placed.graph
    if any(x is output for _, output in graph.outputs) or any(other is not user for other in graph.users(x)):
        return True
    return x.op in ("reshape", "split_heads", "merge_heads") and _used_elsewhere(b, x.args[0], x)


def lower_rope(b: Builder, node: Node) -> None:
    """Rotate the heads of this CTA's slice, where they are."""
    x = node.args[0]
    if _used_elsewhere(b, x, node):
        raise NotLowered(op="rope", why="it rotates in place, and its argument is used elsewhere too", src=node.src)
    vector = materialise(b, x)
    shape = b.local(node)
    cos, sin = angles(b, node)
    half = int(node.args[1].type.shape[-1])
    b.step(
        "rope", f"{vector.buffer}: rotate {shape[1]} heads in place", reads=(vector.buffer,), writes=(vector.buffer,), src=node.src,
        x=vector.buffer, heads=shape[1], dim=shape[2], half=half, interleaved=node.attr("style") == "interleaved", cos=cos, sin=sin,
    )  # fmt: skip
    b.values[node] = vector


def cache_value(b: Builder, node: Node) -> Cache:
    """The cluster's heads of a cache, whichever view or append of it `node` is."""
    if node.op == "append":
        return b.values[node]
    sliced = node.op == "slice_grid"
    leaf = node.args[0] if sliced else node
    heads, dim = int(leaf.type.shape[1]), int(leaf.type.shape[3])
    base = b.grid_offset(heads, 1) if sliced else Affine()
    return Cache(leaf.attr("name"), leaf.attr("layout"), max(1, heads // b.groups) if sliced else heads, heads, dim, base)


def lower_append(b: Builder, node: Node) -> None:
    """One rank of one cluster writes the new token of each head; everybody else keeps it in shared memory."""
    cache = cache_value(b, node.args[0])
    k, v = materialise(b, node.args[1]), materialise(b, node.args[2])
    length = clamped(b, node.args[3], "tokens", node.args[0])
    repeat = max(1, b.groups // cache.all_heads) * b.splits  # clusters that hold the same head
    b.step(
        "append", f"{cache.name}[{length}] = ({k.buffer}, {v.buffer}), by rank 0", reads=(k.buffer, v.buffer), src=node.src,
        cache=cache, k=k.buffer, v=v.buffer, tokens=length, length=node.args[3].attr("name"), repeat=repeat,
    )  # fmt: skip
    b.values[node] = Cache(cache.name, cache.layout, cache.heads, cache.all_heads, cache.dim, cache.base, (k.buffer, v.buffer))


def lower_attend(b: Builder, node: Node) -> None:
    """Stream the rank's token tiles of each KV head, fold them into a running softmax, then combine the warps."""
    q, cache = materialise(b, node.args[0]), cache_value(b, node.args[1])
    if cache.appended is None:
        raise NotLowered(op="attend", why="its cache has no token appended", src=node.src)
    heads, dim = b.local(node)[1:]
    groups, tile = _kv_tile(b, node, heads // cache.heads, dim)
    out, stats = b.buffer("o", (heads * dim,)), b.buffer("stats", (heads, 2))
    for head in range(cache.heads):
        part_o, part_ml = b.buffer("part_o", (groups, tile["group"], dim)), b.buffer("part_ml", (groups, tile["group"], 2))
        _decode(b, node, q, cache, head, tile, part_o, part_ml)
        b.step(
            "combine_warps", f"{out}, {stats} = terms of the warps combined", reads=(part_o, part_ml), writes=(out, stats), src=node.src,
            part_o=part_o, part_ml=part_ml, out=out, stats=stats, head=head, **tile,
        )  # fmt: skip
    if isinstance(b.placed.of(node).cluster, Partial):
        b.values[node] = Softmax(out, stats, heads, dim)
        return
    whole = b.buffer("attended", (heads * dim,))
    b.step("lse_combine", f"{whole} = {out} normalised", reads=(out, stats), writes=(whole,), src=node.src, box=out, stats=stats,
           out=whole, heads=heads, block=dim, ranks=1, own=True)  # fmt: skip
    b.values[node] = Vector(whole, heads * dim)


def _kv_tile(b: Builder, node: Node, group: int, dim: int) -> tuple[int, dict[str, Any]]:
    """Groups of warps that take different tokens, and the geometry of a tile that the steps of one KV head share (its `group` query
    heads). ConfigError where there are too few warps, or a stage is too small for one step of tokens."""
    warps, stage_bytes, itemsize = b.config.warps, b.config.stage_bytes, ITEMSIZE[node.args[1].types[0].dtype]
    if not (groups := token_groups(group, warps)):
        need = head_groups(group)
        raise ConfigError(name="warps", value=warps, expected=f"at least {need}: {group} query heads of a KV head", src=node.src)
    tokens = tile_tokens(group, dim, itemsize, stage_bytes, warps)
    if not tokens:
        need = least_kv_stage(group, dim, itemsize, warps)
        raise ConfigError(name="stage_bytes", value=stage_bytes, expected=f"at least {need}, one step of tokens", src=node.src)
    batches, ahead = _batches(-(-group // head_groups(group)), dim, b.config.ctas_per_sm)
    return groups, {"group": group, "dim": dim, "tokens_per_tile": tokens, "ahead": ahead, "batches": batches}


def _decode(b: Builder, node: Node, q: Vector, cache: Cache, head: int, tile: dict[str, Any], part_o: str, part_ml: str) -> None:
    """The load stream of one KV head's tokens, and the step that folds them into each warp's softmax terms."""
    assert cache.appended is not None
    k, v = cache.appended
    dim, itemsize = tile["dim"], ITEMSIZE[node.args[1].types[0].dtype]
    scale = 1 / math.sqrt(dim) if node.attr("scale") is None else node.attr("scale")
    stride = dim if cache.layout == "bhtd" else cache.all_heads * dim
    pair = (f"{cache.name}_k", f"{cache.name}_v")
    b.streams.append(
        Stream(cache.name, pair, itemsize, tile["tokens_per_tile"], dim, None, contiguous=stride == dim, ld=stride, src=node.src)
    )
    b.step(
        "decode", f"{part_o}, {part_ml} = softmax terms of head {head}, per warp", reads=(q.buffer, k, v), writes=(part_o, part_ml),
        src=node.src, stream=len(b.streams) - 1, q=q.buffer, k=k, v=v, cache=cache, head=head, stride=stride,
        scale=math.log2(math.e) * scale, tokens=clamped(b, _append_of(node).args[3], "tokens", node.args[1]),
        sharded=isinstance(b.placed.of(node).cluster, Partial), splits=b.splits if node.attr("across") == "all" else 1,
        part_o=part_o, part_ml=part_ml, **tile,
    )  # fmt: skip


def _batches(heads: int, dim: int, ctas_per_sm: int) -> tuple[int, bool]:
    """Batches of tokens that a warp takes per step for its `heads`, and whether the next ones are fetched ahead.

    Four at once hide the latency of a step's sums best, where one CTA has the registers of the SM and each lane at most one score; then
    fetching ahead only makes the code longer. Measured on an H200: Llama-3.1-8B at 4096 tokens 28.6 us, ahead 29.4; two at once 29.0.
    """
    scores = 4 * (1 << (heads - 1).bit_length())
    if ctas_per_sm == 1 and scores <= dim // 8:
        return 4, False
    return 2, ctas_per_sm == 1 or heads <= 2


def _append_of(node: Node) -> Node:
    cache = node.args[1]
    while cache.op != "append":
        cache = cache.args[0]
    return cache
