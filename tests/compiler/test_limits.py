"""What the README says that the compiler refuses: each row of its table, by specs that trace, can be placed, and are not lowered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler.cost import choose
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.schedule import schedule
from cfdsl.errors import NotLowered

README = Path(__file__).parents[2] / "README.md"
HEAD = "| of | not compiled yet |\n|---|---|\n"
MODEL = cf.ModelConfig("toy", hidden=512, heads=8, kv_heads=4, head_dim=64)
Make = Callable[[], Any]  # the value of the one output


def x(batch: int = 1, n: int = 512) -> cf.Value:
    return cf.input("x", (batch, n))


def w(name: str = "w", dtype: str | None = None) -> cf.Value:
    return cf.weight(name, (512, 512), dtype)


def rows(of: cf.Value, weight: cf.Value) -> cf.Value:
    return cf.linear(of, weight, shard="out")


def heads(name: str, n: int = 8, batch: int = 1) -> cf.Value:
    return cf.input(name, (batch, n, 64))


def index(name: str = "i", batch: int = 1) -> cf.Value:
    return cf.input(name, (batch,), "i32")


def best() -> cf.Value:
    found: cf.Value = cf.grid_reduce(cf.argmax(rows(x(), w("scores"))))
    return found


def table(name: str = "t") -> cf.Value:
    return cf.input(name, ("positions", 32), "f32")


def cache(batch: int = 1) -> cf.Value:
    return cf.kv_cache("kv", batch, 4, "tokens", 64)


def attended(at: cf.Value, batch: int = 1) -> cf.Value:
    k = heads("k", 4, batch)
    return cf.attend(heads("q", 8, batch), cache(batch).append(k, k, at=at))


def in_clusters(make: Callable[[Any], Any]) -> Any:
    with cf.clusters(over=4) as axis:
        return make(axis)


def term(axis: Any, name: str = "w") -> cf.Value:
    return cf.linear(x()[:, axis], w(name)[:, axis])


def turned_and_kept() -> cf.Value:
    q = in_clusters(lambda axis: cf.cluster_gather(cf.linear(x(), w().split_heads(8), shard="out")))
    return cf.rope(q, table(), table(), index()) + q


REFUSED: dict[str, tuple[Make, ...]] = {
    "linear": (
        lambda: rows(x(2), w()),
        lambda: rows(x(), cf.concat([w("a"), w("b")], dim=0)),
        lambda: rows(x(), cf.cast(w(dtype="f32"), "bf16")),
    ),
    "rms_norm, rope, append, attend, embedding": (
        lambda: cf.rms_norm(x(2), cf.weight("n", (512,)), 1e-5),
        lambda: cf.rope(heads("q", batch=2), table(), table(), index(batch=2)),
        lambda: attended(index(batch=2), batch=2),
        lambda: cf.embedding(index(batch=2), w("table")),
    ),
    "attend": (lambda: cf.attend(heads("q"), cache(), index()),),
    "gelu": (lambda: cf.gelu(x(), tanh=False),),
    "rope": (
        lambda: cf.rope(heads("q"), table() * table(), table("s"), index()),
        lambda: cf.rope(heads("q"), table(), table(), best()),
        turned_and_kept,
    ),
    "append, embedding": (
        lambda: attended(best()),
        lambda: cf.embedding(best(), w("table")),
        lambda: cf.embedding(index(), cf.reshape(w("table"), (1024, 256))),
    ),
    "add, mul": (lambda: x() * cf.input("s", (1, 1)), lambda: heads("q") + cf.input("s", (1, 8, 1))),
    "concat": (lambda: cf.concat([heads("a"), heads("b")], dim=2),),
    "shard, cluster_reduce_scatter": (
        lambda: cf.cluster_gather(cf.silu(cf.shard(heads("q"), 1))),
        lambda: in_clusters(lambda axis: cf.cluster_reduce_scatter(cf.linear(x(), w().split_heads(8), shard="in"), dim=1)),
    ),
    "cluster_reduce": (lambda: cf.grid_reduce(cf.cluster_reduce(cf.argmax(rows(x(), w())))),),
    "grid_reduce": (lambda: cf.grid_reduce(in_clusters(term)),),
    "grid_reduce_scatter": (
        lambda: cf.grid_reduce_scatter(in_clusters(lambda axis: term(axis) + term(axis, "v")), dim=1),
    ),
    "outputs": (lambda: cf.argmax(x()),),
}


def test_the_readme_lists_them() -> None:
    """And nothing else: what is lowered one day leaves both."""
    listed = README.read_text().split(HEAD)[1].split("\n\n")[0].splitlines()
    assert [row.split("|")[1].strip().replace("`", "") for row in listed] == list(REFUSED)


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, makes in REFUSED.items() for at in range(len(makes))])
def test_what_is_listed_is_refused_with_its_line(name: str, at: int) -> None:
    make = REFUSED[name][at]

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(out=make())

    graph = cf.verify(cf.fusion(spec).trace(MODEL))
    config = choose(graph, H100_SXM, {"cluster_size": 2}).config
    with pytest.raises(NotLowered) as caught:
        schedule(cf.place(graph, cf.Mesh(config.clusters, config.cluster_size, config.splits)), config)
    assert caught.value.op in name.split(", ")
    assert caught.value.src is not None
    assert caught.value.src.file == __file__
