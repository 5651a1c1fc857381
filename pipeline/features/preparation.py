"""Make a feature store from a corpus: list, render, normalise, publish. Resumable at any moment.

Work goes on in ``.NAME.partial`` beside the goal: raw blocks of magnitudes first (the mean and
deviation are known only when all training clips were seen), then normalised chunks. Journals say
what is done; the finished group is renamed into place in one step.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from antigram.pipeline.audio.noise import NoiseBank
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.corpus import Corpus
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.workers import Workers
from antigram.pipeline.features.assembly import finish_store, small_arrays
from antigram.pipeline.features.listing import Listing, Reject, list_rows, split_rows
from antigram.pipeline.features.normalisation import normalise_all
from antigram.pipeline.features.raw_blocks import render_all
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import Context, set_up
from antigram.pipeline.features.scale import check_range, mean_std
from antigram.pipeline.features.source_record import (
    Checked,
    adopt_sources,
    check_sources,
    write_sources,
)
from antigram.pipeline.features.sources import Source, joined, name_some, paths_of
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.summary import Summary, summarise
from antigram.pipeline.features.within import Training
from antigram.pipeline.storage.chunks import rows_per_chunk
from antigram.pipeline.storage.durable import flush_filesystem, write_text
from antigram.pipeline.storage.files import size_of, size_text
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.manifest import verify_group
from antigram.pipeline.storage.publish import discard, publish, recover, work_folder
from antigram.pipeline.table import csv_table
from antigram.pipeline.workspace import locked

__all__ = ["OnProgress", "Prepared", "prepare"]

_TASKS = "antigram.pipeline.features.rendering"


@dataclass(frozen=True)
class Prepared:
    """A finished store, and what making it took."""

    store: FeatureStore
    seconds: float
    computed: int  # segments decoded in this run
    sources: Checked
    left_alone: bool = False  # it was there already

    @cached_property
    def summary(self) -> Summary:
        """What the store holds."""
        return summarise(self.store)

    def to_json(self) -> dict[str, Any]:
        """Fields of ``prepare --json``."""
        store, counts = self.store, np.bincount(self.store.split, minlength=len(SPLITS))
        names = np.array(store.recordings)
        return {
            "store": str(store.path),
            "name": store.name,
            "fingerprint": store.fingerprint,
            "clips": {split: int(n) for split, n in zip(SPLITS, counts, strict=True)},
            "recordings": {split: len(set(names[store.rows(split)].tolist())) for split in SPLITS},
            "shape": list(store.shape),
            "classes": store.classes,
            "mean": store.mean,
            "std": store.std,
            "rejected": store.root["rejected"],
            "skipped": store.root["skipped"],
            "silent": store.root["silent"],
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(self.computed / self.seconds, 1),
            "computed": self.computed,
            "sources": asdict(self.sources),
            "summary": self.summary.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What `prepare` was asked for."""

    corpus: Corpus
    home: Path
    recipe: Recipe
    target: Path
    noise: Mapping[str, list[Path]]
    workers: int
    max_rejected: int
    check_all: bool
    on_progress: OnProgress
    on_message: Callable[[str], None]

    @property
    def partial(self) -> Path:
        """Where the store is made."""
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
    max_rejected: int = 0,
    check_all: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Prepared:
    """Make the feature store ``target``, or leave it alone if it is there with the same recipe.

    It is made again if a recording has been edited since: one whose size or time differs from what
    is recorded beside the store (`pipeline.features.source_record`) is read and held against its
    checksum. The lock of ``target`` is held throughout.

    Args:
        corpus: the adapter.
        home: the corpus's own folder.
        recipe: decides the numbers.
        target: ``NAME.zarr``.
        noise: class -> recordings, if the recipe has noise.
        only: the recordings to take, if the recipe has ``within``.
        workers: processes.
        max_rejected: recordings and segments that may be unusable; with more of them nothing is
            published.
        check_all: hold all recordings against their checksums.
        on_progress: told of progress.
        on_message: told what the adapter chose and what has changed, in lines for the user.

    Returns:
        The opened store.

    Raises:
        InputError: the corpus gives nothing usable, too much of it is unusable, or it changes; or
            another process is preparing ``target``.
    """
    begun = time.perf_counter()
    job = _Job(
        corpus=corpus,
        home=home,
        recipe=recipe,
        target=target,
        noise=noise or {},
        workers=workers,
        max_rejected=max_rejected,
        check_all=check_all,
        on_progress=on_progress or (lambda *_: None),
        on_message=on_message or (lambda _: None),
    )
    with locked(target, "preparing"):
        recover(target)
        Workers.warm_up(_TASKS)  # imports while the corpus is listed
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
        if (there := _up_to_date(target, recipe, listing)) is not None:
            checked = _check_sources(job, listing, there)
            if not checked.changed:
                seconds = time.perf_counter() - begun
                return Prepared(there, seconds, 0, checked, left_alone=True)
        checked, computed = _make(job, listing)
        return Prepared(FeatureStore(target), time.perf_counter() - begun, computed, checked)


