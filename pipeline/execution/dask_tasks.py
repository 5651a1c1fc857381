"""What a worker of a Dask cluster runs: batches of tasks, after a look at its own installation.

A worker calls `run_batch` through `CALL`, a text: a function of antigram would be imported while a
task is unpickled, and a worker without antigram then closes itself and leaves the driver waiting.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from antigram.pipeline.execution.process import keep_freed_memory, versions

__all__ = ["CALL", "IDENTITY", "MISSING", "UnfitWorkerError", "identity", "packed", "run_batch"]

_THIS = "__import__('antigram.pipeline.execution.dask_tasks', fromlist=['_'])"
# Expressions for the builtin `eval`, which every worker has.
CALL = f"{_THIS}.run_batch(wanted, token, batch)"
IDENTITY = f"{_THIS}.identity()"
MISSING = "[path for path in paths if not __import__('os').path.exists(path)]"

_PACKAGES = ("antigram", "numpy", "scipy", "soundfile", "soxr", "torch")  # bytes depend on them
_ROOMS = ("pipeline", "model", "cache", "studies")

# Tasks find what they share in globals of their modules, so a process runs one batch at a time.
_one_batch = threading.Lock()
_set_up_with: bytes | None = None


class UnfitWorkerError(RuntimeError):
    """A worker has another installation than the driver, or does not see the driver's files."""


@lru_cache(maxsize=1)
def identity() -> dict[str, str]:
    """Return what decides the bytes that this process computes: versions, and a digest of the code.

    Two checkouts of antigram may have the same version and other code.
    """
    root, code = Path(__file__).parents[2], sha256()  # the folder of the import name
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            code.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python, **versions(_PACKAGES), "code of antigram": code.hexdigest()[:12]}


def packed(
    set_up: Callable[[Any], None] | None,
    shared: bytes,
    function: Callable[..., object],
    tasks: Sequence[tuple[Any, ...]],
) -> bytes:
    """Return a batch for `run_batch`; ``shared`` is the pickled argument of ``set_up``."""
    return pickle.dumps((set_up, shared, function, tasks), pickle.HIGHEST_PROTOCOL)


def run_batch(wanted: dict[str, str], token: str, batch: bytes) -> list[Any]:
    """Run the tasks of a batch, one after the other.

    Args:
        wanted: `identity` of the driver.
        token: path of a file of the driver, which this process must see; empty: none.
        batch: what `packed` returned.

    Returns:
        The result of each task.

    Raises:
        UnfitWorkerError: this process has another identity, or does not see the file.
    """
    global _set_up_with  # noqa: PLW0603 - tasks share state through globals only
    if identity() != wanted:
        raise UnfitWorkerError("another version of antigram, or of a package that it needs")
    if token and not os.path.exists(token):  # noqa: PTH110 - a worker's shortest look
        raise UnfitWorkerError(f"{token} is not there")
    with _one_batch:
        set_up, shared, function, tasks = pickle.loads(batch)
        if _set_up_with is None:
            keep_freed_memory()  # Dask has told malloc to return it
        if set_up is not None and _set_up_with != shared:
            set_up(pickle.loads(shared))
        _set_up_with = shared
        return [function(*task) for task in tasks]
