"""First pass of `prepare`: render the magnitudes of all rows into raw blocks on disk.

The magnitudes can be normalised only later, as mean and standard deviation are known when all
training segments are rendered. Workers render the blocks (`pipeline.features.rendering`); a journal
lists the blocks that are done.
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
from antigram.pipeline.features.journal import (
    BlockNote,
    intact_chunks,
    parsed_entries,
    unchanged_blocks,
)
from antigram.pipeline.features.listing import Listing, Reject, Row
from antigram.pipeline.features.rendering import (
    CRASHES,
    RawBlock,
    Rendering,
    block_is_intact,
    render_block,
    render_row,
)
from antigram.pipeline.features.row_audio import Context, RowResult
from antigram.pipeline.features.sources import paths_of, shared_paths
from antigram.pipeline.storage.chunks import rows_per_chunk
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.journal import Journal

__all__ = ["Rendered", "render_again", "render_all"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Result of the first pass; the first three lists have an entry for each row that is stored.

    Attributes:
        rows: rows to store, in order of clip_id.
        results: result of rendering each row.
        positions: raw block of each row, and index of the row in the block.
        rejected: recordings and segments that cannot be used.
        blocks: index of a raw block -> all rows of the block, and the block's note.
    """

    rows: list[Row]
    results: list[RowResult]
    positions: list[tuple[RawBlock, int]]
    rejected: list[Reject]
    blocks: Mapping[int, tuple[Sequence[Row], BlockNote]]


def render_all(
    pool: Workers,
    context: Context,
    listing: Listing,
    partial: Path,
    on_progress: OnProgress,
    *,
    check_all: bool,
) -> tuple[Rendered, int]:
    """Render the magnitudes of all rows into raw blocks.

    Blocks that an interrupted run has rendered are kept, unless their recordings have been edited
    since; all chunks of the store are then written again.

    Args:
        pool: workers that run `render_block`.
        context: recipe, folders and noise.
        listing: rows of the corpus.
        partial: folder of the unfinished store.
        on_progress: called with a stage, the rows done and the rows in total.
        check_all: compare all recordings with their checksums, even if size and time are unchanged.

    Returns:
        The result, and how many rows were rendered in this run.
    """
    row_bytes = 4 * math.prod(context.recipe.shape)
    block_rows = rows_per_chunk(row_bytes, len(listing.rows))
    blocks = [listing.rows[i : i + block_rows] for i in range(0, len(listing.rows), block_rows)]
    rendered_blocks: dict[int, BlockNote] = {}
    noise_classes = len(context.bank.classes) if context.bank else 0
    computed = 0
    with Journal(partial / "raw.jsonl") as journal:
        noted: dict[int, BlockNote] = {}
        for note in parsed_entries(journal, BlockNote.from_json):
            block = note.block
            fits = 0 <= block.index < len(blocks) and block.rows == len(blocks[block.index])
            if fits and all(-1 <= result.noise < noise_classes for result in note.results):
                noted[block.index] = note  # the last entry of a block is valid
        unchanged = unchanged_blocks(noted, context.home, read_all=check_all)
        if len(unchanged) < len(noted):
            remove(partial / "chunks.jsonl")
        # A raw block whose rows are all in finished chunks has been deleted, and is not needed.
        chunks = intact_chunks(partial, context.recipe, Journal.read(partial / "chunks.jsonl"))
        spent = {index for note in chunks.values() for index in note.spent}
        for index, note in unchanged.items():
            if index in spent or block_is_intact(note.block, context.raw, row_bytes):
                rendered_blocks[index] = note
        done = sum(len(blocks[i]) for i in rendered_blocks)
        on_progress("features", done, len(listing.rows))
        tasks = (
            (i, rows, noted_elsewhere)
            for i, (rows, noted_elsewhere) in enumerate(
                zip(blocks, shared_paths(blocks), strict=True)
            )
            if i not in rendered_blocks
        )

        def without_culprits(task: tuple[Any, ...]) -> Rendering:
            """Find the rows whose decoding kills a worker; render the block without them."""
            crashing = []
            for position, row in enumerate(task[1]):
                try:
                    pool.alone(render_row, row)
                except WorkerDiedError:
                    crashing.append(position)
            return pool.alone(render_block, *task, crashing)

        for (index, rows, _), rendering in pool.run(render_block, tasks, without_culprits):
            rendered_blocks[index] = BlockNote(*rendering)
            journal.append(rendered_blocks[index].to_json())
            computed += len(rows)
            on_progress("features", done + computed, len(listing.rows))
    all_rows = {index: (rows, rendered_blocks[index]) for index, rows in enumerate(blocks)}
    rendered = Rendered([], [], [], list(listing.rejected), all_rows)
    for rows, note in all_rows.values():
        for position, (row, result) in enumerate(zip(rows, note.results, strict=True)):
            if result.reason:
                source = row.source(context.recipe.sample_rate)
                rendered.rejected.append(Reject(source, result.reason))
            else:
                rendered.rows.append(row)
                rendered.results.append(result)
                rendered.positions.append((note.block, position))
    return rendered, computed


def render_again(pool: Workers, home: Path, partial: Path, rendered: Rendered, index: int) -> None:
    """Render a damaged or deleted raw block again.

    Raises:
        InputError: the block's rows differ from before, so the recordings have changed.
    """
    rows, note = rendered.blocks[index]
    crashing = [
        position for position, result in enumerate(note.results) if result.reason == CRASHES
    ]
    block, results, _ = pool.alone(render_block, index, rows, paths_of(rows), crashing)
    if (block, results) != (note.block, note.results):
        (partial / "chunks.jsonl").unlink()  # its chunks were made from the old recordings
        raise InputError(
            f"{home}: recordings changed while they were read ({rows[0].path} to {rows[-1].path}). "
            "Let nothing write there, and run the same command again."
        )
