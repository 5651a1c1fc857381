"""Streams of random numbers of a training, each with its own seed.

A seed is taken from a SHA-256 of the user's seed, the purpose and the epoch and rank, as in
`pipeline.draw`. So no two purposes, epochs or ranks share a seed, and no stream depends on numbers
drawn before. torch's CPU generator uses 32 bits of the seed, its GPU generator all 64.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.pipeline.draw import draw

__all__ = ["FirstStreams", "Streams", "weights_seed"]


def weights_seed(seed: int) -> int:
    """Return the seed of a student's initial weights."""
    return draw(seed, "weights", "student")[0]


class Streams:
    """Random batch orders and dropout masks of a training.

    Args:
        seed: the seed that the user gave.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def order(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the rows in a random order, which depends on seed and epoch only.

        Args:
            rows: ``(segment,)`` indices into the store.
            epoch: counted from 1.
        """
        # numpy keeps raw output stable across versions, but not its permutations: hence the sort.
        keys = np.random.PCG64(draw(self.seed, "batches", str(epoch))[0]).random_raw(len(rows))
        return rows[np.argsort(keys, kind="stable")]

    def begin_epoch(self, epoch: int, rank: int, ranks: int) -> None:
        """Seed torch's global generators for the dropout masks of an epoch and rank."""
        torch.manual_seed(draw(self.seed, "dropout", f"{epoch}/{rank}/{ranks}")[0])


class FirstStreams:
    """Streams of runs of version 1, which are resumed with the streams that they began with.

    They were replaced because seeds that differ by 4096 shared batch orders, and because torch's
    CPU generator cannot tell 2^32 from 0.

    Args:
        seed: the seed that the user gave.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def order(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """See `Streams.order`."""
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        ordered: NDArray[np.int64] = rows[torch.randperm(len(rows), generator=generator).numpy()]
        return ordered

    def begin_epoch(self, epoch: int, rank: int, ranks: int) -> None:
        """Seed torch's generator if there are several processes.

        A single process goes on with the generator's state, which ``last.pt`` holds.
        """
        if ranks > 1:
            torch.manual_seed((self.seed << 20) + epoch * ranks + rank)
