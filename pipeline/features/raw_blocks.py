"""First pass of `prepare`: magnitudes of all rows, in raw blocks beside the store to be.

They wait there because the mean and deviation are known only when all training clips were seen.
Workers render the blocks (`pipeline.features.rendering`); a journal notes those that are done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.workers import WorkerDiedError, Workers
from antigram.pipeline.features.journal import BlockNote, intact_chunks, still_true, understood
from antigram.pipeline.features.listing import Listing, Reject, Row
from antigram.pipeline.features.rendering import (
    CRASHES,
    Context,
    RawBlock,
    Rendering,
    RowResult,
    block_is_whole,
    render_block,
    render_row,
)
from antigram.pipeline.features.sources import paths_of, shared_paths
from antigram.pipeline.storage.chunks import rows_per_chunk
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.journal import Journal

__all__ = ["Rendered", "render_again", "render_all"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """All rows that can be stored, with what rendering found, in order of clip_id."""

    rows: list[Row]
    results: list[RowResult]
    places: list[tuple[RawBlock, int]]  # raw block and row in it
    rejected: list[Reject]
    blocks: Mapping[int, tuple[Sequence[Row], BlockNote]]  # by index: all rows, and what was noted


def render_all(
    pool: Workers,
    context: Context,
    listing: Listing,
    partial: Path,
    on_progress: OnProgress,
    *,
    check_all: bool,
) -> tuple[Rendered, int]:
    """First pass: magnitudes of all rows, in raw blocks; those already journalled are kept.

    But for those whose recordings were edited since; chunks that were made with them go, too.
    """
    row_bytes = 4 * math.prod(context.recipe.shape)
    per = rows_per_chunk(row_bytes, len(listing.rows))
    blocks = [listing.rows[i : i + per] for i in range(0, len(listing.rows), per)]
    found: dict[int, BlockNote] = {}
    noises = len(context.bank.classes) if context.bank else 0
    computed = 0
    with Journal(partial / "raw.jsonl") as journal:
        noted: dict[int, BlockNote] = {}
        for note in understood(journal, BlockNote.from_json):
            block = note.block
            fits = 0 <= block.index < len(blocks) and block.rows == len(blocks[block.index])
            if fits and all(-1 <= result.noise < noises for result in note.results):
                noted[block.index] = note  # the last one counts
        true = still_true(noted, context.home, read_all=check_all)
        if len(true) < len(noted):
            remove(partial / "chunks.jsonl")
        # A raw block whose rows are all in finished chunks was deleted, and is not missed.
        kept = intact_chunks(partial, context.recipe, Journal.read(partial / "chunks.jsonl"))
        spent = {index for note in kept.values() for index in note.spent}
        for index, note in true.items():
            if index in spent or block_is_whole(note.block, context.raw, row_bytes):
                found[index] = note
        done = sum(len(blocks[i]) for i in found)
        on_progress("features", done, len(listing.rows))
        tasks = (
            (i, rows, elsewhere)
            for i, (rows, elsewhere) in enumerate(zip(blocks, shared_paths(blocks), strict=True))
            if i not in found
        )

        def without_culprits(task: tuple[Any, ...]) -> Rendering:
            """Find the rows whose decoding kills a worker, and render the block without them."""
            dead = []
            for place, row in enumerate(task[1]):
                try:
                    pool.alone(render_row, row)
                except WorkerDiedError:
                    dead.append(place)
            return pool.alone(render_block, *task, dead)

        for (index, rows, _), made in pool.run(render_block, tasks, without_culprits):
            found[index] = BlockNote(*made)
            journal.append(found[index].to_json())
            computed += len(rows)
            on_progress("features", done + computed, len(listing.rows))
    all_rows = {index: (rows, found[index]) for index, rows in enumerate(blocks)}
    rendered = Rendered([], [], [], list(listing.rejected), all_rows)
    for rows, note in all_rows.values():
        for place, (row, result) in enumerate(zip(rows, note.results, strict=True)):
            if result.reason:
                source = row.source(context.recipe.sample_rate)
                rendered.rejected.append(Reject(source, result.reason))
            else:
                rendered.rows.append(row)
                rendered.results.append(result)
                rendered.places.append((note.block, place))
    return rendered, computed


def render_again(pool: Workers, home: Path, partial: Path, rendered: Rendered, index: int) -> None:
    """Render a raw block that was damaged, or deleted; its rows must give the same as before."""
    rows, note = rendered.blocks[index]
    dead = [place for place, result in enumerate(note.results) if result.reason == CRASHES]
    block, results, _ = pool.alone(render_block, index, rows, paths_of(rows), dead)
    if (block, results) != (note.block, note.results):
        (partial / "chunks.jsonl").unlink()  # with chunks of what the recordings were
        raise InputError(
            f"{home}: recordings changed while they were read ({rows[0].path} to {rows[-1].path}). "
            "Let nothing write there, and run the same command again."
        )
