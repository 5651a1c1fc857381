"""This process: the versions it runs with, and what it does with memory it has freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

__all__ = ["keep_freed_memory", "versions"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h
_LARGEST_THRESHOLD = 32 << 20  # that glibc takes


def keep_freed_memory(*, of_any_size: bool = False) -> None:
    """Keep freed memory instead of giving it back to the system, where the C library is glibc.

    glibc returns blocks of over 128 KB as soon as they are freed; arrays of a transform and tensors
    of a training step are larger, and faulting their pages in again takes up to as long as the
    work on them.

    Args:
        of_any_size: blocks of over 32 MB too; the process then never gets smaller.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    if of_any_size:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_MAX, 0)
    else:
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of packages, for provenance; a checkout may run without being installed."""
    import importlib.metadata  # workers, which must start fast, have no use for it

    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
