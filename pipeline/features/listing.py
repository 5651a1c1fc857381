"""List the rows of a store: check headers, cut or segment recordings, and assign splits.

Nothing is decoded here, so listing 100,000 files takes seconds and errors are reported early.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from antigram.pipeline.audio.decoding import AudioInfo
from antigram.pipeline.corpus import (
    Clip,
    Corpus,
    CorpusError,
    Entry,
    MixtureRequest,
    Note,
    Rejected,
    Skipped,
)
from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.designs import Design, Segments, is_design
from antigram.pipeline.features.headers import probe_all
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.row_table import RowColumns
from antigram.pipeline.features.rows import (
    Labels,
    Reject,
    Row,
    labels_of,
    rows_of,
    segments_of,
    values_of,
)
from antigram.pipeline.features.split import SPLITS, assign
from antigram.pipeline.features.within import Training
from antigram.pipeline.storage.hashing import digest_of_list

__all__ = ["Listing", "Reject", "Row", "list_rows", "segments_of", "split_rows"]

_MANY_ROWS = 1 << 20  # more are kept in columns
_UNSAFE = frozenset("/\\") | {chr(code) for code in range(32)}


@dataclass(frozen=True, slots=True)
class Listing:
    """All rows of a corpus, sorted by clip_id, and the files that give no row."""

    rows: Sequence[Row]
    rejected: tuple[Reject, ...]
    skipped: dict[str, int]
    label_names: tuple[str, ...]  # the main one first
    identity: str  # SHA-256 over the rows and the sizes of their files
    notes: tuple[str, ...] = ()  # lines for the user about choices of the adapter
    sizes: Mapping[str, int] = field(default_factory=dict)  # path -> size of the recording in bytes

    @property
    def main(self) -> str:
        """The main label."""
        return self.label_names[0]


def list_rows(
    corpus: Corpus,
    home: Path,
    recipe: Recipe,
    noise: Mapping[str, Sequence[Path]] | None = None,
    *,
    only: Training | None = None,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """List a corpus, check every header, cut or segment, and choose recordings if a limit is set.

    Args:
        corpus: the adapter.
        home: the corpus's own folder; for a corpus mixed by antigram, the folder of clean speech.
        recipe: recipe of the store.
        noise: class of noise -> recordings, for a corpus mixed by antigram.
        only: recordings to take; the others are skipped and counted.
        workers: number of processes that check headers.
        on_progress: called with the headers checked and the headers in total.

    Raises:
        CorpusError: the corpus has no usable recording, two clips with the same id, or a name that
            is not UTF-8.
    """
    skipped: Counter[str] = Counter()
    clips: list[Clip] = []
    rejected: list[Reject] = []
    notes: list[str] = []
    for entry in _entries(corpus, home, recipe, noise):
        if isinstance(entry, Skipped):
            skipped[entry.reason] += entry.count
        elif isinstance(entry, Rejected):
            rejected.append(Reject(entry.path, entry.reason))
        elif isinstance(entry, Note):
            notes.append(entry.text)
        else:
            clips.append(entry)
    if not clips:
        raise _no_recording(corpus, home, skipped)
    if only is not None:
        clips, excluded = only.select(corpus, home, clips)
        if excluded.count:
            skipped[excluded.reason] += excluded.count
    label_names = corpus.labels or tuple(dict.fromkeys(k for clip in clips for k in clip.labels))
    _check_label_names(corpus, home, label_names, recipe)
    labelled = [clip for clip in clips if clip.labels.get(label_names[0])]
    if len(labelled) < len(clips):
        skipped[f"no {label_names[0]} label"] += len(clips) - len(labelled)
    clips = sorted(labelled, key=lambda clip: clip.id)
    if not clips:
        raise _no_recording(corpus, home, skipped)
    _check_clips(corpus, home, clips)
    clips = _limit(clips, recipe, label_names[0])
    infos = probe_all(
        home, sorted({clip.path for clip in clips if clip.mixture is None}), workers, on_progress
    )
    rows: list[Row] = []
    columns: RowColumns | None = None  # once there are many rows
    shared: dict[Labels, Labels] = {}
    for clip in clips:
        info = None if clip.mixture is not None else infos[clip.path][0]
        for row in rows_of(clip, info, recipe, labels_of(clip, shared)):
            if isinstance(row, Skipped):
                skipped[row.reason] += row.count
            elif isinstance(row, Reject):
                rejected.append(row)
            elif columns is not None:
                columns.add(row)
            else:
                rows.append(row)
        if len(rows) > _MANY_ROWS and recipe.longer == "segment" and clip.mixture is None:
            columns = RowColumns(recipe)
            for row in rows:
                columns.add(row)
            rows = []
    ordered: Sequence[Row] = (
        tuple(sorted(rows, key=lambda row: row.clip_id)) if columns is None else columns.sorted()
    )
    identity = digest_of_list(_identities(ordered, infos))
    left_out = dict(sorted(skipped.items()))
    return Listing(
        ordered,
        tuple(rejected),
        left_out,
        label_names,
        identity,
        tuple(notes),
        {path: size for path, (_, size) in infos.items()},
    )


def _identities(
    rows: Iterable[Row], infos: Mapping[str, tuple[AudioInfo | str, int]]
) -> Iterator[list[object]]:
    """Yield what decides a listing: its rows, and the sizes of their files."""
    for row in rows:
        own = [row.clip_id, row.path, row.start, row.samples, row.labels, row.group, row.official]
        yield own + ([asdict(row.mixture)] if row.mixture else [])
    for path, (_, size) in infos.items():
        yield [path, size]


def _entries(
    corpus: Corpus, home: Path, recipe: Recipe, noise: Mapping[str, Sequence[Path]] | None
) -> Iterable[Entry]:
    if corpus.list_clips is not None:
        return corpus.list_clips(home, recipe.options)
    if corpus.list_mixtures is None:
        raise TypeError(f"{corpus.name}: a corpus lists clips or mixtures; this one lists neither")
    request = MixtureRequest(
        clean=home,
        noise={label: len(paths) for label, paths in (noise or {}).items()},
        level=recipe.noise,
        seed=recipe.seed,
        sample_rate=recipe.sample_rate,
        options=recipe.options,
    )
    return corpus.list_mixtures(request)


def _no_recording(corpus: Corpus, home: Path, skipped: Counter[str]) -> CorpusError:
    left_out = "; ".join(f"{n} x {reason}" for reason, n in skipped.items()) or "nothing"
    return CorpusError(
        f"{corpus.name}: no recording in {home} (skipped: {left_out}). Name another `source`."
    )


def _check_label_names(corpus: Corpus, home: Path, names: Sequence[str], recipe: Recipe) -> None:
    """Raise if a label cannot name an array; names come from users' tables."""
    for name in names:
        if not name or name.startswith((".", "__")) or name == "zarr.json" or set(name) & _UNSAFE:
            raise CorpusError(
                f"{corpus.name}: {home}: a label is called {name!r}; wanted a plain name, without "
                "slashes or a leading dot. Rename the column."
            )
    if "noise" in names and recipe.noise != "none" and corpus.list_mixtures is None:
        raise CorpusError(
            f"{corpus.name}: {home}: a label is called 'noise', as is that of the noise mixed in: "
            "rename the column, or use `noise=none`"
        )


