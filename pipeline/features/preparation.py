"""Prepare a feature store from a corpus: list, render, normalise, publish. Resumable at any point.

The store is built in ``.NAME.partial`` beside its final path. The first pass renders all rows, for
their sums, as mean and deviation are known only when all training segments are rendered. The second
pass writes normalised chunks: of magnitudes that were kept in memory, and of rows that are rendered
again where there was no room. Journals list the sums and chunks that are done. The
finished group is renamed into place in one step.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.corpus import Corpus
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.execution.executor import Executor
from antigram.pipeline.execution.memory import available_memory, shared_memory
from antigram.pipeline.execution.workers import Workers
from antigram.pipeline.features.assembly import finish_store, small_arrays
from antigram.pipeline.features.designs import is_design
from antigram.pipeline.features.first_pass import render_all
from antigram.pipeline.features.folds import make_folds
from antigram.pipeline.features.listing import Listing, Reject, list_rows, split_rows
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rejected import check_rejected, list_rejected
from antigram.pipeline.features.rendering import set_up
from antigram.pipeline.features.row_audio import Context, noise_bank
from antigram.pipeline.features.scale import check_range, mean_std
from antigram.pipeline.features.second_pass import normalise_all
from antigram.pipeline.features.source_record import (
    Checked,
    adopt_sources,
    check_sources,
    write_sources,
)
from antigram.pipeline.features.sources import Source, joined, name_some, paths_of
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.within import Training
from antigram.pipeline.storage.durable import flush_filesystem, write_text
from antigram.pipeline.storage.files import size_of, size_text
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.publish import discard, publish, recover, work_folder
from antigram.pipeline.storage.verification import is_unchanged
from antigram.pipeline.workspace import locked

__all__ = ["OnProgress", "prepare"]

_TASKS = "antigram.pipeline.features.rendering"
_FILES = 2  # number of the layout of unfinished work
_SHARE = 4  # of the available memory, one part holds magnitudes and noise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Arguments of `prepare`."""

    corpus: Corpus
    home: Path
    recipe: Recipe
    target: Path
    noise: Mapping[str, list[Path]]
    workers: int
    cluster: DaskCluster | None
    memory: int
    max_rejected: int
    check_all: bool
    on_progress: OnProgress
    on_message: Callable[[str], None]

    @property
    def partial(self) -> Path:
        """Folder in which the store is built."""
        return work_folder(self.target)


