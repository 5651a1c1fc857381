"""Ids of the segments of a cache, in the order of its rows.

They are the array ``clip_id`` of the cache's root, so that rows are found by id without the feature
store. Caches of earlier versions do not have the array. This module does not import torch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from antigram.pipeline.errors import DamagedError, StoredDataError
from antigram.pipeline.storage.backend import Backend, Store
from antigram.pipeline.storage.chunks import (
    STRING,
    ArraySpec,
    Written,
    encode,
    small_rows_per_chunk,
    write_chunk,
)
from antigram.pipeline.storage.manifest import create_arrays, read_manifest
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.text_index import TextIndex

__all__ = ["NAME", "are_damaged", "read_ids", "write_ids"]

NAME = "clip_id"


def write_ids(group: Store, ids: Sequence[str]) -> dict[str, list[Written]]:
    """Write the ids of a cache's segments to its root.

    Args:
        group: root of the cache.
        ids: one id for each row.

    Returns:
        The array and the checksums of its chunks, for the manifest.
    """
    spec = ArraySpec(NAME, (len(ids),), STRING, small_rows_per_chunk(len(ids)))
    written = [
        write_chunk(group, spec, index, encode(spec, index, ids[spec.span(index)]))
        for index in range(spec.chunks)
    ]
    create_arrays(group, [spec])
    return {NAME: written}


def read_ids(group: Backend, path: Path) -> Sequence[str] | None:
    """Read the ids of a cache's segments.

    Args:
        group: root of the cache.
        path: path of the cache, for messages.

    Returns:
        One id for each row; None if the cache was written without ids.

    Raises:
        DamagedError: the ids are damaged, or one of them occurs twice.
    """
    manifest = read_manifest(group)
    if NAME not in manifest.arrays:
        return None
    repair = f"See `antigram verify {path}`; the same `antigram cache-grams` rebuilds it."
    array = MappedArray(group, NAME, manifest.crcs(NAME), repair)
    array.require([STRING], (None,))
    ids = array.read_text()
    is_sorted = all(map(operator.lt, ids, islice(ids, 1, None)))  # as a store's ids are
    if not is_sorted and TextIndex(ids).repeated() is not None:
        raise DamagedError(f"{path / NAME}: an id occurs twice, wanted each once. {repair}")
    return ids


def are_damaged(group: Backend, path: Path) -> bool:
    """Whether a cache has ids that are damaged; a cache without ids is none."""
    try:
        read_ids(group, path)
    except StoredDataError:
        return True
    return False
