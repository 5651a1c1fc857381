"""Read the text files of a corpus (tables, lists, transcripts) safely."""

from __future__ import annotations

import os
from pathlib import Path

from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.storage.regular import read_regular, regular

__all__ = ["check_file", "read_text"]

_MOST = 256 << 20  # bytes; LibriSpeech's alignments and GSC's lists have a few MB at most


def check_file(path: Path, *, most: int = _MOST) -> None:
    """Raise if a file that a library is about to open is not a regular file of plausible size.

    Args:
        path: the file.
        most: largest accepted size, in bytes.

    Raises:
        CorpusError: the file does not exist, cannot be opened, is a folder, pipe or device, or is
            too large.
    """
    try:
        handle, status = regular(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None
    os.close(handle)
    if status.st_size > most:
        found = f"it has {size_text(status.st_size)}, wanted at most {size_text(most)}"
        raise CorpusError(f"{path}: cannot be read: {found}")


def read_text(path: Path, *, most: int = _MOST, errors: str = "strict") -> str:
    """Return the text of a regular UTF-8 file, without a byte order mark.

    Args:
        path: the file.
        most: largest accepted size, in bytes.
        errors: how to treat bytes that are not UTF-8, as for `bytes.decode`.

    Raises:
        CorpusError: the file is not a regular file, too large, or not UTF-8; the message then has
            line and column.
    """
    try:
        data = read_regular(path, most)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise CorpusError(f"{path}:1:1: is UTF-16 text; wanted UTF-8: save it again as UTF-8")
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        before = data[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8-sig", "replace")) + 1
        raise CorpusError(
            f"{path}:{line}:{column}: byte 0x{data[error.start]:02x} is not UTF-8; wanted UTF-8 "
            "text: save the file again as UTF-8"
        ) from None
