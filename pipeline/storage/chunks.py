"""Raw crc32c chunks on disk: write, flush, journal, manifest, map. Both kinds of store stand on it.

An array is a Zarr v3 array split along its first axis only, uncompressed, codecs ``bytes`` (little
endian) and ``crc32c``. So a chunk file is C-order data and four bytes of checksum: any Zarr reader
opens it and checks it, and it can be memory-mapped. Zarr reads a missing chunk as fill value and
cannot see that two chunks were swapped: the manifest, which holds each chunk's crc32c by its
index, does. It is stored as the attributes of a group ``manifest``, so that a store holds nothing
that Zarr does not know.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.files import check_replaceable, named, remove
from antigram.pipeline.storage.hashing import canonical_json, digest

__all__ = [
    "PARTIAL",
    "STRING",
    "ArraySpec",
    "Journal",
    "Written",
    "array_digest",
    "begin_writeback",
    "chunk_path",
    "crc32c",
    "decode_texts",
    "encode",
    "flush_filesystem",
    "fsync_folder",
    "rows_per_chunk",
    "whole_file",
    "write_chunk",
    "write_durably",
    "write_in_parts",
    "write_text",
]

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_AT_ONCE = 64 << 20  # bytes
_WORTH_STARTING = 1 << 20  # bytes: for a small file the asking costs more than it gains
CRC_BYTES = 4
PARTIAL = ".partial"  # how the name of a file ends that is being written
STRING = "string"  # dtype of an array of UTF-8 text
_TARGET_BYTES = 8 << 20


def rows_per_chunk(row_bytes: int, rows: int) -> int:
    """Rows in a chunk: the power of two that makes up to 8 MiB, or all rows if they are fewer."""
    fit = max(1, _TARGET_BYTES // row_bytes)
    return max(1, min(1 << (fit.bit_length() - 1), rows))


def crc32c(data: bytes | NDArray[Any], before: int = 0) -> int:
    """Checksum of the Zarr codec ``crc32c`` (Castagnoli) of bytes or of a contiguous array.

    Args:
        data: what is summed up.
        before: checksum of what stands before it, if it is a part.
    """
    return int(google_crc32c.extend(before, data))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name and layout of one array of a store.

    Attributes:
        name: in the group; may hold ``/``.
        shape: all axes, rows first.
        dtype: numpy's name, or ``STRING``.
        rows: in a chunk.
        attributes: of the Zarr array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.rows)

    @property
    def fill(self) -> float | int | str:
        """Value of cells that no row has: the last chunk is padded to full size, as in any Zarr."""
        if self.dtype == STRING:
            return ""
        return float("nan") if self.dtype.startswith("float") else -1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; not for text."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    def span(self, index: int) -> slice:
        """Rows of a chunk."""
        return slice(index * self.rows, min((index + 1) * self.rows, self.shape[0]))


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: kept in the journal while building, then in the manifest."""

    crc32c: int
    sha256: str

    @classmethod
    def from_json(cls, value: Any) -> Written:  # noqa: ANN401 - whatever a journal holds
        """Read it from a journal.

        Raises:
            ValueError: it is something else.
        """
        match value:
            case {"crc32c": int(crc), "sha256": str(content)} if crc in range(1 << 32):
                return cls(crc, content)
        raise ValueError(f"{value!r} is not what was written")


def chunk_path(folder: Path, spec: ArraySpec, index: int) -> Path:
    """File of a chunk, in Zarr's default key encoding."""
    return folder.joinpath(*spec.name.split("/"), "c", str(index), *("0" for _ in spec.shape[1:]))


def encode(spec: ArraySpec, index: int, values: NDArray[Any] | Sequence[str]) -> NDArray[np.uint8]:
    """Bytes of a chunk, less the checksum: rows in C order, padded with the fill value."""
    span = spec.span(index)
    rows = span.stop - span.start
    if len(values) != rows:
        raise ValueError(f"{spec.name}: chunk {index} has {rows} rows, got {len(values)}")
    if spec.dtype == STRING:
        import numcodecs  # here, as workers never write text

        text = np.full(spec.rows, "", dtype=object)
        text[:rows] = list(values)
        return np.frombuffer(numcodecs.VLenUTF8().encode(text), np.uint8)
    block = np.asarray(values, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    if rows < spec.rows:
        padding = np.full((spec.rows - rows, *spec.shape[1:]), spec.fill, block.dtype)
        block = np.concatenate([block, padding])
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8)


