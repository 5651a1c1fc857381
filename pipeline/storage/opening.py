"""Which backend stored data lies in, by its path: the one place that knows the kinds."""

from __future__ import annotations

from pathlib import Path

from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hdf5 import SUFFIX, ExportedFile

__all__ = ["is_exported", "open_backend"]


def is_exported(path: Path) -> bool:
    """Whether a path is that of a file which `antigram export` may have written."""
    return path.suffix == SUFFIX and path.is_file()


def open_backend(path: Path) -> Backend:
    """Backend of a store or cache: an exported file, else a folder, which need not be there.

    Raises:
        InputError: an HDF5 file that is not antigram's.
        StoredDataError: an exported file that is damaged, or of a newer version.
    """
    return ExportedFile.at(path) if is_exported(path) else Folder(path)
