"""Processes that compile ahead into the disk cache, where the process that measures finds the kernels."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

MOST_JOBS = 16  # a compiler process takes up to 2 GB


def default_jobs() -> int:
    """One process per core that this process may use, at most `MOST_JOBS`."""
    return min(MOST_JOBS, len(os.sched_getaffinity(0)))


def compilers(jobs: int) -> ProcessPoolExecutor:
    """A pool of so many processes, each begun anew: a fork would take the state of CUDA and of the tracer with it."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
