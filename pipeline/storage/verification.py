"""Verify a group of arrays against its manifest: completely, or by sizes and a sample."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from random import SystemRandom
from typing import Any

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.backend import Backend, Reader, Viewer
from antigram.pipeline.storage.chunks import CRC_BYTES, STRING, array_digest, crc32c
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.layout import spec_of
from antigram.pipeline.storage.manifest import (
    DOCUMENT,
    KEY,
    Manifest,
    Problem,
    chunk_keys,
    read_manifest,
    unlisted,
)
from antigram.pipeline.storage.objects import is_address

__all__ = ["RunTasks", "is_unchanged", "verify_group"]

Chunk = tuple[str, int]  # key and crc32c
# Runs a function for each task, and yields tasks and results in any order.
RunTasks = Callable[
    [Callable[..., Any], Iterable[tuple[Any, ...]]], Iterable[tuple[tuple[Any, ...], Any]]
]

_PART_BYTES = 4 << 20  # of chunks that a thread verifies at once
_MOST_READ = 8 << 30  # bytes that `is_unchanged` reads
_SAMPLE = 64  # chunks that it reads of a larger group


def is_unchanged(group: Backend, *, check_all: bool = False) -> bool:
    """Whether a finished group is as it was written, so that it need not be made again.

    Every chunk of a group of up to 8 GB is read. Of a larger one, which would take minutes or
    hours, all metadata are read, all chunks are looked up with their sizes, and some are read.

    Args:
        group: the group.
        check_all: read every chunk, however large the group is.
    """
    sizes = _sizes(group)
    few = check_all or sum(sizes.values()) <= _MOST_READ
    return not any(_problems(group, sizes, content=False, sample=None if few else _SAMPLE))


def verify_group(
    group: Backend,
    *,
    content: bool = True,
    sample: int | None = None,
    run: RunTasks | None = None,
) -> Iterator[Problem]:
    """Read every byte of a group, check it by the manifest, and yield the problems.

    Args:
        group: the group to check.
        content: check SHA-256 too. The crc32c of each chunk alone finds all accidental damage, at
            ten times the speed.
        sample: read all metadata, but only as many chunks, drawn at random; of the others only
            existence and size are checked. By default all chunks are read.
        run: runs tasks elsewhere, where the same folder is seen; ``group`` is then a folder. By
            default chunks are read in threads of this process.
    """
    return _problems(group, _sizes(group), content=content, sample=sample, run=run)


def _place(where: str) -> Path | str:
    """Return a path; an address stays text, as a `Path` would lose a slash."""
    return where if is_address(where) else Path(where)


def _sizes(group: Backend) -> dict[str, int]:
    """Return the size of each object of a group."""
    return {entry.key: entry.size for entry in group.list()}


def _problems(
    group: Backend,
    sizes: Mapping[str, int],
    *,
    content: bool,
    sample: int | None,
    run: RunTasks | None = None,
) -> Iterator[Problem]:
    """Yield the problems of a group: see `verify_group`."""
    try:
        manifest = read_manifest(group)
    except DamagedError as error:
        yield Problem(_place(group.where(KEY)), str(error).partition(": ")[2])
        return
    for key, wanted in manifest.metadata.items():
        if problem := _metadata_problem(group, key, wanted):
            yield Problem(_place(group.where(key)), problem)
    keys = list(sizes)
    every = [
        (name, list(chunk_keys(group, name, entry["crc32c"], keys)))
        for name, entry in manifest.arrays.items()
    ]
    if sample is None:
        yield from _problems_of_all(group, every, sizes, manifest, content=content, run=run)
    else:
        yield from _problems_of_sample(group, every, sizes, sample)
    for key in unlisted(group, manifest, keys):
        yield Problem(_place(group.where(key)), "unknown file: antigram did not write it")


def _problems_of_all(
    group: Backend,
    every: Sequence[tuple[str, Sequence[Chunk]]],
    sizes: Mapping[str, int],
    manifest: Manifest,
    *,
    content: bool,
    run: RunTasks | None,
) -> Iterator[Problem]:
    """Read all chunks of all arrays, and yield the problems; see `_problems_of_sample`."""
    together = [chunk for _, chunks in every for chunk in chunks]
    verified = (
        _verify_chunks(group, together, sizes, content=content)
        if run is None
        else _verify_elsewhere(run, Folder(Path(group.where()).absolute()), together, sizes)
    )
    for name, chunks in every:
        digests: list[str] = []
        damaged = False
        for (key, _), (problem, chunk) in zip(chunks, verified, strict=False):
            digests.append(chunk)
            if problem:
                damaged = True
                yield Problem(_place(group.where(key)), problem)
        if content and not damaged and array_digest(digests) != manifest.digests()[name]:
            where = _place(group.where(name))
            yield Problem(where, "content does not match the manifest's SHA-256")


def _problems_of_sample(
    group: Backend,
    every: Sequence[tuple[str, Sequence[Chunk]]],
    sizes: Mapping[str, int],
    sample: int,
) -> Iterator[Problem]:
    """Look up all chunks with their sizes, read some of them, and yield the problems.

    Args:
        group: the group.
        every: name, and key and checksum of each chunk, of each array.
        sizes: size of each object of the group.
        sample: number of chunks to read, drawn at random.
    """
    present: list[Chunk] = []
    for name, chunks in every:
        wanted = _chunk_size(group, name)
        for key, crc in chunks:
            if (size := sizes.get(key)) is None:
                yield Problem(_place(group.where(key)), "missing")
            elif size != wanted if wanted else size <= CRC_BYTES:
                expected = f"wanted {wanted}" if wanted else "no text"
                yield Problem(_place(group.where(key)), f"{size} bytes, {expected}")
            else:
                present.append((key, crc))
    drawn = SystemRandom().sample(present, min(sample, len(present)))
    for (key, _), (problem, _) in zip(
        drawn, _verify_chunks(group, drawn, sizes, content=False), strict=True
    ):
        if problem:
            yield Problem(_place(group.where(key)), problem)


def _chunk_size(group: Reader, name: str) -> int | None:
    """Return the size of each chunk of an array; None if it is text, or its metadata unreadable."""
    try:
        spec = spec_of(name, json.loads(group.get(f"{name}/{DOCUMENT}")))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None  # reported already, as its checksum is wrong
    return None if spec.dtype == STRING else spec.rows * spec.row_bytes + CRC_BYTES


def _metadata_problem(group: Reader, key: str, wanted: int) -> str:
    """Return the problem of a ``zarr.json``, or an empty string."""
    try:
        return "" if crc32c(group.get(key)) == wanted else "not as it was written (crc32c)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _verify_chunks(
    group: Viewer, chunks: Sequence[Chunk], sizes: Mapping[str, int], *, content: bool
) -> Iterator[tuple[str, str]]:
    """Verify chunks in order, in one thread for each core, as hashing is slow.

    Small chunks are handed to a thread together: handing over one takes longer than hashing it.

    Args:
        group: the group.
        chunks: key and checksum of each chunk.
        sizes: size of each object of the group.
        content: whether to compute SHA-256.

    Yields:
        The problem of a chunk, or an empty text, and its SHA-256 if ``content`` is set.
    """
    count = len(os.sched_getaffinity(0))
    waiting: deque[Future[list[tuple[str, str]]]] = deque()
    with ThreadPoolExecutor(count) as threads:
        for part in _parts(chunks, sizes):
            waiting.append(threads.submit(_verify_part, group, part, content=content))
            if len(waiting) > 2 * count:  # limits the chunks in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _verify_elsewhere(
    run: RunTasks, folder: Folder, chunks: Sequence[Chunk], sizes: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Verify chunks in order, in other processes; see `_verify_chunks`."""
    parts = list(_parts(chunks, sizes))
    tasks = ((number, folder, part) for number, part in enumerate(parts))
    done = {task[0]: result for task, result in run(_verify_numbered, tasks)}
    for number in range(len(parts)):
        yield from done[number]


