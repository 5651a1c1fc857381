"""Summarise a feature store: classes, groups, lengths and noise, with warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Groups", "Summary", "lengths_of", "summarise"]

_MOST_CLASSES = 20  # up to this number, each class has a line
_MOST_LEVELS = 12  # up to this number, each SNR level is counted by itself
_WIDTH = 24  # longest name in the table, in characters
_NAMED = 5  # number of missing classes that a warning names


@dataclass(frozen=True, slots=True)
class Groups:
    """Numbers of speakers, recordings or other groups in each split.

    Attributes:
        of: what the groups are: a label (``speaker``), or ``recording``.
        counts: number of groups in train, validation and test.
        shared: number of groups in more than one split.
    """

    of: str
    counts: tuple[int, ...]
    shared: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of the contents of a store.

    Attributes:
        label: label whose classes are counted.
        classes: class -> number of segments in train, validation and test.
        groups: groups of the label that the store is split by, and of speakers, if they are known;
            else of recordings.
        lengths: lengths of recordings in seconds (``shortest_s``, ``median_s``, ``longest_s``),
            number of recordings that were ``cut`` and of segments that were ``padded``; None for a
            store made by version 0.1.0.
        snr_db: SNR in dB -> number of segments; more than 12 levels are binned by 5 dB. None
            without noise.
        without_noise: number of segments in a noisy store that stayed clean.
        warnings: a line for each empty split and for missing classes.
    """

    label: str
    classes: dict[str, tuple[int, ...]]
    groups: tuple[Groups, ...]
    lengths: dict[str, float] | None
    snr_db: dict[float, int] | None
    without_noise: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the field ``summary`` of ``prepare --json``."""
        return {
            **asdict(self),
            "classes": {name: _by_split(counts) for name, counts in self.classes.items()},
            "groups": [
                {"of": group.of, **_by_split(group.counts), "shared": group.shared}
                for group in self.groups
            ],
            "snr_db": self.snr_db and {f"{level:g}": n for level, n in self.snr_db.items()},
        }

    def lines(self) -> list[str]:
        """Return a table as lines; only the smallest and largest classes if there are over 20."""
        rows = [(f"segments by {self.label}", *SPLITS), *self._class_rows()]
        rows += [
            (f"{group.of}s ({group.shared} in more than one split)", *map(str, group.counts))
            for group in self.groups
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(1 + len(SPLITS))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        if self.lengths is not None:
            lines.append(
                "recordings: {shortest_s:.3g} s (shortest), {median_s:.3g} s (median), "
                "{longest_s:.3g} s (longest); {cut} were cut, {padded} segments are "
                "padded with zeros".format_map(self.lengths)
            )
        if self.snr_db is not None:
            levels = ", ".join(f"{n} at {level:g} dB" for level, n in self.snr_db.items())
            lines.append(f"SNR: {levels}; {self.without_noise} segments without noise")
        return [*lines, *(f"warning: {text}" for text in self.warnings)]

    def _class_rows(self) -> Iterable[tuple[str, ...]]:
        names = list(self.classes)
        shown = {_short(name): name for name in names}
        if len(names) > _MOST_CLASSES:
            sizes = {name: sum(counts) for name, counts in self.classes.items()}
            least, most = min(names, key=sizes.__getitem__), max(names, key=sizes.__getitem__)
            shown = {f"smallest: {_short(least)}": least, f"largest: {_short(most)}": most}
        for text, name in shown.items():
            yield (f"  {text}", *map(str, self.classes[name]))
        columns = list(zip(*self.classes.values(), strict=True))
        yield ("  all", *(str(sum(column)) for column in columns))
        if len(names) > _MOST_CLASSES:
            counts = (str(np.count_nonzero(column)) for column in columns)
            yield (f"  of {len(names)} classes", *counts)


def summarise(store: FeatureStore, label: str | None = None) -> Summary:
    """Summarise a store from its small arrays, without reading features.

    Args:
        store: the store.
        label: label whose classes are counted; default: the main one.

    Raises:
        InputError: the store has no such label.
        StoredDataError: an array is damaged.
    """
    label = label or store.main_label
    split, values = store.split, store.labels(label)
    counts = _count(values, split, len(store.classes[label]))
    classes = {
        name: tuple(row) for name, row in zip(store.classes[label], counts.tolist(), strict=True)
    }
    levels, without = _snr(store.snr_db)
    return Summary(
        label=label,
        classes=classes,
        groups=_groups(store),
        lengths=store.root.get("lengths"),
        snr_db=levels,
        without_noise=without,
        warnings=tuple(_warnings(label, classes, np.bincount(split[split >= 0], minlength=3))),
    )


def lengths_of(rows: Sequence[Row], recipe: Recipe) -> dict[str, float]:
    """Return statistics of the recordings' lengths before cutting, the ``lengths`` of `Summary`."""
    samples = {recipe.recording_of(row.clip_id): row.length for row in rows}
    cut, full = recipe.longer == "cut", recipe.samples
    return {
        "shortest_s": min(samples.values()) / recipe.sample_rate,
        "median_s": median(samples.values()) / recipe.sample_rate,
        "longest_s": max(samples.values()) / recipe.sample_rate,
        "cut": sum(row.length > full for row in rows) if cut else 0,
        "padded": sum(row.samples < full for row in rows),
    }


