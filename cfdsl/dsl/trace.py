"""Tracing: running a spec once with `Value`s in place of tensors, and recording a node per op.

A mistake does not end the trace: it is recorded, its result is poison, and the trace goes on, so that all independent mistakes are
reported at once. What traced without one is placed then, so that mistakes of placement are among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from cfdsl.dsl.graph import Graph, Node, Src, Type
from cfdsl.dsl.place import lasting_mistakes
from cfdsl.dsl.source import user_line, warn_at
from cfdsl.dsl.type_rules import TYPE_RULES, Call
from cfdsl.dsl.values import Axis, Poisoned, Value
from cfdsl.errors import ArgumentError, CfdslError, DuplicateName, TraceError, is_whole, raise_all

_current: ContextVar[Tracer | None] = ContextVar("cfdsl_tracer", default=None)
Args = tuple[object, ...]  # values, if the user makes no mistake


class UnusedArgument(UserWarning):
    """A spec declares an input, a weight or a cache that nothing needs."""


class Tracer:
    """The state of one trace."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.errors: list[CfdslError] = []
        self.order: list[Node] = []
        self.effects: list[Node] = []
        self.outputs: list[tuple[str, Node]] | None = None
        self.outputs_src: Src | None = None
        self.over: int | None = None
        self.axis: Axis | None = None
        self.names: dict[str, Node] = {}
        self._same: dict[tuple[Any, ...], Node] = {}

    def record(
        self, op: str, args: Args, attrs: dict[str, Any] | None = None, *, names: tuple[str, ...] = (), declared: Type | None = None
    ) -> Node | None:
        """A node for one use of `op`, or None after a mistake (recorded here) or on poison (nothing more to say)."""
        src = user_line()
        nodes: list[Node] = []
        try:
            for index, arg in enumerate(args):
                if not isinstance(arg, Value) or arg.tracer is not self:
                    raise self._not_a_value(op, names[index] if index < len(names) else f"xs[{index}]", arg)
            if any(arg.poisoned for arg in args if isinstance(arg, Value)):
                return None
            nodes = [arg.node for arg in args if isinstance(arg, Value)]
            call = Call(op, tuple(nodes), attrs or {}, src, self.over, (declared,) if declared else ())
            return self._intern(call, TYPE_RULES[op](call))
        except CfdslError as error:
            self.errors.append(error)
            return None

    def _not_a_value(self, op: str, name: str, arg: object) -> CfdslError:
        if isinstance(arg, Value):
            advice = "make every value inside of the fusion that uses it"
            return TraceError(problem=f"{op} was given a value of another trace", advice=advice, src=user_line())
        advice = f"{op} takes values: inputs, weights and what is computed from them"
        return ArgumentError(argument=name, expected="a value of the spec", got=describe(arg), advice=advice, src=user_line())

    def _intern(self, call: Call, types: tuple[Type, ...]) -> Node:
        assert call.src is not None
        key = (call.op, call.args, tuple(sorted(call.attrs.items())), types)
        found = self._same.get(key)
        if found is None:
            found = self._same[key] = Node(call.op, call.args, call.attrs, types, call.src)
            self.order.append(found)
        return found

    def leaf(self, op: str, name: str, declared: Type, attrs: dict[str, Any] | None = None) -> Value:
        """An input, weight or cache; one name stands for one of them."""
        node = self.record(op, (), {"name": name, **(attrs or {})}, declared=declared)
        if node is not None:
            first = self.names.setdefault(name, node)
            if first is not node:
                first_text, second_text = f"{first.op} {first.type} (line {first.src.line})", f"{node.op} {node.type}"
                self.errors.append(DuplicateName(name=name, first=first_text, second=second_text, src=user_line()))
                node = None
        return Value(self, node)

    def value(self, op: str, args: Args, attrs: dict[str, Any] | None = None, names: tuple[str, ...] = ()) -> Value:
        """A single-result op."""
        return Value(self, self.record(op, args, attrs, names=names))

    def values(self, op: str, args: Args, attrs: dict[str, Any], results: int, names: tuple[str, ...] = ()) -> tuple[Value, ...]:
        """A multi-result op: one node, and an `item` node per result."""
        node = self.record(op, args, attrs, names=names)
        if node is None:
            return (Value(self, None),) * results
        items = (Call("item", (node,), {"index": index}, node.src) for index in range(results))
        return tuple(Value(self, self._intern(item, TYPE_RULES["item"](item))) for item in items)

    def refuse(self, error: CfdslError) -> Value:
        """Note a mistake, and go on with poison."""
        self.errors.append(error)
        return Value(self, None)

    def graph(self) -> Graph:
        """The finished graph; raises all mistakes of the trace, and with them those of placing what traced without one."""
        outputs, effects, order = tuple(self.outputs or ()), tuple(self.effects), tuple(self.order)
        graph = Graph(self.name, outputs, effects, self.over, self.dtype, order, self.outputs_src)
        if self.errors:
            raise_all([*self.errors, *lasting_mistakes(graph)])
        for name, leaf in self.names.items():
            if leaf not in graph.nodes:
                what = f"the {leaf.op} {name!r} of {self.name} is needed by no output"
                warn_at(leaf.src, f"{what}: it is no argument of the kernel", UnusedArgument)
        return graph


