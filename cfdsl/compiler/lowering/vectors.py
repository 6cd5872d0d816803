"""Values in shared memory: sums over warps, and whatever else somebody needs as a vector."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.pointwise import Where, expression, mean_square, row_tiles
from cfdsl.compiler.lowering.products import flush
from cfdsl.compiler.lowering.values import Fetched, GlobalVector, Product, Scalar, Vector, made_with
from cfdsl.dsl.graph import VIEWS, Node
from cfdsl.errors import NotLowered


def materialise(b: Builder, node: Node) -> Vector:
    """This rank's slice of `node` in shared memory."""
    value = b.values.get(node)
    if isinstance(value, Product):
        return flush(b, node)
    if isinstance(value, Fetched):
        return _keep(b, node)
    if isinstance(value, Vector):
        return value
    if node.op in ("item", "reshape", "split_heads", "merge_heads") and node.args[0] in b.values:
        return materialise(b, node.args[0])
    size = prod(b.local(node))
    tree = expression(b, node, Where())
    out = b.buffer("vector", (size,))
    b.step("finish", f"{out}[i] = {tree}", reads=tree.buffers(), writes=(out,), src=node.src, tree=tree, out=out, rows=size)
    b.values[node] = Vector(out, size)
    return b.values[node]


def lower_slice_grid(b: Builder, node: Node) -> None:
    """A cluster's slice of a vector in global memory: start to read it now, with its neighbours, and keep it when it is needed."""
    root = node
    while root.op in VIEWS and root not in b.values:
        root = root.args[0]
    if not isinstance(b.values.get(root), GlobalVector):
        return
    size = prod(b.local(node))
    tree = expression(b, node, Where())
    name = _name(root)
    variable = b.variable(f"{name}_got")
    text = f"{variable} = {tree}, for {size} elements"
    b.step("fetch", text, src=node.src, out=variable, workspace=tree.name, offset=tree.offset, n=size)
    b.values[node] = Fetched(variable, size)


def _keep(b: Builder, node: Node) -> Vector:
    """Write everything that has been fetched to shared memory."""
    for one in [n for n, value in b.values.items() if isinstance(n, Node) and isinstance(value, Fetched)]:
        got = b.values[one]
        out = b.buffer(got.variable.removesuffix("_got"), (got.size,))
        b.step("keep", f"{out} = {got.variable}", writes=(out,), src=one.src, out=out, value=got.variable, n=got.size)
        b.values[one] = Vector(out, got.size)
    kept: Vector = b.values[node]
    return kept


def _name(node: Node) -> str:
    """A short name for a gathered value: that of the weight it was made with."""
    source = node.args[0].args[node.attr("index")] if node.op == "item" else node
    return made_with(source) if source.op == "linear" else "gathered"


def lower_item(b: Builder, node: Node) -> None:
    """One result of an exchange of several values; a piece of a split is read where it is needed."""
    if node.args[0].op == "split":
        return
    b.values[node] = b.values[(node.args[0], node.attr("index"))]


def lower_concat(b: Builder, node: Node) -> None:
    """The pieces, one after another, in shared memory."""
    shape, dim = b.local(node), node.attr("dim")
    if prod(shape[:dim]) != 1:
        raise NotLowered(op="concat", why=f"pieces along dimension {dim} of {list(shape)} lie between each other's rows", src=node.src)
    parts, first = [], 0
    for arg in node.args:
        size = int(arg.type.shape[dim]) * prod(shape[dim + 1 :])
        if b.placed.of(arg) != b.placed.of(node):
            why = f"a piece is placed {b.placed.of(arg)}, and the whole {b.placed.of(node)}"
            raise NotLowered(op="concat", why=why, advice="give all pieces the same placement", src=node.src)
        parts.append((expression(b, arg, Where()), first, size))
        first += size
    out = b.buffer("joined", (first,))
    reads = tuple(dict.fromkeys(name for tree, _, _ in parts for name in tree.buffers()))
    text = ", ".join(f"{out}[{first} + i] = {tree}" for tree, first, _ in parts)
    b.step("concat", text, reads=reads, writes=(out,), src=node.src, parts=tuple(parts), out=out)
    b.values[node] = Vector(out, first)


def lower_mean_square(b: Builder, node: Node) -> None:
    """This slice's term of the mean square of a row, in a variable."""
    x = node.args[0]
    cols = b.local(x)[-1]
    b.values[node] = Scalar(mean_square(b, x, node, Where(), row_tiles(cols, b.config.warps)))
