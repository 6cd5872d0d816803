"""From a kernel plan to CuTe DSL source: one call of a primitive per step, under a comment with the user's line.

The text names modules and functions of `primitives`; `PRIMITIVES` lists every one that may be named, and a test resolves them.
"""

from cfdsl.compiler.emit.marks import Mark
from cfdsl.compiler.emit.module import emit, marks, with_marks
from cfdsl.compiler.emit.steps import EMITTERS, PRIMITIVES

__all__ = ["EMITTERS", "PRIMITIVES", "Mark", "emit", "marks", "with_marks"]