def _check_sources(job: _Job, listing: Listing, there: FeatureStore) -> Checked:
    """Compare the recordings with those that the store was made of; it stays if they are the same.

    Raises:
        InputError: they are, and more of them are unusable than are allowed now.
    """
    target, partial = job.target, job.partial
    adopt_sources(partial / "sources", target, there.fingerprint)
    checked = check_sources(
        target,
        there.fingerprint,
        job.home,
        paths_of(listing.rows),
        read_all=job.check_all,
        on_progress=lambda done, all_: job.on_progress("recordings compared", done, all_),
        on_message=job.on_message,
    )
    if checked.changed:
        job.on_message(
            f"{there.name}: {len(checked.changed)} recordings were edited since it was prepared "
            f"({name_some(checked.changed)}): it is made again"
        )
        return checked
    _check_rejected(job, [Reject(**r) for r in there.root["rejected"]])
    os.utime(target / "zarr.json")  # it is now the one prepared last
    if _is_noted(job, listing):  # killed right after it had published
        discard(partial)
    return checked


def _make(job: _Job, listing: Listing) -> tuple[Checked, int]:
    """Make the store and put it in place; an interrupted run of the same job is gone on with.

    Returns:
        Its recordings, and how many segments were decoded.
    """
    corpus, home, recipe, partial = job.corpus, job.home, job.recipe, job.partial
    _begin(job, listing)
    bank = None
    if job.noise:
        bank = NoiseBank.build(dict(job.noise), recipe.sample_rate, partial / "noise.f32")
    _check_free(job, listing)
    context = Context(recipe, home, partial / "raw", bank)
    with Workers(job.workers, set_up, context, _TASKS) as pool, ThreadPoolExecutor(1) as aside:
        # What this process has to do is done while the others work.
        early = aside.submit(split_rows, corpus, listing.rows, recipe, listing.main)
        rendered, computed = render_all(
            pool, context, listing, partial, job.on_progress, check_all=job.check_all
        )
        sources = joined((note.sources for _, note in rendered.blocks.values()), home)
        _tell_of_changes(sources, listing, job.on_message)
        _list_rejected(job, rendered.rejected)
        _check_rejected(job, rendered.rejected)
        if not rendered.rows:
            raise InputError(f"{corpus.name}: no usable recording in {home}; see `max_rejected`")
        if len(rendered.rows) == len(listing.rows):
            split = early.result()
        else:
            split = split_rows(corpus, rendered.rows, recipe, listing.main)
        scale = mean_std(rendered.results, split, recipe, home)
        check_range(rendered.rows, rendered.results, recipe, scale, home)
        small = aside.submit(small_arrays, corpus, listing, rendered, recipe, split, bank)
        chunks = normalise_all(pool, home, partial, rendered, recipe, scale, job.on_progress)
        fingerprint = finish_store(
            pool,
            partial / "store",
            corpus,
            recipe,
            listing,
            rendered,
            scale,
            chunks,
            small.result(),
        )
    write_sources(partial / "sources", fingerprint, sources)
    flush_filesystem(partial)
    publish(partial / "store", job.target)
    adopt_sources(partial / "sources", job.target, fingerprint)
    discard(partial)
    return Checked(known=True, files=len(sources), read=len(sources)), computed


