"""The record of the recordings that a store was made from: the file ``.NAME.zarr.sources``.

The record is stored beside the store and is not a part of it. A store that was copied, imported or
made by version 0.1.0 has no record. Such a store is complete, but nothing shows whether its
recordings were edited. The record names its store's fingerprint; another store's record is ignored.

The file is a line of JSON, {format, format_version, store: fingerprint, files: number of files,
home: the corpus's folder, which earlier records lack}; then one column after the other, little
endian: size (int64), mtime_ns (int64), crc32c (uint32), fresh (uint8: see
`pipeline.features.sources`); then the paths, each followed by a zero byte, compressed by zlib; then
the crc32c of all bytes before it (uint32).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.features.sources import Source, compare
from antigram.pipeline.storage.chunks import CRC_BYTES, crc32c
from antigram.pipeline.storage.durable import fsync_folder, write_durably
from antigram.pipeline.storage.hashing import canonical_json

__all__ = [
    "Checked",
    "adopt_sources",
    "check_sources",
    "path_of",
    "read_home",
    "read_sources",
    "write_sources",
]

FORMAT, VERSION = "antigram/sources", 1
_COLUMNS = (("size", "<i8"), ("mtime_ns", "<i8"), ("crc32c", "<u4"), ("fresh", "u1"))


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of comparing a store's recordings with their record.

    Attributes:
        known: whether there is a record to compare with.
        files: number of recordings.
        read: number of recordings that had to be read.
        changed: paths of the recordings whose content has changed.
    """

    known: bool
    files: int = 0
    read: int = 0
    changed: list[str] = field(default_factory=list)


def path_of(store: Path) -> Path:
    """Return the path of a store's record."""
    return store.with_name(f".{store.name}.sources")


def write_sources(target: Path, fingerprint: str, home: Path, sources: Sequence[Source]) -> None:
    """Write the record of a store's recordings to a file and flush it to disk.

    Args:
        target: the file.
        fingerprint: fingerprint of the store.
        home: the corpus's folder.
        sources: the recordings, as they were when they were read.
    """
    about = {"format": FORMAT, "format_version": VERSION, "store": fingerprint}
    line = canonical_json({**about, "files": len(sources), "home": str(home.absolute())})
    parts = [line.encode(errors="surrogateescape") + b"\n"]
    for name, dtype in _COLUMNS:
        values = [getattr(source, name) for source in sources]
        parts.append(np.array(values, dtype).tobytes())
    names = b"".join(os.fsencode(source.path) + b"\0" for source in sources)
    parts.append(zlib.compress(names, 1))
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    write_durably(target, *parts, crc.to_bytes(CRC_BYTES, "little"))


def read_sources(path: Path, fingerprint: str) -> list[Source] | None:
    """Read the record of a store's recordings.

    Args:
        path: the record.
        fingerprint: fingerprint of the store.

    Returns:
        The recordings as they were; None if there is no record, or it belongs to another store.

    Raises:
        DamagedError: the record is damaged.
    """
    record = _read(path, fingerprint)
    return None if record is None else record.sources


def read_home(path: Path, fingerprint: str) -> Path | None:
    """Read from the record of a store where its corpus was when it was last read.

    Returns:
        The corpus's folder; None if there is no such record, or an earlier one, which does not name
        the folder.

    Raises:
        DamagedError: the record is damaged.
    """
    record = _read(path, fingerprint)
    return None if record is None else record.home


class _Record(NamedTuple):
    home: Path | None
    sources: list[Source]


def _read(path: Path, fingerprint: str) -> _Record | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _parse(raw, fingerprint)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise DamagedError(f"{path}: not as it was written ({error})") from None


def _parse(raw: bytes, fingerprint: str) -> _Record | None:
    if crc32c(raw[:-CRC_BYTES]) != int.from_bytes(raw[-CRC_BYTES:], "little"):
        raise ValueError("crc32c")
    line, _, body = raw[:-CRC_BYTES].partition(b"\n")
    about = json.loads(line.decode(errors="surrogateescape"))
    if (about["format"], about["format_version"]) != (FORMAT, VERSION):
        raise ValueError(f"{about['format']} version {about['format_version']}")
    if about["store"] != fingerprint:
        return None
    columns, files, offset = [], about["files"], 0
    for _, dtype in _COLUMNS:
        columns.append(np.frombuffer(body, dtype, files, offset).tolist())
        offset += files * np.dtype(dtype).itemsize
    names = zlib.decompress(body[offset:]).split(b"\0")[:-1]
    sources = [
        Source(os.fsdecode(name), size, mtime_ns, crc, bool(fresh))
        for name, size, mtime_ns, crc, fresh in zip(names, *columns, strict=True)
    ]
    return _Record(Path(about["home"]) if "home" in about else None, sources)


def adopt_sources(record: Path, store: Path, fingerprint: str) -> None:
    """Move a record to its path beside the store, if it names the store's fingerprint."""
    with suppress(DamagedError):
        if read_sources(record, fingerprint) is not None:
            record.replace(path_of(store))
            fsync_folder(store.parent)


def check_sources(
    store: Path,
    fingerprint: str,
    home: Path,
    paths: Sequence[str],
    *,
    read_all: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Compare a store's recordings with their record, and update outdated times in the record.

    Args:
        store: path of the store.
        fingerprint: fingerprint of the store.
        home: the corpus's folder.
        paths: the recordings that the store is made of.
        read_all: read all recordings, even if size and time are unchanged.
        on_progress: called with the recordings read and the number to read.
        on_message: called with the reason if there is no usable record and ``read_all`` is set.
    """
    record = path_of(store)
    try:
        noted = read_sources(record, fingerprint)
        why = "there is no record of what they were"
    except (DamagedError, OSError) as error:
        noted, read_all, why = None, True, str(error)
    if noted is None:
        if read_all:
            on_message(
                f"{store}: whether its recordings were edited cannot be known: {why}. Delete the "
                "store to have it rebuilt with a record."
            )
        return Checked(known=False, files=len(paths))
    compared = compare(home, noted, read_all=read_all, on_progress=on_progress)
    known = {source.path for source in noted}
    changed = sorted({s.path for s in compared.changed} | {p for p in paths if p not in known})
    if not changed:
        now = [compared.same[source] for source in noted]
        if now != noted or read_home(record, fingerprint) != home.absolute():
            write_sources(record, fingerprint, home, now)
    return Checked(known=True, files=len(paths), read=compared.read, changed=changed)
