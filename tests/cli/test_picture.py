from __future__ import annotations

import re
from xml.etree import ElementTree

import handmade
import pytest

from cfdsl.cli.picture import draw
from cfdsl.cli.picture.canvas import Canvas, fit, text_width
from cfdsl.cli.picture.memory import scale_of
from cfdsl.cli.picture.stream import ticks
from cfdsl.compiler.config import Config
from cfdsl.compiler.schedule import schedule
from cfdsl.dsl.place import place
from cfdsl.dsl.placement import Mesh
from fusions.attention_block import attention_block

SVG = "{http://www.w3.org/2000/svg}"


def drawn(ranks: int = 2) -> ElementTree.Element:
    return ElementTree.fromstring(draw(handmade.placed(ranks), handmade.plan(ranks), 4096, 3150.0, "h100-sxm"))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_every_exchange_stream_and_buffer_is_drawn(ranks: int) -> None:
    root, plan = drawn(ranks), handmade.plan(ranks)
    names = {key: {element.get(f"data-{key}") for element in root.iter()} - {None} for key in ("exchange", "stream", "buffer")}
    assert names["exchange"] == {exchange.name for exchange in plan.exchanges}
    assert names["stream"] == {stream.name for stream in plan.streams}
    assert names["buffer"] == {buffer.name for buffer in plan.buffers}
    barriers = " ".join(texts(root))
    assert all(f"{barrier.name}" in barriers for barrier in plan.barriers)


def test_exchanges_state_scope_and_bytes() -> None:
    text = "\n".join(texts(drawn(2)))
    assert "cluster scope, push; barrier qkv_ready, step 4" in text
    assert "each rank sends 768 B, receives 1.5 KB" in text
    assert "49.2 KB" in text  # 64 CTAs send 768 B each
    assert "grid scope, grid barrier; 64 CTAs; step 10" in text
    assert "1.1 MB" in text  # 64 CTAs write 256 B and read 16 KB


def test_splits_are_in_the_title_and_beside_the_other_placements() -> None:
    placed = place(attention_block.trace("llama-2-7b"), Mesh(64, 2, 2))
    plan = schedule(placed, Config(64, 2, 6, splits=2, window=3, early=2))
    text = texts(ElementTree.fromstring(draw(placed, plan, 4096, 3150.0, "h100-sxm")))
    assert any("64 clusters (32 groups of 2 splits) of 2 ranks = 128 CTAs on h100-sxm" in line for line in text)
    assert "[grid, cluster, splits]" in text
    (at,) = (index for index, line in enumerate(text) if line.startswith("attend("))
    assert [line for line in text[at : at + 5] if line in ("S(1)", "P(lse)")] == ["P(lse)", "P(lse)", "S(1)"]  # from the right
    assert any("ahead of the consumers, at most 2 tiles of what a grid barrier must come before" in line for line in text)


def test_pushes_go_from_every_rank_to_every_rank() -> None:
    arrows = [path for path in drawn(4).iter(f"{SVG}path") if path.get("marker-end") == "url(#arrow-cluster)"]
    assert len(arrows) == 2 * 4 * 4  # two exchanges
    assert len([path for path in arrows if path.get("stroke-dasharray")]) == 2 * 4  # to itself


def test_each_rank_shows_its_own_slice() -> None:
    titles = [element.text or "" for element in drawn(2).iter(f"{SVG}title")]
    assert "q [S(1), S(2)] on rank 0 of cluster 0: [0:1, 0:1, 0:64]" in titles
    assert "q [S(1), S(2)] on rank 1 of cluster 0: [0:1, 0:1, 64:128]" in titles


@pytest.mark.parametrize("ranks", [1, 2, 16])
def test_nothing_is_drawn_outside_of_the_page(ranks: int) -> None:
    root = drawn(ranks)
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    placed = [rect for rect in root.iter(f"{SVG}rect") if rect.get("x") is not None]
    assert len(placed) > 20
    for rect in placed:
        x, y, w, h = (float(rect.get(name) or 0) for name in ("x", "y", "width", "height"))
        assert min(x, y) >= 0
        assert x + w <= width + 0.01
        assert y + h <= height + 0.01
    for text in root.iter(f"{SVG}text"):
        if text.get("transform") is None and text.get("text-anchor") is None:
            assert float(text.get("x") or 0) < width
            assert float(text.get("y") or 0) < height


def test_shared_memory_scale_is_monotone_and_complete() -> None:
    plan = handmade.plan(2)
    scale = scale_of(plan, 100.0, 900.0)
    assert (scale.edges[0], scale.edges[-1]) == (0, plan.smem_bytes)
    assert (scale.xs[0], scale.xs[-1]) == (100.0, pytest.approx(900.0))
    assert list(scale.xs) == sorted(scale.xs)
    for buffer in plan.buffers:
        assert scale.x(buffer.offset + buffer.bytes) - scale.x(buffer.offset) > 14  # a name must fit, if need be upright


def test_a_kernel_without_a_load_stream_says_so() -> None:
    from dataclasses import replace

    bare = replace(handmade.plan(2), streams=(), ring=None, steps=tuple(step for step in handmade.plan(2).steps if not step.params))
    assert "no load stream" in draw(handmade.placed(2), bare, 0, 3150.0, "h100-sxm")


def test_text_is_cut_to_its_box() -> None:
    assert fit("short", 100, 10) == "short"
    cut = fit("a very long line of text that does not fit", 80, 10)
    assert cut.endswith("…")
    assert text_width(cut, 10) <= 80
    assert fit("abc", 1, 10) == ""


def test_special_characters_are_escaped() -> None:
    canvas = Canvas(100)
    canvas.text(0, 10, "a < b & c")
    assert ElementTree.fromstring(canvas.document(20)).find(f"{SVG}text").text == "a < b & c"  # type: ignore[union-attr]


def test_ticks_are_round_and_few() -> None:
    assert ticks(3072) == [0, 500, 1000, 1500, 2000, 2500, 3000]
    assert ticks(4) == [0, 1, 2, 3, 4]
    assert all(re.fullmatch(r"[1-9]0*|25?0*|50*", str(int(ticks(limit)[1]))) for limit in (10, 99, 1234, 56789))
    assert all(len(ticks(limit)) <= 9 for limit in (1, 7, 10, 99, 1234, 56789))
