"""Which algorithm does a collective, why the others do not, and what is said of a request that nothing can do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdsl.compiler.collective.check_bytes import byte_faults
from cfdsl.compiler.collective.choose import _folded_bytes, candidates, choose, explain, ranked
from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.collective.designs import ALGORITHMS, design, refusals
from cfdsl.compiler.collective.lower import plan_of
from cfdsl.compiler.collective.request import KINDS, OPERATORS, WIDTH, Collective, mistakes
from cfdsl.compiler.parts import PARTS
from cfdsl.errors import AlgorithmUnsupported, ArgumentError, ClusterSizeUnsupported, Errors, ShardDoesNotDivide

PART = PARTS["h100-sxm"]


def chosen(kind: str, shape: tuple[int, ...], op: str = "sum", dtype: str = "f32", algorithm: str | None = None) -> Design:
    """With 4 ranks."""
    return choose(Collective(kind, op, shape, dtype, 4), PART, algorithm)[0]


def test_short_terms_go_to_everybody_and_long_ones_in_pieces() -> None:
    assert chosen("reduce", (1,)).algorithm == "push"
    assert chosen("reduce", (128,)).algorithm == "push"
    assert chosen("reduce", (16384,)).algorithm == "scatter_gather"


@pytest.mark.parametrize(("floats", "measured"), [(1, 270), (128, 460)])
def test_the_estimate_of_an_all_reduce_over_4_ranks_is_near_what_was_measured(floats: int, measured: int) -> None:
    """One H100 80GB HBM3, 2026-11-28, `bench collectives`: cycles of one exchange inside a kernel. By hand, with 4 ranks and b bytes:
    a round of 70, 240 for the way, 4 b at 16 bytes per clock, and 4 rows, each of whole vectors, combined at 124."""
    _, found = choose(Collective("reduce", "sum", (floats,), "f32", 4), PART)
    push = next(c for c in found if c.algorithm == "push")
    assert push.cycles == pytest.approx(70 + 240 + 16 * floats / 16 + 4 * max(16, 4 * floats) / 124)
    assert push.cycles == pytest.approx(measured, rel=0.2)


def test_a_rank_combines_all_rows_or_of_each_round_two() -> None:
    """Of 8 ranks: 8 rows, or 2 in each of 3 rounds."""
    _, found = choose(Collective("reduce", "sum", (128,), "f32", 8), PART)
    made = {c.algorithm: c.design for c in found if c.design is not None}
    assert (_folded_bytes(made["push"]), _folded_bytes(made["doubling"])) == (8 * 512, 2 * 3 * 512)


def test_what_lies_in_device_memory_is_multicast_once_and_pushed_in_a_loop() -> None:
    """A launch with one exchange saves the way into shared memory; in a row of them that way is shared, and a push is the shorter one."""
    once, often = (choose(Collective("gather", "sum", (64,), "f32", 4, repeat=repeat), PART) for repeat in (1, 100))
    assert (once[0].algorithm, often[0].algorithm) == ("multicast", "push")
    by_name = {c.algorithm: c for c in once[1] if c.cycles is not None}
    assert by_name["multicast"].bring == 0
    assert by_name["push"].bring == pytest.approx(PART.timing.global_round_us * 1755 + 64 * 4 / 64)
    assert by_name["push"].each == by_name["push"].cycles + by_name["push"].bring


@pytest.mark.parametrize("repeat", [1, 100])
@pytest.mark.parametrize("size", [1, 4])
def test_of_two_that_tie_the_one_with_fewer_barriers_is_chosen(size: int, repeat: int) -> None:
    """Over 2 ranks recursive doubling is expected to be a quarter of a cycle faster: it sends nothing to itself."""
    design, found = choose(Collective("reduce", "sum", (size,), "f32", 2, repeat=repeat), PART)
    by_name = {c.algorithm: c for c in found if c.design is not None}
    assert by_name["doubling"].each < by_name["push"].each < by_name["doubling"].each * 1.01
    assert design.algorithm == "push"
    names = [c.algorithm for c in ranked(found)]
    assert names[:2] == ["push", "doubling"]
    assert [by_name[name].each for name in names[1:]] == sorted(by_name[name].each for name in names[1:])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_warps_can_be_given(kind: str, algorithm: str) -> None:
    """It changes nothing else: a protocol holds for any number of them."""
    request = Collective(kind, "sum", (256,), "f32", 4)
    if list(refusals(request, algorithm)):
        return
    own = design(request, algorithm)
    for warps in (1, 2, 4, 8):
        assert design(replace(request, warps=warps), algorithm) == replace(own, request=replace(request, warps=warps), warps=warps)


@pytest.mark.parametrize("warps", [0, 3, 16, -1, True, "4", 2.0, []])
def test_warps_are_a_power_of_two_up_to_eight(warps: object) -> None:
    with pytest.raises(ArgumentError, match="argument 'warps' must be one of 1, 2, 4, 8, or None, got "):
        choose(Collective("reduce", "sum", (8,), "f32", 2, warps=warps), PART)  # type: ignore[arg-type]


@pytest.mark.parametrize(("nbytes", "warps"), [(4, 1), (1024, 1), (1028, 2), (4096, 4), (4100, 8), (60_000, 8)])
def test_the_designs_own_warps(nbytes: int, warps: int) -> None:
    """Two vectors of 16 bytes to a thread: 64 to a warp. A gather over one rank has the payload's."""
    assert design(Collective("gather", "sum", (nbytes // 4,), "f32", 1), "push").warps == warps


def test_one_float_needs_no_source_and_no_result_in_memory() -> None:
    design = chosen("reduce", (1,))
    assert design.scalar
    assert [place.name for place in design.protocol.places] == ["box", "kept"]


@pytest.mark.parametrize(
    ("kind", "algorithm", "pushed", "off_chip"),
    [
        ("reduce", "push", 3 * 512, 0),
        ("reduce", "scatter_gather", 2 * 3 * 128, 0),
        ("reduce", "doubling", 2 * 512, 0),
        ("reduce", "global", 0, 512 + 4 * 512),
        ("reduce_scatter", "push", 3 * 128, 0),
        ("reduce_scatter", "global", 0, 512 + 4 * 128),
        ("gather", "doubling", 512 + 1024, 0),
        ("gather", "multicast", 3 * 512, 512),
        ("broadcast", "push", 3 * 512, 0),
        ("broadcast", "multicast", 3 * 128, 128),
        ("broadcast", "global", 0, 512 + 512),
    ],
)
def test_bytes(kind: str, algorithm: str, pushed: int, off_chip: int) -> None:
    design = chosen(kind, (128,), algorithm=algorithm)
    assert (design.bytes_pushed, design.bytes_global) == (pushed, off_chip)


def test_half_types_travel_as_they_are_but_for_doubling() -> None:
    assert chosen("reduce", (128,), dtype="bf16", algorithm="push").bytes_pushed == 3 * 256
    assert chosen("reduce", (128,), dtype="bf16", algorithm="doubling").bytes_pushed == 2 * 512  # sums are in float32


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("kind", "algorithm"), [(k, a) for k in ("reduce", "reduce_scatter") for a in ALGORITHMS])
def test_softmax_terms_travel_in_float32_whatever_x_and_y_are(kind: str, algorithm: str, dtype: str) -> None:
    wide, half = (Collective(kind, "lse", (8, 68), held, 4) for held in ("f32", dtype))
    if list(refusals(wide, algorithm)):
        assert list(refusals(half, algorithm)) == list(refusals(wide, algorithm))
        return
    assert design(half, algorithm).protocol == design(wide, algorithm).protocol
    assert (half.held, half.width, wide.width) == ("f32", 2, 4)
    assert design(half, algorithm).bytes_global == design(wide, algorithm).bytes_global
    assert [(arg.name, arg.dtype) for arg in plan_of(design(half, algorithm)).args][:3] == [("x", dtype), ("ml", "f32"), ("y", dtype)]


@given(
    kind=st.sampled_from(KINDS), op=st.sampled_from(OPERATORS), dtype=st.sampled_from(tuple(WIDTH)),
    cluster=st.sampled_from((1, 2, 4, 8, 16)), rows=st.integers(1, 64), cols=st.integers(1, 300),
)  # fmt: skip
def test_whatever_is_asked_something_does_it_or_says_why(kind: str, op: str, dtype: str, cluster: int, rows: int, cols: int) -> None:
    request = Collective(kind, op, (rows * cluster, cols), dtype, cluster)
    if list(mistakes(request, PART)):
        return
    for candidate in candidates(request, PART):
        assert (candidate.design is None) == bool(candidate.reasons)
        if candidate.design is None:
            continue
        design = candidate.design
        assert design.smem_bytes <= PART.smem_budget()
        assert 1 <= design.warps <= 8
        assert all(nbytes % 4 == 0 and nbytes < 2**20 for nbytes in design.protocol.tx)
        ends = [place.offset + place.nbytes * place.sets for place in design.protocol.places if place.in_arena]
        assert max(ends, default=0) <= design.smem_bytes
        assert not list(byte_faults(design.protocol)), design.protocol


def test_every_mistake_of_a_request_at_once() -> None:
    with pytest.raises(Errors) as caught:
        choose(Collective("scan", "mean", (), "f8", 3, clusters=0), PART, "magic")
    kinds = [type(error) for error in caught.value.errors]
    assert kinds.count(ArgumentError) == 6  # algorithm, kind, op, dtype, clusters, shape
    assert ClusterSizeUnsupported in kinds
    with pytest.raises(ArgumentError, match="'shape' must be a tuple of at least one positive integer, got 8"):
        choose(Collective("reduce", "sum", 8, "f32", 4), PART)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="at least 4 bytes, got 1 x 2 bytes"):
        choose(Collective("reduce", "sum", (1,), "bf16", 2), PART)
    with pytest.raises(ArgumentError, match="x and y have at most 268435456 elements each, got 8192 x 8 x 8192"):
        choose(Collective("gather", "sum", (1024,), "f32", 8, clusters=8192), PART)
    with pytest.raises(ShardDoesNotDivide, match="dimension 0 of size 6 over 4 ranks"):
        choose(Collective("reduce_scatter", "sum", (6,), "f32", 4), PART)
    with pytest.raises(ArgumentError, match=r"'shape' must be \(heads, dim\) with dim a multiple of 4 for op='lse', got \(4, 6\)"):
        choose(Collective("reduce", "lse", (4, 6), "bf16", 4), PART)


def test_an_algorithm_that_cannot_says_why_and_which_can() -> None:
    with pytest.raises(AlgorithmUnsupported, match="it does reduce\n") as caught:
        chosen("gather", (64,), algorithm="scatter_gather")
    assert "use 'push', 'bulk', 'doubling', 'multicast' or 'global'" in str(caught.value)
    with pytest.raises(AlgorithmUnsupported, match="132 bytes go to each rank"):
        chosen("gather", (33,), algorithm="bulk")
    with pytest.raises(AlgorithmUnsupported, match="6 heads cannot be spread over 4 ranks"):
        chosen("reduce", (6, 64), op="lse", algorithm="scatter_gather")


def test_too_large_for_shared_memory_lists_every_algorithm() -> None:
    with pytest.raises(AlgorithmUnsupported, match="cannot be done:") as caught:
        chosen("reduce", (200_000,))
    text = str(caught.value)
    assert all(f"  - {name}: " in text for name in ALGORITHMS)
    assert "bytes of shared memory, the limit is 232,448" in text
    assert text.endswith("remedy: use a smaller payload; or do it in several calls, each with a part of the payload.")


def test_a_gather_that_is_too_large_fits_with_fewer_ranks() -> None:
    """The remedy is true: what 16 ranks cannot gather, 8 can."""
    request = Collective("gather", "sum", (4000,), "f32", 16)
    with pytest.raises(AlgorithmUnsupported, match="use a smaller payload or a smaller cluster, whose payloads together are the result"):
        choose(request, PART)
    choose(replace(request, cluster=8), PART)


def test_the_choice_in_words() -> None:
    design, found = choose(Collective("gather", "sum", (33,), "f32", 4), PART)
    text = explain(found, design)
    assert text.startswith("gather of f32 33 on clusters of 4: push, ")
    assert "scatter_gather  refused: it does reduce" in text
    assert text.index("push ") < text.index("global ")
