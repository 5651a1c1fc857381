"""Second pass of `prepare`: normalise the raw blocks of the first pass into chunks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import StoredDataError
from antigram.pipeline.execution.workers import Workers
from antigram.pipeline.features.journal import ChunkNote, intact_chunks
from antigram.pipeline.features.raw_blocks import Rendered, render_again
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import RawBlock, normalise_chunk
from antigram.pipeline.storage.chunks import ArraySpec, Written, rows_per_chunk
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.journal import Journal

__all__ = ["features_spec", "normalise_all"]


def features_spec(recipe: Recipe, rows: int) -> ArraySpec:
    """Return the layout of the array ``features`` with a given number of rows."""
    # Always computed from float32, so that chunks of both dtypes have the same rows.
    per = rows_per_chunk(4 * math.prod(recipe.shape), rows)
    return ArraySpec("features", (rows, *recipe.shape), recipe.dtype, per)


def normalise_all(
    pool: Workers,
    home: Path,
    partial: Path,
    rendered: Rendered,
    recipe: Recipe,
    scale: tuple[float, float],
    on_progress: OnProgress,
) -> list[Written]:
    """Write the chunks of the array ``features``, and delete raw blocks that are no longer needed.

    Args:
        pool: workers that run `normalise_chunk`.
        home: the corpus's folder, for messages.
        partial: folder of the unfinished store.
        rendered: result of the first pass.
        recipe: recipe of the store.
        scale: mean and standard deviation of the training split.
        on_progress: called with a stage, the chunks done and the chunks in total.

    Returns:
        The checksums of each chunk.
    """
    spec = features_spec(recipe, len(rendered.rows))
    # Chunks depend on more than the job, which this digest identifies: another version may choose
    # other chunks. The rejected rows do not change within a job.
    identity = digest([list(spec.shape), spec.rows, spec.dtype, *scale])
    last_use: dict[int, int] = {}
    pieces: list[list[tuple[RawBlock, list[int]]]] = []
    for index in range(spec.chunks):
        taken: list[tuple[RawBlock, list[int]]] = []
        for block, row in rendered.positions[spec.span(index)]:
            if not taken or taken[-1][0] is not block:
                taken.append((block, []))
            taken[-1][1].append(row)
            last_use[block.index] = index
        pieces.append(taken)
    users: dict[int, set[int]] = {}
    for index, taken in enumerate(pieces):
        for block, _ in taken:
            users.setdefault(block.index, set()).add(index)
    with Journal(partial / "chunks.jsonl") as journal:
        notes = intact_chunks(partial, recipe, journal)
        done = {
            index: note.written
            for index, note in notes.items()
            if note.identity == identity and index < spec.chunks
        }
        on_progress("normalise", len(done), spec.chunks)
        tasks = (
            (partial / "store", spec, index, taken, *scale)
            for index, taken in enumerate(pieces)
            if index not in done
        )
        for task, result in pool.run(normalise_chunk, tasks):
            index = task[2]
            done[index] = written = _with_intact_blocks(pool, home, rendered, task, result)
            spent = [block for block, _ in task[3] if users[block.index] <= done.keys()]
            indices = [block.index for block in spent]
            journal.append(ChunkNote(index, spec.rows, identity, written, indices).to_json())
            for block in spent:
                block.path(partial / "raw").unlink(missing_ok=True)
            on_progress("normalise", len(done), spec.chunks)
    return [done[index] for index in range(spec.chunks)]


def _with_intact_blocks(
    pool: Workers, home: Path, rendered: Rendered, task: tuple[Any, ...], result: object
) -> Written:
    """Return the result of `normalise_chunk`, after rendering damaged raw blocks again.

    Raises:
        InputError: the recordings have changed in the meantime.
        StoredDataError: a block is damaged again, right after it was written.
    """
    for _ in range(1 + len(task[3])):
        if isinstance(result, Written):
            return result
        if isinstance(result, RawBlock):
            render_again(pool, home, task[0].parent, rendered, result.index)
            result = pool.alone(normalise_chunk, *task)
    raise StoredDataError(
        f"{task[0]}: the raw blocks beside it read differently from what was written. "
        "Check the disk and the memory of this machine, then run again."
    )
