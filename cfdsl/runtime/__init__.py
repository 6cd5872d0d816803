"""Compiling, caching and calling kernels: the lowest floor that imports torch, and the only one that runs CuTe DSL's compiler."""

from __future__ import annotations

from cfdsl.runtime.arguments import check_arguments
from cfdsl.runtime.build import compile, from_lowered
from cfdsl.runtime.cache import DamagedCacheEntry, KernelCache
from cfdsl.runtime.kernel import Kernel
from cfdsl.runtime.oracle import Oracle, oracle

__all__ = ["DamagedCacheEntry", "Kernel", "KernelCache", "Oracle", "check_arguments", "compile", "from_lowered", "oracle"]