def _by_split(counts: Sequence[int]) -> dict[str, int]:
    return dict(zip(SPLITS, counts, strict=True))


def _short(name: str) -> str:
    flat = " ".join(name.split())
    return flat if len(flat) <= _WIDTH else f"{flat[: _WIDTH - 3]}..."


def _count(values: NDArray[np.int32], split: NDArray[np.int8], classes: int) -> NDArray[np.int64]:
    """Count segments by (class, split); segments without a class or a split (-1) are left out."""
    known = (values >= 0) & (split >= 0)
    cells = values[known].astype(np.int64) * len(SPLITS) + split[known]
    return np.bincount(cells, minlength=classes * len(SPLITS)).reshape(classes, len(SPLITS))


def _groups(store: FeatureStore) -> tuple[Groups, ...]:
    named = store.design.partition(":")[2]  # empty for random and official
    labels = [
        name
        for name in dict.fromkeys((named, *named.split(":"), "speaker"))
        if name in store.classes
    ]
    groups = [
        _grouped(name, _count(store.labels(name), store.split, len(store.classes[name])))
        for name in labels
    ]
    return tuple(groups or [_recordings(store)])


def _recordings(store: FeatureStore) -> Groups:
    """Count recordings, of which there may be as many as segments."""
    used = store.split >= 0
    numbers = store.recording_numbers[used].astype(np.int64)
    cells = np.unique(numbers * len(SPLITS) + store.split[used])
    counts = np.bincount(cells % len(SPLITS), minlength=len(SPLITS))
    shared = int((np.unique(cells // len(SPLITS), return_counts=True)[1] > 1).sum())
    return Groups("recording", tuple(counts.tolist()), shared)


def _grouped(of: str, counts: NDArray[np.int64]) -> Groups:
    present = counts > 0
    return Groups(of, tuple(present.sum(axis=0).tolist()), int((present.sum(axis=1) > 1).sum()))


def _snr(snr_db: NDArray[np.float32] | None) -> tuple[dict[float, int] | None, int]:
    """Return SNR -> number of segments, and the number of segments without noise."""
    if snr_db is None:
        return None, 0
    known = snr_db[np.isfinite(snr_db)]
    levels, counts = np.unique(known, return_counts=True)
    if levels.size > _MOST_LEVELS:
        levels, counts = np.unique(5 * np.floor(known / 5), return_counts=True)
    return dict(zip(levels.tolist(), counts.tolist(), strict=True)), snr_db.size - known.size


def _warnings(
    label: str, classes: dict[str, tuple[int, ...]], clips: NDArray[np.int64]
) -> Iterable[str]:
    for index, split in enumerate(SPLITS):
        if not clips[index]:
            yield (
                f"the {split} split is empty. Give more recordings (or groups, with "
                "`split=by:LABEL`), or another `split`."
            )
        elif split != "test":
            missing = [_short(name) for name, counts in classes.items() if not counts[index]]
            if missing:
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                yield (
                    f"{len(missing)} of {len(classes)} classes of {label} are missing from "
                    f"{split}: {', '.join(missing[:_NAMED])}{more}"
                )
