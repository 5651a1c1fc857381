"""Versions of installed packages, and how this process keeps freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["keep_freed_memory", "versions"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from malloc.h
_LARGEST_THRESHOLD = 32 << 20  # the largest value that glibc accepts


def keep_freed_memory(*, of_any_size: bool = False) -> None:
    """Keep freed memory in the process instead of returning it to the system (glibc only).

    glibc returns blocks of over 128 KB as soon as they are freed. The arrays of a transform and the
    tensors of a training step are larger, and faulting their pages in again can take as long as the
    work on them.

    Args:
        of_any_size: keep blocks of over 32 MB too; the process then never shrinks.
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
    """Return the installed version of each package, or ``not installed``, for provenance."""
    return {name: _version(name) for name in names}


@lru_cache(maxsize=64)
def _version(name: str) -> str:
    import importlib.metadata  # here, as workers do not need it and must start fast

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
