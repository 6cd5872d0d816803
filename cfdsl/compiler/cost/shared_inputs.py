"""Which launch arguments every rank of a cluster reads whole, told from the placed graph: what `Config.multicast` can bring.

The cost model asks this before there is a plan; `lowering.multicast` finds the same vectors in the finished steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from cfdsl.compiler.cost.moves import SLICED_LIKE_X
from cfdsl.compiler.geometry import COPY_BYTES
from cfdsl.dsl.graph import ITEMSIZE, Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Placement


def shared_inputs(placed: PlacedGraph) -> Mapping[str, int]:
    """Bytes of each input and vector weight that an elementwise node held by everybody reads, by name."""
    found: dict[str, int] = {}
    for node in placed.graph.nodes:
        if node.op not in SLICED_LIKE_X or placed.placements[node][0] != Placement():
            continue
        for leaf in node.args:
            if node.op == "rms_norm" and leaf is node.args[1] and _multiplied_in_slices(placed, node):
                continue
            if leaf.op == "input" or (leaf.op == "weight" and len(leaf.type.shape) == 1):
                sizes = [dim for dim in leaf.type.shape if isinstance(dim, int)]
                nbytes = prod(sizes) * ITEMSIZE[leaf.type.dtype]
                if len(sizes) == len(leaf.type.shape) and nbytes % COPY_BYTES == 0:
                    found[leaf.attr("name")] = nbytes
    return found


def _multiplied_in_slices(placed: PlacedGraph, node: Node) -> bool:
    """Whether ranks use only their slice of a normalised row: its mean takes the whole row, but the weight is read in slices too."""
    users = placed.graph.users(node)
    return bool(users) and all(user.op == "linear" and user.attr("shard") == "in" for user in users)
