"""What all tests share: hypothesis profiles, a private kernel cache, and skipping GPU tests where there is no GPU."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the first example of a property may pay for importing torch. In CI the examples are the same on every run, so a red
# run is the change's fault; elsewhere they differ, so that they find something new now and then. `thorough` is for a night.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("default", max_examples=50, **_COMMON)
settings.register_profile("ci", max_examples=50, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

os.environ.setdefault("MPLBACKEND", "Agg")  # plots go to files; also for the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled kernels of a test session go to a folder of its own: a warm cache of the user's must not hide a broken compiler."""
    folder = tmp_path_factory.mktemp("cfdsl-cache")
    os.environ["CFDSL_CACHE_DIR"] = str(folder)
    return folder


@functools.cache
def _why_no_gpu() -> str | None:
    """Why tests marked `gpu` cannot run here, or None when they can. Imports torch, so it is asked only when such a test comes up."""
    import torch

    if not torch.cuda.is_available():
        build = "is a CPU-only build" if torch.version.cuda is None else "sees no CUDA device (driver, or CUDA_VISIBLE_DEVICES)"
        return f"needs a GPU: torch {torch.__version__} {build}"
    major, minor = torch.cuda.get_device_capability()
    if major != 9:
        return f"needs a Hopper GPU (sm_90): {torch.cuda.get_device_name()} is sm_{major}{minor}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where they cannot run. From here, not by a marker each: the summary is then one line with a count."""
    if item.get_closest_marker("gpu") and (why := _why_no_gpu()):
        pytest.skip(why)
