"""Entries of the journals from which an interrupted `prepare` resumes.

The checksum of a line shows that it is undamaged, but not that this version wrote it. Work whose
entry cannot be parsed is therefore done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.row_audio import RowResult
from antigram.pipeline.features.row_results import Results
from antigram.pipeline.features.sources import Source, compare
from antigram.pipeline.storage.chunks import Written, is_intact
from antigram.pipeline.storage.folder import Folder

__all__ = [
    "CHUNKS",
    "FLUSH_S",
    "SUMS",
    "BlockNote",
    "ChunkNote",
    "intact_chunks",
    "parsed_entries",
    "unchanged_blocks",
]

SUMS, CHUNKS = "sums.jsonl", "chunks.jsonl"  # names of the journals of the two passes
FLUSH_S = 1.0  # a power cut loses the entries of so many seconds; a kill loses none

_NOISE = range(-1, 1 << 31)  # indices of classes

Entry = Mapping[str, Any]
Note = TypeVar("Note")


@dataclass(frozen=True, slots=True)
class BlockNote:
    """Journal entry of a block of rows that was rendered.

    Attributes:
        block: index of the block.
        results: result of each row.
        sources: state of the recordings when they were read.
    """

    block: int
    results: Sequence[RowResult]
    sources: list[Source]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `SUMS`."""
        return {"block": self.block, "rows": list(self.results), "sources": self.sources}

    @classmethod
    def from_json(cls, entry: Entry) -> BlockNote:
        """Parse an entry.

        Raises:
            ValueError: the value is not an entry of this kind.
        """
        match entry:
            case {"block": int(block), "rows": list(results), "sources": list(sources)}:
                return cls(block, Results.of(map(_result, results)), [*map(_source, sources)])
        raise ValueError("not the entry of a block")


@dataclass(frozen=True, slots=True)
class ChunkNote:
    """Journal entry of a chunk of features that was written.

    Attributes:
        chunk: index of the chunk.
        rows: number of rows in a chunk.
        identity: digest of the array's layout, mean and standard deviation.
        written: checksums of the chunk.
    """

    chunk: int
    rows: int
    identity: str
    written: Written

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `CHUNKS`."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Entry) -> ChunkNote:
        """Parse an entry.

        Raises:
            ValueError: the value is not an entry of this kind.
        """
        match entry:
            case {
                "chunk": int(chunk),
                "rows": int(rows),
                "identity": str(identity),
                "written": written,
            }:
                return cls(chunk, rows, identity, Written.from_json(written))
        raise ValueError("not the entry of a chunk")


def unchanged_blocks(
    notes: Mapping[int, BlockNote], home: Path, *, read_all: bool
) -> dict[int, BlockNote]:
    """Return the notes of the blocks whose recordings have not changed, by index of the block.

    Args:
        notes: notes of blocks, by index of the block.
        home: the corpus's folder.
        read_all: read all recordings, even if size and time are unchanged.
    """
    sources = (source for note in notes.values() for source in note.sources)
    compared = compare(home, sources, read_all=read_all)
    return {
        index: replace(note, sources=[compared.same[source] for source in note.sources])
        for index, note in notes.items()
        if compared.changed.isdisjoint(note.sources)
    }


def parsed_entries(entries: Iterable[Entry], read: Callable[[Entry], Note]) -> Iterator[Note]:
    """Yield the entries of a journal that ``read`` can parse."""
    for entry in entries:
        try:
            note = read(entry)
        except ValueError:
            continue
        yield note


def intact_chunks(
    partial: Path, recipe: Recipe, entries: Iterable[Mapping[str, Any]]
) -> dict[int, ChunkNote]:
    """Return the notes of the chunks that are intact on disk, as a power cut may undo a rename."""
    size = math.prod(recipe.shape) * np.dtype(recipe.dtype).itemsize
    store, intact = Folder(partial / "store"), {}
    for note in parsed_entries(entries, ChunkNote.from_json):
        key = f"features/c/{note.chunk}/0/0"
        if is_intact(store, key, note.rows * size, note.written.crc32c):
            intact[note.chunk] = note
    return intact


def _source(value: object) -> Source:
    match value:
        case [str(path), int(size), int(mtime_ns), crc, bool(fresh)] if (
            crc is None or type(crc) is int
        ):
            return Source(path, size, mtime_ns, crc, fresh)
    raise ValueError("not the state of a recording")


def _result(value: object) -> RowResult:
    match value:
        case [
            str(why),
            float(total),
            float(squares),
            bool(silent),
            int(noise),
            snr,
            float(low),
            float(high),
        ] if (
            noise in _NOISE
            and all(map(math.isfinite, (total, squares, low, high)))
            and (snr is None or (isinstance(snr, int | float) and math.isfinite(snr)))
        ):
            return RowResult(why, total, squares, silent, noise, snr, low, high)
    raise ValueError("not the result of a row")