def _verify_numbered(_: int, folder: Folder, chunks: Sequence[Chunk]) -> list[tuple[str, str]]:
    return _verify_part(folder, chunks, content=True)


def _parts(chunks: Sequence[Chunk], sizes: Mapping[str, int]) -> Iterator[list[Chunk]]:
    """Divide chunks into parts of at least `_PART_BYTES`, except for the last part."""
    part: list[Chunk] = []
    size = 0
    for chunk in chunks:
        part.append(chunk)
        size += sizes.get(chunk[0], 0)
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _verify_part(group: Viewer, chunks: Sequence[Chunk], *, content: bool) -> list[tuple[str, str]]:
    return [_verify_chunk(group, *chunk, content=content) for chunk in chunks]


def _verify_chunk(group: Viewer, key: str, wanted: int, *, content: bool) -> tuple[str, str]:
    """Return the problem of a chunk, or an empty text, and its SHA-256 if ``content`` is set."""
    try:
        raw = group.view(key)
    except FileNotFoundError:
        return "missing", ""
    except OSError as error:
        return f"unreadable: {error.strerror}", ""
    if raw.size <= CRC_BYTES:
        return "truncated" if raw.size else "empty", ""
    data, tail = raw[:-CRC_BYTES], int.from_bytes(raw[-CRC_BYTES:].tobytes(), "little")
    crc = crc32c(data)
    if crc != tail:
        return "damaged: truncated, or a bit has flipped (its own crc32c)", ""
    if crc != wanted:
        return "another chunk or an older version of it (the manifest's crc32c)", ""
    return "", sha256(data.data).hexdigest() if content else ""
