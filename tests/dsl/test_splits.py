"""Clusters that share a unit by splitting its tokens: what is placed where, what is refused, and that the oracle looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cfdsl as cf
from cfdsl.dsl.interpret import OracleError, interpret
from cfdsl.dsl.place_rules.site import over_all_ctas

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)
R, S, P = cf.Replicate(), cf.Shard, cf.Partial
LSE = P(cf.ReduceOp.LSE)


def attention(after: Callable[[cf.Value], cf.Value], across: str = "all", shard: str | None = "tokens") -> cf.Fusion:
    """Attention over a cache that is not appended to; `after` makes an output of its result inside of the clusters block."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, length = cf.input("q", (batch, m.heads, m.head_dim)), cf.input("length", (batch,), "i32")
        cache = cf.kv_cache("kv", batch, m.kv_heads, "tokens", m.head_dim)
        with cf.clusters(over=m.kv_heads) as head:
            y = after(cf.attend(q[:, head], cache[head], length, shard=shard, across=across))
        return cf.outputs(y=y)

    return cf.fusion(spec)


def tensors(tokens: int = 9, length: int = 7) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(1)
    shapes = {"q": (1, 4, 16), "kv_k": (1, 2, tokens, 16), "kv_v": (1, 2, tokens, 16)}
    return {name: torch.randn(shape, generator=make).bfloat16() for name, shape in shapes.items()} | {
        "length": torch.tensor([length], dtype=torch.int32)
    }


# ---- mesh and placement


def test_a_mesh_counts_groups() -> None:
    mesh = cf.Mesh(64, 2, 8)
    assert (mesh.groups, mesh.ctas) == (8, 128)
    assert str(mesh) == "64 clusters (8 groups of 8 splits) x 2 ranks"
    assert (cf.Mesh(32, 4).groups, str(cf.Mesh(32, 4))) == (32, "32 clusters x 4 ranks")
    assert [str(cf.Mesh(1, 1)), str(cf.Mesh(2, 1, 2))] == ["1 cluster x 1 rank", "2 clusters (1 group of 2 splits) x 1 rank"]


def test_the_split_axis_is_printed_where_it_is_not_replicated() -> None:
    assert str(cf.Placement(S(1), S(2), LSE)) == "[S(1), S(2), P(lse)]"
    assert str(cf.Placement(S(1), S(2))) == "[S(1), S(2)]"


@pytest.mark.parametrize("mesh", [cf.Mesh(2, 2), cf.Mesh(6, 2, 3), cf.Mesh(4, 4, 4), cf.Mesh(8, 1, 2)], ids=str)
def test_terms_of_splits_stay_terms_until_the_grid_reduces_them(mesh: cf.Mesh) -> None:
    """On every mesh alike, of one split too."""
    for scatter in (True, False):
        move = (lambda o: cf.cluster_reduce_scatter(o, dim=2)) if scatter else cf.cluster_reduce
        placed = cf.place(attention(lambda o, move=move: cf.grid_reduce(move(o))).trace(MODEL), mesh)
        found = [placed.placements[node][0] for node in placed.graph.nodes if node.op in ("attend", "item")]
        assert found == [cf.Placement(S(1), LSE, LSE), cf.Placement(S(1), S(2) if scatter else R, LSE), cf.Placement()]


def test_text_round_trip() -> None:
    graph = attention(lambda o: cf.grid_reduce(cf.cluster_reduce(o))).trace(MODEL)
    text = cf.to_text(cf.place(graph, cf.Mesh(6, 2, 3)))
    assert "mesh 6 clusters (2 groups of 3 splits) x 2 ranks" in text
    assert re.search(r'attend\(.*, across="all", scale=None, shard="tokens"\).*\[S\(1\), P\(lse\), P\(lse\)\]', text)
    assert cf.verify(cf.parse(text)) == graph


# ---- refused

