"""cfdsl: cluster dataflow graphs for fused decode kernels. `import cfdsl as cf` is the whole language.

Importing this loads neither torch nor cutlass: what needs them (`compile`, `Kernel`, `interpret`, `oracle`) is loaded when
it is first used.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cfdsl.dsl.fusion import Fusion, fusion
from cfdsl.dsl.graph import Graph, Node, Src, Type
from cfdsl.dsl.ops import (
    add,
    argmax,
    attend,
    cast,
    cluster_gather,
    cluster_reduce,
    cluster_reduce_scatter,
    concat,
    embedding,
    gelu,
    grid_gather,
    grid_reduce,
    grid_reduce_scatter,
    input,
    kv_cache,
    linear,
    mean_square,
    merge_heads,
    mul,
    outputs,
    reshape,
    rms_norm,
    rope,
    shard,
    silu,
    split,
    split_heads,
    weight,
)
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.placement import Mesh, Partial, Placement, ReduceOp, Replicate, Shard
from cfdsl.dsl.text import parse, to_text
from cfdsl.dsl.trace import clusters
from cfdsl.dsl.values import Axis, Outputs, Value
from cfdsl.dsl.verify import verify
from cfdsl.errors import CfdslError, Errors, TraceError
from cfdsl.models import PRESETS, ModelConfig, RopeScaling, rope_inv_freq

if TYPE_CHECKING:
    from cfdsl import hf
    from cfdsl.compiler.config import Config
    from cfdsl.compiler.cost import explain
    from cfdsl.dsl.interpret import interpret
    from cfdsl.runtime.build import best_options, compile, plan
    from cfdsl.runtime.collective import collective, collective_algorithms
    from cfdsl.runtime.kernel import Kernel
    from cfdsl.runtime.oracle import Oracle, oracle

__version__ = "0.1.0"
_imported_at = time.time()  # sources that are younger than this are not the ones that run

__all__ = [
    "PRESETS",
    "Axis",
    "CfdslError",
    "Config",
    "Errors",
    "Fusion",
    "Graph",
    "Kernel",
    "Mesh",
    "ModelConfig",
    "Node",
    "Oracle",
    "Outputs",
    "Partial",
    "PlacedGraph",
    "Placement",
    "ReduceOp",
    "Replicate",
    "RopeScaling",
    "Shard",
    "Src",
    "TraceError",
    "Type",
    "Value",
    "add",
    "argmax",
    "attend",
    "best_options",
    "cast",
    "cluster_gather",
    "cluster_reduce",
    "cluster_reduce_scatter",
    "clusters",
    "collective",
    "collective_algorithms",
    "compile",
    "concat",
    "embedding",
    "explain",
    "fusion",
    "gelu",
    "grid_gather",
    "grid_reduce",
    "grid_reduce_scatter",
    "hf",
    "input",
    "interpret",
    "kv_cache",
    "linear",
    "mean_square",
    "merge_heads",
    "mul",
    "oracle",
    "outputs",
    "parse",
    "place",
    "plan",
    "reshape",
    "rms_norm",
    "rope",
    "rope_inv_freq",
    "shard",
    "silu",
    "split",
    "split_heads",
    "to_text",
    "verify",
    "weight",
]

_LAZY = {
    "compile": "cfdsl.runtime.build",
    "best_options": "cfdsl.runtime.build",
    "plan": "cfdsl.runtime.build",
    "collective": "cfdsl.runtime.collective",
    "collective_algorithms": "cfdsl.runtime.collective",
    "Kernel": "cfdsl.runtime.kernel",
    "oracle": "cfdsl.runtime.oracle",
    "Oracle": "cfdsl.runtime.oracle",
    "interpret": "cfdsl.dsl.interpret",
    "Config": "cfdsl.compiler.config",
    "explain": "cfdsl.compiler.cost",
    "hf": "cfdsl.hf",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch or cutlass on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'cfdsl' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    value = module if name == "hf" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
