"""Names in generated code: which ones mean something there already, and what a launch argument of such a name is called."""

from __future__ import annotations

import keyword
import re

MODULES = (
    "argmax", "attention", "cluster_gather", "cluster_reduce", "cta", "exchange", "frag", "gemv", "grid", "host", "kv", "multicast",
    "pointwise", "rmsnorm", "rope", "stream", "terms", "trace",
)  # fmt: skip
_LOCALS = (
    "at", "bid", "cluster", "cuda", "cute", "cutlass", "dict", "group", "holder", "i", "kernel", "launch", "phase",
    "primitives", "rank", "rings", "smem", "split", "status", "tidx", "workspace",
)  # fmt: skip
_DSL = ("locals", "self")  # rewritten code calls the one; a kernel whose first parameter is the other is taken for a method
_RESERVED = frozenset((*MODULES, *_LOCALS, *_DSL, *keyword.kwlist))
# Counted and derived names: coordinates, barriers, tiles, sizes, the constants (all of them in capitals), the DSL's types.
_DERIVED = re.compile(r"(granule|rows|tiles|position|slice)\d*|mb_\w+|n_\w+|\w+_clamped\d*|\w+_given|[A-Z]\w*")


def reserved(name: str) -> bool:
    """Whether generated code uses the name for something of its own."""
    return name in _RESERVED or _DERIVED.fullmatch(name) is not None


def identifier(arg: str) -> str:
    """What a launch argument is called in generated code: its own name, or with `_` behind it where that means something already.

    Different arguments have different identifiers: a name that ends in `_` gets another one.
    """
    return f"{arg}_" if reserved(arg) or arg.endswith("_") else arg
