"""A step recorded once in a CUDA graph, to be replayed per token."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from fusions.decoder.step import Runner


def capture(run: Callable[[], None], runners: Iterable[Runner], device: torch.device) -> Callable[[], None]:
    """Record what `run` launches on the current stream of `device`; the result replays it there, on the stream that is current then.

    Nothing that `run` does happens now. The kernels are loaded first, because a capture may not (ColdCompileInCapture).
    """
    with torch.cuda.device(device):
        for runner in runners:
            runner.prepare()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

    def replay() -> None:
        graph.replay()

    return replay
