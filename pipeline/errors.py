"""The kinds of trouble that antigram foresees; cli.py makes of each a line and an exit code.

Every message says where, what was found, what was wanted and what to do. Anything that is
none of these is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["DamagedError", "DistributedError", "InputError", "StaleError", "StoredDataError"]


class InputError(ValueError):
    """What the user gave or asked for cannot be used: exit code 2."""


class StoredDataError(ValueError):
    """A store, cache, checkpoint or run on disk cannot be trusted: exit code 3."""


class DamagedError(StoredDataError):
    """Bytes on disk are missing, or are not those that were written."""


class StaleError(StoredDataError):
    """What is stored is whole, but was made from something else than what this run needs."""


class DistributedError(RuntimeError):
    """Another process of a job that torchrun started is gone: exit code 1."""
