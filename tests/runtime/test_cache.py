from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfdsl.errors import CacheUnusable
from cfdsl.runtime.cache import FILES, DamagedCacheEntry, KernelCache, root

FACTS = {"symbol": "cfdsl_k1", "registers": 32, "stack": 0, "spills": None, "compile_seconds": 1.5}
CONTENTS = {"object": b"object code", "ptx": b".version 8.0", "cubin": b"\x7fELF"}


def test_root_is_the_environment_variable_or_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFDSL_CACHE_DIR", "/somewhere/else")
    assert root() == Path("/somewhere/else")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CFDSL_CACHE_DIR", "~/kernels")
    assert root() == Path("/home/me/kernels")
    monkeypatch.delenv("CFDSL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.cache")
    assert root() == Path("/home/me/.cache/cfdsl")


def test_source_is_named_by_its_content_and_written_once(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    first = cache.source("norm", "a = 1\n")
    os.utime(first, (1, 1))
    assert cache.source("norm", "a = 1\n") == first
    assert first.stat().st_mtime == 1
    assert cache.source("norm", "a = 2\n") != first
    assert first.name.startswith("cfdsl_norm_")
    assert first.name.removesuffix(".py").isidentifier()


def test_altered_source_is_restored(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    path = cache.source("norm", "a = 1\n")
    path.write_text("a = 666\n")
    with pytest.warns(DamagedCacheEntry, match="is damaged or was edited; writing it again"):
        assert cache.source("norm", "a = 1\n").read_text() == "a = 1\n"


def test_what_was_added_is_found(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    assert cache.find("k1") is None
    cache.add("k1", CONTENTS, {**FACTS, "registers": 40})
    found = cache.find("k1")
    assert found is not None
    assert found.meta["registers"] == 40
    assert {kind: found.path(kind).read_bytes() for kind in FILES} == CONTENTS
    assert sorted(path.name for path in (tmp_path / "kernel").iterdir()) == ["k1"]  # no temporary folder stays behind


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_a_miss_with_a_warning_that_names_the_entry(tmp_path: Path, kind: str, damage: str) -> None:
    cache = KernelCache(tmp_path)
    path = cache.add("k1", CONTENTS, FACTS).path(kind)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"other content" if damage == "changed" else path.read_bytes()[:-1])
    with pytest.warns(DamagedCacheEntry, match=f"the cache entry {tmp_path}/kernel/k1 is damaged .*; compiling it again"):
        assert cache.find("k1") is None
    cache.add("k1", CONTENTS, FACTS)
    assert cache.find("k1") is not None


@pytest.mark.parametrize("meta", ["", "{", "[]", "{}", "null", json.dumps({"key": "other", "sha256": {}})])
def test_a_damaged_meta_file_is_a_miss_with_a_warning(tmp_path: Path, meta: str) -> None:
    cache = KernelCache(tmp_path)
    cache.add("k1", CONTENTS, FACTS)
    (tmp_path / "kernel" / "k1" / "meta.json").write_text(meta)
    with pytest.warns(DamagedCacheEntry, match="k1"):
        assert cache.find("k1") is None


@pytest.mark.parametrize("change", [*({name: ...} for name in FACTS), {"registers": "many"}, {"compile_seconds": None}])
def test_an_entry_that_does_not_say_all_is_a_miss_with_a_warning(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = KernelCache(tmp_path)
    cache.add("k1", CONTENTS, {name: value for name, value in {**FACTS, **change}.items() if value is not ...})
    with pytest.warns(DamagedCacheEntry, match=f"meta.json does not say {next(iter(change))}") as warned:
        assert cache.find("k1") is None
    assert warned[0].filename == __file__  # blamed on whoever asked, not on a line of the cache


USES: list[Callable[[KernelCache], Any]] = [
    lambda cache: cache.source("norm", "a = 1\n"),
    lambda cache: cache.add("k1", CONTENTS, FACTS),
    lambda cache: cache.lock("k1").__enter__(),
]


@pytest.mark.parametrize("use", USES, ids=["source", "add", "lock"])
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, use: Callable[[KernelCache], Any]) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, Path("/proc/no-such-folder")):
        with pytest.raises(CacheUnusable) as caught:
            use(KernelCache(folder))
        assert caught.value.folder == str(folder)
        assert "CFDSL_CACHE_DIR" in str(caught.value)


def test_what_is_raised_under_a_lock_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), KernelCache(tmp_path).lock("k1"):
        (tmp_path / "nothing").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    with pytest.raises(TypeError):
        cache.add("k1", {**CONTENTS, "ptx": None}, FACTS)  # type: ignore[dict-item]
    assert list((tmp_path / "kernel").iterdir()) == []


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    cache = KernelCache(tmp_path)
    with cache.lock("k1"), cache.lock("k2"):
        for key in ("k1", "k2"):
            with pytest.raises(Timeout):
                FileLock(tmp_path / "lock" / f"{key}.lock").acquire(timeout=0.01)
    FileLock(tmp_path / "lock" / "k1.lock").acquire(timeout=0.01).lock.release()


def test_what_could_not_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError("no space left on device")

    cache = KernelCache(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CacheUnusable, match="no space left on device"):
        cache.source("norm", "a = 1\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
