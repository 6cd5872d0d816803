"""The text of a graph: readable, stable, and it parses back to the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)

PLACED = """\
fusion attention(dtype="bf16", over=2)
mesh 2 clusters x 4 ranks

%x = input()                                                      : bf16[1,64]           [R, R]
%residual = input()                                               : bf16[1,64]           [R, R]
%pos = input()                                                    : i32[1]               [R, R]
%length = input()                                                 : i32[1]               [R, R]
%cos = input()                                                    : f32[positions,8]     [R, R]
%sin = input()                                                    : f32[positions,8]     [R, R]
%wq = weight()                                                    : bf16[64,64]          [R, R]
%wk = weight()                                                    : bf16[32,64]          [R, R]
%wv = weight()                                                    : bf16[32,64]          [R, R]
%wo = weight()                                                    : bf16[64,64]          [R, R]
%0 = add(%x, %residual)                                           : f32[1,64]            [R, R]
%norm = weight()                                                  : bf16[64]             [R, R]
%1 = rms_norm(%0, %norm, eps=1e-05)                               : f32[1,64]            [R, R]
%2 = split_heads(%wq, dim=0, heads=4)                             : bf16[4,16,64]        [R, R]
%3 = slice_grid(%2, dim=0)                                        : bf16[4,16,64]        [S(0), R]
%4 = linear(%1, %3, across="cluster", shard="out")                : f32[1,4,16]          [S(1), S(2)]
%5 = split_heads(%wk, dim=0, heads=2)                             : bf16[2,16,64]        [R, R]
%6 = slice_grid(%5, dim=0)                                        : bf16[2,16,64]        [S(0), R]
%7 = linear(%1, %6, across="cluster", shard="out")                : f32[1,2,16]          [S(1), S(2)]
%8 = split_heads(%wv, dim=0, heads=2)                             : bf16[2,16,64]        [R, R]
%9 = slice_grid(%8, dim=0)                                        : bf16[2,16,64]        [S(0), R]
%10 = linear(%1, %9, across="cluster", shard="out")               : f32[1,2,16]          [S(1), S(2)]
%11, %12, %13 = cluster_gather(%4, %7, %10)                       : f32[1,4,16], f32[1,2,16], f32[1,2,16]  [S(1), R], [S(1), R], [S(1), R]
%14 = rope(%11, %cos, %sin, %pos, rotary_dim=16, style="half")    : f32[1,4,16]          [S(1), R]
%15 = rope(%12, %cos, %sin, %pos, rotary_dim=16, style="half")    : f32[1,2,16]          [S(1), R]
%cache = kv_cache(layout="bhtd")                                  : bf16[1,2,tokens,16]  [R, R]
%16 = slice_grid(%cache, dim=1)                                   : bf16[1,2,tokens,16]  [S(1), R]
%17 = append(%16, %15, %13, %length)                              : bf16[1,2,tokens,16]  [S(1), R]
%18 = attend(%14, %17, across="cluster", scale=None, shard="tokens")  : f32[1,4,16]          [S(1), P(lse)]
%19 = cluster_reduce_scatter(%18, dim=2)                          : f32[1,4,16]          [S(1), S(2)]
%20 = grid_gather(%19)                                            : f32[1,4,16]          [R, R]
%21 = merge_heads(%20)                                            : f32[1,64]            [R, R]
%22 = linear(%21, %wo, across="all", shard="out")                 : f32[1,64]            [S(1), S(1)]
%23 = add(%22, %0)                                                : f32[1,64]            [S(1), S(1)]

