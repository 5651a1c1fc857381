"""Map files of a store into memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["map_file"]

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file, read only, without keeping it open.

    Python's own mmap keeps a descriptor for each map, and a cache of a million clips has more
    chunks than a process may open files (1,024 by default).

    Raises:
        OSError: not there, empty, or not mappable.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        place = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
    finally:
        os.close(handle)
    if place is None or place == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(path))
    buffer = (ctypes.c_uint8 * size).from_address(place)
    weakref.finalize(buffer, _LIBC.munmap, place, size)
    array: NDArray[np.uint8] = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array
