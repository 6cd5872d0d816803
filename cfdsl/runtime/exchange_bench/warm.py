"""Compile the kernels of many cases at once, in processes of their own, into the disk cache, where the measuring process finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from importlib import import_module

from cfdsl.compiler.parts import Part
from cfdsl.runtime.exchange_bench.cases import Case
from cfdsl.runtime.jobs import compilers

FACTORY = "cfdsl:collective"  # module and name: a spawned process imports it anew

Log = Callable[[str], None]


def compile_case(case: Case, part: Part | None, factory: str = FACTORY) -> str:
    """Compile the kernels of one case; returns what went wrong, or nothing. The measuring process meets the same error and reports it."""
    module, _, name = factory.partition(":")
    try:
        make = getattr(import_module(module), name)
        for repeat, timed in case.builds:
            make(case.kind, **case.arguments(repeat, timed, part))
    except Exception as error:  # whatever the compiler may raise; an exception that cannot be pickled would break the pool
        return f"{type(error).__name__}: {error}"
    return ""


def warm(cases: Sequence[Case], part: Part | None, jobs: int, log: Log, pool: Executor | None = None, factory: str = FACTORY) -> int:
    """Compile all cases `jobs` at a time (0 or 1: not at all, each is compiled when it is measured); returns how many failed.

    Only warms the cache: if the processes cannot be had, measuring compiles by itself, only later. `pool` takes the place of spawned ones.
    """
    jobs = min(jobs, len(cases))
    if jobs < 2 and pool is None:
        return 0
    failed = 0
    try:
        with pool or compilers(jobs) as workers:
            waiting = {workers.submit(compile_case, case, part, factory): case for case in cases}
            for done, future in enumerate(as_completed(waiting), 1):
                if future.result():
                    failed += 1
                    log(f"{waiting[future]} did not compile: {future.result()}")
                if done % 25 == 0 or done == len(waiting):
                    log(f"compiled {done} of {len(waiting)} cases")
    except (OSError, RuntimeError) as error:  # BrokenProcessPool is a RuntimeError: out of memory, most likely
        log(f"not all could be compiled ahead ({type(error).__name__}: {error}); the rest is compiled one by one")
    return failed
