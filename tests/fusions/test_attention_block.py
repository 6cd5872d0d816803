"""The attention block: the oracle of its spec against its plain PyTorch reference, over models, meshes, lengths and dataflows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.dsl.interpret import OracleResult, interpret
from cfdsl.errors import UnknownOption
from fusions.attention_block import attention_block

QKV, OUT, LAYOUTS = ("rows", "split_k"), ("gather", "atomic"), ("bhtd", "bthd")
DATAFLOWS = [{"qkv": qkv, "out": out} for qkv in QKV for out in OUT]
SPLIT = {"qkv": "grid", "out": "gather"}


def tiny(**fields: Any) -> cf.ModelConfig:
    return cf.ModelConfig(**{"name": "tiny", "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 16, **fields})


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def run(
    model: cf.ModelConfig, mesh: cf.Mesh, tensors: dict[str, torch.Tensor], precision: str, dtype: str = "bf16", **options: Any
) -> OracleResult:
    batch = len(tensors["x"])
    placed = cf.place(attention_block.trace(model, batch=batch, dtype=dtype, **options), mesh)
    return interpret(placed, tensors, precision=precision, round_outputs=False)


@st.composite
def launches(draw: st.DrawFn) -> dict[str, Any]:
    """A model, a mesh on which it can be placed, options, and lengths in and out of range."""
    kv_heads = draw(st.sampled_from((1, 2, 3, 4)))
    heads = kv_heads * draw(st.integers(1, 16))
    head_dim = draw(st.sampled_from((16, 32, 64)))
    options = {**draw(st.sampled_from([*DATAFLOWS, SPLIT, SPLIT])), "layout": draw(st.sampled_from(LAYOUTS))}
    options["residual"] = draw(st.booleans())
    model = tiny(
        hidden=16 * draw(st.integers(1, 6)), heads=heads, kv_heads=kv_heads, head_dim=head_dim, qkv_bias=draw(st.booleans()),
        rope_style=draw(st.sampled_from(("half", "interleaved"))), rotary_dim=2 * draw(st.integers(1, head_dim // 2)),
    )  # fmt: skip
    ranks = draw(st.sampled_from((1, 2, 4, 8, 16)))
    cut = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0]
    shared = [kv_heads * n for n in (2, 4) if (heads % (kv_heads * n) == 0) or (options["out"] == "gather" and kv_heads * n % heads == 0)]
    groups, splits = draw(st.sampled_from(cut + shared)), draw(st.integers(1, 4)) if options["qkv"] == "grid" else 1
    capacity = draw(st.integers(1, 40))
    length = st.one_of(st.sampled_from((0, 1, capacity - 1, capacity)), st.integers(-3, capacity + 3))
    return {
        "model": model, "mesh": cf.Mesh(groups * splits, ranks, splits), "options": options, "capacity": capacity,
        "lengths": draw(st.lists(length, min_size=1, max_size=3)), "dtype": draw(st.sampled_from(("bf16", "f16"))),
        "seed": draw(st.integers(0, 2**31)),
    }  # fmt: skip


@given(launch=launches(), precision=st.sampled_from(("f64", "f32")))
def test_oracle_equals_reference(launch: dict[str, Any], precision: str) -> None:
    model, options, dtype, lengths = launch["model"], launch["options"], launch["dtype"], launch["lengths"]
    tensors = attention_block.example_inputs(model, len(lengths), dtype, lengths, launch["capacity"], launch["seed"], **options)
    got = run(model, launch["mesh"], tensors, precision, dtype, **options)
    want = attention_block.reference(model, tensors, precision, **options)
    assert relative(got.outputs["y"], want["y"]) < (1e-12 if precision == "f64" else 2e-3)
    for name in ("cache_k", "cache_v"):
        assert got.caches[name].dtype == tensors[name].dtype
        if precision == "f64":
            assert same(got.caches[name], want[name])
        else:  # float32 sums of another order may round to the neighbouring 16-bit number
            torch.testing.assert_close(got.caches[name], want[name], rtol=1e-2, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("options", DATAFLOWS, ids=lambda o: f"{o['qkv']}-{o['out']}")
def test_every_cluster_size_and_dataflow(ranks: int, options: dict[str, str]) -> None:
    model = tiny(hidden=64, heads=8, kv_heads=4)
    tensors = attention_block.example_inputs(model, 2, "f16", [37, 5], 40, **options)
    want = attention_block.reference(model, tensors, **options)
    for clusters in (1, 2, 4, 8):
        got = run(model, cf.Mesh(clusters, ranks), tensors, "f64", "f16", **options)
        assert relative(got.outputs["y"], want["y"]) < 1e-13


@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_every_cluster_size_and_number_of_splits(ranks: int, splits: int) -> None:
    """Groups of one and of several query heads; the longest sequence has a token for some holders only, the shortest has none."""
    for kv_heads, groups in ((8, 4), (4, 4), (2, 1)):
        model = tiny(hidden=64, heads=8, kv_heads=kv_heads, qkv_bias=True)
        tensors = attention_block.example_inputs(model, 3, "f16", [37, 0, 1], 40, **SPLIT)
        want = attention_block.reference(model, tensors, **SPLIT)
        got = run(model, cf.Mesh(groups * splits, ranks, splits), tensors, "f64", "f16", **SPLIT)
        assert relative(got.outputs["y"], want["y"]) < 1e-13
        assert all(same(got.caches[name], want[name]) for name in ("cache_k", "cache_v"))


def test_a_grid_of_rows_has_no_atomic_output() -> None:
    with pytest.raises(cf.TraceError) as caught:
        attention_block.trace(tiny(), out="atomic")  # the default qkv is "grid"
    assert str(caught.value) == "qkv='grid' does not go with out='atomic'.\n  remedy: take out='gather', or qkv 'rows' or 'split_k'."


def test_only_one_dataflow_lets_clusters_share_a_head() -> None:
    with pytest.raises(cf.CfdslError) as caught:
        cf.place(attention_block.trace(tiny(), qkv="rows"), cf.Mesh(4, 2, 2))
    assert str(caught.value) == (
        "2 clusters share a unit, but attention_block has no attend(..., shard='tokens', across='all'): they would repeat its work.\n"
        "  remedy: use splits=1, or a dataflow that splits tokens over clusters (of attention_block: qkv='grid')."
    )


@pytest.mark.parametrize("length", [-5, 0, 1, 8, 9, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_at_and_past_the_ends(length: int, layout: str) -> None:
    """Capacity 8. Negative counts as empty and 9 as full for attention, which has the new token all the same. Nothing is stored then."""
    model = tiny()
    tensors = attention_block.example_inputs(model, 1, "bf16", length, 8, layout=layout)
    before = {name: value.clone() for name, value in tensors.items()}
    got = run(model, cf.Mesh(2, 4), tensors, "f64", layout=layout)
    assert relative(got.outputs["y"], attention_block.reference(model, tensors, layout=layout)["y"]) < 1e-13
    token_dim = 2 if layout == "bhtd" else 1
    for name in ("cache_k", "cache_v"):
        old, new = (t.movedim(token_dim, 0) for t in (before[name], got.caches[name]))
        changed = [i for i in range(8) if not same(old[i], new[i])]
        assert changed == ([length] if 0 <= length < 8 else [])
        assert same(tensors[name], before[name]), "the inputs must stay as they were"


def test_an_empty_cache_gives_back_the_new_value() -> None:
    """With no token before it, the softmax of the new token is 1: attention is wo @ v, whatever q, k and the positions are."""
    model = tiny(heads=6, kv_heads=2, hidden=48)
    tensors = attention_block.example_inputs(model, 2, "bf16", 0, 4)
    reference = attention_block.reference(model, tensors)
    wide = {name: value.double() for name, value in tensors.items()}
    h = wide["x"] + wide["residual"]
    normed = h / (h.pow(2).mean(-1, keepdim=True) + model.norm_eps).sqrt() * wide["norm"]
    v = (normed @ wide["wv"].T).view(2, 2, 16).bfloat16().double().repeat_interleave(3, 1)
    assert relative(reference["y"], v.flatten(1) @ wide["wo"].T + h) < 1e-13


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope_of_the_reference_turns_scores_by_distance(style: str) -> None:
    """Rotated q and k have the same dot product wherever they stand, as long as they stand equally far apart."""
    from fusions._tensors import rope_tables
    from fusions.attention_block import _rotate

    model = tiny(rotary_dim=12, rope_style=style)
    cos, sin = (table.double() for table in rope_tables(model, 32, "cpu"))
    q, k = torch.randn(2, 1, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    at = lambda x, p: _rotate(model, x, cos, sin, torch.tensor([p]))  # noqa: E731
    scores = [(at(q, p + 7) * at(k, p)).sum() for p in (0, 5, 20)]
    torch.testing.assert_close(scores[0].expand(2), torch.stack(scores[1:]), rtol=1e-6, atol=1e-6)
    assert not torch.isclose(scores[0], (q * k).sum(), rtol=1e-3)
    assert torch.equal(at(q, 7)[..., 12:], q[..., 12:]), "dimensions past rotary_dim must not turn"
    assert torch.allclose(at(q, 3)[..., 0], q[..., 0] * cos[3, 0] - q[..., 6 if style == "half" else 1] * sin[3, 0])


def test_pos_may_differ_from_length_and_is_clamped_to_the_tables() -> None:
    model = tiny()
    tensors = attention_block.example_inputs(model, 2, "bf16", 6, 8)
    for pos in ([3, 0], [1000, -4]):
        tensors["pos"] = torch.tensor(pos, dtype=torch.int32)
        got = run(model, cf.Mesh(2, 2), tensors, "f64")
        assert relative(got.outputs["y"], attention_block.reference(model, tensors)["y"]) < 1e-13


def test_example_inputs_are_reproducible_and_poisoned() -> None:
    model = tiny(qkv_bias=True)
    make = lambda seed: attention_block.example_inputs(model, 2, "f16", [3, 5], 9, seed, layout="bthd")  # noqa: E731
    a, b, c = make(1), make(1), make(2)
    assert all(same(a[name], b[name]) for name in a)
    assert not same(a["wq"], c["wq"])
    assert (a["cache_k"].shape, a["cache_k"].dtype, a["pos"].dtype) == ((2, 9, 2, 16), torch.float16, torch.int32)
    for row, length in enumerate((3, 5)):
        assert not a["cache_k"][row, :length].isnan().any()
        assert a["cache_v"][row, length:].isnan().all()
    assert a["y"].isnan().all()
    assert a["length"].tolist() == [3, 5]
    per_projection = {f"{kind}{name}" for kind in "wb" for name in "qkv"}
    assert set(a) == {"x", "residual", "pos", "length", "cos", "sin", "norm", "wo", "cache_k", "cache_v", "y"} | per_projection


def test_example_inputs_make_attention_matter() -> None:
    """Were attention left out, the error must be far above what a 16-bit result is allowed, at any length."""
    model = tiny(hidden=64, heads=8, kv_heads=8, head_dim=64)
    tensors = attention_block.example_inputs(model, 1, "bf16", 8192)
    y = attention_block.reference(model, tensors, "f32")["y"]
    assert relative(y, (tensors["x"].float() + tensors["residual"].float())) > 0.05


def test_without_a_residual_x_is_the_residual_stream() -> None:
    """The same numbers as with the sum given as x; there is no such argument then."""
    model = tiny()
    tensors = attention_block.example_inputs(model, 1, "bf16", 9, residual=False)
    assert "residual" not in tensors
    assert "residual" not in [leaf.attr("name") for leaf in attention_block.trace(model, residual=False).leaves("input")]
    plain = run(model, cf.Mesh(2, 2), tensors, "f64", residual=False).outputs["y"]
    zero = {**tensors, "residual": torch.zeros_like(tensors["x"])}
    assert torch.equal(plain, run(model, cf.Mesh(2, 2), zero, "f64").outputs["y"])
    with pytest.raises(UnknownOption, match=r"residual \(True, False\)"):
        attention_block.trace(model, residual="no")


def test_rounding_of_outputs() -> None:
    model = tiny()
    tensors = attention_block.example_inputs(model, 1, "bf16", 4)
    placed = cf.place(attention_block.trace(model), cf.Mesh(2, 2))
    rounded, exact = (interpret(placed, tensors, round_outputs=flag).outputs["y"] for flag in (True, False))
    assert (rounded.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(rounded, exact.bfloat16())
    assert not torch.equal(rounded.float(), exact)


def test_losing_an_eighth_of_the_tokens_is_seen() -> None:
    """The comparison is as sharp as it must be: an attention that loses one token in eight is far off."""
    model = tiny()
    tensors = attention_block.example_inputs(model, 1, "bf16", 64)
    want = attention_block.reference(model, tensors)["y"]
    tensors["length"] -= 8
    assert relative(attention_block.reference(model, tensors)["y"], want) > 4e-3
    assert not math.isnan(want.sum().item())
