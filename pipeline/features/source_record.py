"""The record of a store's recordings that lies beside it, as ``.NAME.zarr.sources``.

It is no part of the store: one that was copied, imported, or made by version 0.1.0 has none and is
complete all the same; only whether its recordings were edited is not known then. It is tied to
the store by its fingerprint, so that that of another store says nothing.

The file is a line of JSON, {format, format_version, store: the fingerprint, files: how many}; then
the columns of all files, little endian, one behind the other: size (int64), mtime_ns (int64),
crc32c (uint32), fresh (uint8: see `pipeline.features.sources`); then their paths, each ended by a
zero byte, deflated (zlib); then the crc32c of all before it (uint32).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.features.sources import Source, compare
from antigram.pipeline.storage.chunks import CRC_BYTES, crc32c
from antigram.pipeline.storage.durable import fsync_folder, write_durably
from antigram.pipeline.storage.hashing import canonical_json

__all__ = ["Checked", "adopt_sources", "check_sources", "path_of", "read_sources", "write_sources"]

FORMAT, VERSION = "antigram/sources", 1
_COLUMNS = (("size", "<i8"), ("mtime_ns", "<i8"), ("crc32c", "<u4"), ("fresh", "u1"))


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether a store's recordings are as they were when it was made.

    Attributes:
        known: whether that can be known.
        files: how many recordings there are.
        read: how many were read to know it.
        changed: those whose content is another one.
    """

    known: bool
    files: int = 0
    read: int = 0
    changed: list[str] = field(default_factory=list)


def path_of(store: Path) -> Path:
    """The file beside a store."""
    return store.with_name(f".{store.name}.sources")


def write_sources(goal: Path, fingerprint: str, sources: Sequence[Source]) -> None:
    """Write the record of a store's recordings, durably; ``goal`` need not be where it is read."""
    about = {"format": FORMAT, "format_version": VERSION, "store": fingerprint}
    parts = [canonical_json({**about, "files": len(sources)}).encode() + b"\n"]
    for name, dtype in _COLUMNS:
        values = [getattr(source, name) for source in sources]
        parts.append(np.array(values, dtype).tobytes())
    names = b"".join(os.fsencode(source.path) + b"\0" for source in sources)
    parts.append(zlib.compress(names, 1))
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    write_durably(goal, *parts, crc.to_bytes(CRC_BYTES, "little"))


def read_sources(path: Path, fingerprint: str) -> list[Source] | None:
    """What the recordings of a store were; None if there is no record, or it is another store's.

    Args:
        path: of the record.
        fingerprint: of the store.

    Raises:
        DamagedError: it is not as it was written.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _parse(raw, fingerprint)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise DamagedError(f"{path}: not as it was written ({error})") from None


def _parse(raw: bytes, fingerprint: str) -> list[Source] | None:
    if crc32c(raw[:-CRC_BYTES]) != int.from_bytes(raw[-CRC_BYTES:], "little"):
        raise ValueError("crc32c")
    line, _, rest = raw[:-CRC_BYTES].partition(b"\n")
    about = json.loads(line)
    if (about["format"], about["format_version"]) != (FORMAT, VERSION):
        raise ValueError(f"{about['format']} version {about['format_version']}")
    if about["store"] != fingerprint:
        return None
    columns, files, place = [], about["files"], 0
    for _, dtype in _COLUMNS:
        columns.append(np.frombuffer(rest, dtype, files, place).tolist())
        place += files * np.dtype(dtype).itemsize
    names = zlib.decompress(rest[place:]).split(b"\0")[:-1]
    return [
        Source(os.fsdecode(name), size, mtime_ns, crc, bool(fresh))
        for name, size, mtime_ns, crc, fresh in zip(names, *columns, strict=True)
    ]


def adopt_sources(made: Path, store: Path, fingerprint: str) -> None:
    """Move a record that lies elsewhere to its place beside the store, if it is that store's."""
    with suppress(DamagedError):
        if read_sources(made, fingerprint) is not None:
            made.replace(path_of(store))
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
    """Hold a store's recordings against its record; times that are out of date are set right.

    Args:
        store: whose.
        fingerprint: of the store.
        home: the corpus's folder.
        paths: the recordings that it is made of.
        read_all: read all of them, and not only those whose size or time differs.
        on_progress: called with (recordings read, those to be read).
        on_message: told why nothing can be known.
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
                "store to have it made again, with a record."
            )
        return Checked(known=False, files=len(paths))
    compared = compare(home, noted, read_all=read_all, on_progress=on_progress)
    known = {source.path for source in noted}
    changed = sorted({s.path for s in compared.changed} | {p for p in paths if p not in known})
    if compared.read and not changed:
        now = [compared.same[source] for source in noted]
        if now != noted:
            write_sources(record, fingerprint, now)
    return Checked(known=True, files=len(paths), read=compared.read, changed=changed)
