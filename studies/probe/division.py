"""Choose the segments that a probe uses, and divide them into parts that share no group.

A probe is trained on all parts but one and tested on that one. No group is in two parts: a probe of
the speaker is tested on words that it was not trained on, and a probe of the word on other
speakers. So it cannot recognise a combination of the two that it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore

__all__ = ["ALL", "Sample", "choose_groups", "choose_sample", "divide", "shuffled_order"]

ALL = "all"  # segments of all splits
_ENOUGH = 10  # segments of a class, on average

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The segments of a probe, with their classes and parts.

    Attributes:
        rows: ``(segment,)`` indices into the store.
        y: ``(segment,)`` classes, as indices into ``classes``.
        classes: names of the classes that are probed.
        groups: ``(segment,)`` numbers of the groups that no two parts share.
        recordings: ``(segment,)`` numbers of the recordings.
        parts: ``(segment,)`` numbers of the parts, from 0.
        split: ``train``, ``validation``, ``test`` or ``all``.
        groups_label: label whose classes are the groups; None if the groups are recordings.
        left_out: names of the classes that occur in fewer than two parts, which no probe can learn
            in one part and show in another.
    """

    rows: Integers
    y: Integers
    classes: list[str]
    groups: Integers
    recordings: Integers
    parts: Integers
    split: str
    groups_label: str | None
    left_out: list[str]

    def train_and_test(self, part: int) -> tuple[Integers, Integers]:
        """Return the segments that a probe is trained and tested on.

        Segments of a recording that also has segments in the tested part are in neither.

        Args:
            part: number of the tested part.

        Returns:
            Two arrays of indices into this sample.
        """
        return _without(self.parts == part, self.recordings)

    def inner(self, rows: Integers, count: int, seed: int) -> list[tuple[Integers, Integers]]:
        """Divide training segments again by group, to choose a probe's settings.

        Segments of a single group are divided by recording.

        Args:
            rows: indices into this sample.
            count: number of parts; fewer if there are fewer groups.
            seed: seed of the division.

        Returns:
            Segments to train and to test on, for each part, as indices into this sample; empty if
            there is only one recording.
        """
        groups = self.groups[rows]
        if len(np.unique(groups)) < 2:
            groups = self.recordings[rows]
        parts = divide(groups, count, seed, "inner parts")
        if not parts.any():
            return []
        pairs = (_without(parts == p, self.recordings[rows]) for p in range(parts.max() + 1))
        return [(rows[train], rows[test]) for train, test in pairs if len(train)]


def _without(tested: NDArray[np.bool_], recordings: Integers) -> tuple[Integers, Integers]:
    heard = np.isin(recordings, recordings[tested])
    return np.flatnonzero(~heard), np.flatnonzero(tested)