def prepare(
    corpus: Corpus,
    home: Path,
    recipe: Recipe,
    target: Path,
    *,
    noise: Mapping[str, list[Path]] | None = None,
    only: Training | None = None,
    workers: int = 1,
    cluster: DaskCluster | None = None,
    memory: int | None = None,
    max_rejected: int = 0,
    check_all: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare the feature store ``target``; leave it alone if it exists with the same recipe.

    An existing store is rebuilt if a recording has been edited since. A recording whose size or
    time differs from the record beside the store (`pipeline.features.source_record`) is read and
    compared with its checksum. The lock of ``target`` is held throughout.

    If the recipe's ``split`` is a design of folds, such as ``kfold:speaker:5``, the store has the
    split of the first fold, and a view ``NAME@K`` is made for each fold.

    Args:
        corpus: the adapter.
        home: the corpus's own folder.
        recipe: everything that the store's contents depend on.
        target: path of the store, ``NAME.zarr``.
        noise: class -> recordings, if the recipe has noise.
        only: the recordings to take, if the recipe has ``within``.
        workers: number of processes.
        cluster: Dask cluster that renders and writes in place of processes of this machine; all its
            workers need the file system of this one. Its segments are rendered twice.
        memory: bytes of memory for magnitudes and noise, of all processes together; default: a
            quarter of what is available. Segments without room are rendered twice. What the
            processes take besides does not grow with the corpus, but for lists of its segments.
        max_rejected: largest number of unusable recordings and segments; with more of them, no
            store is published.
        check_all: compare all recordings with their checksums, even if size and time are unchanged,
            and read every chunk of an existing store, even if it is larger than 8 GB.
        on_progress: called with a stage, the units done and the units in total.
        on_message: called with lines for the user: choices of the adapter, and edited recordings.

    Returns:
        The opened store, and what this call did.

    Raises:
        InputError: the corpus has no usable recording or too many unusable ones, recordings change
            while they are read, or another process is preparing ``target``.
    """
    begun = time.perf_counter()
    if cluster is not None:
        home, target = home.absolute(), target.absolute()  # workers have another current folder
        memory = 0  # other machines do not share it
    job = _Job(
        corpus=corpus,
        home=home,
        recipe=recipe,
        target=target,
        noise=noise or {},
        workers=workers,
        cluster=cluster,
        memory=available_memory() // _SHARE if memory is None else memory,
        max_rejected=max_rejected,
        check_all=check_all,
        on_progress=on_progress or (lambda *_: None),
        on_message=on_message or (lambda _: None),
    )
    with locked(target, "preparing"):
        recover(target)
        if cluster is None:
            Workers.warm_up(_TASKS)  # the fork server imports while the corpus is listed
        listing = list_rows(
            corpus,
            home,
            recipe,
            noise,
            only=only,
            workers=workers,
            on_progress=lambda done, all_: job.on_progress("headers", done, all_),
        )
        for note in listing.notes:
            job.on_message(note)
        if (existing := _up_to_date(job, listing)) is not None:
            checked = _check_sources(job, listing, existing)
            if not checked.changed:
                seconds = time.perf_counter() - begun
                folds = _folds_of(existing)
                return Prepared(existing, seconds, 0, checked, left_alone=True, folds=folds)
        checked, computed = _make(job, listing)
        store = FeatureStore(target)
        folds, seconds = _folds_of(store), time.perf_counter() - begun
        return Prepared(store, seconds, computed, checked, folds=folds)


def _folds_of(store: FeatureStore) -> list[Path]:
    """Make the folds of a store that was prepared with a design."""
    recipe = store.recipe
    return make_folds(store, recipe.split, seed=recipe.seed) if is_design(recipe.split) else []


def _check_sources(job: _Job, listing: Listing, existing: FeatureStore) -> Checked:
    """Compare the recordings of the corpus with their record beside an existing store.

    Raises:
        InputError: the recordings are unchanged, but more are unusable than are allowed now.
    """
    target, partial = job.target, job.partial
    adopt_sources(partial / "sources", target, existing.fingerprint)
    checked = check_sources(
        target,
        existing.fingerprint,
        job.home,
        paths_of(listing.rows),
        read_all=job.check_all,
        on_progress=lambda done, all_: job.on_progress("recordings compared", done, all_),
        on_message=job.on_message,
    )
    if checked.changed:
        job.on_message(
            f"{existing.name}: {len(checked.changed)} recordings were edited since it was prepared "
            f"({name_some(checked.changed)}): it is rebuilt"
        )
        return checked
    rejected = [Reject(**reject) for reject in existing.root["rejected"]]
    check_rejected(job.corpus.name, rejected, job.max_rejected)
    os.utime(target / "zarr.json")  # makes it the store that was prepared last
    if _is_noted(job, listing):  # left by a run that was killed right after publishing
        discard(partial)
    return checked


def _make(job: _Job, listing: Listing) -> tuple[Checked, int]:
    """Build the store and publish it, or resume an interrupted run that builds it.

    Returns:
        The state of the recordings, and the number of segments whose sums were computed.
    """
    partial = job.partial
    _begin(job, listing)
    bank_of = noise_bank(job.noise, job.recipe.sample_rate, partial / "noise.f32", job.memory)
    with bank_of as (bank, left), shared_memory(left) as memory:
        _check_free(job, listing)
        flush = job.cluster is not None
        context = Context(job.recipe, job.home, bank, memory=memory, flush=flush)
        with _executor(job, context) as pool:
            fingerprint, sources, computed = _fill(job, listing, context, pool)
    write_sources(partial / "sources", fingerprint, job.home, sources)
    flush_filesystem(partial)
    publish(partial / "store", job.target)
    adopt_sources(partial / "sources", job.target, fingerprint)
    discard(partial)
    return Checked(known=True, files=len(sources), read=len(sources)), computed


def _executor(job: _Job, context: Context) -> Executor:
    """Start processes of this machine, or use the cluster; all its workers see the same files."""
    if job.cluster is None:
        return Workers(job.workers, set_up, context, _TASKS)
    token = job.partial / "cluster"
    token.touch()
    job.cluster.check_files([token, job.home])
    return job.cluster.workers(set_up, context, token)


def _fill(
    job: _Job, listing: Listing, context: Context, pool: Executor
) -> tuple[str, list[Source], int]:
    """Write the group of the store.

    Returns:
        The store's fingerprint, the state of the recordings, and the number of segments whose sums
        were computed.
    """
    corpus, home, recipe, partial = job.corpus, job.home, job.recipe, job.partial
    with ThreadPoolExecutor(1) as background:
        # This process assigns splits while the workers render.
        future_split = background.submit(split_rows, corpus, listing.rows, recipe, listing.main)
        rendered, computed = render_all(
            pool, context, listing, partial, job.on_progress, check_all=job.check_all
        )
        sources = joined((note.sources for _, note in rendered.blocks), home)
        _report_changes(sources, listing, job.on_message)
        list_rejected(job.target, partial / "rejected.csv", rendered.rejected)
        check_rejected(corpus.name, rendered.rejected, job.max_rejected)
        if not rendered.rows:
            raise InputError(f"{corpus.name}: no usable recording in {home}; see `max_rejected`")
        if len(rendered.rows) == len(listing.rows):
            split = future_split.result()
        else:
            split = split_rows(corpus, rendered.rows, recipe, listing.main)
        scale = mean_std(rendered.results, split, recipe, home)
        check_range(rendered.rows, rendered.results, recipe, scale, home)
        future_arrays = background.submit(
            small_arrays, corpus, listing, rendered, recipe, split, context.bank
        )
        chunks = normalise_all(pool, home, partial, rendered, recipe, scale, job.on_progress)
        if context.memory is not None:
            background.submit(context.memory.clear)
        fingerprint = finish_store(
            pool,
            partial / "store",
            corpus,
            recipe,
            listing,
            rendered,
            scale,
            chunks,
            future_arrays.result(),
        )
    return fingerprint, sources, computed


def _up_to_date(job: _Job, listing: Listing) -> FeatureStore | None:
    """Return the existing store if its recipe and its corpus are the same, else None."""
    target = job.target
    if not target.exists():
        return None
    try:
        store = FeatureStore(target)
    except (InputError, StoredDataError):
        return None  # damaged or foreign: it is replaced when the new store is complete
    same = store.recipe == job.recipe and store.root.get("listing") == listing.identity
    same = same and store.main_label == listing.main  # columns may have been reordered
    # The metadata is checked, as it decides that the store is up to date.
    return store if same and is_unchanged(Folder(target), check_all=job.check_all) else None


def _report_changes(
    sources: Sequence[Source], listing: Listing, inform: Callable[[str], None]
) -> None:
    """Report recordings that changed between listing and reading."""
    sizes = listing.sizes
    changed = [s.path for s in sources if s.size >= 0 and s.size != sizes.get(s.path, s.size)]
    if changed:
        inform(
            f"{len(changed)} recordings changed after they were listed ({name_some(changed)}): "
            "run the same command again to have them as they are now"
        )


def _begin(job: _Job, listing: Listing) -> None:
    """Keep the unfinished work of the same job; delete the unfinished work of another job."""
    partial = job.partial
    if not _is_noted(job, listing):
        discard(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_text(partial / "job.json", _note(job, listing))


def _note(job: _Job, listing: Listing) -> str:
    # The work of an earlier version cannot be resumed, and lay in other files.
    parts = {"recipe": job.recipe.fingerprint, "listing": listing.identity, "files": _FILES}
    return canonical_json(parts)


def _is_noted(job: _Job, listing: Listing) -> bool:
    """Whether the folder beside the store is an interrupted run of the same job."""
    note = job.partial / "job.json"
    return note.is_file() and note.read_bytes() == _note(job, listing).encode()


def _check_free(job: _Job, listing: Listing) -> None:
    """Raise if there is too little free disk space for the store."""
    partial, rows = job.partial, len(listing.rows)
    row = np.dtype(job.recipe.dtype).itemsize * math.prod(job.recipe.shape)
    wanted = row * rows - size_of(partial / "store")
    free = shutil.disk_usage(partial).free
    if wanted > free:
        raise InputError(
            f"{partial.parent}: {size_text(free)} free, {size_text(wanted)} wanted while "
            "preparing. Make room, use a `workspace` on another disk, or `limit_per_class`."
        )
