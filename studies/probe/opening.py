"""Open what is probed: a run or a checkpoint, and the store that goes with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antigram.model.training.checkpoint import Checkpoint, load_checkpoint
from antigram.model.training.run_files import RunFiles
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import DamagedError, InputError, StaleError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace

__all__ = ["named_network", "open_network", "store_of"]

_BEST, _RESULT = "best.pt", "result.json"


def named_network(workspace: Workspace, name: str | Path) -> Path:
    """Return the folder of a run, or the file of a checkpoint.

    Args:
        workspace: holds the runs.
        name: name or path of a run, or path of a checkpoint.

    Raises:
        InputError: there is no such run, and no such file.
    """
    if (path := Path(name)).is_file():
        return path
    return workspace.named(workspace.runs, str(name), "run")


def _files_of(run: Path) -> RunFiles:
    """Open the files of a run that has best weights."""
    if (files := RunFiles.open(run)) is None or _BEST not in files:
        raise InputError(
            f"{run}: has no {_BEST}; wanted a run of which at least one epoch has ended, or the "
            "file of a checkpoint"
        )
    files.check(_BEST)
    return files


def open_network(path: Path, store: FeatureStore) -> Checkpoint:
    """Read the best weights of a run, or a checkpoint, and check that a store suits them.

    Args:
        path: folder of a run, or file of a checkpoint.
        store: store that the network is applied to.

    Raises:
        InputError: ``path`` is neither, or the store was prepared with another spectrogram.
        StoredDataError: the run or the checkpoint is damaged.
    """
    if path.is_dir():
        _files_of(path)
        checkpoint = load_checkpoint(path / _BEST)
    else:
        checkpoint = load_checkpoint(path)
    if field := checkpoint.recipe.spectrum_differs(store.recipe):
        wanted, actual = getattr(checkpoint.recipe, field), getattr(store.recipe, field)
        raise InputError(
            f"{store.path}: {field} is {actual}, {path} was trained with {wanted}. "
            "Name a store that was prepared with the same settings."
        )
    return checkpoint


def store_of(workspace: Workspace, run: Path, on_message: OnMessage) -> Path:
    """Return the store that a run was trained on; for a checkpoint's file, the workspace's store.

    Args:
        workspace: holds the stores.
        run: folder of a run, or file of a checkpoint.
        on_message: called with a line that says which store was chosen.

    Raises:
        InputError: the run has not finished its first epoch, or there is no store.
        StaleError: the store of the run is not there any more, or has changed.
    """
    if not run.is_dir():
        return workspace.store(None, on_message)
    files = _files_of(run)
    fingerprint = files.settings.get("features")
    name = _result(files).get("data")
    for path in _candidates(workspace, run, name):
        try:
            matches = FeatureStore(path).fingerprint == fingerprint
        except (InputError, StoredDataError):
            if path.name.removesuffix(".zarr") == name:
                raise
            continue
        if matches:
            on_message(f"store: {path.name.removesuffix('.zarr')} (which {run.name} learned from)")
            return path
    raise StaleError(
        f"{run}: was trained on a store {name or ''} with the fingerprint "
        f"{str(fingerprint)[:12]}, and no store in {workspace.features} has it. Name one with "
        "`data`, or prepare it again."
    )


def _result(files: RunFiles) -> dict[str, Any]:
    """Return the content of result.json; empty for a run that has not ended."""
    if _RESULT not in files:
        return {}
    files.check(_RESULT)
    path = files.folder / _RESULT
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: unreadable ({error}). Run `antigram verify`.") from None
    return content if isinstance(content, dict) else {}


def _candidates(workspace: Workspace, run: Path, name: object) -> Iterator[Path]:
    """Yield the store of a name beside the run and in the workspace, then all other stores."""
    if isinstance(name, str):
        for folder in (workspace.features, run.absolute().parent.parent / "features"):
            if (path := folder / f"{name}.zarr").is_dir():
                yield path
    yield from reversed(workspace.members(workspace.features))
