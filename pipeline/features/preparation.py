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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.noise import NoiseBank
from antigram.pipeline.corpus import Corpus
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.execution.workers import WorkerDiedError, Workers
from antigram.pipeline.features.journal import BlockNote, ChunkNote, still_true, understood
from antigram.pipeline.features.listing import Listing, Reject, Row, list_rows, split_rows
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rendering import (
    CRASHES,
    Context,
    RawBlock,
    Rendering,
    RowResult,
    block_is_whole,
    normalise_chunk,
    render_block,
    render_row,
    set_up,
    write_chunks,
)
from antigram.pipeline.features.scale import check_range, mean_std
from antigram.pipeline.features.source_record import (
    Checked,
    adopt_sources,
    check_sources,
    write_sources,
)
from antigram.pipeline.features.sources import Source, joined, name_some, paths_of, shared_paths
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FORMAT, VERSION, FeatureStore, store_fingerprint
from antigram.pipeline.features.summary import Summary, lengths_of, summarise
from antigram.pipeline.features.within import Training
from antigram.pipeline.storage.chunks import STRING, ArraySpec, Written, encode, rows_per_chunk
from antigram.pipeline.storage.durable import flush_filesystem, write_text
from antigram.pipeline.storage.files import remove, size_of, size_text
from antigram.pipeline.storage.hashing import canonical_json, digest
from antigram.pipeline.storage.journal import Journal
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    verify_group,
    write_manifest,
)
from antigram.pipeline.storage.mapped import is_whole
from antigram.pipeline.storage.publish import discard, publish, recover, work_folder
from antigram.pipeline.table import csv_table

__all__ = ["OnProgress", "Prepared", "prepare"]

_FILES_A_TASK = 64
# Called with a stage's name, how much of it is done, and how much there is.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A finished store, and what making it took."""

    store: FeatureStore
    seconds: float
    computed: int  # segments decoded in this run
    left_alone: bool = False  # it was there already
    sources: Checked = field(default_factory=lambda: Checked(known=False))

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


