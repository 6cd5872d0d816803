"""Vector weights that a fragment reads are asked for ahead of the wait before it, so that their way from memory hides behind that.

A pass over finished steps. Nobody writes a weight, so it may be read at any time: before the kernel ahead in the stream has finished, or
before a grid barrier. What is fetched stays in registers, in its own type, until the fragment takes it; so not much too early: before
the last product ahead of the barrier, whose tiles take longer to come.
"""

from __future__ import annotations

from dataclasses import replace

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.plan import Step

Fetches = dict[Expr, str]


def fetch_ahead(b: Builder) -> None:
    """Insert a fetch for every vector weight of a fragment, and let the fragment take what was fetched."""
    weights = {n.attr("name") for n in b.placed.graph.nodes if n.op == "weight" and len(n.type.shape) == 1}
    i = 0
    while i < len(b.steps):
        step = b.steps[i]
        found: Fetches = {}
        if step.op == "fragment":
            b.steps[i] = replace(step, params={**step.params, "tree": _taken(b, step.params["tree"], weights, found)})
        for leaf, name in found.items():
            at = _ahead_of(b.steps, i)
            params = {"out": name, "tree": leaf, "tiles": step.params["tiles"]} | ({"early": True} if at == 0 else {})
            b.insert(at, Step("fetch_fragment", f"{name} = {leaf}, on its way", params=params, src=step.src))
            i += 1
        i += 1


def _taken(b: Builder, tree: Expr, weights: set[str], found: Fetches) -> Expr:
    """The tree with variables in the place of weights; `found` gets their names."""
    if tree.kind == "leaf" and tree.name in weights and not tree.block:
        if tree not in found:
            found[tree] = b.variable(f"{tree.name}_raw")
        return Expr("fetched", found[tree])
    return replace(tree, args=tuple(_taken(b, arg, weights, found) for arg in tree.args))


def _ahead_of(steps: list[Step], i: int) -> int:
    """Where to fetch what step `i` takes: before the products that lead up to the last grid barrier ahead of it; else first of all."""
    barrier = next((at for at in reversed(range(i)) if steps[at].op == "grid_barrier"), None)
    if barrier is None:
        return 0
    product = next((at for at in reversed(range(barrier)) if "stream" in steps[at].params), barrier)
    while product and "stream" in steps[product - 1].params:
        product -= 1  # products that one loop eats
    return product
