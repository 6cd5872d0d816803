"""A graph as text, and back: one line per node.

    fusion attention_block(dtype="bf16", over=32)
    # /home/me/specs.py

    %x = input()                                    : bf16[1,4096]                  # specs.py:12
    %4 = linear(%2, %3, across="cluster", shard="out") : f32[1,32,128]              # specs.py:21
    %7, %8, %9 = cluster_gather(%4, %5, %6)         : f32[1,32,128], ...            # specs.py:24

    effects %12
    outputs y=%20

Leaves have their own names, everything else is numbered. The results of an exchange are named on its own line (`_`: unused), so `item`
nodes have none. A placed graph prints the same with placements on [grid, cluster], and on the splits where these are not R; `parse`
skips placements. A comment is the user's line.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cfdsl.dsl.graph import COLLECTIVES, LEAVES, Dim, Graph, Node, Src, Type, expect_graph
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.source import source_at
from cfdsl.errors import ArgumentError, TextSyntax

MULTI = (*COLLECTIVES, "split")  # ops whose results are named by items
ITEM = "item"


# ---- printing ----------------------------------------------------------------------------------------------------------------------


def to_text(graph: Graph | PlacedGraph, *, lines: bool = True) -> str:
    """The text of a graph, or of a placed graph with its placements. lines: with the user's lines as comments."""
    placed, graph = (graph, graph.graph) if isinstance(graph, PlacedGraph) else (None, expect_graph(graph))
    over = "" if graph.over is None else f", over={graph.over}"
    header = [f'fusion {graph.name}(dtype="{graph.dtype}"{over})']
    if placed is not None:
        header.append(f"mesh {placed.mesh}")
    files = _short_files(graph) if lines else {}
    header += [f"# {file}" for file, short in files.items() if short != file]
    names = node_names(graph)
    rows = [_row(node, graph, placed, names, files) for node in graph.nodes if node.op != ITEM]
    footer = [f"effects {', '.join(names[node] for node in graph.effects)}"] if graph.effects else []
    footer.append(f"outputs {', '.join(f'{name}={names[node]}' for name, node in graph.outputs)}")
    return "\n".join([*header, "", *_columns(rows), "", *footer]) + "\n"


def node_names(graph: Graph) -> dict[Node, str]:
    """The name of every single-result node in the text: %x of a leaf, %7 of anything else."""
    names: dict[Node, str] = {}
    numbered = 0
    for node in graph.nodes:
        if node.op in LEAVES:
            names[node] = f"%{node.attr('name')}"
            continue
        for result in _items(graph, node) if node.op in MULTI else () if node.op == ITEM else (node,):
            if result is not None:
                names[result] = f"%{numbered}"
                numbered += 1
    return names


def _items(graph: Graph, node: Node) -> list[Node | None]:
    """The item node of each result, None where nobody uses it."""
    found: dict[int, Node] = {user.attr("index"): user for user in graph.users(node) if user.op == ITEM}
    return [found.get(index) for index in range(len(node.types))]


def _row(node: Node, graph: Graph, placed: PlacedGraph | None, names: dict[Node, str], files: dict[str, str]) -> list[str]:
    results = _items(graph, node) if node.op in MULTI else [node]
    named = ", ".join("_" if result is None else names[result] for result in results)
    attrs = [f"{key}={_literal(value)}" for key, value in node.attrs if not (node.op in LEAVES and key == "name")]
    row = [f"{named} = {node.op}({', '.join([names[arg] for arg in node.args] + attrs)})", ": " + ", ".join(map(str, node.types))]
    if placed is not None:
        row.append(", ".join(map(str, placed.placements[node])))
    if files:
        row.append(f"# {files[node.src.file]}:{node.src.line}")
    return row


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _short_files(graph: Graph) -> dict[str, str]:
    """The base name of each source file; the whole path where two files have one base name."""
    files = dict.fromkeys(node.src.file for node in graph.nodes)
    bases = [os.path.basename(file) for file in files]
    return {file: base if bases.count(base) == 1 else file for file, base in zip(files, bases)}


