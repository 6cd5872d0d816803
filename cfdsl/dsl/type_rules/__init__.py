"""The shape and dtype rule of every op, in one table: `TYPE_RULES[op](call)` gives the types of the results, or raises the mistake.

Everything computed is float32: only leaves (inputs, weights, caches) are 16-bit, and outputs and caches round when they are stored.
The tracer collects what the rules raise, and `verify` runs the same rules over a finished graph.
"""

from __future__ import annotations

from cfdsl.dsl.type_rules import attention, exchange, leaves, math, select, views
from cfdsl.dsl.type_rules.call import Call, Rule, appended, cache_leaf, is_cache, is_weight

TYPE_RULES: dict[str, Rule] = {**leaves.RULES, **views.RULES, **math.RULES, **attention.RULES, **exchange.RULES, **select.RULES}

__all__ = ["TYPE_RULES", "Call", "Rule", "appended", "cache_leaf", "is_cache", "is_weight"]
