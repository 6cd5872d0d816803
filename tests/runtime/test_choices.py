"""Choices of a config on disk: found for equal requests only, taken instead of weighing, and never when they might be others'."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler import stages
from cfdsl.compiler.config import Config
from cfdsl.compiler.parts import H100_SXM, H200
from cfdsl.runtime import DamagedCacheEntry, KernelCache, choices
from cfdsl.runtime.choices import KeptChoices
from fusions.ffn_block import ffn_block
from fusions.rms_norm import rms_norm

GRAPH = rms_norm.trace("llama-2-7b")
CONFIG = Config(clusters=2, cluster_size=4, stages=5, pdl=False)


@pytest.fixture
def kept(tmp_path: Path) -> KeptChoices:
    return KeptChoices(KernelCache(tmp_path))


def the_file(kept: KeptChoices) -> Path:
    (found,) = (kept.cache.folder / "choice").iterdir()
    return found


def test_what_was_kept_is_found_for_an_equal_request_only(kept: KeptChoices) -> None:
    asked: tuple[Any, ...] = (GRAPH, H100_SXM, {"pdl": False}, {"tokens": 7})
    assert kept.find(*asked) is None
    kept.keep(*asked, CONFIG)
    assert kept.find(rms_norm.trace("llama-2-7b"), *asked[1:]) == CONFIG
    others: tuple[tuple[Any, ...], ...] = (
        (rms_norm.trace("llama-2-7b", 2), *asked[1:]),
        (rms_norm.trace("llama-2-7b", dtype="f16"), *asked[1:]),
        (GRAPH, H200, *asked[2:]),
        (GRAPH, replace(H100_SXM, max_clusters={}), *asked[2:]),
        (*asked[:2], {"pdl": True}, asked[3]),
        (*asked[:2], {}, asked[3]),
        (*asked[:3], {"tokens": 8}),
        (*asked[:3], {}),
    )
    assert [kept.find(*other) for other in others] == [None] * len(others)


def test_other_sources_choose_anew(kept: KeptChoices, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep(GRAPH, H100_SXM, {}, {}, CONFIG)
    monkeypatch.setattr(choices, "_sources", lambda: "of another version")
    assert kept.find(GRAPH, H100_SXM, {}, {}) is None


def test_sources_are_all_that_a_choice_is_made_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module below the runtime's floor; one that was edited while the process runs is not the one that runs."""
    package = Path(cf.__file__).parent
    floors = {path.relative_to(package).parts[0] for path in package.rglob("*.py")}
    assert floors - {*choices.CHOOSERS} == {"__init__.py", "__main__.py", "cli", "hf", "runtime"}
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
    choices._sources.cache_clear()
    first = choices._sources()
    some = ("models/config.py", "compiler/cost/choice.py", "dsl/place_rules/site.py")
    assert {package / name for name in some} <= set(read)
    monkeypatch.setattr(cf, "_imported_at", 0.0)
    choices._sources.cache_clear()
    assert choices._sources() is None
    assert KeptChoices(KernelCache(tmp_path)).find(GRAPH, H100_SXM, {}, {}) is None
    KeptChoices(KernelCache(tmp_path)).keep(GRAPH, H100_SXM, {}, {}, CONFIG)
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    choices._sources.cache_clear()
    assert choices._sources() == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record["config"].update(clusters=3),
        lambda record: record["config"].pop("clusters"),
        lambda record: record["config"].update(cluster_size=5),
        lambda record: record.pop("sha256"),
        lambda record: record.clear(),
    ],
)
def test_a_damaged_record_is_a_miss_with_a_warning_and_is_replaced(kept: KeptChoices, damage: Any) -> None:
    kept.keep(GRAPH, H100_SXM, {}, {}, CONFIG)
    record = json.loads(the_file(kept).read_bytes())
    damage(record)
    the_file(kept).write_text(json.dumps(record))
    with pytest.warns(DamagedCacheEntry, match="the cache's record .* is damaged"):
        assert kept.find(GRAPH, H100_SXM, {}, {}) is None
    kept.keep(GRAPH, H100_SXM, {}, {}, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept.find(GRAPH, H100_SXM, {}, {}) == CONFIG


def test_a_cache_that_cannot_be_written_to_costs_the_record_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    KeptChoices(KernelCache(tmp_path / "file")).keep(GRAPH, H100_SXM, {}, {}, CONFIG)


def test_a_kept_choice_is_not_weighed_again_until_somebody_looks(kept: KeptChoices, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cf.PRESETS["llama-2-7b"]
    first = stages.lower(ffn_block, model, 1, "bf16", H100_SXM, kept=kept)
    weighed: list[Any] = []
    real = stages.settle
    monkeypatch.setattr(stages, "settle", lambda *args: (weighed.append(args), real(*args))[1])
    second = stages.lower(ffn_block, model, 1, "bf16", H100_SXM, kept=kept)
    assert not weighed
    assert second.source == first.source
    assert second.choice.config == second.chosen == first.chosen
    assert len(weighed) == 1
