"""Which config the cost model chose, kept on disk: weighing a hundred candidates again takes most of what loading a kernel takes.

    <root>/choice/<key>.json     the config's fields, and a checksum of them

The key is of all that a choice follows from: the graph, the part, the fields that the user fixed, the sizes to estimate with, and the
sources of the compiler. So a record is never out of date. Only the choice is kept: the plan is made, checked and written anew each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cfdsl
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.overrides import field_errors
from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import Graph
from cfdsl.dsl.source import warn_user
from cfdsl.dsl.text import to_text
from cfdsl.errors import CacheUnusable
from cfdsl.runtime.cache import DamagedCacheEntry, KernelCache, digest

CHOOSERS = ("models", "errors", "dsl", "compiler")  # of the package: what the lowering up to a choice is made of


class KeptChoices:
    """The choices below a cache's folder (see `cfdsl.compiler.stages.lower`)."""

    def __init__(self, cache: KernelCache) -> None:
        self.cache = cache

    def find(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int]) -> Config | None:
        """The config that was chosen for the same arguments; None if none was, or its record is damaged (with a warning)."""
        path = self._path(graph, part, overrides, sizes)
        if path is None or not path.exists():
            return None
        try:
            record = json.loads(path.read_bytes())
            fields = record["config"]
            if record["sha256"] != digest(_text(fields)) or field_errors(fields):
                raise ValueError("its checksum is wrong")
            return Config(**fields)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warn_user(f"the cache's record {path} is damaged ({error}); choosing again", DamagedCacheEntry)
            return None

    def keep(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int], config: Config) -> None:
        """Note a choice. Nobody depends on it: in a cache that can only be read, kernels are found without."""
        path = self._path(graph, part, overrides, sizes)
        if path is not None:
            fields = dataclasses.asdict(config)
            with contextlib.suppress(CacheUnusable):
                self.cache.put(path, json.dumps({"config": fields, "sha256": digest(_text(fields))}).encode())

    def _path(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int]) -> Path | None:
        sources = _sources()
        if sources is None:
            return None
        asked = (to_text(graph, lines=False), repr(part), sorted(overrides.items()), sorted(sizes.items()), sources)
        return self.cache.folder / "choice" / f"{digest(repr(asked))}.json"


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


@functools.cache
def _sources() -> str | None:
    """sha256 over the sources that make a choice; None if one was edited since this process imported the package: others run then."""
    spec = find_spec("cfdsl")
    assert spec is not None
    (root,) = (Path(folder) for folder in spec.submodule_search_locations or ())
    files = [file for name in CHOOSERS for file in sorted((root / name).rglob("*.py"))]
    if max(file.stat().st_mtime for file in files) > cfdsl._imported_at:
        return None
    return digest(b"".join(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0" for file in files))
