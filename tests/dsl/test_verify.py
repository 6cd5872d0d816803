"""Verifying: a graph that somebody edited or rewrote must still follow the rule of every op."""

from __future__ import annotations

import pytest

import cfdsl as cf

GOOD = """\
fusion f(dtype="bf16", over=2)
%x = input() : bf16[1,64]
%w = weight() : bf16[32,64]
%length = input() : i32[1]
%k = input() : bf16[1,2,16]
%kv = kv_cache(layout="bhtd") : bf16[1,2,tokens,16]
%0 = slice_grid(%w, dim=0) : bf16[32,64]
%1 = linear(%x, %0, across="cluster", shard="out") : f32[1,32]
%2 = append(%kv, %k, %k, %length) : bf16[1,2,tokens,16]
%3 = attend(%k, %2, across="cluster", scale=None, shard="tokens") : f32[1,2,16]
%4, %5 = cluster_reduce(%1, %3) : f32[1,32], f32[1,2,16]
effects %2
outputs y=%4, z=%5
"""


def problem(before: str, after: str) -> str:
    """What verify says of the good graph with one edit, without the line."""
    assert before in GOOD
    with pytest.raises(cf.CfdslError) as caught:
        cf.verify(cf.parse(GOOD.replace(before, after)))
    return f"{type(caught.value).__name__}: {caught.value.message}"


def test_a_good_graph_is_returned() -> None:
    graph = cf.parse(GOOD)
    assert cf.verify(graph) is graph


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("f32[1,32]", "f32[1,64]", "InvalidGraph: the graph is not valid at linear: its type is f32[1,64] and should be f32[1,32]."),
        ("f32[1,32]", "bf16[1,32]", "InvalidGraph: the graph is not valid at linear: its type is bf16[1,32] and should be f32[1,32]."),
        (
            "%4, %5 = cluster_reduce(%1, %3) : f32[1,32],",
            "%4, %5 = cluster_reduce(%1, %3) : f32[1,2],",
            "InvalidGraph: the graph is not valid at cluster_reduce: its type is f32[1,2], f32[1,2,16] and should be "
            "f32[1,32], f32[1,2,16].",
        ),
        ("= linear(", "= matmul(", "InvalidGraph: the graph is not valid at matmul: there is no such op."),
        (
            'across="cluster", shard="out"',
            'across="cluster"',
            "InvalidGraph: the graph is not valid at linear: its arguments or attributes are not those of the op (KeyError: 'shard').",
        ),
        ("over=2", "over=3", "ShardDoesNotDivide: x[axis] cannot shard dimension 0 of size 32 over 3 work units."),
        ("%length = input() : i32[1]", "%length = input() : f32[1]", "DtypeMismatch: append expects at of dtype i32, got f32."),
        (
            'across="cluster", scale=None, shard="tokens"',
            'across="all", scale=None, shard=None',
            "ArgumentError: argument 'across' must be 'cluster' where the tokens are not sharded, got 'all'.",
        ),
        ('across="cluster", scale', 'across="grid", scale', "ArgumentError: argument 'across' must be 'cluster' or 'all', got 'grid'."),
        ('"bhtd"', '"thdb"', "ArgumentError: argument 'layout' must be 'bhtd' or 'bthd', got 'thdb'."),
    ],
)
def test_an_edited_graph_is_refused(before: str, after: str, message: str) -> None:
    assert problem(before, after) == message


def test_a_cache_is_appended_to_once() -> None:
    more = "%6 = append(%kv, %k, %k, %length, at=1) : bf16[1,2,tokens,16]\neffects %2, %6\n"
    found = problem("effects %2\n", more)
    assert found == "InvalidGraph: the graph is not valid at append: the cache 'kv' is appended to twice."


def test_a_name_stands_for_one_leaf() -> None:
    first, second = cf.parse(GOOD), cf.parse(GOOD.replace("[32,64]", "[34,64]").replace("1,32", "1,34"))
    both = cf.Graph("f", (first.outputs[0], ("z", second.outputs[0][1])), over=2)
    with pytest.raises(cf.errors.InvalidGraph) as caught:
        cf.verify(both)
    assert caught.value.message == "the graph is not valid at weight: the name 'w' stands for two leaves."
