"""Copy stored arrays to the device if they fit, so that no step waits for the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from antigram.pipeline.storage.array import StoredArray

__all__ = ["budget_for", "bytes_of", "on_device"]

_SHARE = 0.5  # share of the free memory; the training needs the rest


def budget_for(device: torch.device, limit: int | None) -> int:
    """Return the bytes of device memory that data may take.

    Args:
        device: device of the training.
        limit: returned if given; by default half of a GPU's free memory, and 0 on a CPU.
    """
    if limit is not None:
        return limit
    if device.type != "cuda":
        return 0  # the stored arrays are mapped into host memory already
    return int(torch.cuda.mem_get_info(device)[0] * _SHARE)


def bytes_of(array: StoredArray) -> int:
    """Return the size of all rows of an array, in bytes."""
    return array.spec.row_bytes * len(array)


def on_device(array: StoredArray, device: torch.device) -> Tensor:
    """Copy all rows of an array to a device, as stored, after checking each chunk.

    Raises:
        DamagedError: a chunk is damaged.
    """
    rows_on_device = torch.empty(array.shape, dtype=getattr(torch, array.spec.dtype), device=device)
    for index in range(array.spec.chunks):
        span = array.spec.span(index)
        rows = np.array(array.chunk(index)[: span.stop - span.start])
        rows_on_device[span] = torch.from_numpy(rows).to(device)
    return rows_on_device