@dataclass(frozen=True, slots=True)
class _Rendered:
    """All rows that can be stored, with what rendering found, in order of clip_id."""

    rows: list[Row]
    results: list[RowResult]
    places: list[tuple[RawBlock, int]]  # raw block and row in it
    rejected: list[Reject]
    blocks: Mapping[int, tuple[Sequence[Row], BlockNote]]  # by index: all rows, and what was noted


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
    checksum.

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
        InputError: the corpus gives nothing usable, too much of it is unusable, or it changes.
    """
    begun = time.perf_counter()
    recover(target)
    Workers.warm_up("antigram.pipeline.features.rendering")  # imports while the corpus is listed
    on_progress, inform = on_progress or (lambda *_: None), on_message or (lambda _: None)
    listing = list_rows(
        corpus,
        home,
        recipe,
        noise,
        only=only,
        workers=workers,
        on_progress=lambda done, all_: on_progress("headers", done, all_),
    )
    for note in listing.notes:
        inform(note)
    partial = work_folder(target)
    job = {"recipe": recipe.fingerprint, "listing": listing.identity}
    if (there := _up_to_date(target, recipe, listing)) is not None:
        adopt_sources(partial / "sources", target, there.fingerprint)
        checked = check_sources(
            target,
            there.fingerprint,
            home,
            paths_of(listing.rows),
            read_all=check_all,
            on_progress=lambda done, all_: on_progress("recordings compared", done, all_),
            on_message=inform,
        )
        if not checked.changed:
            rejected = [Reject(**r) for r in there.root["rejected"]]
            _check_rejected(corpus, rejected, max_rejected, None)
            os.utime(target / "zarr.json")  # it is now the one prepared last
            if _is_job(partial, job):  # killed right after it had published
                discard(partial)
            return Prepared(there, time.perf_counter() - begun, 0, left_alone=True, sources=checked)
        inform(
            f"{there.name}: {len(checked.changed)} recordings were edited since it was prepared "
            f"({name_some(checked.changed)}): it is made again"
        )
    _begin(partial, job)
    bank = (
        NoiseBank.build(dict(noise), recipe.sample_rate, partial / "noise.f32") if noise else None
    )
    _check_free(partial, listing, recipe, workers)
    context = Context(recipe, home, partial / "raw", bank)
    with (
        Workers(workers, set_up, context, "antigram.pipeline.features.rendering") as pool,
        ThreadPoolExecutor(1) as aside,
    ):
        # What this process has to do is done while the others work.
        early = aside.submit(split_rows, corpus, listing.rows, recipe, listing.main)
        rendered, computed = _render_all(
            pool, context, listing, partial, on_progress, check_all=check_all
        )
        sources = joined((note.sources for _, note in rendered.blocks.values()), home)
        _tell_of_changes(sources, listing, inform)
        _check_rejected(corpus, rendered.rejected, max_rejected, partial)
        if not rendered.rows:
            raise InputError(f"{corpus.name}: no usable recording in {home}; see --max-rejected")
        if len(rendered.rows) == len(listing.rows):
            split = early.result()
        else:
            split = split_rows(corpus, rendered.rows, recipe, listing.main)
        scale = mean_std(rendered.results, split, recipe, home)
        check_range(rendered.rows, rendered.results, recipe, scale, home)
        small = aside.submit(_small_arrays, corpus, listing, rendered, recipe, split, bank)
        chunks = _normalise_all(pool, home, partial, rendered, recipe, scale, on_progress)
        store = partial / "store"
        fingerprint = _finish(
            pool, store, corpus, recipe, listing, rendered, scale, chunks, small.result()
        )
    write_sources(partial / "sources", fingerprint, sources)
    flush_filesystem(partial)
    publish(partial / "store", target)
    adopt_sources(partial / "sources", target, fingerprint)
    discard(partial)
    checked = Checked(known=True, files=len(sources), read=len(sources))
    return Prepared(FeatureStore(target), time.perf_counter() - begun, computed, sources=checked)


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
    return store if same and not any(verify_group(target, content=False)) else None


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


def _begin(partial: Path, job: Mapping[str, str]) -> None:
    """Keep what an interrupted run of the same job has done; clear away what another one has."""
    if not _is_job(partial, job):
        discard(partial)
    (partial / "raw").mkdir(parents=True, exist_ok=True)
    write_text(partial / "job.json", canonical_json(job))


def _is_job(partial: Path, job: Mapping[str, str]) -> bool:
    note = partial / "job.json"
    return note.is_file() and note.read_bytes() == canonical_json(job).encode()


def _check_free(partial: Path, listing: Listing, recipe: Recipe, workers: int) -> None:
    """Refuse a run that the disk cannot hold, before it begins.

    A chunk takes the room of its raw block, which goes when the chunk is there: beside all raw
    blocks there are at most those chunks that are in the making.
    """
    row, rows = 4 * math.prod(recipe.shape), len(listing.rows)
    making = (2 * workers + 1) * rows_per_chunk(row, rows)
    used = sum(size_of(path) for path in (partial / "raw", partial / "store"))
    wanted, free = row * (rows + min(rows, making)) - used, shutil.disk_usage(partial).free
    if wanted > free:
        raise InputError(
            f"{partial.parent}: {size_text(free)} free, {size_text(wanted)} wanted while "
            "preparing. Make room, use --workspace on another disk, or --limit-per-class."
        )


def _check_rejected(
    corpus: Corpus, rejected: Sequence[Reject], limit: int, partial: Path | None
) -> None:
    if partial is not None:
        listed = partial.with_name(partial.name[1:].removesuffix(".zarr.partial") + ".rejected.csv")
        beside = partial / "rejected.csv"
        if rejected:
            with csv_table(beside, ("source", "reason")) as add:
                for reject in rejected:
                    add((reject.source, reject.reason))
            beside.replace(listed)
        else:
            listed.unlink(missing_ok=True)  # of an earlier run
    if len(rejected) > limit:
        first = "; ".join(f"{r.source}: {r.reason}" for r in rejected[:3])
        more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
        raise InputError(
            f"{corpus.name}: {len(rejected)} unusable recordings or segments, {limit} allowed: "
            f"{first}{more}. Repair or remove them, or leave them out with "
            f"--max-rejected {len(rejected)}."
        )


def _render_all(
    pool: Workers,
    context: Context,
    listing: Listing,
    partial: Path,
    on_progress: OnProgress,
    *,
    check_all: bool,
) -> tuple[_Rendered, int]:
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
        kept = _whole_chunks(partial, context.recipe, Journal.read(partial / "chunks.jsonl"))
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
    rendered = _Rendered([], [], [], list(listing.rejected), all_rows)
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


def _normalise_all(
    pool: Workers,
    home: Path,
    partial: Path,
    rendered: _Rendered,
    recipe: Recipe,
    scale: tuple[float, float],
    on_progress: OnProgress,
) -> list[Written]:
    """Second pass: chunks of the store; raw blocks are deleted once no chunk needs them."""
    spec = _features_spec(recipe, len(rendered.rows))
    # What the chunks depend on beyond the job: which rows were rejected does not change while a
    # job lasts, but a version of this code that cuts chunks otherwise would.
    identity = digest([list(spec.shape), spec.rows, spec.dtype, *scale])
    last_use: dict[int, int] = {}
    pieces: list[list[tuple[RawBlock, list[int]]]] = []
    for index in range(spec.chunks):
        taken: list[tuple[RawBlock, list[int]]] = []
        for block, row in rendered.places[spec.span(index)]:
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
        kept = _whole_chunks(partial, recipe, journal)
        done = {
            index: note.written
            for index, note in kept.items()
            if note.identity == identity and index < spec.chunks
        }
        on_progress("normalise", len(done), spec.chunks)
        tasks = (
            (partial / "store", spec, index, taken, *scale)
            for index, taken in enumerate(pieces)
            if index not in done
        )
        for task, outcome in pool.run(normalise_chunk, tasks):
            index = task[2]
            done[index] = written = _with_whole_blocks(pool, home, rendered, task, outcome)
            spent = [block for block, _ in task[3] if users[block.index] <= done.keys()]
            indices = [block.index for block in spent]
            journal.append(ChunkNote(index, spec.rows, identity, written, indices).to_json())
            for block in spent:
                block.path(partial / "raw").unlink(missing_ok=True)
            on_progress("normalise", len(done), spec.chunks)
    return [done[index] for index in range(spec.chunks)]


def _with_whole_blocks(
    pool: Workers, home: Path, rendered: _Rendered, task: tuple[Any, ...], outcome: object
) -> Written:
    """Outcome of a task of `normalise_chunk`; its raw blocks that are damaged are rendered again.

    Raises:
        InputError: the recordings have changed meanwhile.
        StoredDataError: a block is damaged again, just after it was written.
    """
    for _ in range(1 + len(task[3])):
        if isinstance(outcome, Written):
            return outcome
        if isinstance(outcome, RawBlock):
            _render_again(pool, home, task[0].parent, rendered, outcome.index)
            outcome = pool.alone(normalise_chunk, *task)
    raise StoredDataError(
        f"{task[0]}: what was written beside it is not what is read from there. "
        "Check the disk and the memory of this machine, then run again."
    )


def _render_again(
    pool: Workers, home: Path, partial: Path, rendered: _Rendered, index: int
) -> None:
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


def _whole_chunks(
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


def sort_classes(names: Iterable[str]) -> list[str]:
    """Order of a label's classes: by number where all are numbers, else by name."""
    found = list(names)
    number = all(name.isdecimal() for name in found)
    return sorted(found, key=lambda name: (int(name), name) if number else (0, name))


