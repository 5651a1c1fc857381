"""Export stores and caches of a workspace to single HDF5 files, and import them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.cache.layer import FORMAT
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import is_fold
from antigram.pipeline.storage.exchange import export_file, import_file
from antigram.pipeline.storage.manifest import DOCUMENT
from antigram.pipeline.storage.opening import is_exported, open_backend
from antigram.pipeline.workspace import Workspace, locked, plain_name

__all__ = ["Exported", "Imported", "export", "import_"]


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported file, its size in bytes, and the store or cache that it holds."""

    file: Path
    bytes: int
    exported: Path

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``export --json``."""
        return {"file": str(self.file), "bytes": self.bytes, "exported": str(self.exported)}


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported store or cache; ``imported`` is False if it existed already."""

    path: Path
    kind: str  # store or cache
    imported: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``import --json``."""
        return {self.kind: str(self.path), "name": self.path.stem, "imported": self.imported}


def export(
    workspace: Workspace,
    name: str,
    goal: Path,
    *,
    on_progress: OnProgress = lambda *_: None,
) -> Exported:
    """Write a store or cache to one HDF5 file, including its checksums.

    Args:
        workspace: holds the store or cache.
        name: name of the store or cache, or its path.
        goal: the file to write, ``FILE.h5``; an existing file is replaced.
        on_progress: called with the name of a stage, bytes done, and total bytes.

    Raises:
        InputError: there is no such store or cache, it is a fold, or the file cannot be written.
        DamagedError: the store or cache is damaged; no file is left behind.
    """
    path = _store_or_cache(workspace, name)
    if is_fold(path):
        raise InputError(
            f"{path}: is a fold, which reads its features from its store: export the store, and "
            "make its folds again after the import"
        )
    return Exported(goal, export_file(path, goal, on_progress), path)


def import_(
    workspace: Workspace,
    file: Path,
    *,
    name: str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Imported:
    """Import a store or cache into the workspace from a file that `export` wrote.

    Args:
        workspace: the store or cache is written to it.
        file: the exported file, ``FILE.h5``.
        name: name of the store or cache; default: name of the file.
        on_progress: called with the name of a stage, bytes done, and total bytes.

    Raises:
        InputError: there is no such file, or `export` did not write it.
        DamagedError: the file is damaged; no store or cache is left behind.
    """
    if not is_exported(file):
        raise InputError(f"{file}: no such file; wanted one that `antigram export` wrote")
    try:
        is_cache = FORMAT.encode() in open_backend(file).get(DOCUMENT)
    except FileNotFoundError:
        raise DamagedError(f"{file}: its root document is missing. Export it again.") from None
    home = workspace.grams if is_cache else workspace.features
    goal = home / f"{plain_name(name or file.stem)}.zarr"
    with locked(goal, "importing"):
        imported = import_file(file, goal, on_progress)
    return Imported(goal, "cache" if is_cache else "store", imported)


def _store_or_cache(workspace: Workspace, name: str) -> Path:
    folders = (workspace.features, workspace.grams)
    for folder in folders:
        with suppress(InputError):
            return workspace.named(folder, name, "")
    known = ", ".join(p.stem for folder in folders for p in workspace.members(folder)) or "none"
    raise InputError(f"no store or cache is called {name!r}; there is {known}")
