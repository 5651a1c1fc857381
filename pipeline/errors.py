"""Expected failures; cli.py maps each to a one-line message and an exit code.

Every message says where the failure is, what was found, what was wanted and what to do. Any other
exception is a defect of antigram and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["DamagedError", "DistributedError", "InputError", "StaleError", "StoredDataError"]


class InputError(ValueError):
    """An argument or a file of the user cannot be used: exit code 2."""


class StoredDataError(ValueError):
    """A store, cache, checkpoint or run on disk cannot be trusted: exit code 3."""


class DamagedError(StoredDataError):
    """Bytes on disk are missing, or differ from what was written."""


class StaleError(StoredDataError):
    """Stored data is intact, but was made from other inputs than this run needs: exit code 3."""


class DistributedError(RuntimeError):
    """Another process of a job started by torchrun has died: exit code 1."""
