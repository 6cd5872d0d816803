"""One harness kernel with inputs and a float64 check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import harness
import tensors
import torch
from harness import THREADS, Program
from stress import NONE
from tensors import random
from torch import Tensor

Spec = tuple[str, tuple[int, ...]]  # dtype, shape
Outs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A kernel, its constants, its tensors, and what must come out.

    `make(variant)` gives the inputs, by default random; `check(outs, variant, inputs, label)` raises AssertionError on a wrong result.
    Outputs start as NaN (floats) or 0 (integers, and those in `zeroed`); those in `loose` may differ in the last bits between runs.
    """

    name: str
    kernel: Any
    ins: tuple[Spec, ...]
    outs: dict[str, Spec]
    check: Callable[[Outs, Any, list[Tensor], str], None]
    constants: tuple[Any, ...] = ()
    make: Callable[[Any], list[Tensor]] | None = None
    variants: tuple[Any, ...] = (None,)
    grid: int = 1
    cluster: int = 1
    block: int = THREADS
    zeroed: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    _programs: list[Program] = field(default_factory=list, repr=False, compare=False)

    def build(self, pdl: bool = False) -> Program:
        """Compile it, now and anew; `pdl`: for programmatic dependent launch."""
        tensors = (*self.ins, *self.outs.values())
        return harness.build(self.kernel, tensors, *self.constants, grid=self.grid, cluster=self.cluster, block=self.block, pdl=pdl)

    @property
    def program(self) -> Program:
        """Compiled once."""
        if not self._programs:
            self._programs.append(self.build())
        return self._programs[0]

    def inputs(self, variant: Any) -> list[Tensor]:
        """Fresh inputs on the GPU."""
        return self.make(variant) if self.make else [random(dtype, *shape) for dtype, shape in self.ins]

    def run(self, program: Program, inputs: list[Tensor], late: tuple[int, int] = (NONE, NONE)) -> Outs:
        """Launch `program` into fresh, poisoned outputs."""
        outs = {name: tensors.poisoned(dtype, *shape) if dtype != "i32" and name not in self.zeroed
                else torch.zeros(shape, dtype=tensors.torch_dtype(dtype), device=tensors.DEVICE)
                for name, (dtype, shape) in self.outs.items()}  # fmt: skip
        program(*inputs, *outs.values(), late=late)
        return outs
