"""How much memory may be taken, and memory that processes share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["SharedMemory", "available_memory", "file_in_memory", "shared_memory"]

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Return the bytes of memory that can be taken without swapping, 0 if that is not known.

    This is the least of what the machine has available and of what the control groups of this
    process leave (version 2, as containers and Slurm use it).

    Args:
        proc: where the system describes itself and its processes.
        groups: where the control groups are.
    """
    machine = _numbers(proc / "meminfo").get("MemAvailable:", 0) << 10
    return min([machine, *_left_by_groups(proc, groups)])


def _left_by_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what each control group of this process with a limit leaves, in bytes."""
    try:
        name = (proc / "self" / "cgroup").read_text().partition("0::/")[2].partition("\n")[0]
    except OSError:
        return
    folder = groups / name
    for group in (folder, *folder.parents):
        if not group.is_relative_to(groups):
            return
        try:
            limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        except OSError:
            continue
        if limit.strip().isdecimal():
            # Pages of files are counted as used, but are given up when memory is wanted.
            pages = _numbers(group / "memory.stat").get("inactive_file", 0)
            yield max(0, int(limit) - int(used) + pages)


def _numbers(path: Path) -> dict[str, int]:
    """Return the lines ``NAME NUMBER ...`` of a file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


@contextmanager
def file_in_memory(otherwise: Path) -> Iterator[Path]:
    """Yield the path of an empty file in memory, which other processes can open.

    The file exists while the block runs, and is gone when this process ends in any way.

    Args:
        otherwise: path of a file on disk, which is yielded where the system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        yield otherwise
        return
    handle = os.memfd_create(otherwise.name)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{handle}")
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that processes share, written and read at offsets in bytes.

    It takes only what was written. Nothing on disk is used, so that a kill of all processes leaves
    nothing behind.

    Attributes:
        path: file in memory; see `file_in_memory`.
        size: how much may be written, in bytes.
    """

    path: Path
    size: int

    def write(self, offset: int, values: NDArray[Any]) -> bool:
        """Write a contiguous array; return whether there was room.

        System calls are used, as pages of a map are cleared before they are written.
        """
        try:
            with _opened(self.path) as handle:
                return os.pwrite(handle, values.data, offset) == values.nbytes
        except OSError:  # a limit of this process
            return False

    def read(self, offset: int, values: NDArray[Any]) -> None:
        """Fill a contiguous array with what was written.

        Raises:
            OSError: nothing was written there.
        """
        with _opened(self.path) as handle:
            if os.preadv(handle, [values.data], offset) != values.nbytes:
                raise OSError(errno.EIO, "shared memory ends before what was kept in it")

    def clear(self) -> None:
        """Give all memory back, which takes a tenth of a second for each gigabyte."""
        os.truncate(self.path, 0)


@contextmanager
def shared_memory(size: int) -> Iterator[SharedMemory | None]:
    """Yield memory that other processes can open while the block runs; None if there is none."""
    if size <= 0 or not hasattr(os, "memfd_create"):
        yield None
        return
    with file_in_memory(Path("antigram")) as path:
        yield SharedMemory(path, size)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR)
    try:
        yield handle
    finally:
        os.close(handle)
