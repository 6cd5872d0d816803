"""Making a fusion's peers ready to be timed: what they compute is registered with the fusion (`Fusion.peer`)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cfdsl.dsl.fusion import Peer
from cfdsl.runtime.measure import relative_error

Forward = Callable[..., Any]


def ready(peer: Peer, forward: Forward) -> Forward:
    """The function to call: compiled where asked; the caller's CUDA graph takes the place of inductor's own."""
    return compiled(forward, own_graph=True) if peer.compile else forward


def compiled(forward: Forward, *, own_graph: bool, fullgraph: bool = True) -> Forward:
    """`forward` by torch.compile in mode max-autotune. own_graph: the caller captures it; else inductor makes CUDA graphs of its own."""
    torch._dynamo.reset()  # every length is compiled as its own constant; without this the limit on recompilations is soon reached
    with contextlib.suppress(ImportError, AttributeError):
        chooser: Any = importlib.import_module("torch._inductor.select_algorithm")
        chooser.PRINT_AUTOTUNE = False  # its tables would drown our own
    mode = "max-autotune-no-cudagraphs" if own_graph else "max-autotune"
    return torch.compile(forward, mode=mode, dynamic=False, fullgraph=fullgraph)


def peer_error(found: Tensor | tuple[Tensor, ...], want: Mapping[str, Tensor]) -> float:
    """The greatest relative error of a peer's outputs, which come in the order of the kernel's."""
    outputs = found if isinstance(found, tuple) else (found,)
    return max(relative_error(got, value) for got, value in zip(outputs, want.values(), strict=True))