def current(op: str) -> Tracer:
    """The trace that is under way; an op outside of one is an error."""
    tracer = _current.get()
    if tracer is None:
        problem = f"{op} was called outside of a fusion"
        raise TraceError(problem=problem, advice="call it in a function decorated with @cf.fusion and trace that", src=user_line())
    return tracer


def tracing() -> bool:
    """Whether a trace is under way."""
    return _current.get() is not None


@contextmanager
def _under_way(tracer: Tracer) -> Iterator[None]:
    token = _current.set(tracer)
    try:
        yield
    finally:
        _current.reset(token)


def trace(name: str, dtype: str, spec: Callable[[], object], src: Src | None = None) -> Graph:
    """Run `spec` once and return its graph. Raises the one mistake, or `Errors` with all of them. src: the line where the spec begins."""
    tracer = Tracer(name, dtype)
    with _under_way(tracer):
        try:
            returned = spec()
            if tracer.outputs is None and not (isinstance(returned, Value) and returned.poisoned):
                tracer.errors.append(_no_outputs(name, returned, src))
        except CfdslError as error:
            tracer.errors.append(error)
        except Exception:
            # An exception after a mistake is likely a consequence of it: the mistake is the news.
            if not tracer.errors:
                raise
    return tracer.graph()


def _no_outputs(name: str, returned: object, src: Src | None) -> CfdslError:
    """At the line of the value that was returned in their place, if it was one."""
    problem, advice = f"the fusion {name} has no outputs", "end the spec with `return cf.outputs(name=value, ...)`"
    if isinstance(returned, Value):
        problem, src = f"the fusion {name} returns a value, and not its outputs", returned.node.src
    return TraceError(problem=problem, advice=advice, src=src)


class clusters:
    """`with clusters(over=n) as axis:` spreads n units of work (heads, rows) over the clusters of the launch.

    `x[axis]` gives every cluster its slice of x. A launch may have fewer clusters than units (a cluster then loops), or a multiple.
    """

    def __init__(self, *unnamed: object, over: int = 0, **unknown: object) -> None:
        self._tracer, self._over = current("clusters"), over
        if unnamed or unknown:
            given = [*map(repr, unnamed), *(f"{name}={value!r}" for name, value in unknown.items())]
            problem = f"clusters takes the number of work units as over=, and was given {', '.join(given)}"
            raise TraceError(problem=problem, advice="write `with cf.clusters(over=m.kv_heads) as axis:`", src=user_line())

    def __enter__(self) -> Axis:
        tracer, over = self._tracer, self._over
        if not is_whole(over, 1):
            raise ArgumentError(argument="over", expected="a positive number of work units", got=repr(over), src=user_line())
        self._outer = tracer.axis
        if tracer.axis is not None:
            advice = "a launch has one grid of clusters: use one block"
            tracer.refuse(TraceError(problem="clusters blocks are nested", advice=advice, src=user_line()))
            return tracer.axis
        if tracer.over not in (None, over):
            problem = f"two clusters blocks spread {tracer.over} and {over} work units"
            advice = "a launch has one grid of clusters: give both blocks the same number"
            tracer.refuse(TraceError(problem=problem, advice=advice, src=user_line()))
        tracer.over = tracer.over or over
        tracer.axis = Axis(tracer.over)
        return tracer.axis

    def __exit__(self, *_: object) -> None:
        self._tracer.axis = self._outer


def describe(value: object) -> str:
    """What an argument is, in the words of an error."""
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else type(value).__name__


__all__ = ["Poisoned", "Tracer", "clusters", "current", "describe", "trace", "tracing"]