def _check_clips(corpus: Corpus, home: Path, clips: list[Clip]) -> None:
    for one, two in pairwise(clips):
        if one.id == two.id:
            first, second = one.where or one.path, two.where or two.path
            raise CorpusError(f"{corpus.name}: {first} and {second} both have the id {one.id}")
    for clip in clips:
        try:
            f"{clip.path}{clip.id}{clip.labels}".encode()
        except UnicodeEncodeError:
            raise CorpusError(
                f"{corpus.name}: {clip.path!r} in {home}: its name is not UTF-8. Rename it."
            ) from None


def _limit(clips: list[Clip], recipe: Recipe, main: str) -> list[Clip]:
    """Draw as many recordings, in each class and in total, as the recipe's limits allow."""
    if not (recipe.balance or recipe.limit_per_class or recipe.limit):
        return clips
    numbers = {clip.id: draw(recipe.seed, "limit", clip.id)[0] for clip in clips}
    classes: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: (numbers[clip.id], clip.id)):
        classes[clip.labels[main]].append(clip)
    limit = min(map(len, classes.values())) if recipe.balance else len(clips)
    if recipe.limit_per_class:
        limit = min(limit, recipe.limit_per_class)
    chosen = [clip for members in classes.values() for clip in members[:limit]]
    if recipe.limit:
        chosen = sorted(chosen, key=lambda clip: (numbers[clip.id], clip.id))[: recipe.limit]
    return sorted(chosen, key=lambda clip: clip.id)


def split_rows(corpus: Corpus, rows: Sequence[Row], recipe: Recipe, main: str) -> list[int]:
    """Return the split of each row, as an index into `SPLITS`.

    With a design of folds, this is the split of the first fold, and -1 for rows of unknown group.

    Raises:
        InputError: the publisher provides no split, ``by:LABEL`` or a design names an unknown
            label, or there are too few groups for a design.
    """
    if recipe.split == "official":
        missing = [row.clip_id for row in rows if row.official is None]
        if missing:
            raise InputError(
                f"{corpus.name}: `split=official`: the publisher's split is not known for "
                f"{len(missing)} of {len(rows)} segments, {missing[0]} among them. "
                "Use `split=random` or by:LABEL."
            )
        return [SPLITS.index(row.official or "") for row in rows]
    if is_design(recipe.split):
        first = Design.parse(recipe.split).divide(_segments(rows, recipe, main), recipe.seed)[0]
        return [int(split) for split in first]
    labels = [value or "" for value in values_of(rows, main)]
    if recipe.split == "random":
        return assign([row.group for row in rows], labels, seed=recipe.seed)
    label = recipe.split.removeprefix("by:")
    known = sorted({name for row in rows for name, _ in row.labels})
    if label not in known:
        raise InputError(f"`split=by:{label}`: no such label; {corpus.name} has {', '.join(known)}")
    # A row without the label is grouped by its recording.
    groups = [
        f"\0{row.group}" if value is None else value
        for row, value in zip(rows, values_of(rows, label), strict=True)
    ]
    return assign(groups, labels, seed=recipe.seed, fill_all=True)


def _segments(rows: Sequence[Row], recipe: Recipe, main: str) -> Segments:
    """Return the labels and recordings of the rows, from which a design makes folds."""
    names = sorted({name for row in rows for name, _ in row.labels})
    return Segments(
        labels={name: [value or "" for value in values_of(rows, name)] for name in names},
        recordings=[
            recipe.kept_together(row.clip_id, row.source(recipe.sample_rate)) for row in rows
        ],
        main=main,
    )
