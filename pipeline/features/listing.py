"""List the rows of a store: check headers, cut or segment recordings, and assign splits.

Nothing is decoded here, so listing 100,000 files takes seconds and errors are reported early.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from antigram.pipeline.audio.decoding import AudioInfo
from antigram.pipeline.audio.windows import window_starts
from antigram.pipeline.corpus import (
    Clip,
    Corpus,
    CorpusError,
    Entry,
    Mixture,
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
from antigram.pipeline.features.split import SPLITS, assign
from antigram.pipeline.features.within import Training
from antigram.pipeline.storage.hashing import digest

__all__ = ["Listing", "Reject", "Row", "list_rows", "segments_of", "split_rows"]

_UNSAFE = frozenset("/\\") | {chr(code) for code in range(32)}
SHORT_PIECE = "piece shorter than half a window"


class Row(NamedTuple):
    """One row of a store: the position of its audio, and its labels.

    It is a tuple because all rows are sent to workers, and a dataclass takes ten times as long to
    pickle.
    """

    clip_id: str
    path: str  # relative to the corpus's folder, with /
    start: int  # first sample, at the recipe's rate
    samples: int  # length of the audio; the rest of the row is zeros
    labels: tuple[tuple[str, str], ...]
    group: str
    official: str | None
    mixture: Mixture | None = None  # `path` and `start` then belong to its recording at `offset`
    offset: int = 0  # first sample within the mixture
    length: int = 0  # samples of the complete recording

    def source(self, sample_rate: int) -> str:
        """Return the row's source, ``PATH#START_S``."""
        seconds = f"{self.start / sample_rate:.6f}".rstrip("0").rstrip(".")
        return f"{self.path}#{seconds}"


@dataclass(frozen=True, slots=True)
class Reject:
    """A recording or segment that is missing or cannot be used, and the reason."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All rows of a corpus, sorted by clip_id, and the files that give no row."""

    rows: tuple[Row, ...]
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


def segments_of(count: int, recipe: Recipe) -> tuple[list[tuple[int, int]], bool]:
    """Divide a recording into segments, for `prepare` and `predict` alike.

    Args:
        count: samples of the recording, at the recipe's rate.
        recipe: defines length and overlap of segments, and whether recordings are cut.

    Returns:
        First sample and number of samples of each segment (the rest of a segment is zeros); and
        whether a last piece was left out.
    """
    starts, short = [0], False
    if recipe.longer == "segment":
        starts, short = window_starts(count, recipe.samples, recipe.window_hop, recipe.last_window)
    return [(start, min(recipe.samples, count - start)) for start in starts], short


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
    for clip in clips:
        info = None if clip.mixture is not None else infos[clip.path][0]
        for row in _rows_of(clip, info, recipe):
            if isinstance(row, Skipped):
                skipped[row.reason] += row.count
            elif isinstance(row, Reject):
                rejected.append(row)
            else:
                rows.append(row)
    rows.sort(key=lambda row: row.clip_id)
    identity = digest(
        [
            [row.clip_id, row.path, row.start, row.samples, row.labels, row.group, row.official]
            + ([asdict(row.mixture)] if row.mixture else [])
            for row in rows
        ]
        + [[path, size] for path, (_, size) in infos.items()]
    )
    left_out = dict(sorted(skipped.items()))
    return Listing(
        tuple(rows),
        tuple(rejected),
        left_out,
        label_names,
        identity,
        tuple(notes),
        {path: size for path, (_, size) in infos.items()},
    )


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
            raise CorpusError(f"{corpus.name}: {one.path} and {two.path} both have the id {one.id}")
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


def _rows_of(
    clip: Clip, info: AudioInfo | str | None, recipe: Recipe
) -> Iterator[Row | Skipped | Reject]:
    """Yield the rows of a clip, and a reason for each part that gives no row.

    Args:
        clip: a recording, a part of a recording, or a mixture.
        info: header of the recording, or the reason why it has none; None for a mixture.
        recipe: defines how the clip is divided.
    """
    if clip.mixture is not None:
        return _rows_of_mixture(clip, clip.mixture, recipe)
    if isinstance(info, AudioInfo):
        return _rows_of_recording(clip, info, recipe)
    return iter([Reject(clip.path, info or "its header was not read")])


def _rows_of_recording(
    clip: Clip, info: AudioInfo, recipe: Recipe
) -> Iterator[Row | Skipped | Reject]:
    total = info.samples_at(recipe.sample_rate)
    first = round(clip.start_s * recipe.sample_rate)
    last = total if clip.end_s is None else min(total, round(clip.end_s * recipe.sample_rate))
    path = clip.path
    if first >= last:
        reason = f"the part from {clip.start_s:g} s begins after its end ({total} samples)"
        yield Reject(path, reason)
        return
    segments, short = segments_of(last - first, recipe)
    if short:
        yield Skipped(SHORT_PIECE)
    for index, (start, samples) in enumerate(segments):
        yield Row(
            clip_id=recipe.segment_id(clip.id, index),
            path=path,
            start=first + start,
            samples=samples,
            labels=tuple(sorted((k, v) for k, v in clip.labels.items() if v)),
            group=clip.group or clip.id,
            official=clip.split,
            length=last - first,
        )


def _rows_of_mixture(clip: Clip, mixture: Mixture, recipe: Recipe) -> Iterator[Row | Skipped]:
    """Yield the segments of a mixture; the source of each is the recording in which it begins."""
    segments, short = segments_of(mixture.samples, recipe)
    if short:
        yield Skipped(SHORT_PIECE)
    ends = list(accumulate(count for _, count in mixture.clean))
    for index, (start, samples) in enumerate(segments):
        part = bisect_right(ends, start)
        yield Row(
            clip_id=recipe.segment_id(clip.id, index),
            path=mixture.clean[part][0],
            start=start - (ends[part - 1] if part else 0),
            samples=samples,
            labels=tuple(sorted((k, v) for k, v in clip.labels.items() if v)),
            group=clip.id,
            official=clip.split,
            mixture=mixture,
            offset=start,
            length=mixture.samples,
        )


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
    labels = [dict(row.labels)[main] for row in rows]
    if recipe.split == "random":
        return assign([row.group for row in rows], labels, seed=recipe.seed)
    label = recipe.split.removeprefix("by:")
    known = sorted({name for row in rows for name, _ in row.labels})
    if label not in known:
        raise InputError(f"`split=by:{label}`: no such label; {corpus.name} has {', '.join(known)}")
    # A row without the label is grouped by its recording.
    groups = [dict(row.labels).get(label, f"\0{row.group}") for row in rows]
    return assign(groups, labels, seed=recipe.seed, fill_all=True)


def _segments(rows: Sequence[Row], recipe: Recipe, main: str) -> Segments:
    """Return the labels and recordings of the rows, from which a design makes folds."""
    labels = [dict(row.labels) for row in rows]
    names = sorted({name for known in labels for name in known})
    return Segments(
        labels={name: [known.get(name, "") for known in labels] for name in names},
        recordings=[
            recipe.kept_together(row.clip_id, row.source(recipe.sample_rate)) for row in rows
        ],
        main=main,
    )
