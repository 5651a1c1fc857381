"""Read and write files of tensors and plain types.

Files are checked before they are read, and reading a file cannot run code.
"""

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
# Errors of torch.load for files that are not checkpoints, or are damaged.
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
class _ErrorKeepingSink:
    """A file that keeps the error of a failed write, which torch's zip writer does not pass on."""

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
    """Write a file with `write_tensors`, atomically."""
    with atomic_file(path) as file:
        write_tensors(file, content)


def write_tensors(file: Sink, content: Mapping[str, Any]) -> None:
    """Write content to an open file with `torch.save`; a checkpoint also gets a digest.

    Args:
        file: receives the bytes; `load_tensors` reads them.
        content: tensors and plain types.

    Raises:
        OSError: a write failed, for example because the disk is full.
    """
    seal = Seal(file) if content.get("format") == FORMAT else None
    sink = _ErrorKeepingSink(seal or file)
    try:
        torch.save(dict(content), sink)  # type: ignore[arg-type]  # it needs only these methods
    except RuntimeError:
        if sink.error is None:
            raise
        raise sink.error from None
    if seal is not None:
        seal.finish()


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain types.

    The file is opened only once, so the content that is read is the content that was checked, even
    if another process replaces the file in between.

    Raises:
        InputError: the file does not exist, is not a checkpoint, or holds more than tensors and
            plain types (loading it could run code).
        DamagedError: the file has changed since it was written.
        MemoryError: there is too little memory for the tensors.
        OSError: the file cannot be read; the error names it.
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
            warnings.simplefilter("ignore")  # about unusual pickles, as the error says enough
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        why = "it holds more than tensors and plain types, or was not written by torch.save"
        if isinstance(error, RuntimeError):  # about the archive, with a text that names the cause
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
