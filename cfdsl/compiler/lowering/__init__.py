"""Instruction selection: one rule per op, from placed graph nodes to plan steps.

Each rule takes the builder and a node, and leaves the node's value where later rules find it (`values.py` lists the forms). Elementwise
nodes have no rule: they are evaluated where they are needed, in the form that is needed.
"""

from cfdsl.compiler.lowering.rules import RULES, lower_node

__all__ = ["RULES", "lower_node"]