REFUSED: dict[str, tuple[Callable[[cf.Value], cf.Value], type[cf.CfdslError], str]] = {
    "no collective": (
        lambda o: cf.merge_heads(o),
        cf.errors.NeedsReduce,
        "merge_heads needs a value, but the result of attend is P(lse) on the cluster axis: each holder has only a term of it.\n"
        "remedy: needs cluster_reduce: call cluster_reduce on the result of attend before this line.",
    ),
    "the cluster only": (
        lambda o: cf.merge_heads(cf.cluster_reduce(o)),
        cf.errors.NeedsReduce,
        "merge_heads needs a value, but the result of cluster_reduce is P(lse) on the split axis: each holder has only a term of it.\n"
        "remedy: needs grid_reduce: call grid_reduce on the result of cluster_reduce before this line.",
    ),
    "an output of terms": (
        lambda o: cf.cluster_reduce(o),
        cf.errors.NeedsReduce,
        "output 'y' needs a value, but the result of cluster_reduce is P(lse) on the split axis: each holder has only a term of it.\n"
        "remedy: needs grid_reduce: call grid_reduce on the result of cluster_reduce before this line.",
    ),
    "gather of terms": (
        lambda o: cf.grid_gather(cf.cluster_reduce_scatter(o, dim=2)),
        cf.errors.WrongCollective,
        "grid_gather moves S(d) on the grid or the cluster axis -> R on both, but the result of cluster_reduce_scatter is placed "
        "[S(1), S(2), P(lse)].\nremedy: call grid_reduce on the result of cluster_reduce_scatter.",
    ),
    "reduce before the cluster": (
        lambda o: cf.grid_reduce(o),
        cf.errors.WrongCollective,
        "but the result of attend is placed [S(1), P(lse), P(lse)].\n"
        "remedy: call cluster_reduce or cluster_reduce_scatter on the result of attend.",
    ),
    "scatter over the grid": (
        lambda o: cf.grid_reduce_scatter(cf.cluster_reduce(o), dim=1),
        cf.errors.WrongCollective,
        "grid_reduce_scatter moves P(op) on the grid axis (values on the cluster axis) -> S(1) on both, but the result of cluster_reduce "
        "is placed [S(1), R, P(lse)].\nremedy: call grid_reduce on the result of cluster_reduce.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mesh", [cf.Mesh(2, 2), cf.Mesh(6, 2, 3)], ids=str)
def test_refused(name: str, mesh: cf.Mesh) -> None:
    after, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        cf.place(attention(after).trace(MODEL), mesh)
    said = re.sub(r" \(line \d+\)|\n  /\S+:\d+: .*", "", str(caught.value)).replace("\n  ", "\n")
    assert text.split("\nremedy")[0] in said
    assert said.endswith(text.partition("\n")[2])


@pytest.mark.parametrize(("shard", "across", "text"), [
    (None, "all", "argument 'across' must be 'cluster' where the tokens are not sharded, got 'all'."),
    ("tokens", "grid", "argument 'across' must be 'cluster' or 'all', got 'grid'."),
])  # fmt: skip
def test_across_is_checked(shard: str | None, across: str, text: str) -> None:
    with pytest.raises(cf.errors.ArgumentError, match=re.escape(text)):
        attention(cf.cluster_reduce, across, shard).trace(MODEL)


@pytest.mark.parametrize(("mesh", "text"), [
    (cf.Mesh(6, 2, 4), "argument 'splits' must be a number that divides 6 clusters, got 4."),
    (cf.Mesh(6, 2, 0), "argument 'splits' must be a number that divides 6 clusters, got 0."),
    (cf.Mesh(6, 2, 2), "2 work units cannot be spread over 3 groups of 2 clusters: neither number divides the other."),
])  # fmt: skip
def test_meshes_that_do_not_fit(mesh: cf.Mesh, text: str) -> None:
    with pytest.raises(cf.CfdslError, match=re.escape(text)):
        cf.place(attention(lambda o: cf.grid_reduce(cf.cluster_reduce(o))).trace(MODEL), mesh)


def test_splits_that_would_repeat_work_are_refused() -> None:
    graph = attention(cf.cluster_reduce, "cluster").trace(MODEL)
    cf.place(graph, cf.Mesh(2, 2))
    with pytest.raises(cf.errors.NothingToSplit, match="2 clusters share a unit, but spec has no attend"):
        cf.place(graph, cf.Mesh(4, 2, 2))


def mixed(make: Callable[[Any, cf.Value, cf.Value], cf.Value]) -> cf.Graph:
    """A graph that splits tokens and does something else too."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (64, 64))
        rows = cf.linear(x, w, shard="out")  # cut over all CTAs
        q, length = cf.input("q", (batch, m.heads, m.head_dim)), cf.input("length", (batch,), "i32")
        with cf.clusters(over=m.kv_heads) as head:
            cache = cf.kv_cache("kv", batch, m.kv_heads, "tokens", m.head_dim)[head]
            o = cf.cluster_reduce(cf.attend(q[:, head], cache, length, shard="tokens", across="all"))
            z = make(head, x, rows)
        return cf.outputs(y=cf.grid_reduce(o), z=z)

    return spec.trace(MODEL)


def test_a_contraction_over_groups_would_be_added_once_per_split() -> None:
    graph = mixed(lambda head, x, rows: cf.grid_reduce(cf.linear(x[:, head], cf.weight("v", (64, 64))[:, head])))
    cf.place(graph, cf.Mesh(2, 2))
    text = "linear: the 2 splits of a group hold the same slice of dimension 1: a slice held twice would be added twice"
    with pytest.raises(cf.errors.PlacementMismatch, match=re.escape(text)):
        cf.place(graph, cf.Mesh(4, 2, 2))


def test_slices_of_all_ctas_and_of_groups_do_not_meet() -> None:
    graph = mixed(lambda head, x, rows: rows + x[:, head])
    cf.place(graph, cf.Mesh(2, 2))
    with pytest.raises(cf.errors.PlacementMismatch, match=r"is cut over all CTAs and the result of x\[axis\] .* over groups of 2 splits"):
        cf.place(graph, cf.Mesh(4, 2, 2))


def test_who_is_cut_over_all_ctas() -> None:
    graph = mixed(lambda head, x, rows: rows + x[:, head])
    found = {node.op: over_all_ctas(node) for node in graph.nodes}
    assert (found["linear"], found["add"], found["slice_grid"], found["attend"]) == (True, True, False, False)


# ---- the oracle


def expected(given: dict[str, torch.Tensor]) -> torch.Tensor:
    length = int(given["length"].clamp(0, given["kv_k"].shape[2]))
    q, k, v = (given[name].double() for name in ("q", "kv_k", "kv_v"))
    if length == 0:
        return torch.zeros_like(q)
    k, v = (t[:, :, :length].repeat_interleave(2, 1) for t in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v)[:, :, 0]


@pytest.mark.parametrize("length", [-1, 0, 1, 2, 7, 9, 12])
@pytest.mark.parametrize("mesh", [cf.Mesh(2, 1), cf.Mesh(4, 2, 2), cf.Mesh(3, 2, 3), cf.Mesh(4, 4, 4), cf.Mesh(16, 1, 4)], ids=str)
@pytest.mark.parametrize("dim", [None, 1, 2])
def test_holders_without_a_token_add_nothing(mesh: cf.Mesh, length: int, dim: int | None) -> None:
    """No appended token: of 0 or 1 tokens, most or all of the splits have an empty term."""
    close = cf.cluster_reduce if dim is None else (lambda o: cf.cluster_reduce_scatter(o, dim=dim))
    graph = attention(lambda o: cf.grid_reduce(close(o))).trace(MODEL)
    given = tensors(length=length)
    got = interpret(cf.place(graph, mesh), given, precision="f64", round_outputs=False).outputs["y"]
    torch.testing.assert_close(got, expected(given), rtol=1e-12, atol=1e-12)


def test_every_token_counts_once() -> None:
    """All keys equal: attention is the mean of the values, so a token lost or taken twice is seen."""
    given = tensors(tokens=32, length=32)
    given["kv_k"].zero_()
    graph = attention(lambda o: cf.grid_reduce(cf.cluster_reduce(o))).trace(MODEL)
    mean = given["kv_v"].double().mean(2).repeat_interleave(2, 1)
    for mesh in (cf.Mesh(2, 8), cf.Mesh(6, 2, 3), cf.Mesh(8, 4, 4)):
        torch.testing.assert_close(interpret(cf.place(graph, mesh), given, precision="f64", round_outputs=False).outputs["y"], mean)


def test_the_oracle_sees_splits_that_hold_different_terms() -> None:
    """A placement that says R where splits have terms of their own."""
    graph = attention(lambda o: cf.grid_gather(cf.cluster_reduce_scatter(o, dim=2))).trace(MODEL)
    mesh = cf.Mesh(4, 2, 2)
    at = {"attend": cf.Placement(S(1), LSE, LSE), "cluster_reduce_scatter": cf.Placement(S(1), S(2)), "grid_gather": cf.Placement()}
    honest = cf.place(attention(lambda o: cf.grid_reduce(cf.cluster_reduce(o))).trace(MODEL), mesh).placements
    names = {node.attr("name"): placement for node, placement in honest.items() if node.attr("name")}
    lies: dict[cf.Node, tuple[cf.Placement, ...]] = {}
    for node in graph.nodes:
        if node.op == "item":
            lies[node] = lies[node.args[0]]
        elif node.attr("name"):
            lies[node] = names[node.attr("name")]
        else:
            lies[node] = (at.get(node.op, cf.Placement(S(1))),)
    with pytest.raises(OracleError, match="hold different values: a collective is missing"):
        interpret(cf.PlacedGraph(graph, mesh, lies), tensors())
