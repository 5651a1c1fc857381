"""What an interrupted `prepare` notes of its work; what cannot be understood is made again.

A journal's checksum tells that a line is as it was written, not that this code wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import RawBlock, RowResult
from antigram.pipeline.features.sources import Source, compare
from antigram.pipeline.storage.chunks import Written
from antigram.pipeline.storage.mapped import is_whole

__all__ = ["BlockNote", "ChunkNote", "intact_chunks", "still_true", "understood"]

Entry = Mapping[str, Any]
Note = TypeVar("Note")


@dataclass(frozen=True, slots=True)
class BlockNote:
    """A raw block that was rendered.

    Attributes:
        block: where it is.
        results: what became of each of its rows.
        sources: what the recordings were that it was rendered from.
    """

    block: RawBlock
    results: list[RowResult]
    sources: list[Source]

    def to_json(self) -> dict[str, Any]:
        """Entry of ``raw.jsonl``."""
        return {"block": asdict(self.block), "rows": self.results, "sources": self.sources}

    @classmethod
    def from_json(cls, entry: Entry) -> BlockNote:
        """Read an entry.

        Raises:
            ValueError: it is none.
        """
        match entry:
            case {
                "block": {"index": int(index), "rows": int(rows), "crc32c": int(crc)},
                "rows": list(results),
                "sources": list(sources),
            } if len(results) == rows and len(entry["block"]) == 3:
                block = RawBlock(index, rows, crc)
                return cls(block, [*map(_result, results)], [*map(_source, sources)])
        raise ValueError("not the entry of a raw block")


@dataclass(frozen=True, slots=True)
class ChunkNote:
    """A chunk of features that was written.

    Attributes:
        chunk: its index.
        rows: in a chunk.
        identity: of the cut into chunks, and of the mean and deviation.
        written: its checksums.
        spent: indices of the raw blocks that no chunk needs any more.
    """

    chunk: int
    rows: int
    identity: str
    written: Written
    spent: list[int]

    def to_json(self) -> dict[str, Any]:
        """Entry of ``chunks.jsonl``."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Entry) -> ChunkNote:
        """Read an entry.

        Raises:
            ValueError: it is none.
        """
        match entry:
            case {
                "chunk": int(chunk),
                "rows": int(rows),
                "identity": str(identity),
                "written": written,
                "spent": list(spent),
            } if all(type(index) is int for index in spent):
                return cls(chunk, rows, identity, Written.from_json(written), spent)
        raise ValueError("not the entry of a chunk")


def still_true(
    notes: Mapping[int, BlockNote], home: Path, *, read_all: bool
) -> dict[int, BlockNote]:
    """Notes of the raw blocks whose recordings are as they were, by index.

    Args:
        notes: by index of the block.
        home: the corpus's folder.
        read_all: read all of the recordings, and not only those whose size or time differs.
    """
    sources = (source for note in notes.values() for source in note.sources)
    compared = compare(home, sources, read_all=read_all)
    return {
        index: replace(note, sources=[compared.same[source] for source in note.sources])
        for index, note in notes.items()
        if compared.changed.isdisjoint(note.sources)
    }


def understood(entries: Iterable[Entry], read: Callable[[Entry], Note]) -> Iterator[Note]:
    """Entries of a journal that ``read`` can read."""
    for entry in entries:
        try:
            note = read(entry)
        except ValueError:
            continue
        yield note


def intact_chunks(
    partial: Path, recipe: Recipe, entries: Iterable[Mapping[str, Any]]
) -> dict[int, ChunkNote]:
    """Notes of the chunks that are there as they were written: a power cut may lose a rename."""
    size = math.prod(recipe.shape) * np.dtype(recipe.dtype).itemsize
    whole = {}
    for note in understood(entries, ChunkNote.from_json):
        path = partial / "store" / "features" / "c" / str(note.chunk) / "0" / "0"
        if is_whole(path, note.rows * size, note.written.crc32c):
            whole[note.chunk] = note
    return whole


def _source(value: object) -> Source:
    match value:
        case [str(path), int(size), int(mtime_ns), crc, bool(fresh)] if (
            crc is None or type(crc) is int
        ):
            return Source(path, size, mtime_ns, crc, fresh)
    raise ValueError("not what a recording was")


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
        ] if all(map(math.isfinite, (total, squares, low, high))) and (
            snr is None or (isinstance(snr, int | float) and math.isfinite(snr))
        ):
            return RowResult(why, total, squares, silent, noise, snr, low, high)
    raise ValueError("not the result of a row")
