"""How far the host runs ahead of a device."""

from __future__ import annotations

from collections import deque

import torch

__all__ = ["StepLimiter"]

_AHEAD = 2  # steps; more hide no more, and make a loader look late that is in time


class StepLimiter:
    """Keeps the host at most two steps ahead of a GPU; on a CPU there is nothing to wait for.

    Args:
        device: of the net.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._steps: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Called after each step."""
        if not self._on:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._steps.append(event)
        if len(self._steps) > _AHEAD:
            self._steps.popleft().synchronize()
