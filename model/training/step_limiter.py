"""Limit the steps that the host queues on a GPU."""

from __future__ import annotations

from collections import deque

import torch

__all__ = ["StepLimiter"]

_AHEAD = 2  # queued steps; more are no faster, and would count harmless waits for data


class StepLimiter:
    """Limits the steps queued on a GPU to two; does nothing on a CPU.

    Args:
        device: device of the student.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._steps: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until at most two steps are queued; call this after each step."""
        if not self._on:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._steps.append(event)
        if len(self._steps) > _AHEAD:
            self._steps.popleft().synchronize()
