"""First pass of `prepare`: render all rows, for the sums from which mean and deviation are known.

Workers render blocks of rows (`pipeline.features.rendering`), and keep the magnitudes in shared
memory while there is room. A journal lists the sums of the blocks that are done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.execution.executor import Executor, WorkerDiedError
from antigram.pipeline.features.journal import (
    CHUNKS,
    FLUSH_S,
    SUMS,
    BlockNote,
    parsed_entries,
    unchanged_blocks,
)
from antigram.pipeline.features.listing import Listing, Reject, Row
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import Rendering, render_block, render_row
from antigram.pipeline.features.row_audio import Context
from antigram.pipeline.features.row_results import Results
from antigram.pipeline.features.row_table import RowTable
from antigram.pipeline.features.sources import shared_paths
from antigram.pipeline.storage.chunks import rows_per_chunk
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.journal import Journal

__all__ = ["Rendered", "render_all"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Result of the first pass; the first four have an entry for each row that is stored.

    Attributes:
        rows: rows to store, in order of clip_id.
        results: result of rendering each row.
        of_block: ``(row,)`` int32 index of its block.
        positions: ``(row,)`` int32 position of the row in its block.
        rejected: recordings and segments that cannot be used.
        blocks: all rows of each block, and the block's note.
        kept: index of a block -> offset of its magnitudes in the shared memory.
    """

    rows: Sequence[Row]
    results: Results
    of_block: NDArray[np.int32]
    positions: NDArray[np.int32]
    rejected: list[Reject]
    blocks: Sequence[tuple[Sequence[Row], BlockNote]]
    kept: Mapping[int, int]


def render_all(
    pool: Executor,
    context: Context,
    listing: Listing,
    partial: Path,
    on_progress: OnProgress,
    *,
    check_all: bool,
) -> tuple[Rendered, int]:
    """Render all rows, and note their sums.

    The sums that an interrupted run has noted are kept, unless recordings have been edited since;
    all chunks of the store are then written again.

    Args:
        pool: executor of `render_block`.
        context: recipe, corpus, noise and shared memory.
        listing: rows of the corpus.
        partial: folder of the unfinished store.
        on_progress: called with a stage, the rows done and the rows in total.
        check_all: compare all recordings with their checksums, even if size and time are unchanged.

    Returns:
        The result, and how many rows were rendered in this run.
    """
    row_bytes = 4 * math.prod(context.recipe.shape)
    rows_each = rows_per_chunk(row_bytes, len(listing.rows))
    blocks = [listing.rows[i : i + rows_each] for i in range(0, len(listing.rows), rows_each)]
    noise_classes = len(context.bank.classes) if context.bank else 0
    kept: dict[int, int] = {}
    computed = 0
    with Journal(partial / SUMS, flush_s=FLUSH_S, keep=False) as journal:
        noted: dict[int, BlockNote] = {}
        for note in parsed_entries(journal, BlockNote.from_json):
            fits = 0 <= note.block < len(blocks) and len(note.results) == len(blocks[note.block])
            if fits and all(-1 <= result.noise < noise_classes for result in note.results):
                noted[note.block] = note  # the last entry of a block is valid
        journal.entries.clear()  # they take ten times the memory of the notes
        rendered_blocks = unchanged_blocks(noted, context.home, read_all=check_all)
        if len(rendered_blocks) < len(noted):
            remove(partial / CHUNKS)
        done = sum(len(blocks[i]) for i in rendered_blocks)
        on_progress("features", done, len(listing.rows))
        room = context.memory.size if context.memory else 0

        def tasks() -> Iterator[tuple[Any, ...]]:
            end = 0
            for index, (rows, elsewhere) in enumerate(
                zip(blocks, shared_paths(blocks), strict=True)
            ):
                if index not in rendered_blocks:
                    size = row_bytes * len(rows)
                    yield index, rows, elsewhere, end if end + size <= room else None
                    end += size

        def without_culprits(task: tuple[Any, ...]) -> Rendering:
            """Find the rows whose decoding kills a worker; render the block without them."""
            crashing = []
            for position, row in enumerate(task[1]):
                try:
                    pool.alone(render_row, row)
                except WorkerDiedError:
                    crashing.append(position)
            return pool.alone(render_block, *task, crashing)

        for task, rendering in pool.run(render_block, tasks(), without_culprits):
            index, rows, _, keep_at = task
            note = BlockNote(index, Results.of(rendering.results), rendering.sources)
            rendered_blocks[index] = note
            if rendering.kept and keep_at is not None:
                kept[index] = keep_at
            journal.append(note.to_json())
            computed += len(rows)
            on_progress("features", done + computed, len(listing.rows))
    return _joined(blocks, rendered_blocks, kept, listing, context.recipe), computed


def _joined(
    blocks: Sequence[Sequence[Row]],
    notes: Mapping[int, BlockNote],
    kept: Mapping[int, int],
    listing: Listing,
    recipe: Recipe,
) -> Rendered:
    """Return the result of the first pass, from the notes of all blocks."""
    all_rows = [(rows, notes[index]) for index, rows in enumerate(blocks)]
    rejected = list(listing.rejected)
    results = [Results.of(note.results) for _, note in all_rows]
    usable = [np.empty(0, bool), *(own.usable for own in results)]
    for (rows, _), own in zip(all_rows, results, strict=True):
        if not own.usable.all():
            rejected += [
                Reject(row.source(recipe.sample_rate), result.reason)
                for row, result in zip(rows, own, strict=True)
                if result.reason
            ]
    counts = [np.count_nonzero(own) for own in usable[1:]]
    of_block = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    positions = np.concatenate([np.flatnonzero(own).astype(np.int32) for own in usable])
    stored = _chosen(listing.rows, np.concatenate(usable))
    joined = Results.joined(results)
    return Rendered(stored, joined, of_block, positions, rejected, all_rows, kept)


def _chosen(rows: Sequence[Row], usable: NDArray[np.bool_]) -> Sequence[Row]:
    """Return the rows that can be used."""
    if usable.all():
        return rows
    return rows.picked(usable) if isinstance(rows, RowTable) else [*compress(rows, usable)]
