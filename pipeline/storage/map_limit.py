"""Count the memory maps of this process, so that it never reaches the system's limit.

Linux allows a process 65,530 maps by default (``vm.max_map_count``). An array of more chunks than
are left is read with positional reads instead (`pipeline.storage.read_files`): the same checks, the
same bytes, more time for each row.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

__all__ = ["MapLimit", "most_maps"]

_LIMIT = Path("/proc/sys/vm/max_map_count")
_DEFAULT = 65_530  # Linux's own; other systems have no such limit
_SHARE = 0.75  # the rest is for libraries, threads, and CUDA, which maps thousands of pieces


@cache
def most_maps() -> int:
    """Return how many files of arrays this process may map."""
    try:
        limit = int(_LIMIT.read_text())
    except (OSError, ValueError):
        limit = _DEFAULT
    return int(limit * _SHARE)


class MapLimit:
    """Maps that are reserved and not yet released, over all arrays of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved = 0

    def reserve(self, maps: int) -> bool:
        """Reserve maps, all or none; return whether that many were left."""
        with self._lock:
            if self._reserved + maps > most_maps():
                return False
            self._reserved += maps
            return True

    def release(self, maps: int) -> None:
        """Give reserved maps back."""
        with self._lock:
            self._reserved -= maps
