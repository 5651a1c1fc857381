"""What an interrupted `prepare` notes of its work; what cannot be understood is made again.

A journal's checksum tells that a line is as it was written, not that this code wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pipeline.chunks import Written
from pipeline.render import RawBlock, RowResult

__all__ = ["BlockNote", "ChunkNote", "understood"]

Entry = Mapping[str, Any]
Note = TypeVar("Note")


@dataclass(frozen=True, slots=True)
class BlockNote:
    """A raw block that was rendered, and what became of each of its rows."""

    block: RawBlock
    results: list[RowResult]

    def to_json(self) -> dict[str, Any]:
        """Entry of ``raw.jsonl``."""
        return {"block": asdict(self.block), "rows": self.results}

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
            } if len(results) == rows and len(entry["block"]) == 3:
                return cls(RawBlock(index, rows, crc), [_result(value) for value in results])
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


def understood(entries: Iterable[Entry], read: Callable[[Entry], Note]) -> Iterator[Note]:
    """Entries of a journal that ``read`` can read."""
    for entry in entries:
        try:
            note = read(entry)
        except ValueError:
            continue
        yield note


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
