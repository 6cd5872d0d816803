"""A token's way from the device to the host: the only thing that crosses over between two steps."""

from __future__ import annotations

import torch
from torch import Tensor


class Reader:
    """Fetches one number at a time. On a GPU the copy is in stream order, so what is launched after `begin` may overwrite the source."""

    def __init__(self, device: torch.device) -> None:
        self.asynchronous = device.type == "cuda"
        self._host = torch.zeros((1,), dtype=torch.int32, pin_memory=self.asynchronous)
        self._arrived = torch.cuda.Event() if self.asynchronous else None

    def begin(self, source: Tensor) -> None:
        """Start fetching `source` (1,) i32, on the current stream."""
        self._host.copy_(source, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def end(self) -> int:
        """Wait for what `begin` started, and for nothing launched after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._host[0])
