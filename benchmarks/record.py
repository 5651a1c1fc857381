"""Describe the machine of a measurement, and save results in ``benchmarks/results``."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from antigram.pipeline.execution.process import versions

__all__ = ["RESULTS", "machine", "save", "spent", "warm_memory"]

_MEMINFO = Path("/proc/meminfo")
_HELD, _AHEAD = 64 << 20, 128 << 20  # bytes
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("antigram", "torch", "torchvision", "torchaudio", "numpy", "scipy", "zarr", "soxr")


def machine() -> dict[str, Any]:
    """Return the machine, the versions of packages, and the commit."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
        ),
    }


def _git(*arguments: str) -> str:
    here = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Write a result together with `machine`, and return the path of the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    return path


@contextmanager
def warm_memory(size: int) -> Iterator[None]:
    """Keep ``size`` bytes of free memory available that were touched before the measurement.

    A virtual machine gets its memory from its host page by page, and gives back what has been free
    for two seconds. The first touch of a page then costs 15 us, thirty times its writing, and
    would be counted against the arm that writes most; a physical machine has no such cost. So
    memory is touched first, and freed little by little, as fast as it is taken.
    """
    if not _MEMINFO.is_file():
        yield
        return
    held = [np.empty(_HELD, np.uint8) for _ in range(-(-size // _HELD))]
    for block in held:
        block[:: mmap.PAGESIZE] = 1
    del block
    stop = threading.Event()

    def release() -> None:
        begun, freed = _free_memory(), 0
        while held and not stop.wait(0.02):
            taken = begun + freed - _free_memory()
            while held and freed < taken + _AHEAD:
                held.pop()
                freed += _HELD

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        held.clear()


def spent() -> tuple[float, int]:
    """Return the CPU seconds and the bytes written to files on disk, until now.

    They are of this process and of all workers of `pipeline.execution.workers` that have ended. The
    bytes are those of changed pages of files, whether or not they have reached the disk yet; 0
    where the system does not count them.
    """
    own = os.times()
    seconds, written = own.user + own.system + own.children_user + own.children_system, 0
    # The server is the parent of all workers.
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for process in ("self", server):
        counts = Path(f"/proc/{process}/io")
        if process is not None and counts.is_file():
            written += int(counts.read_text().partition("\nwrite_bytes:")[2].split()[0])
    return seconds, written


def _free_memory() -> int:
    """Return the number of bytes of memory that nothing uses, not even as a cache of files."""
    found = _MEMINFO.read_text().partition("MemFree:")[2].split()
    return int(found[0]) << 10