def _features_spec(recipe: Recipe, rows: int) -> ArraySpec:
    # The rows of a chunk follow from float32, so that both dtypes are cut alike.
    per = rows_per_chunk(4 * math.prod(recipe.shape), rows)
    return ArraySpec("features", (rows, *recipe.shape), recipe.dtype, per)


@dataclass(slots=True)
class _Small:
    """The arrays of a store beside its features: their layout, their chunks, labels' classes."""

    rows: int  # in a chunk
    specs: list[ArraySpec] = field(default_factory=list)
    chunks: list[tuple[ArraySpec, int, bytes]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        dtype: str,
        values: NDArray[Any] | list[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """An array, or text."""
        spec = ArraySpec(name, (len(values),), dtype, self.rows, attributes or {})
        self.specs.append(spec)
        for index in range(spec.chunks):
            data = encode(spec, index, values[spec.span(index)]).tobytes()
            self.chunks.append((spec, index, data))

    def add_label(self, name: str, values: Sequence[str]) -> None:
        """A label: its classes as numbers, -1 for none."""
        self.classes[name] = found = sort_classes(set(values) - {""})
        index = {"": -1} | {value: i for i, value in enumerate(found)}
        coded = np.array([index[value] for value in values], np.int32)
        self.add(f"labels/{name}", "int32", coded, {"classes": found})


def _small_arrays(
    corpus: Corpus,
    listing: Listing,
    rendered: _Rendered,
    recipe: Recipe,
    split: Sequence[int],
    bank: NoiseBank | None,
) -> _Small:
    small = _Small(_features_spec(recipe, len(rendered.rows)).rows)
    labels = [dict(row.labels) for row in rendered.rows]
    for name in listing.label_names:
        small.add_label(name, [known.get(name, "") for known in labels])
    if bank is not None and corpus.list_mixtures is None:
        drawn = [bank.classes[r.noise] if r.noise >= 0 else "" for r in rendered.results]
        small.add_label("noise", drawn)
    if bank is not None:
        snr = [math.nan if r.snr_db is None else r.snr_db for r in rendered.results]
        small.add("snr_db", "float32", np.array(snr, np.float32))
    small.add("split", "int8", np.array(split, np.int8))
    small.add("clip_id", STRING, [row.clip_id for row in rendered.rows])
    small.add("source", STRING, [row.source(recipe.sample_rate) for row in rendered.rows])
    return small


def _finish(
    pool: Workers,
    store: Path,
    corpus: Corpus,
    recipe: Recipe,
    listing: Listing,
    rendered: _Rendered,
    scale: tuple[float, float],
    written_features: Sequence[Written],
    small: _Small,
) -> str:
    """Write the small arrays, the metadata and the manifest: only then is the group a store.

    Returns:
        Its fingerprint.
    """
    features = _features_spec(recipe, len(rendered.rows))
    arrays = {"features": list(written_features)}
    specs, chunks = [features, *small.specs], small.chunks
    tasks = [(store, chunks[i : i + _FILES_A_TASK]) for i in range(0, len(chunks), _FILES_A_TASK)]
    written = {
        (spec.name, index): one
        for (_, asked), group in pool.run(write_chunks, tasks)
        for (spec, index, _), one in zip(asked, group, strict=True)
    }
    for spec in specs[1:]:
        arrays[spec.name] = [written[spec.name, index] for index in range(spec.chunks)]

    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "complete": True,
        "recipe": recipe.to_json(),
        "mean": scale[0],
        "std": scale[1],
        "corpus": corpus.name,
        "main_label": listing.main,
        "classes": small.classes,
        "rejected": [asdict(reject) for reject in rendered.rejected],
        "skipped": listing.skipped,
        "silent": sum(result.silent for result in rendered.results),
        "lengths": lengths_of(rendered.rows, recipe),
        "listing": listing.identity,
        "versions": versions(("antigram", "numpy", "scipy", "soundfile", "soxr", "zarr")),
    }
    create_group(store, {})
    if any("/" in spec.name for spec in specs):
        create_group(store / "labels", {})
    create_arrays(store, specs)
    create_group(store, {"antigram": root})
    # The fingerprint needs the manifest's digests, and the manifest the root's checksum.
    fingerprint = store_fingerprint(root, write_manifest(store, arrays))
    root["fingerprint"] = fingerprint
    create_group(store, {"antigram": root})
    write_manifest(store, arrays)
    return fingerprint
