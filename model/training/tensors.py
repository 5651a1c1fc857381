"""Files of tensors and plain types: never unpickled into code, checked before they are read."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.archive import Seal, Sink, check_archive
from antigram.pipeline.storage.durable import atomic_file
from antigram.pipeline.storage.files import named, size_text

__all__ = ["FORMAT", "load_tensors", "save_tensors", "write_tensors"]

FORMAT = "antigram/checkpoint"
# What torch.load raises for files that are no checkpoints, or not intact.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
)


@dataclass(slots=True)
class _Remembers:
    """A file that keeps the error of a write: torch's zip writer tells only that there was one."""

    file: Sink
    error: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - see `Sink`
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """`write_tensors` to a file, atomically."""
    with atomic_file(path) as file:
        write_tensors(file, content)


def write_tensors(file: Sink, content: Mapping[str, Any]) -> None:
    """`torch.save` to an open file; `load_tensors` reads it. A checkpoint gets a digest.

    Raises:
        OSError: what the system said of a write: the disk is full, say.
    """
    seal = Seal(file) if content.get("format") == FORMAT else None
    goal = _Remembers(seal or file)
    try:
        torch.save(dict(content), goal)  # type: ignore[arg-type]  # all of IO that it uses
    except RuntimeError:
        if goal.error is None:
            raise
        raise goal.error from None
    if seal is not None:
        seal.finish()


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain types, and nothing else.

    What is checked is what is read: another file that takes its name meanwhile is not.

    Raises:
        InputError: not there, not such a file, or one that would run code.
        DamagedError: it is not as it was written.
        MemoryError: there is too little for it.
        OSError: it cannot be read; names the file.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; wanted a checkpoint (`antigram train` with `save=FILE`)"
        )
    with named(path), path.open("rb") as file:
        check_archive(path, file)
        file.seek(0)
        content = _load(path, file)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, wanted a checkpoint or a state dict"
        )
    return content


def _load(path: Path, file: BinaryIO) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: the error says enough
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        why = "it holds more than tensors and plain types, or was not written by torch.save"
        if isinstance(error, RuntimeError):  # of the archive, and it says what
            why = str(error).strip().splitlines()[0][:120]
        if "can't allocate memory" in str(error):
            size = size_text(path.stat().st_size)
            raise MemoryError(f"{path} holds {size} of tensors") from None
        if "unexpected EOF" in why:
            raise DamagedError(f"{path}: damaged: {why}. Copy it again.") from None
        raise InputError(
            f"{path}: not a checkpoint that can be read safely: {why}. "
            "Wanted: a file of `antigram train` with `save`, or a VGG state dict of plain tensors."
        ) from None
