"""Open the backend of a path or address; the only module that knows all kinds of backends."""

from __future__ import annotations

from pathlib import Path

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hdf5 import SUFFIX, ExportedFile
from antigram.pipeline.storage.objects import Objects, is_address

__all__ = ["is_exported", "open_backend"]


def is_exported(path: Path) -> bool:
    """Whether a path is a file that `antigram export` may have written."""
    return path.suffix == SUFFIX and path.is_file()


def open_backend(path: Path | str) -> Backend:
    """Return the backend of a store or cache: an object store's, an exported file's, a folder's.

    A folder need not exist, and nothing is asked of an object store.

    Args:
        path: path of a folder or file; or, as text, an address such as ``s3://bucket/NAME.zarr``.

    Raises:
        InputError: the path is an HDF5 file that antigram did not write, or no valid address; or
            the package obstore is missing.
        StoredDataError: the path is an exported file that is damaged or of a newer version.
    """
    if isinstance(path, str) and is_address(path):
        return Objects.at(path)
    if is_address(path):
        raise InputError(
            f"{path}: an address of an object store was given as a path; local_copy() downloads "
            "what is there, and returns a path"
        )
    path = Path(path)
    return ExportedFile.at(path) if is_exported(path) else Folder(path)
