"""Streams of random numbers of a training, each with a seed of its own.

A seed is cut from SHA-256 of the user's seed, the purpose and what else names the stream, as in
`pipeline.draw`: no two purposes, epochs or processes share one, and nothing depends on what was
drawn before. torch's CPU generator holds 32 bits of it, its GPU generator all 64.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.pipeline.draw import draw

__all__ = ["FirstStreams", "Streams", "weights_seed"]


def weights_seed(seed: int) -> int:
    """Seed of the generator that draws a student's weights."""
    return draw(seed, "weights", "student")[0]


class Streams:
    """Batch orders and dropout masks of a training.

    Args:
        seed: the user's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def order(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Permutation of the rows for an epoch, from seed and epoch alone: a run can resume."""
        # Sorted by raw output, which numpy promises to keep; that of its permutations may change.
        keys = np.random.PCG64(draw(self.seed, "batches", str(epoch))[0]).random_raw(len(rows))
        return rows[np.argsort(keys, kind="stable")]

    def begin_epoch(self, epoch: int, rank: int, ranks: int) -> None:
        """Seed torch for an epoch's dropout masks; each process of a job has its own."""
        torch.manual_seed(draw(self.seed, "dropout", f"{epoch}/{rank}/{ranks}")[0])


class FirstStreams:
    """Those of runs of version 1, which go on with what they began with.

    Seeds 4096 apart shared batch orders, and torch's CPU generator told 2^32 from 0 no more.

    Args:
        seed: the user's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def order(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """See `Streams.order`."""
        drawn = torch.Generator().manual_seed((self.seed << 20) + epoch)
        found: NDArray[np.int64] = rows[torch.randperm(len(rows), generator=drawn).numpy()]
        return found

    def begin_epoch(self, epoch: int, rank: int, ranks: int) -> None:
        """One process goes on with the generator's state, which ``last.pt`` holds."""
        if ranks > 1:
            torch.manual_seed((self.seed << 20) + epoch * ranks + rank)
