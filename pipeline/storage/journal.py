"""An append-only journal of finished work, which survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antigram.pipeline.storage.chunks import crc32c
from antigram.pipeline.storage.files import named, remove
from antigram.pipeline.storage.hashing import canonical_json

__all__ = ["Journal"]


class Journal:
    """JSON lines with checksums; an entry is on disk when `append` returns.

    The journal ends before the first damaged line, which a crash may leave. That line and all after
    it are cut off when the journal is opened.

    Args:
        path: the file; made if it does not exist.

    Attributes:
        entries: all entries, including the entries of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            remove(path)  # for example, a folder
        self.entries, size = self._intact_lines(path)
        self._file = path.open("ab")
        self._file.truncate(size)

    @classmethod
    def read(cls, path: Path) -> list[dict[str, Any]]:
        """Return the entries of a journal that another process may be writing."""
        return cls._intact_lines(path)[0]

    @classmethod
    def _intact_lines(cls, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Return the entries, and the size of their lines in bytes."""
        entries, size = [], 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                if (entry := cls._parse(line)) is None:
                    break
                entries.append(entry)
                size += len(line)
        return entries, size

    @staticmethod
    def _parse(line: bytes) -> dict[str, Any] | None:
        head, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or head != b"%08x" % crc32c(text):
            return None
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return entry if isinstance(entry, dict) else None

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry and flush it to disk before returning."""
        text = canonical_json(entry).encode()
        with named(self.path):
            self._file.write(b"%08x %s\n" % (crc32c(text), text))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries)
