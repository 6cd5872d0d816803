"""What was proved of a plan, as text: every check by its name, in its own words, and how much of the plan it went through."""

from __future__ import annotations

import inspect

from cfdsl.compiler.check.checks import CHECKS, fits
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan


def check_text(plan: KernelPlan, part: Part) -> str:
    """A line per check of a plan that passed all of them."""
    counts = {
        "argument": len(plan.args), "stream": len(plan.streams), "barrier": sum(barrier.count for barrier in plan.barriers),
        "buffer": len(plan.buffers), "exchange": len(plan.exchanges), "step": len(plan.steps), "CTA": plan.mesh.ctas,
    }  # fmt: skip
    of = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    rules = [*CHECKS, fits]
    wide = max(len(rule.__name__) for rule in rules)
    lines = [f"{rule.__name__:{wide}}  {(inspect.getdoc(rule) or '').splitlines()[0]}" for rule in rules]
    return "\n".join([f"proved of {plan.name} on {part.name} by {len(rules)} checks, of {of}", "", *lines, "", _room(plan, part)]) + "\n"


def _room(plan: KernelPlan, part: Part) -> str:
    """The sums behind the last of them."""
    config = plan.config
    text = f"shared memory: {plan.smem_bytes:,} of {part.smem_budget(config.ctas_per_sm):,} B with {config.ctas_per_sm} CTA/SM"
    held = part.resident(config.cluster_size, config.ctas_per_sm)
    if plan.needs_residency and held is not None:
        text += f"; clusters: {plan.mesh.clusters} of {held} that run at once"
    return text
