"""An append-only journal of finished work, which survives a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antigram.pipeline.storage.chunks import crc32c
from antigram.pipeline.storage.files import named, remove
from antigram.pipeline.storage.hashing import canonical_json

__all__ = ["Journal"]


class Journal:
    """JSON lines with checksums; a kill loses no entry that `append` has written.

    The journal ends before the first damaged line, which a crash may leave. That line and all after
    it are cut off when the journal is opened.

    Args:
        path: the file; made if it does not exist.
        flush_s: seconds for which entries may wait to be flushed to disk, so that a power cut
            loses them; 0: an entry is on disk when `append` returns.
        keep: whether ``entries`` is to have the entries that are appended, too.

    Attributes:
        entries: all entries, including the entries of earlier runs; without ``keep``, the entries
            of earlier runs alone.
    """

    def __init__(self, path: Path, *, flush_s: float = 0.0, keep: bool = True) -> None:
        self.path = path
        self._keep = keep
        self._flush_s, self._flushed = flush_s, time.monotonic()
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
        """Write an entry; flush the file to disk if that is due."""
        text = canonical_json(entry).encode()
        with named(self.path):
            self._file.write(b"%08x %s\n" % (crc32c(text), text))
            self._file.flush()
            if time.monotonic() - self._flushed >= self._flush_s:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()
        if self._keep:
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