def _up_to_date(target: Path, recipe: Recipe, listing: Listing) -> FeatureStore | None:
    """Return the store that is there if it has this recipe, and the corpus has not changed."""
    if not target.exists():
        return None
    try:
        store = FeatureStore(target)
    except (InputError, StoredDataError):
        return None  # damaged or foreign: replaced once the new one is whole
    same = store.recipe == recipe and store.root.get("listing") == listing.identity
    same = same and store.main_label == listing.main  # the table's columns may have been moved
    # Not only when asked to verify: what says that it is up to date must be whole.
    return store if same and not any(verify_group(Folder(target), content=False)) else None


def _tell_of_changes(
    sources: Sequence[Source], listing: Listing, inform: Callable[[str], None]
) -> None:
    """Warn of recordings that were read as something else than was listed."""
    sizes = listing.sizes
    changed = [s.path for s in sources if s.size >= 0 and s.size != sizes.get(s.path, s.size)]
    if changed:
        inform(
            f"{len(changed)} recordings changed after they were listed ({name_some(changed)}): "
            "run the same command again to have them as they are now"
        )


def _begin(job: _Job, listing: Listing) -> None:
    """Keep what an interrupted run of the same job has done; clear away what another one has."""
    partial = job.partial
    if not _is_noted(job, listing):
        discard(partial)
    (partial / "raw").mkdir(parents=True, exist_ok=True)
    write_text(partial / "job.json", _note(job, listing))


def _note(job: _Job, listing: Listing) -> str:
    return canonical_json({"recipe": job.recipe.fingerprint, "listing": listing.identity})


def _is_noted(job: _Job, listing: Listing) -> bool:
    """Whether what lies beside the store is an interrupted run of the same job."""
    note = job.partial / "job.json"
    return note.is_file() and note.read_bytes() == _note(job, listing).encode()


def _check_free(job: _Job, listing: Listing) -> None:
    """Refuse a run that the disk cannot hold, before it begins.

    A chunk takes the room of its raw block, which goes when the chunk is there: beside all raw
    blocks there are at most those chunks that are in the making.
    """
    partial = job.partial
    row, rows = 4 * math.prod(job.recipe.shape), len(listing.rows)
    making = (2 * job.workers + 1) * rows_per_chunk(row, rows)
    used = sum(size_of(path) for path in (partial / "raw", partial / "store"))
    wanted, free = row * (rows + min(rows, making)) - used, shutil.disk_usage(partial).free
    if wanted > free:
        raise InputError(
            f"{partial.parent}: {size_text(free)} free, {size_text(wanted)} wanted while "
            "preparing. Make room, use a `workspace` on another disk, or `limit_per_class`."
        )


def _list_rejected(job: _Job, rejected: Sequence[Reject]) -> None:
    """Write ``NAME.rejected.csv`` beside the store, or remove that of an earlier run."""
    listed = job.target.with_name(job.target.name.removesuffix(".zarr") + ".rejected.csv")
    if not rejected:
        listed.unlink(missing_ok=True)
        return
    beside = job.partial / "rejected.csv"
    with csv_table(beside, ("source", "reason")) as add:
        for reject in rejected:
            add((reject.source, reject.reason))
    beside.replace(listed)


def _check_rejected(job: _Job, rejected: Sequence[Reject]) -> None:
    """Refuse more unusable recordings and segments than are allowed."""
    if len(rejected) > job.max_rejected:
        first = "; ".join(f"{r.source}: {r.reason}" for r in rejected[:3])
        more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
        raise InputError(
            f"{job.corpus.name}: {len(rejected)} unusable recordings or segments, "
            f"{job.max_rejected} allowed: {first}{more}. Repair or remove them, or leave them out "
            f"with `max_rejected={len(rejected)}`."
        )
