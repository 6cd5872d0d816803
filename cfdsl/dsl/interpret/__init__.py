"""The oracle: a placed graph run on CPU tensors, for every rank of every cluster, on nothing but what that rank holds.

`interpret` gives numbers and the bytes that moved while it made them; `count_traffic` gives the same bytes from shapes and placements
alone, in no time. Importing this package does not load torch.
"""

from __future__ import annotations

from cfdsl.dsl.interpret.count import count_traffic
from cfdsl.dsl.interpret.local import OracleError
from cfdsl.dsl.interpret.run import OracleResult, interpret, leaf_tensors
from cfdsl.dsl.interpret.traffic import ExchangeTraffic, Traffic

__all__ = ["ExchangeTraffic", "OracleError", "OracleResult", "Traffic", "count_traffic", "interpret", "leaf_tensors"]
