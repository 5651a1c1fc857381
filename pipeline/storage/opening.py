"""Open the backend of a path; the only module that knows all kinds of backends."""

from __future__ import annotations

from pathlib import Path

from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hdf5 import SUFFIX, ExportedFile

__all__ = ["is_exported", "open_backend"]


def is_exported(path: Path) -> bool:
    """Whether a path is a file that `antigram export` may have written."""
    return path.suffix == SUFFIX and path.is_file()


def open_backend(path: Path) -> Backend:
    """Return the backend of a store or cache: an exported file, else a folder.

    A folder need not exist.

    Raises:
        InputError: the path is an HDF5 file that antigram did not write.
        StoredDataError: the path is an exported file that is damaged or of a newer version.
    """
    return ExportedFile.at(path) if is_exported(path) else Folder(path)
