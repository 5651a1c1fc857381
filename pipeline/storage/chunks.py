"""Chunks of arrays: their layout, bytes and checksums. Stores and caches both consist of them.

An array is a Zarr v3 array split along its first axis only, uncompressed, codecs ``bytes`` (little
endian) and ``crc32c``. So a chunk file is C-order data and four bytes of checksum: any Zarr reader
opens it and checks it, and it can be memory-mapped. Zarr reads a missing chunk as fill value and
cannot see that two chunks were swapped: the manifest, which holds each chunk's crc32c by its
index, does. It is stored as the attributes of a group ``manifest``, so that a store holds nothing
that Zarr does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.backend import Viewer, Writer
from antigram.pipeline.storage.hashing import digest

__all__ = [
    "STRING",
    "ArraySpec",
    "Written",
    "array_digest",
    "chunk_key",
    "chunk_path",
    "crc32c",
    "decode_texts",
    "encode",
    "is_intact",
    "rows_per_chunk",
    "write_chunk",
]

CRC_BYTES = 4
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


def chunk_key(spec: ArraySpec, index: int) -> str:
    """Key of a chunk in its group: Zarr's default encoding."""
    return "/".join([spec.name, "c", str(index), *("0" for _ in spec.shape[1:])])


def chunk_path(folder: Path, spec: ArraySpec, index: int) -> Path:
    """File of a chunk of a group in a folder."""
    return folder / chunk_key(spec, index)


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
    group: Writer,
    spec: ArraySpec,
    index: int,
    data: bytes | NDArray[np.uint8],
    *,
    flush: bool = True,
) -> Written:
    """Store one chunk, with its checksum behind it.

    Args:
        group: where the array lies.
        spec: of the array.
        index: of the chunk.
        data: from `encode`.
        flush: see `Writer`.
    """
    raw = data.data if isinstance(data, np.ndarray) else memoryview(data)
    crc = crc32c(data)
    group.put(chunk_key(spec, index), raw, crc.to_bytes(CRC_BYTES, "little"), flush=flush)
    return Written(crc, sha256(raw).hexdigest())


def is_intact(group: Viewer, key: str, size: int, crc: int) -> bool:
    """Whether a chunk is there as it was written.

    Args:
        group: where it lies.
        key: its key.
        size: bytes of its rows.
        crc: their checksum.
    """
    try:
        raw = group.view(key)
    except OSError:
        return False
    tail = crc.to_bytes(CRC_BYTES, "little")  # other readers go by the checksum behind the data
    return (
        raw.size == size + CRC_BYTES
        and raw[-CRC_BYTES:].tobytes() == tail
        and crc32c(raw[:-CRC_BYTES]) == crc
    )


def array_digest(chunks: Sequence[str]) -> str:
    """Digest of an array from those (SHA-256, hex) of its chunks."""
    return digest(list(chunks))
