"""What a user may fix of a schedule, and assume for its estimate: fields of `Config`, sizes of named dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from cfdsl.compiler.config import CLUSTER_SIZES, Config
from cfdsl.compiler.cost.moves import DEFAULT_SIZES
from cfdsl.dsl.graph import LEAVES, Graph
from cfdsl.errors import ArgumentError, CfdslError, ClusterSizeUnsupported, ConfigError, is_whole, listed

MAX_STAGES = 12  # of 16 KB: no more fit an SM
MIN_STAGES = 2  # one lands while the other is eaten
MAX_WARPS = 16

_INTEGERS: Mapping[str, tuple[str, Callable[[int], bool]]] = {
    "clusters": ("a positive number", lambda n: n >= 1),
    "splits": ("a positive number", lambda n: n >= 1),
    "stages": (f"a number from {MIN_STAGES} to {MAX_STAGES}", lambda n: MIN_STAGES <= n <= MAX_STAGES),
    "stage_bytes": ("a positive multiple of 128", lambda n: n > 0 and n % 128 == 0),
    "window": (f"a number of stages, 0 to {MAX_STAGES}", lambda n: 0 <= n <= MAX_STAGES),
    "early": (f"a number of stages, 0 to {MAX_STAGES}", lambda n: 0 <= n <= MAX_STAGES),
    "warps": (f"a power of two up to {MAX_WARPS}", lambda n: 1 <= n <= MAX_WARPS and n & (n - 1) == 0),
    "ctas_per_sm": ("1 or 2", lambda n: n in (1, 2)),
}
_FIELDS = tuple(field.name for field in fields(Config))


def override_errors(overrides: Mapping[str, Any]) -> list[CfdslError]:
    """ConfigError and ClusterSizeUnsupported, for fields that no config can have, and for those that do not go together."""
    return field_errors(overrides) or list(_in_flight_errors(overrides))


def field_errors(overrides: Mapping[str, Any]) -> list[CfdslError]:
    """ConfigError and ClusterSizeUnsupported, for fields that no config can have, each by itself."""
    errors: list[CfdslError] = []
    for name, value in overrides.items():
        if name not in _FIELDS:
            errors.append(ConfigError(name=name, value=value, expected=f"one of the fields {', '.join(_FIELDS)}"))
        elif name == "cluster_size":
            if not is_whole(value) or value not in CLUSTER_SIZES:
                errors.append(ClusterSizeUnsupported(size=value, supported=CLUSTER_SIZES))
        elif name in _INTEGERS:
            expected, holds = _INTEGERS[name]
            if not is_whole(value) or not holds(value):
                errors.append(ConfigError(name=name, value=value, expected=expected))
        elif not isinstance(value, bool):
            errors.append(ConfigError(name=name, value=value, expected="true or false"))
    return errors


def _in_flight_errors(overrides: Mapping[str, Any]) -> Iterator[CfdslError]:
    """Tiles in flight lie in stages, and those for behind a grid barrier are some of them."""
    early, window, stages = (overrides.get(name, 0) for name in ("early", "window", "stages"))
    for name, value, most, of in (("window", window, stages, "stages"), ("early", early, window or stages, "tiles in flight")):
        if most and value > most:
            yield ConfigError(name=name, value=value, expected=f"at most {most}, the number of {of}")


def size_errors(graph: Graph, sizes: object) -> list[CfdslError]:
    """ArgumentError for sizes that no dimension of the graph has the name of, and for those that are no sizes.

    A name that is estimated with by default (the tokens of a cache) does no harm to a fusion without it.
    """
    if not isinstance(sizes, Mapping):
        return [ArgumentError(argument="sizes", expected='numbers by name, such as {"tokens": 4096}', got=repr(sizes))]
    named = (dim for op in LEAVES for leaf in graph.leaves(op) for dim in leaf.type.shape if isinstance(dim, str))
    known = tuple(dict.fromkeys((*named, *DEFAULT_SIZES)))
    errors: list[CfdslError] = []
    for name, size in sizes.items():
        if name not in known:
            errors.append(ArgumentError(argument="sizes", expected=f"numbers for {listed(known)}", got=f"one for {name!r}"))
        elif not is_whole(size, 1):
            errors.append(ArgumentError(argument="sizes", expected="positive numbers by name", got=f"{name}={size!r}"))
    return errors
