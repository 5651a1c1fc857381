"""Stored arrays on the device, where they fit: then no step waits for a host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from antigram.pipeline.storage.mapped import MappedArray

__all__ = ["budget_for", "bytes_of", "on_device"]

_SHARE = 0.5  # of the free memory: the rest is the training's


def budget_for(device: torch.device, asked: int | None) -> int:
    """Bytes of device memory that data may take: as asked, else half of what a GPU has free."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return 0  # a CPU's own memory is where the maps are already
    return int(torch.cuda.mem_get_info(device)[0] * _SHARE)


def bytes_of(array: MappedArray) -> int:
    """Bytes of all rows of an array."""
    return array.spec.row_bytes * len(array)


def on_device(array: MappedArray, device: torch.device) -> Tensor:
    """All rows of an array, as stored, on a device; copied chunk by chunk, each one checked."""
    whole = torch.empty(array.shape, dtype=getattr(torch, array.spec.dtype), device=device)
    for index in range(array.spec.chunks):
        span = array.spec.span(index)
        rows = np.array(array.chunk(index)[: span.stop - span.start])
        whole[span] = torch.from_numpy(rows).to(device)
    return whole