def _columns(rows: list[list[str]]) -> Iterator[str]:
    """Rows with their cells aligned. The long row of an exchange of several values pushes its own cells only."""
    usual = [row for row in rows if not row[0].partition(" = ")[0].count(",")] or rows
    widths = [min(max(len(cell) for cell in column), 64) for column in zip(*usual)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


# ---- parsing -----------------------------------------------------------------------------------------------------------------------

_HEADER = re.compile(r"fusion (?P<name>\w+)\((?P<attrs>.*)\)$")
_LINE = re.compile(r"(?P<names>(?:%\w+|_)(?:, (?:%\w+|_))*) = (?P<op>\w+)\((?P<args>.*)\)\s+: (?P<types>.+)$")
_TYPE = re.compile(r"\b(f32|f16|bf16|i32)\[([^\]]*)\]")
_COMMENT = re.compile(r"\s+# (?P<file>.+):(?P<line>\d+)$")
_NAME = re.compile(r'"[^"]*"|%(\w+)')


@dataclass
class _Parser:
    number: int = 0
    line: str = ""
    name: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    order: list[Node] = field(default_factory=list)
    effects: tuple[Node, ...] = ()
    outputs: tuple[tuple[str, Node], ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def fail(self, problem: str) -> TextSyntax:
        return TextSyntax(line=self.number, text=self.line, problem=problem)

    def node_named(self, name: str) -> Node:
        if name not in self.nodes:
            raise self.fail(f"{name} is not defined above")
        return self.nodes[name]

    def read(self, number: int, line: str) -> None:
        """One line of any kind."""
        self.number, self.line = number, line.strip()
        word, _, rest = self.line.partition(" ")
        if word in ("", "mesh"):
            return
        if word == "fusion":
            self._header()
        elif word == "#":
            self.files[os.path.basename(rest)] = rest
        elif word == "effects":
            self.effects = tuple(self.node_named(name) for name in rest.split(", "))
        elif word == "outputs":
            pairs = [pair.partition("=") for pair in rest.split(", ") if pair]
            self.outputs = tuple((name, self.node_named(value)) for name, _, value in pairs)
        else:
            self._node()

    def _header(self) -> None:
        match = _HEADER.match(self.line)
        if match is None:
            raise self.fail("a header looks like `fusion name(dtype=..., over=...)`")
        self.name, (_, self.attrs) = match["name"], self._arguments(match["attrs"])

    def _node(self) -> None:
        text, src = self._source()
        match = _LINE.match(text)
        if match is None:
            raise self.fail("a node looks like `%name = op(%argument, attribute=value) : dtype[shape]`")
        names, op = match["names"].split(", "), match["op"]
        args, attrs = self._arguments(match["args"])
        if op in LEAVES:
            attrs["name"] = names[0][1:]
        types = tuple(Type(self._shape(shape), dtype) for dtype, shape in _TYPE.findall(match["types"]))
        if len(types) != len(names):
            raise self.fail(f"{len(names)} results have {len(types)} types")
        node = Node(op, args, attrs, types, src)
        self.order.append(node)
        for index, (name, type_) in enumerate(zip(names, types)):
            if name in self.nodes:
                raise self.fail(f"{name} is defined twice")
            if name != "_":
                self.nodes[name] = Node(ITEM, (node,), {"index": index}, (type_,), src) if op in MULTI else node
                self.order += [self.nodes[name]] if op in MULTI else []

    def _source(self) -> tuple[str, Src]:
        match = _COMMENT.search(self.line)
        if match is None:
            return self.line, Src("<text>", self.number, self.line)
        file = self.files.get(match["file"], match["file"])
        return self.line[: match.start()], source_at(file, int(match["line"]))

    def _arguments(self, text: str) -> tuple[tuple[Node, ...], dict[str, Any]]:
        plain = _NAME.sub(lambda match: match[0] if match[1] is None else f"_{match[1]}", text)
        try:
            call = ast.parse(f"op({plain})", mode="eval").body
            assert isinstance(call, ast.Call)
            attrs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (SyntaxError, ValueError, AssertionError) as error:
            raise self.fail("its arguments are not %names and attribute=value pairs") from error
        args = []
        for arg in call.args:
            if not isinstance(arg, ast.Name):
                raise self.fail("its arguments are not %names and attribute=value pairs")
            args.append(self.node_named(f"%{arg.id[1:]}"))
        return tuple(args), attrs

    def _shape(self, text: str) -> tuple[Dim, ...]:
        dims = [dim.strip() for dim in text.split(",") if dim.strip()]
        return tuple(int(dim) if dim.isdecimal() else dim for dim in dims)


def parse(text: str) -> Graph:
    """The graph that a text describes: `parse(to_text(graph)) == graph`, and the nodes are the same objects while `graph` lives.

    Raises TextSyntax for a line that cannot be read. The ops' rules are not checked: see `verify`.
    """
    if not isinstance(text, str):
        raise ArgumentError(argument="text", expected="the text of a graph", got=f"a {type(text).__name__}")
    parser = _Parser()
    for number, line in enumerate(text.splitlines(), 1):
        parser.read(number, line)
    if not parser.name or not parser.outputs:
        raise parser.fail(f"the text has no {'outputs' if parser.name else 'header'}")
    dtype, over = parser.attrs.get("dtype", "bf16"), parser.attrs.get("over")
    return Graph(parser.name, parser.outputs, parser.effects, over, dtype, tuple(parser.order))
