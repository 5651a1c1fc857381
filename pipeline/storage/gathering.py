"""Gather rows of a table in several threads, where that is faster than in one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["gather"]

_LEAST_BYTES = 8 << 20  # of a result that several threads gather; they lose at 1 MB
_MOST_THREADS = 4  # one thread takes a good part of the memory's bandwidth


def gather(table: NDArray[np.uint8], rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Copy rows of a table, in several threads if they are many bytes.

    Args:
        table: ``(row, byte)``.
        rows: indices of rows, which are not checked.
        out: ``(row, byte)``, for the result.
    """
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), len(rows))
    if out.nbytes < _LEAST_BYTES or threads < 2:
        table.take(rows, axis=0, out=out, mode="clip")
        return
    ends = [len(rows) * part // threads for part in range(threads + 1)]
    spans = [slice(first, last) for first, last in pairwise(ends)]
    others = [
        _pool(os.getpid()).submit(table.take, rows[span], 0, out[span], "clip")
        for span in spans[1:]
    ]
    table.take(rows[spans[0]], axis=0, out=out[spans[0]], mode="clip")
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked process has none of its parent's."""
    del process
    return ThreadPoolExecutor(_MOST_THREADS - 1, thread_name_prefix="gather")
