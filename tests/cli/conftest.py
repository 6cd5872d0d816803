from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host tests say the same on a machine with a GPU."""
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_present", lambda: False)


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled kernels, for a process that has made none."""
    from cfdsl.runtime import build

    monkeypatch.setattr(build, "_kernels", {})
    monkeypatch.setenv("CFDSL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
