"""The placement rule of every op, in one table: `PLACE_RULES[op](site)` gives the placements of the results, or raises the mistake.

A replicated operand that meets a sharded one is sliced in passing, which is free. Everything else that would need communication is an
error that names the collective: communication is what the author of a spec wants to see.
"""

from __future__ import annotations

from cfdsl.dsl.place_rules import attention, contraction, exchange, pointwise, select, views
from cfdsl.dsl.place_rules.site import Rule, Site

PLACE_RULES: dict[str, Rule] = {
    **views.RULES, **pointwise.RULES, **contraction.RULES, **attention.RULES, **exchange.RULES, **select.RULES,
}  # fmt: skip

__all__ = ["PLACE_RULES", "Rule", "Site"]
