"""Second pass of `prepare`: write the chunks of features, normalised by the sums of the first pass.

Magnitudes come from the shared memory; those that had no room there are rendered again.
"""

from __future__ import annotations

import math
from pathlib import Path

from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.executor import Executor
from antigram.pipeline.features.first_pass import Rendered
from antigram.pipeline.features.journal import (
    CHUNKS,
    FLUSH_S,
    SUMS,
    BlockNote,
    ChunkNote,
    intact_chunks,
)
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import (
    CRASHES,
    Again,
    Piece,
    render_block,
    write_features,
)
from antigram.pipeline.storage.chunks import ArraySpec, Written, rows_per_chunk
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.journal import Journal

__all__ = ["features_spec", "normalise_all"]


def features_spec(recipe: Recipe, rows: int) -> ArraySpec:
    """Return the layout of the array ``features`` with a given number of rows."""
    # Always computed from float32, so that chunks of both dtypes have the same rows.
    per = rows_per_chunk(4 * math.prod(recipe.shape), rows)
    return ArraySpec("features", (rows, *recipe.shape), recipe.dtype, per)


def normalise_all(
    pool: Executor,
    home: Path,
    partial: Path,
    rendered: Rendered,
    recipe: Recipe,
    scale: tuple[float, float],
    on_progress: OnProgress,
) -> list[Written]:
    """Write the chunks of the array ``features``.

    Args:
        pool: executor of `write_features`.
        home: the corpus's folder, for messages.
        partial: folder of the unfinished store.
        rendered: result of the first pass.
        recipe: recipe of the store.
        scale: mean and standard deviation of the training split.
        on_progress: called with a stage, the chunks done and the chunks in total.

    Returns:
        The checksums of each chunk.

    Raises:
        InputError: a recording has changed since the first pass.
    """
    spec = features_spec(recipe, len(rendered.rows))
    # Chunks depend on more than the job, which this digest identifies: another version may choose
    # other chunks. The rejected rows do not change within a job.
    identity = digest([list(spec.shape), spec.rows, spec.dtype, *scale])
    with Journal(partial / CHUNKS, flush_s=FLUSH_S) as journal:
        notes = intact_chunks(partial, recipe, journal)
        done = {
            index: note.written
            for index, note in notes.items()
            if note.identity == identity and index < spec.chunks
        }
        on_progress("normalise", len(done), spec.chunks)
        tasks = (
            (partial / "store", spec, index, _pieces(rendered, spec.span(index)), *scale)
            for index in range(spec.chunks)
            if index not in done
        )
        for task, result in pool.run(write_features, tasks):
            if not isinstance(result, Written):
                raise _changed(pool, home, partial, rendered, result)
            index = task[2]
            done[index] = result
            journal.append(ChunkNote(index, spec.rows, identity, result).to_json())
            on_progress("normalise", len(done), spec.chunks)
    return [done[index] for index in range(spec.chunks)]


def _pieces(rendered: Rendered, rows: slice) -> list[Piece]:
    """Return the rows of a chunk, and where their magnitudes are."""
    taken: dict[int, list[int]] = {}
    blocks, positions = rendered.of_block[rows].tolist(), rendered.positions[rows].tolist()
    for block, position in zip(blocks, positions, strict=True):
        taken.setdefault(block, []).append(position)
    return [
        Piece(block, own, rendered.kept[block])
        if block in rendered.kept
        else Piece(block, own, Again(rendered.blocks[block][0], rendered.blocks[block][1].results))
        for block, own in taken.items()
    ]


def _changed(
    pool: Executor, home: Path, partial: Path, rendered: Rendered, block: int
) -> InputError:
    """Note a block as it is now, for the next run, and return the error that ends this one."""
    rows, note = rendered.blocks[block]
    crashing = [i for i, result in enumerate(note.results) if result.reason == CRASHES]
    now = pool.alone(render_block, block, rows, (), None, crashing)
    with Journal(partial / SUMS) as journal:
        journal.append(BlockNote(block, now.results, now.sources).to_json())
    remove(partial / CHUNKS)  # they were made from the old recordings
    return InputError(
        f"{home}: recordings changed while they were read ({rows[0].path} to {rows[-1].path}). "
        "Let nothing write there, and run the same command again."
    )