effects %17
outputs y=%23
"""


def test_the_text_of_a_placed_graph(block: cf.Fusion) -> None:
    graph = block.trace(MODEL)
    assert cf.to_text(cf.place(graph, cf.Mesh(2, 4)), lines=False) == PLACED


def test_the_users_lines_are_comments(block: cf.Fusion) -> None:
    lines = cf.to_text(block.trace(MODEL)).splitlines()
    assert lines[:3] == ['fusion attention(dtype="bf16", over=2)', f"# {Path(block.file)}", ""]
    (gather,) = (line for line in lines if "cluster_gather" in line)
    code = Path(block.file).read_text().splitlines()
    number = next(n for n, line in enumerate(code, 1) if "= exchange(q, k, v)" in line)
    assert gather == (
        f"%11, %12, %13 = cluster_gather(%4, %7, %10)                       : f32[1,4,16], f32[1,2,16], f32[1,2,16]  # conftest.py:{number}"
    )


@pytest.mark.parametrize("qkv", ["rows", "splitk"])
@pytest.mark.parametrize("out", ["gather", "atomic"])
def test_parsing_gives_the_same_graph(block: cf.Fusion, qkv: str, out: str) -> None:
    graph = block.trace(MODEL, qkv=qkv, out=out)
    for text in (cf.to_text(graph), cf.to_text(cf.place(graph, cf.Mesh(2, 2)))):
        again = cf.parse(text)
        assert again == graph
        assert all(a is b for a, b in zip(again.nodes, graph.nodes, strict=True))
        assert [node.src.code for node in again.nodes] == [node.src.code for node in graph.nodes]
        assert cf.to_text(again) == cf.to_text(graph)


def test_without_comments_the_lines_are_those_of_the_text(block: cf.Fusion) -> None:
    text = cf.to_text(block.trace(MODEL), lines=False)
    again = cf.verify(cf.parse(text))
    assert cf.to_text(again, lines=False) == text
    (add,) = (node for node in again.nodes if node.op == "rms_norm")
    assert (add.src.file, text.splitlines()[add.src.line - 1]) == ("<text>", add.src.code)


def test_files_of_one_name_keep_their_paths(tmp_path: Path) -> None:
    makers = []
    for folder in "ab":
        file = tmp_path / folder / "part.py"
        file.parent.mkdir()
        file.write_text("def make(x): return cf.silu(x)\n")
        space: dict[str, Any] = {"cf": cf}
        exec(compile(file.read_text(), str(file), "exec"), space)
        makers.append(space["make"])

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 4))
        return cf.outputs(y=makers[0](x) + makers[1](x + x))

    graph = spec.trace(MODEL)
    text = cf.to_text(graph)
    assert f"# {tmp_path}/a/part.py:1" in text
    assert f"# {tmp_path}/b/part.py:1" in text
    assert cf.parse(text) == graph


def test_unused_results_of_an_exchange() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        a, b, c = cf.split(cf.input("x", (batch, 6)), (1, 2, 3), dim=1)
        return cf.outputs(y=b)

    graph = spec.trace(MODEL)
    text = cf.to_text(graph, lines=False)
    assert "_, %0, _ = split(%x, dim=1, sizes=(1, 2, 3))" in text
    assert cf.to_text(cf.parse(text), lines=False) == text


# ---- any graph ---------------------------------------------------------------------------------------------------------------------


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """A list of steps, each an op and two earlier values."""
    ops = st.sampled_from(["add", "mul", "silu", "gelu", "linear", "norm", "cast", "split", "reduce", "input", "heads"])
    index = st.integers(0, 30)
    return draw(st.lists(st.tuples(ops, index, index), min_size=1, max_size=20))


def build(program: list[tuple[str, int, int]], batch: int, over: bool) -> cf.Graph:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        values = [cf.input("x", (batch, m.hidden))]
        if over:
            with cf.clusters(over=4) as axis:
                values.append(values[0][:, axis])
        for step, (op, i, j) in enumerate(program):
            a, b = values[i % len(values)], values[j % len(values)]
            if op in ("add", "mul"):
                values.append(getattr(cf, op)(a, b))
            elif op in ("silu", "gelu"):
                values.append(cf.silu(a) if op == "silu" else cf.gelu(a, tanh=bool(j % 2)))
            elif op == "linear":
                values.append(cf.linear(a, cf.weight(f"w{step}", (m.hidden, m.hidden)), shard=(None, "out", "in")[j % 3]))
            elif op == "norm":
                values.append(cf.rms_norm(a, cf.weight(f"n{step}", (m.hidden,)), 10.0 ** -(j % 9)))
            elif op == "cast":
                values.append(cf.cast(a, ("bf16", "f32")[j % 2]))
            elif op == "split":
                values.append(cf.concat(cf.split(a, (m.hidden - 8, 8), dim=1)[::-1], dim=1))
            elif op == "reduce":
                values.extend(cf.cluster_reduce(a, b))
            elif op == "heads":
                values.append(cf.merge_heads(cf.split_heads(a, 4)))
            else:
                values.append(cf.input(f"i{step}", (batch, m.hidden), ("f32", None)[j % 2]))
        return cf.outputs(y=values[-1], z=values[len(values) // 2])

    return cf.fusion(spec).trace(MODEL, batch=batch)


@given(programs(), st.integers(1, 3), st.booleans())
def test_any_graph_survives_the_round_trip(program: list[tuple[str, int, int]], batch: int, over: bool) -> None:
    graph = cf.verify(build(program, batch, over))
    again = cf.parse(cf.to_text(graph))
    assert again == graph
    assert again.nodes == graph.nodes
    bare = cf.to_text(graph, lines=False)
    assert cf.to_text(cf.verify(cf.parse(bare)), lines=False) == bare


# ---- mistakes ----------------------------------------------------------------------------------------------------------------------

HEAD = 'fusion f(dtype="bf16")\n%x = input() : bf16[1,4]\n'


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 0, "the text has no header"),
        (HEAD, 2, "the text has no outputs"),
        ("fusion f\n", 1, "a header looks like `fusion name(dtype=..., over=...)`"),
        (HEAD + "%0 = silu %x : f32[1,4]\n", 3, "a node looks like `%name = op(%argument, attribute=value) : dtype[shape]`"),
        (HEAD + "%0 = silu(%z) : f32[1,4]\n", 3, "%z is not defined above"),
        (HEAD + "%0 = silu(3) : f32[1,4]\n", 3, "its arguments are not %names and attribute=value pairs"),
        (HEAD + "%0 = silu(%x, a=b) : f32[1,4]\n", 3, "its arguments are not %names and attribute=value pairs"),
        (HEAD + "%0 = silu(%x) : f32[1,4], f32[1,4]\n", 3, "1 results have 2 types"),
        (HEAD + "%x = silu(%x) : f32[1,4]\n", 3, "%x is defined twice"),
        (HEAD + "outputs y=%0\n", 3, "%0 is not defined above"),
    ],
)
def test_a_line_that_cannot_be_read(text: str, line: int, problem: str) -> None:
    with pytest.raises(cf.errors.TextSyntax) as caught:
        cf.parse(text)
    assert (caught.value.line, caught.value.problem) == (line, problem)


def test_the_message_of_a_line_that_cannot_be_read() -> None:
    with pytest.raises(cf.errors.TextSyntax) as caught:
        cf.parse(HEAD + "what\n")
    assert str(caught.value) == (
        "line 3 of the graph's text cannot be read: a node looks like `%name = op(%argument, attribute=value) : dtype[shape]`: 'what'.\n"
        "  remedy: write one node per line, as to_text prints it: %name = op(%argument, attribute=value) : dtype[shape]."
    )
