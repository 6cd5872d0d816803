"""The two lanes of a kernel: the producer warp's load stream, and the steps of the consumer warps."""

from __future__ import annotations

import os
from typing import Any

from cfdsl.compiler.emit.attention import head_base, holder
from cfdsl.compiler.emit.context import DTYPES, WIDTH, Context, Lines, capacity
from cfdsl.compiler.emit.marks import CONSUMER, END, PRODUCER
from cfdsl.compiler.emit.steps import emit_step, tiles_of
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import Buffer, KernelPlan, Step
from cfdsl.dsl.graph import Src

PREDECESSOR = ("griddepcontrol_wait", "the kernel before has finished")


def producer(c: Context) -> Lines:
    """The whole load stream, in the order of the consumers' steps; waits for the predecessor only before it reads the cache."""
    plan = c.plan
    lines, waited = ["at = Int32(0)", *c.mark(PRODUCER, "set up", "barriers")], not plan.config.pdl
    policy = "" if plan.config.evict_first else ", None"
    behind = 0  # grid barriers before the step
    for step in plan.steps:
        p = step.params
        behind += step.op == "grid_barrier"
        ring = f"RING.behind({behind})" if behind and plan.ring and plan.ring.early else "RING"
        if step.op == "gemv":
            weight = plan.streams[p["stream"]].name
            tiles: RowTiles = p["tiles"]
            call = f"{c.rows(weight, tiles)}, {tiles.row0}, {tiles.col0}, {tiles_of(c, tiles)}"
            lines.append(f"at = stream.rows(smem, {ring}, at, {name(weight)}, {call}{policy})")
            lines += _streamed(c, weight, p["stream"], step)
        if step.op == "decode":
            if not waited:
                lines.append("cute.arch.griddepcontrol_wait()  # the cache may be the predecessor's work")
                lines += c.mark(PRODUCER, *PREDECESSOR)
                waited = True
            length, call = _tokens(c, p, ring)
            lines += [call] if length in lines else [length, call]  # a length is read once, for all heads of a cache
            lines += _streamed(c, p["cache"].name, p["stream"], step)
    if has_step(plan, "rendezvous"):
        lines += ["cute.arch.cluster_wait()", *c.mark(PRODUCER, "rendezvous", "every rank of the cluster has initialised its barriers")]
    return lines + c.mark(PRODUCER, END)


def _tokens(c: Context, p: dict[str, Any], ring: str) -> tuple[str, str]:
    """The lines that read how many tokens a cache has, and stream those of one KV head that are this CTA's."""
    cache = p["cache"]
    given = next(s.params["length"] for s in c.plan.steps if s.op == "length" and s.params["out"] == p["tokens"])
    room = capacity(c, cache.name, cache.layout)
    length = f"{p['tokens']} = cutlass.max(cutlass.min({name(given)}[0], {room}), Int32(0))"
    shape = c.constant("TOKENS", f"stream.Tokens(tokens={p['tokens_per_tile']}, dim={p['dim']}, stride={p['stride']})")
    pair, base = f"{name(cache.name + '_k')}, {name(cache.name + '_v')}", head_base(c, cache, p["head"])
    return length, f"at = stream.tokens(smem, {ring}, at, {pair}, {shape}, {base}, {p['tokens']}, {', '.join(holder(p))})"


def _streamed(c: Context, what: str, index: int, step: Step) -> Lines:
    """The mark behind one run of the load stream: its last copy is issued."""
    stream = c.plan.streams[index]
    count = "tiles by KV length, each" if stream.tiles is None else f"{stream.tiles} tiles"
    sources = (step.src,) if step.src is not None else ()
    return c.mark(PRODUCER, f"stream {what}", f"{count} of {stream.tile_bytes} B issued", sources)


def consumers(c: Context) -> Lines:
    """The steps of the consumer warps, each under the line of the spec that it is for; early ones before the predecessor has ended."""
    plan = c.plan
    lines = ["at = Int32(0)"] if plan.ring else []
    lines += [_view(buffer) for buffer in plan.buffers]
    lines += c.mark(CONSUMER, "set up", "barriers")
    last: Src | None = None
    done: list[Step] = []  # since the last mark
    for i, step in enumerate(plan.steps):
        if plan.config.pdl and i == plan.early_steps:
            lines += [*_stepped(c, done), "cute.arch.griddepcontrol_wait()", *c.mark(CONSUMER, *PREDECESSOR)]
            done = []
        if i == plan.early_steps and has_step(plan, "grid_barrier"):
            lines.append("phase = grid.phase(ws_sync)")
        made = emit_step(c, step)
        if made and done and not _together(done[-1], step):
            lines += _stepped(c, done)
            done = []
        if step.src is not None and step.src != last:
            lines.insert(len(lines) if made else -1, _comment(step))  # no code of its own: the call before does this line's work too
            last = step.src
        lines += made
        done.append(step)
    return [*lines, *_stepped(c, done), *c.mark(CONSUMER, END)]


def _together(before: Step, step: Step) -> bool:
    """Whether one mark stands behind both steps: short ones of a kind (a mark between fetches would only be in their way)."""
    return before.op == step.op and "stream" not in step.params


def _stepped(c: Context, done: list[Step]) -> Lines:
    """The mark behind the steps that were done since the last one."""
    sources = tuple(dict.fromkeys(step.src for step in done if step.src is not None))
    return c.mark(CONSUMER, done[0].op, "; ".join(step.text for step in done), sources) if done else []


def _view(buffer: Buffer) -> str:
    shape = str(buffer.shape[0]) if len(buffer.shape) == 1 else str(buffer.shape)
    return f"{buffer.name} = cta.view(smem, {buffer.offset}, {DTYPES[buffer.dtype]}, {shape})"


def _comment(step: Step) -> str:
    """The user's line, which error messages translate back to."""
    assert step.src is not None
    return f"# src[{os.path.basename(step.src.file)}:{step.src.line}]: {step.src.code}"[: WIDTH - 8]


def has_step(plan: KernelPlan, op: str) -> bool:
    """Whether a plan has a step of this op."""
    return any(step.op == op for step in plan.steps)
