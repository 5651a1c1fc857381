"""Stores and caches of a workspace as single HDF5 files, and back."""

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
    """A file that was written, and what it holds."""

    file: Path
    bytes: int
    exported: Path

    def to_json(self) -> dict[str, Any]:
        """Fields of ``export --json``."""
        return {"file": str(self.file), "bytes": self.bytes, "exported": str(self.exported)}


@dataclass(frozen=True, slots=True)
class Imported:
    """A store or cache made from a file; ``imported`` is False if it was there already."""

    path: Path
    kind: str  # store or cache
    imported: bool

    def to_json(self) -> dict[str, Any]:
        """Fields of ``import --json``."""
        return {self.kind: str(self.path), "name": self.path.stem, "imported": self.imported}


def export(
    workspace: Workspace,
    name: str,
    goal: Path,
    *,
    on_progress: OnProgress = lambda *_: None,
) -> Exported:
    """Write a store or cache as one HDF5 file, checksums included.

    Args:
        workspace: where it is looked up.
        name: name of the store or cache, or its path.
        goal: ``FILE.h5``; replaced if it is there.
        on_progress: told a stage's name, bytes done, and bytes in all.

    Raises:
        InputError: there is no such store or cache, or the file cannot be written.
        DamagedError: what is exported is damaged; nothing is left behind.
    """
    path = _store_or_cache(workspace, name)
    if is_fold(path):
        raise InputError(
            f"{path}: is a fold, whose features are those of the store it is of: export that, and "
            "make its folds again where it is imported"
        )
    return Exported(goal, export_file(path, goal, on_progress), path)


def import_(
    workspace: Workspace,
    file: Path,
    *,
    name: str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Imported:
    """Make a store or cache of the workspace from a file that `export` wrote.

    Args:
        workspace: where it goes.
        file: ``FILE.h5``.
        name: name of the store or cache; default: that of the file.
        on_progress: told a stage's name, bytes done, and bytes in all.

    Raises:
        InputError: there is no such file, or it is not one that was exported.
        DamagedError: the file is damaged; nothing is left behind.
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
        made = import_file(file, goal, on_progress)
    return Imported(goal, "cache" if is_cache else "store", made)


def _store_or_cache(workspace: Workspace, name: str) -> Path:
    folders = (workspace.features, workspace.grams)
    for folder in folders:
        with suppress(InputError):
            return workspace.named(folder, name, "")
    known = ", ".join(p.stem for folder in folders for p in workspace.members(folder)) or "none"
    raise InputError(f"no store or cache is called {name!r}; there is {known}")
