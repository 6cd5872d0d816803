"""The oracle, op by op against PyTorch, collective by collective, and what it says of bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.dsl.interpret import OracleError, interpret
from cfdsl.dsl.interpret.attention import finish_lse, merge_lse

MODEL = cf.ModelConfig("tiny", 32, 4, 2, 16)
MESHES = [cf.Mesh(*mesh) for mesh in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 4))]


def traced(spec: Callable[..., Any], batch: int = 2) -> cf.Graph:
    return cf.fusion(spec).trace(MODEL, batch=batch)


def bf16(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def y_of(graph: cf.Graph, tensors: dict[str, torch.Tensor], mesh: cf.Mesh) -> torch.Tensor:
    return interpret(graph, tensors, mesh, precision="f64", round_outputs=False).outputs["y"]


POINTWISE = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "silu": (lambda a, b: cf.silu(a), lambda a, b: F.silu(a)),
    "gelu": (lambda a, b: cf.gelu(a), lambda a, b: F.gelu(a, approximate="tanh")),
    "gelu exact": (lambda a, b: cf.gelu(a, tanh=False), lambda a, b: F.gelu(a)),
    "cast": (lambda a, b: cf.cast(a + b, "f16"), lambda a, b: (a + b).half().double()),
    "cast f32": (lambda a, b: cf.cast(a * b, "f32"), lambda a, b: a * b),
    "swiglu": (lambda a, b: cf.silu(a) * b, lambda a, b: F.silu(a) * b),
}


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_pointwise(name: str, mesh: cf.Mesh) -> None:
    ours, torchs = POINTWISE[name]

    def spec(m: cf.ModelConfig, batch: int) -> Any:
        a, b = cf.input("a", (batch, 32)), cf.input("b", (batch, 32))
        with cf.clusters(over=4) as axis:
            y = ours(cf.shard(a[:, axis], dim=1), b)  # b is replicated: sliced in passing where it meets a
        return cf.outputs(y=y)

    a, b = bf16(2, 32), bf16(2, 32, seed=1)
    torch.testing.assert_close(y_of(traced(spec), {"a": a, "b": b}, mesh), torchs(a.double(), b.double()))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_broadcasting(mesh: cf.Mesh) -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        a, row, column = cf.input("a", (batch, 32)), cf.weight("row", (32,)), cf.input("column", (batch, 1))
        with cf.clusters(over=4) as axis:
            y = cf.shard(a[:, axis], dim=1) * row + column
        return cf.outputs(y=y)

    a, row, column = bf16(2, 32), bf16(32, seed=1), bf16(2, 1, seed=2)
    got = y_of(traced(spec), {"a": a, "row": row, "column": column}, mesh)
    torch.testing.assert_close(got, a.double() * row.double() + column.double())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_split_concat_reshape_and_heads(mesh: cf.Mesh) -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        a = cf.input("a", (batch, 32))
        with cf.clusters(over=batch) as row:
            left, right = cf.split(a[row], (8, 24), dim=1)
            turned = cf.concat((right, left), dim=1)
            y = cf.merge_heads(cf.reshape(cf.split_heads(turned, 4), (batch, 8, 4)))
        return cf.outputs(y=y)

    a = bf16(4, 32)
    torch.testing.assert_close(y_of(traced(spec, 4), {"a": a}, mesh), torch.cat((a[:, 8:], a[:, :8]), 1).double())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_concat_slices_what_is_whole_where_it_meets_slices(mesh: cf.Mesh) -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        a, b = cf.input("a", (2, 32)), cf.input("b", (1, 32))
        with cf.clusters(over=4) as axis:
            y = cf.concat([cf.shard(a[:, axis], 1), b, a], dim=0)
        return cf.outputs(y=y)

    a, b = bf16(2, 32), bf16(1, 32, seed=1)
    torch.testing.assert_close(y_of(traced(spec), {"a": a, "b": b}, mesh), torch.cat((a, b, a)).double())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_bias_of_heads_that_are_cut_by_their_dimension(mesh: cf.Mesh) -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        with cf.clusters(over=4) as axis:
            w = cf.weight("w", (24, 32)).split_heads(3)[:, axis]
            y = cf.linear(cf.input("x", (batch, 32)), w, cf.weight("b", (3, 8)))
        return cf.outputs(y=y)

    t = {"x": bf16(2, 32), "w": bf16(24, 32, seed=1), "b": bf16(3, 8, seed=2)}
    want = (t["x"].double() @ t["w"].double().T).reshape(2, 3, 8) + t["b"].double()
    torch.testing.assert_close(y_of(traced(spec), t, mesh), want)


def ffn(m: cf.ModelConfig, batch: int) -> Any:
    """Gate, up and down, split-K over the grid and the cluster: every kind of linear."""
    x = cf.input("x", (batch, 32))
    gate, up, down = cf.weight("gate", (64, 32)), cf.weight("up", (64, 32)), cf.weight("down", (32, 64))
    with cf.clusters(over=4) as part:
        a = cf.cluster_gather(cf.silu(cf.linear(x, gate[part], shard="out")) * cf.linear(x, up[part], shard="out"))
        terms = cf.cluster_reduce(cf.linear(a, down[:, part], shard="in"))
    return cf.outputs(y=cf.grid_reduce(terms) + x)


def ffn_tensors() -> dict[str, torch.Tensor]:
    return {"x": bf16(2, 32), "gate": bf16(64, 32, seed=1), "up": bf16(64, 32, seed=2), "down": bf16(32, 64, seed=3)}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_ffn_with_grid_reduce(mesh: cf.Mesh) -> None:
    t = {name: value.double() for name, value in ffn_tensors().items()}
    want = (F.silu(t["x"] @ t["gate"].T) * (t["x"] @ t["up"].T)) @ t["down"].T + t["x"]
    torch.testing.assert_close(y_of(traced(ffn), ffn_tensors(), mesh), want)


@pytest.mark.parametrize("shard", [None, "out"])
@pytest.mark.parametrize("mesh", [*MESHES, cf.Mesh(3, 4), cf.Mesh(30, 16)], ids=str)
def test_linear_outside_of_clusters_is_cut_over_all_ctas(shard: str | None, mesh: cf.Mesh) -> None:
    """36 rows on 1 to 480 CTAs: uneven slices, and CTAs without any row."""

    def spec(m: cf.ModelConfig, batch: int) -> Any:
        return cf.outputs(y=cf.linear(cf.input("x", (batch, 32)), cf.weight("w", (36, 32)), cf.weight("b", (36,)), shard=shard))

    x, w, b = bf16(2, 32), bf16(36, 32, seed=1), bf16(36, seed=2)
    got = y_of(traced(spec), {"x": x, "w": w, "b": b}, mesh)
    torch.testing.assert_close(got, F.linear(x.double(), w.double(), b.double()))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("shard", [None, "tokens"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attend_over_a_cache_that_is_only_read(mesh: cf.Mesh, shard: str | None, scale: float | None) -> None:
    """Rows of 5 tokens, of 1, and of none, whose attention is 0."""

    def spec(m: cf.ModelConfig, batch: int) -> Any:
        q, length = cf.input("q", (batch, 4, 16)), cf.input("length", (batch,), "i32")
        with cf.clusters(over=2) as head:
            o = cf.attend(q[:, head], cf.kv_cache("kv", batch, 2, "tokens", 16)[head], length, scale=scale, shard=shard)
            o = cf.cluster_reduce(o) if shard else o
        return cf.outputs(y=cf.merge_heads(cf.grid_gather(o)))

    q, k, v = bf16(3, 4, 16), bf16(3, 2, 7, 16, seed=1), bf16(3, 2, 7, 16, seed=2)
    lengths = (5, 1, 0)
    tensors = {"q": q, "kv_k": k.clone(), "kv_v": v.clone(), "length": torch.tensor(lengths, dtype=torch.int32)}
    for row, n in enumerate(lengths):
        tensors["kv_k"][row, :, n:] = tensors["kv_v"][row, :, n:] = float("nan")
    want = torch.zeros(3, 4, 16, dtype=torch.float64)
    for row, n in enumerate(lengths[:2]):
        keys, values = (t[row, :, :n].double().repeat_interleave(2, 0) for t in (k, v))
        want[row] = F.scaled_dot_product_attention(q[row, :, None].double(), keys, values, scale=scale)[:, 0]
    torch.testing.assert_close(y_of(traced(spec, 3), tensors, mesh), want.flatten(1))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 1000))
def test_lse_merge_is_softmax_of_everything(counts: list[int], seed: int) -> None:
    """Any split of the tokens, empty parts included, and scores far apart."""
    generator = torch.Generator().manual_seed(seed)
    parts, all_scores, all_values = [], [], []
    for n in counts:
        s = 300 * torch.randn(2, n, generator=generator, dtype=torch.float64)
        v = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
        m = s.amax(1) if n else torch.full((2,), -torch.inf, dtype=torch.float64)
        p = (s - m[:, None]).exp() if n else s
        parts.append((m, p.sum(1), torch.einsum("bn,bnd->bd", p, v)))
        all_scores.append(s)
        all_values.append(v)
    _, total, o = merge_lse(parts)
    got = finish_lse(total, o)
    want = torch.einsum("bn,bnd->bd", torch.cat(all_scores, 1).softmax(1), torch.cat(all_values, 1)) if sum(counts) else torch.zeros(2, 3)
    torch.testing.assert_close(got, want.double())


def test_terms_combine_in_rank_order() -> None:
    """1e8 + 1 - 1e8 is 0 in float32, in this order and no other."""

    def spec(m: cf.ModelConfig, batch: int) -> Any:
        x, w = cf.input("x", (batch, 4)), cf.weight("w", (1, 4), "f32")
        with cf.clusters(over=1):
            y = cf.cluster_reduce(cf.linear(x, w, shard="in"))
        return cf.outputs(y=y)

    tensors = {"x": torch.ones(1, 4).bfloat16(), "w": torch.tensor([[1e8, 1.0, -1e8, 3.0]])}
    for ranks, want in ((4, 3.0), (1, None)):
        got = interpret(traced(spec, 1), tensors, cf.Mesh(1, ranks), round_outputs=False).outputs["y"].item()
        assert want is None or got == want


def test_graph_is_placed_on_one_cta_per_unit_by_default() -> None:
    got, want = (interpret(traced(ffn), ffn_tensors(), *mesh).traffic for mesh in ((), (cf.Mesh(4, 1),)))
    assert got == want


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("x", None, "argument 'x' must be a tensor bf16[2,32], got nothing."),
        ("x", torch.zeros(2, 32), "argument 'x' must be a tensor bf16[2,32], got float32[2,32]."),
        ("up", bf16(64, 31), "argument 'up' must be a tensor bf16[64,32], got bfloat16[64,31]."),
        ("x", 3, "argument 'x' must be a tensor bf16[2,32], got a int."),
        ("down", bf16(32), "argument 'down' must be a tensor bf16[32,64], got bfloat16[32]."),
    ],
)
def test_bad_tensors_are_named(name: str, value: torch.Tensor | int | None, text: str) -> None:
    tensors = {**ffn_tensors(), name: value}
    if value is None:
        del tensors[name]
    with pytest.raises(cf.errors.ArgumentError) as caught:
        interpret(traced(ffn), tensors)
    assert str(caught.value).startswith(text)


def test_tensors_come_by_name() -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'tensors' must be a dict of tensors by the graph's names, got a list"):
        interpret(traced(ffn), list(ffn_tensors().values()))  # type: ignore[arg-type]


def test_all_bad_tensors_are_named_at_once() -> None:
    tensors = {**ffn_tensors(), "x": torch.zeros(2, 32)}
    del tensors["up"]
    with pytest.raises(cf.Errors) as caught:
        interpret(traced(ffn), tensors)
    assert [error.message for error in caught.value.errors] == [
        "argument 'x' must be a tensor bf16[2,32], got float32[2,32].",
        "argument 'up' must be a tensor bf16[64,32], got nothing.",
    ]


def test_bad_precision() -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'precision' must be 'f32' or 'f64', got 'bf16'"):
        interpret(traced(ffn), ffn_tensors(), precision="bf16")


def test_named_sizes_must_agree() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        return cf.outputs(y=cf.input("a", (batch, 4), "f32") + cf.input("b", (batch, 4), "f32"))

    graph = cf.parse(cf.to_text(traced(spec)).replace("[2,4]", "[n,4]"))
    with pytest.raises(cf.errors.ArgumentError, match="argument 'b' must be a tensor"):
        interpret(graph, {"a": torch.zeros(2, 4), "b": torch.zeros(3, 4)})


def _claims(graph: cf.Graph, mesh: cf.Mesh, op: str, placement: cf.Placement) -> cf.PlacedGraph:
    """`graph` placed, but for one op that claims another placement."""
    placed = cf.place(graph, mesh)
    (node,) = (node for node in graph.nodes if node.op == op)
    return cf.PlacedGraph(graph, mesh, {**placed.placements, node: (placement,)})


def test_a_claim_of_replication_is_checked() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> Any:
        with cf.clusters(over=1):
            y = cf.cluster_gather(cf.silu(cf.shard(cf.input("x", (batch, 4)), dim=1)))
        return cf.outputs(y=y)

    lying = _claims(traced(spec), cf.Mesh(1, 2), "silu", cf.Placement())
    text = r"silu at .*test_interpret.py:\d+: placed \[R, R\], but rank \(0, 0\) holds \(\(0, 2\), \(0, 2\)\) of \(2, 4\)"
    with pytest.raises(OracleError, match=text):
        interpret(lying, {"x": bf16(2, 4)})


def test_holders_of_an_output_must_agree_and_leave_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfdsl.dsl.interpret import run

    def spec(m: cf.ModelConfig, batch: int) -> Any:
        with cf.clusters(over=2) as axis:
            y = cf.silu(cf.input("x", (batch, 4))[axis])
        return cf.outputs(y=y)

    monkeypatch.setattr(run, "_check_claim", lambda *_: None)
    handler = run.HANDLERS["slice_grid"]
    monkeypatch.setitem(run.HANDLERS, "slice_grid", lambda m, node, rank, args: handler(m, node, (0, 0), args))
    with pytest.raises(OracleError, match="the ranks together do not hold all of an output of shape"):
        interpret(traced(spec), {"x": bf16(2, 4)})
