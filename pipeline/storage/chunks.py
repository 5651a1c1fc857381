"""Chunks of arrays, of which stores and caches consist: layout, bytes and checksums.

An array is a Zarr v3 array that is split along its first axis only, uncompressed, with the codecs
``bytes`` (little endian) and ``crc32c``. A chunk file is therefore C-order data followed by a
checksum of four bytes: any Zarr reader opens and checks it, and it can be memory-mapped. Zarr reads
a missing chunk as fill values and cannot notice that two chunks were swapped. The manifest, which
holds the crc32c of each chunk by its index, shows both. It is stored as the attributes of a group
``manifest``, so that a store holds nothing unknown to Zarr.
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
    "small_rows_per_chunk",
    "write_chunk",
]

CRC_BYTES = 4
STRING = "string"  # dtype of an array of UTF-8 text
_TARGET_BYTES = 8 << 20
_SMALL_ROWS = 1 << 20  # rows in a chunk of an array that has one number or text a row


def rows_per_chunk(row_bytes: int, rows: int) -> int:
    """Return the rows of a chunk: the largest power of two up to 8 MiB, at most all rows."""
    fit = max(1, _TARGET_BYTES // row_bytes)
    return max(1, min(1 << (fit.bit_length() - 1), rows))


def small_rows_per_chunk(rows: int) -> int:
    """Return the rows of a chunk of an array with one number or one text a row.

    With the rows of the large arrays, five of six objects of a store would be tiny.
    """
    return max(1, min(_SMALL_ROWS, rows))


def crc32c(data: bytes | NDArray[Any], before: int = 0) -> int:
    """Return the CRC-32C (Castagnoli), as in the Zarr codec ``crc32c``.

    Args:
        data: bytes, or a contiguous array.
        before: checksum of the bytes that precede ``data``; the result then covers both.
    """
    return int(google_crc32c.extend(before, data))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name and layout of one array of a store.

    Attributes:
        name: name in the group; may contain ``/``.
        shape: shape of the array, rows first.
        dtype: name of a numpy dtype, or ``STRING``.
        rows: number of rows in a chunk.
        attributes: attributes of the Zarr array.
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
        """Fill value, with which the last chunk is padded to full size, as in any Zarr array."""
        if self.dtype == STRING:
            return ""
        return float("nan") if self.dtype.startswith("float") else -1

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes; not defined for text."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    def span(self, index: int) -> slice:
        """Return the rows of a chunk."""
        return slice(index * self.rows, min((index + 1) * self.rows, self.shape[0]))


@dataclass(frozen=True, slots=True)
class Written:
    """Checksums of a written chunk, stored in the journal and then in the manifest."""

    crc32c: int
    sha256: str

    @classmethod
    def from_json(cls, value: Any) -> Written:  # noqa: ANN401 - any JSON value
        """Parse an entry of a journal.

        Raises:
            ValueError: the value is not such an entry.
        """
        match value:
            case {"crc32c": int(crc), "sha256": str(content)} if crc in range(1 << 32):
                return cls(crc, content)
        raise ValueError(f"{value!r} is not what was written")


def chunk_key(spec: ArraySpec, index: int) -> str:
    """Return the key of a chunk in its group, in Zarr's default encoding."""
    return "/".join([spec.name, "c", str(index), *("0" for _ in spec.shape[1:])])


def chunk_path(folder: Path, spec: ArraySpec, index: int) -> Path:
    """Return the file of a chunk, for a group in a folder."""
    return folder / chunk_key(spec, index)


def encode(spec: ArraySpec, index: int, values: NDArray[Any] | Sequence[str]) -> NDArray[np.uint8]:
    """Return the bytes of a chunk without checksum: rows in C order, padded with fill values."""
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
    """Return the texts of a chunk that `encode` made.

    Raises:
        ValueError: the chunk does not hold ``rows`` texts.
    """
    import numcodecs

    # numcodecs allocates memory for the number of texts in the first four bytes.
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
    """Write one chunk, followed by its checksum.

    Args:
        group: group of the array.
        spec: layout of the array.
        index: index of the chunk.
        data: bytes of the chunk, from `encode`.
        flush: whether to flush to disk; see `Writer`.
    """
    raw = data.data if isinstance(data, np.ndarray) else memoryview(data)
    crc = crc32c(data)
    group.put(chunk_key(spec, index), raw, crc.to_bytes(CRC_BYTES, "little"), flush=flush)
    return Written(crc, sha256(raw).hexdigest())


def is_intact(group: Viewer, key: str, size: int, crc: int) -> bool:
    """Whether a chunk exists and matches its checksum.

    Args:
        group: group of the array.
        key: key of the chunk.
        size: size of its rows in bytes.
        crc: checksum of its rows.
    """
    try:
        raw = group.view(key)
    except OSError:
        return False
    tail = crc.to_bytes(CRC_BYTES, "little")  # other Zarr readers check this one
    return (
        raw.size == size + CRC_BYTES
        and raw[-CRC_BYTES:].tobytes() == tail
        and crc32c(raw[:-CRC_BYTES]) == crc
    )


def array_digest(chunks: Sequence[str]) -> str:
    """Return the digest of an array, from the SHA-256 (hex) of each of its chunks."""
    return digest(list(chunks))
