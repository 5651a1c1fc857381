"""Check the ``zarr.json`` of arrays: antigram reads only the kinds of arrays that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from antigram.pipeline.storage.chunks import STRING, ArraySpec

__all__ = ["fits", "spec_of"]

_DTYPES = ("float16", "float32", "int8", "int32", STRING)
_MOST = 1 << 48  # length of an axis; more than any disk holds


def spec_of(name: str, meta: Mapping[str, Any]) -> ArraySpec:
    """Return the layout of an array, from its ``zarr.json``.

    Args:
        name: name of the array in its group.
        meta: the parsed document.

    Raises:
        ValueError: antigram does not write such an array; also KeyError, TypeError, IndexError.
    """
    dtype, shape = meta["data_type"], tuple(meta["shape"])
    grid = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = [codec["name"] for codec in meta["codecs"]]
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype}")
    if not all(type(axis) is int and 0 <= axis < _MOST for axis in (*shape, *grid)):
        raise ValueError(f"shape {shape}, chunks {grid}")
    if 0 in shape[1:] or not 1 <= grid[0] <= max(1, shape[0]):
        raise ValueError(f"shape {shape}, {grid[0]} rows a chunk")
    if codecs != ["vlen-utf8" if dtype == STRING else "bytes", "crc32c"] or grid[1:] != shape[1:]:
        raise ValueError(f"chunks {grid}, codecs {codecs}")
    if dtype == STRING and len(shape) != 1:
        raise ValueError(f"text of shape {shape}")
    return ArraySpec(name, shape, dtype, grid[0], meta["attributes"])


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape matches the wanted shape, in which None stands for any length."""
    return len(shape) == len(wanted) and all(
        wanted_length in (None, length) for length, wanted_length in zip(shape, wanted, strict=True)
    )