def shuffled_order(count: int, seed: int, purpose: str) -> Integers:
    """Return a random order of ``count`` things, the same in all versions of numpy."""
    keys = np.random.PCG64(draw(seed, "probe", purpose)[0]).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def divide(groups: Integers, count: int, seed: int, purpose: str = "parts") -> Integers:
    """Divide groups into parts of about the same number of segments.

    The largest groups come first, those of one size in a random order; each goes to the part that
    is smallest so far.

    Args:
        groups: ``(segment,)`` number of each segment's group.
        count: number of parts; fewer if there are fewer groups.
        seed: seed of the order.
        purpose: divisions of different purposes are drawn independently.

    Returns:
        ``(segment,)`` numbers of the parts, from 0.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = shuffled_order(len(sizes), seed, purpose)
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(sizes)), np.int64)
    part_of = np.zeros(len(sizes), np.int64)
    for each in order:
        part_of[each] = filled.argmin()
        filled[part_of[each]] += sizes[each]
    return part_of[group]


def choose_groups(
    store: FeatureStore, task: str, learned: str, asked: str | None, on_message: OnMessage
) -> str | None:
    """Return the label whose classes no two parts share.

    Args:
        store: features and labels.
        task: label that is probed.
        learned: label that the network was trained for.
        asked: the label that the user named; by default it is ``learned``, and for a probe of
            ``learned`` itself the store's main label, or else the first other label.
        on_message: called with a line if the store has no other label.

    Returns:
        A label of the store; None if it has no other label, and recordings are the groups.

    Raises:
        InputError: the store lacks a label, or ``asked`` is the label that is probed.
    """
    store.labels(task)
    if asked is not None:
        if asked not in store.classes:
            known = ", ".join(store.classes)
            raise InputError(f"{store.path}: `groups={asked}`: no such label; it has {known}")
        if asked == task:
            raise InputError(
                f"`groups={asked}` is the label that is probed: a class would never be both "
                "learned and tested. Name another label."
            )
        return asked
    others = [name for name in (learned, store.main_label, *store.classes) if name != task]
    known_others = [name for name in others if name in store.classes]
    if not known_others:
        on_message(f"{store.name} has no label but {task}: the probe's parts share no recording")
        return None
    return known_others[0]


def choose_sample(
    store: FeatureStore,
    task: str,
    groups: str | None,
    split: str | None,
    parts: int,
    seed: int,
    on_message: OnMessage = lambda _: None,
) -> Sample:
    """Choose the segments of a probe, and divide them into parts.

    Args:
        store: features and labels.
        task: label that is probed.
        groups: label whose classes no two parts share; None: recordings.
        split: ``train``, ``validation``, ``test`` or ``all``; by default ``test`` if it has ten
            segments for each class on average, else ``all``.
        parts: number of parts; fewer if there are fewer groups.
        seed: seed of the division.
        on_message: called with a line about a split that was chosen and classes left out.

    Raises:
        InputError: fewer than two classes, or no two groups, have segments in the split.
    """
    if parts < 2:
        raise InputError(f"`parts` {parts}: wanted 2 or more")
    if split not in (None, ALL, *SPLITS):
        raise InputError(f"`split` {split!r}: wanted {', '.join(SPLITS)} or {ALL}")
    if split is None:
        try:
            test = _sample(store, task, groups, "test", parts, seed)
        except InputError:
            test = None
        if test is not None and len(test.rows) >= _ENOUGH * len(test.classes):
            on_message(f"segments: the {len(test.rows)} of the test split")
            return test
        count = 0 if test is None else len(test.rows)
        on_message(f"segments: all splits, as only {count} of the test split can be used")
    sample = _sample(store, task, groups, split or ALL, parts, seed)
    if sample.left_out:
        on_message(
            f"{len(sample.left_out)} of {len(store.classes[task])} classes of {task} are left "
            f"out, as they occur in fewer than two parts: {', '.join(sample.left_out[:5])}"
        )
    return sample


def _sample(
    store: FeatureStore, task: str, groups: str | None, split: str, parts: int, seed: int
) -> Sample:
    rows = np.flatnonzero(store.split >= 0) if split == ALL else store.rows(split)
    labels = store.labels(task)
    rows = rows[labels[rows] >= 0]
    if groups is not None:
        rows = rows[store.labels(groups)[rows] >= 0]
    ids, sources, kept_together = store.clip_ids, store.sources, store.recipe.kept_together
    names = [kept_together(ids[row], sources[row]) for row in rows.tolist()]
    recordings = np.unique(names, return_inverse=True)[1] if names else np.zeros(0, np.int64)
    group = recordings if groups is None else store.labels(groups)[rows].astype(np.int64)
    y = labels[rows].astype(np.int64)
    sample = Sample(
        rows=rows,
        y=y,
        classes=store.classes[task],
        groups=group,
        recordings=recordings.astype(np.int64),
        parts=group,
        split=split,
        groups_label=groups,
        left_out=[],
    )
    sample = _learnable(sample)  # a class of one group is in one part, however groups are divided
    sample = _learnable(replace(sample, parts=divide(sample.groups, parts, seed)))
    if len(sample.classes) < 2 or len(np.unique(sample.parts)) < 2:
        of = "recordings" if groups is None else f"classes of {groups}"
        which = "all splits" if split == ALL else f"the {split} split"
        raise InputError(
            f"{store.path}: {task} cannot be probed in {which}: of its {len(store.classes[task])} "
            f"classes, {len(sample.classes)} have segments of two or more {of}; wanted 2 classes "
            "or more. Take another `split` or `groups`."
        )
    return replace(sample, parts=np.unique(sample.parts, return_inverse=True)[1])


def _learnable(sample: Sample) -> Sample:
    """Leave out the classes that occur in fewer than two parts, and renumber the others."""
    pairs = np.unique(np.stack([sample.y, sample.parts]), axis=1)
    in_parts = np.bincount(pairs[0].astype(np.int64), minlength=len(sample.classes))
    kept = in_parts >= 2
    rows = kept[sample.y]
    # Classes without any segment here are not worth a message.
    missing = [name for name, n in zip(sample.classes, in_parts, strict=True) if n == 1]
    return replace(
        sample,
        rows=sample.rows[rows],
        y=(np.cumsum(kept) - 1)[sample.y[rows]],
        classes=[name for name, keep in zip(sample.classes, kept, strict=True) if keep],
        groups=sample.groups[rows],
        recordings=sample.recordings[rows],
        parts=sample.parts[rows],
        left_out=[*sample.left_out, *missing],
    )
