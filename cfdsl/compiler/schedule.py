"""From a placed graph and a config to a kernel plan: every node is lowered in order, then passes go over the finished steps."""

from __future__ import annotations

from cfdsl.compiler.allocate import allocate
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.config import Config
from cfdsl.compiler.exchange_bytes import with_counted
from cfdsl.compiler.limits import limits
from cfdsl.compiler.lowering import lower_node
from cfdsl.compiler.lowering.ahead import fetch_ahead
from cfdsl.compiler.lowering.attention import early_scalars
from cfdsl.compiler.lowering.multicast import gather_shared
from cfdsl.compiler.lowering.pointwise import ELEMENTWISE
from cfdsl.compiler.lowering.stores import clear_sums, share_of, store
from cfdsl.compiler.lowering.values import stored
from cfdsl.compiler.plan import TRACE_ARG, Arg, KernelPlan, Ring
from cfdsl.compiler.signature import signature
from cfdsl.dsl.graph import ITEMSIZE, POINTWISE, Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Shard
from cfdsl.errors import CfdslError, ConfigError, DuplicateName, raise_all

SYNC_WORKSPACE = Arg("ws_sync", (8,), "i32", "workspace", mutated=True)  # grid barrier word, status flags


def schedule(placed: PlacedGraph, config: Config, model: str = "") -> KernelPlan:
    """Plan one kernel. Raises NotLowered, ConfigError and the like; `check` then proves what comes out of here."""
    beyond = limits(placed.graph)
    b = Builder(placed, config, lost={node for limit in beyond for node in limit.nodes})
    _shares(b)
    early_scalars(b)
    _lower_nodes(b, [limit.error for limit in beyond])
    clear_sums(b)
    if b.flags:
        b.step("flags", "tell the host of what was out of range", flags=tuple(b.flags))
    if config.multicast:
        gather_shared(b)
    fetch_ahead(b)
    ring = _ring(b) if b.streams else None
    buffers, barriers, total = allocate(b, ring)
    return with_counted(KernelPlan(
        name=placed.graph.name, model=model, dtype=placed.graph.dtype, mesh=placed.mesh, config=config, args=_args(b),
        ring=ring, streams=tuple(b.streams), buffers=buffers, barriers=barriers, steps=tuple(b.steps),
        exchanges=tuple(b.exchanges), smem_bytes=total, needs_residency=any(step.op == "grid_barrier" for step in b.steps),
        shares=tuple(b.shares.values()), slices=tuple(sorted(b.slices)),
    ))  # fmt: skip


def _lower_nodes(b: Builder, refused: list[CfdslError]) -> None:
    """Lower every node. Those that do not depend on a refused one are looked at too: all independent refusals are raised at once.

    refused: what was before, of the nodes in `b.lost`
    """
    graph = b.placed.graph
    for node in graph.nodes:
        if node in b.lost or not b.lost.isdisjoint(node.args):
            b.lost.add(node)
            continue
        try:
            lower_node(b, node)
            for name in (name for name, output in graph.outputs if output is node):
                store(b, node, name)  # at once: a store ahead of an exchange need not wait for it
        except CfdslError as error:
            if not any(isinstance(error, ConfigError) and error.message == told.message for told in refused):
                refused.append(error)  # of a config once: it is mended once
            b.lost.add(node)
        except Exception:
            if not refused:  # else it stumbled over what a refused node left undone
                raise
            b.lost.add(node)
    raise_all(refused)


def _ring(b: Builder) -> Ring:
    """The ring of the config; what is needed behind a grid barrier, if anything is, may be limited on its own."""
    config = b.config
    barrier = next((at for at, step in enumerate(b.steps) if step.op == "grid_barrier"), len(b.steps))
    limited = 0 < config.early < config.window < config.stages and any("stream" in step.params for step in b.steps[barrier:])
    return Ring(config.stages, config.stage_bytes, window=config.window, early=config.early if limited else 0)


def _shares(b: Builder) -> None:
    """Partition the rows of every mesh-wide value over the CTAs, and note which operands of their epilogues can be fetched early."""
    for node in b.placed.graph.nodes:
        if node in b.lost or not b.spread(node):
            continue
        if node.op == "linear" and node.attr("across") == "all":
            weight = stored(node)
            b.share(int(node.type.shape[-1]), int(node.args[1].type.shape[-1]), ITEMSIZE[weight.type.dtype])
        elif node.op in ELEMENTWISE or node.op == "grid_reduce_scatter":
            share_of(b, int(node.types[0].shape[-1]))
        if node.op in ("add", "mul"):
            b.hoisted += [(node, arg) for arg in node.args if _from_arguments(b, arg)]


def _from_arguments(b: Builder, node: Node) -> bool:
    """Whether a value is a cheap elementwise function of launch arguments alone, held by everybody."""
    if node.op in ("input", "weight"):
        return True
    return node.op in POINTWISE and all(_from_arguments(b, arg) for arg in node.args) and not isinstance(b.placed.of(node).cluster, Shard)


def _args(b: Builder) -> tuple[Arg, ...]:
    """Launch arguments: the signature, then workspaces."""
    _check_own(b, SYNC_WORKSPACE.name)
    if b.config.trace:
        _check_own(b, TRACE_ARG)
    return (*signature(b.placed.graph), SYNC_WORKSPACE, *b.workspaces.values())


def _check_own(b: Builder, name: str) -> None:
    """DuplicateName if the spec gave an argument the name of a workspace that the kernel always has."""
    if name in b.taken:
        src = next((node.src for node in b.placed.graph.nodes if node.op in ("input", "weight") and node.attr("name") == name), None)
        raise DuplicateName(name=name, first="the kernel's own workspace", second="an argument", src=src)
