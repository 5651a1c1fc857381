"""Where and with what something was measured, and leaving it in ``benchmarks/results``."""

from __future__ import annotations

import importlib.metadata
import json
import mmap
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["RESULTS", "machine", "save", "touch_memory"]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("antigram", "torch", "torchvision", "torchaudio", "numpy", "scipy", "zarr", "soxr")


def machine() -> dict[str, Any]:
    """Machine, versions and commit."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str:
    here = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Write a result, with where it was measured, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    return path


def touch_memory(size: int) -> None:
    """Touch so many bytes of memory once and free them, before a clock starts.

    A virtual machine gets its memory from its host page by page, and takes back what was free for
    some seconds. The first touch of a page then costs 15 us, thirty times its writing, and would be
    counted against the arm that writes most; on a machine of its own nobody pays it.
    """
    np.empty(size, np.uint8)[:: mmap.PAGESIZE] = 1
