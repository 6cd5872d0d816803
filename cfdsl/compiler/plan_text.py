"""A plan as text: what each CTA loads, holds, waits for and does."""

from __future__ import annotations

from cfdsl.compiler.plan import KernelPlan


def plan_text(plan: KernelPlan) -> str:
    """Sections of aligned lines; the same plan always gives the same text."""
    c = plan.config
    lines = [f"plan {plan.name} {plan.model} {plan.dtype}: {plan.mesh}, {plan.threads} threads, {plan.smem_bytes} B of shared memory"]
    lines.append(f"  config: {c.ctas_per_sm} CTAs per SM, pdl {c.pdl}, multicast {c.multicast}, evict_first {c.evict_first}")
    lines += ["", "arguments"]
    lines += [f"  {a.name:12} {a.dtype:4} {'x'.join(map(str, a.shape)):24} {a.role}{', written' * a.mutated}" for a in plan.args]
    if plan.ring:
        flight = f"{plan.ring.flight} tiles in flight"
        flight += f", {plan.ring.early} of them behind a grid barrier to come" if plan.ring.early else ""
        lines += ["", f"load stream, through a ring of {plan.ring.stages} x {plan.ring.stage_bytes} B, {flight}"]
        for s in plan.streams:
            count = "by KV length" if s.tiles is None else f"{s.tiles} tiles"
            how = "one copy each" if s.contiguous else f"{s.rows} copies each"
            lines.append(f"  {s.name:12} {count:14} of {len(s.tensors)} x {s.rows} x {s.cols} = {s.tile_bytes} B, {how}")
    lines += ["", "barriers"]
    for b in plan.barriers:
        many = f" x {b.count}" if b.count > 1 else ""
        lines.append(f"  {b.name + many:16} {b.kind:9} at {b.offset:6}: {b.arrivals} arrivals, {b.tx_bytes} B")
    lines += ["", "buffers (steps first..last)"]
    for f in plan.buffers:
        first = "start" if f.peer_written and not f.first else str(f.first)
        size = f"{'x'.join(map(str, f.shape))} {f.dtype}"
        lines.append(f"  {f.name:16} {size:16} at {f.offset:6}, {f.bytes:6} B, {first}..{f.last}{', peers write' * f.peer_written}")
    lines += ["", "exchanges"]
    for e in plan.exchanges:
        monoid = f" {e.monoid}" if e.monoid else ""
        moved = f"payload {e.payload} B, sends {e.sent_bytes} B, gets {e.received_bytes} B"
        lines.append(f"  {e.scope} {e.op}{monoid} by {e.algorithm}: {', '.join(e.values)}; {moved}")
    lines += ["", "steps of the consumer warps"]
    lines += [f"  {i:3} {s.op:14} {s.text}" for i, s in enumerate(plan.steps)]
    return "\n".join(lines) + "\n"