def decode_texts(raw: bytes, rows: int) -> list[str]:
    """Texts of a chunk as `encode` made it.

    Raises:
        ValueError: it is not so many texts.
    """
    import numcodecs

    # Memory is taken for as many as the first four bytes promise.
    if int.from_bytes(raw[:4], "little") != rows:
        raise ValueError(f"is not {rows} texts")
    texts: list[str] = numcodecs.VLenUTF8().decode(raw).tolist()
    return texts


def write_chunk(
    folder: Path,
    spec: ArraySpec,
    index: int,
    data: bytes | NDArray[np.uint8],
    *,
    flush: bool = True,
) -> Written:
    """Write one chunk so that it is there as a whole or not at all, whatever happens.

    Without ``flush`` a power cut (not a kill) may still lose it: for what is checked when it is
    resumed, and flushed as a whole (`flush_filesystem`) before it is published.
    """
    raw = data.data if isinstance(data, np.ndarray) else memoryview(data)
    crc = crc32c(data)
    path = chunk_path(folder, spec, index)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, flush=flush) as file:
        write_in_parts(file, raw)
        file.write(crc.to_bytes(CRC_BYTES, "little"))
        if not flush:
            begin_writeback(file)
    return Written(crc, sha256(raw).hexdigest())


def write_in_parts(file: BinaryIO, raw: memoryview) -> None:
    """Write many bytes, a little at a time but not too little.

    For a write of megabytes Linux takes pages of 2 MB, which `Region` then maps as such: random
    rows are gathered up to a third faster. A process that is told to stop need not wait for long.
    """
    for place in range(0, raw.nbytes, _AT_ONCE):
        file.write(raw[place : place + _AT_ONCE])


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that it is there as a whole or not at all."""
    with whole_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Open a file beside the goal, and rename it at the end: there is no half of it.

    Several processes may write the same file at once: each has a name of its own beside it.

    Args:
        path: the goal.
        flush: to disk, the file before it is renamed and its folder thereafter.

    Raises:
        InputError: the goal is a device, a pipe or a folder.
        OSError: names the goal.
    """
    check_replaceable(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{PARTIAL}")
    try:
        with named(path), beside.open("wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
        if flush:
            fsync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def begin_writeback(file: BinaryIO) -> None:
    """Ask the system to begin writing a file to disk, and do not wait; no promise is made."""
    file.flush()
    function = getattr(_LIBC, "sync_file_range", None)
    if function is not None and file.tell() >= _WORTH_STARTING:
        function(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def write_text(path: Path, text: str) -> None:
    """`write_durably` for text."""
    write_durably(path, text.encode())


def fsync_folder(folder: Path) -> None:
    """Flush a folder, without which a rename may not survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_filesystem(folder: Path) -> None:
    """Flush everything that was written to a folder's filesystem, in one go."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if (syncfs := getattr(_LIBC, "syncfs", None)) is None:
            os.sync()  # macOS has no other
        elif syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(handle)


class Journal:
    """Append-only JSON lines, each with a checksum; what was acknowledged survives a kill.

    A line that was torn by a crash ends the journal: it and what follows are cut off when the
    journal is opened to be continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            remove(path)  # something else, in the journal's place
        self.entries, whole = self._whole_lines(path)
        self._file = path.open("ab")
        self._file.truncate(whole)

    @classmethod
    def read(cls, path: Path) -> list[dict[str, Any]]:
        """Entries of a journal that another process may be writing."""
        return cls._whole_lines(path)[0]

    @classmethod
    def _whole_lines(cls, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Entries, and the bytes that their lines take."""
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


def array_digest(chunks: Sequence[str]) -> str:
    """Digest of an array from those (SHA-256, hex) of its chunks."""
    return digest(list(chunks))
