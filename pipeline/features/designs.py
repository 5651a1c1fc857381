"""Designs of an experiment: how the segments of a store are divided into folds.

A design gives one division into train, validation and test for each fold. A design is written
``kfold:LABEL:K[:N]`` or ``confounded:LABEL:OTHER``, and depends on nothing but labels, recordings
and a seed. All segments of a recording are always in one split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.split import assign
from antigram.pipeline.storage.text_index import coded, numbers_of
from antigram.pipeline.storage.text_table import Picked

__all__ = [
    "DESIGNS",
    "UNUSED",
    "Design",
    "Segments",
    "divide_for_teacher",
    "divide_training",
    "is_design",
]

UNUSED = -1  # split of a segment that a fold does not use
_TEST = 2
_FRACTIONS = (7 / 9, 2 / 9)  # train and validation, in the same ratio as in 70/20/10
_TEACHER_FRACTIONS = (0.8, 0.2)
_LEAST_GROUPS = 3  # with fewer, recordings instead of groups go to train and validation
DESIGNS = "kfold:LABEL:K, kfold:LABEL:K:N or confounded:LABEL:OTHER"  # as a user writes them


@dataclass(frozen=True, slots=True)
class Segments:
    """Labels and recordings of a store's segments, from which a design makes folds.

    Attributes:
        labels: label -> class of each segment; ``''`` for an unknown class.
        recordings: id of each segment's recording.
        main: the label that train and validation are stratified by.
    """

    labels: Mapping[str, Sequence[str]]
    recordings: Sequence[str]
    main: str

    def classes(self, label: str, design: str) -> Sequence[str]:
        """Return the class of each segment for one label.

        Args:
            label: label of the store.
            design: the design that needs the label, for the message.

        Raises:
            InputError: there is no such label.
        """
        if label not in self.labels:
            known = ", ".join(self.labels)
            raise InputError(f"`split={design}`: no label {label!r}; there are {known}")
        return self.labels[label]


def is_design(split: str) -> bool:
    """Whether a recipe's ``split`` names a design of folds rather than a single split."""
    return split.startswith(("kfold:", "confounded:"))


@dataclass(frozen=True, slots=True)
class Design:
    """A design of an experiment.

    Attributes:
        label: for ``kfold``, the label whose classes are the groups that are tested in turn; for
            ``confounded``, the label whose classes are halved.
        folds: number of folds; always 2 for ``confounded``.
        other: for ``confounded``, the label that the classes are confounded with; else empty.
        train_groups: for ``kfold``, the number of groups that each fold trains on; 0: all groups
            that are in neither test nor validation.
    """

    label: str
    folds: int = 2
    other: str = ""
    train_groups: int = 0

    def __str__(self) -> str:
        if self.other:
            return f"confounded:{self.label}:{self.other}"
        few = f":{self.train_groups}" if self.train_groups else ""
        return f"kfold:{self.label}:{self.folds}{few}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a design as a user writes it.

        Raises:
            InputError: the text does not name a design.
        """
        kind, _, names = text.partition(":")
        label, _, last = names.rpartition(":")
        train_groups = 0
        if kind == "kfold" and (few := re.fullmatch(r"(.+):([0-9]+)", label)) and last.isdecimal():
            label, last, train_groups = few[1], few[2], int(last)
            if not train_groups:
                raise InputError(f"split is {text!r}; wanted: {DESIGNS}, with N of 1 or more")
        if not label or not last or kind not in ("kfold", "confounded"):
            raise InputError(f"split is {text!r}; wanted: {DESIGNS}")
        if kind == "confounded":
            if label == last:
                raise InputError(f"split is {text!r}; wanted: two labels that differ")
            return cls(label, other=last)
        if not (last.isascii() and last.isdecimal() and int(last) > 1):
            raise InputError(f"split is {text!r}; wanted: kfold:LABEL:K with K of 2 or more")
        return cls(label, int(last), train_groups=train_groups)

    def divide(self, segments: Segments, seed: int) -> list[NDArray[np.int8]]:
        """Return the split of each segment in each fold.

        Segments of unknown group are in no split, as they could belong to a group that is tested.

        Args:
            segments: labels and recordings.
            seed: seed of the draws that assign groups, halves and recordings to splits.

        Returns:
            For each fold, ``(segment,)`` int8: 0 train, 1 validation, 2 test, -1 not used.

        Raises:
            InputError: there is no such label, there are too few groups, or a fold would have an
                empty split.
        """
        folds = (self._halve if self.other else self._leave_out)(segments, seed)
        for number, split in enumerate(folds):
            for name, index in (("train", 0), ("validation", 1), ("test", _TEST)):
                if not (split == index).any():
                    raise InputError(
                        f"`split={self}`: fold {number} has no segment for {name}; give more "
                        "recordings, or another `split`"
                    )
        return folds

    def _leave_out(self, segments: Segments, seed: int) -> list[NDArray[np.int8]]:
        """Make K folds, each of which tests one part of the groups and trains on the others."""
        classes = np.array(segments.classes(self.label, str(self)), object)
        used = np.flatnonzero(classes != "")
        recordings = numbers_of(segments.recordings, len(classes))
        groups = _linked(classes[used], recordings[used])
        if (number := len(set(groups))) < self.folds:
            raise InputError(
                f"`split={self}`: {number} groups for {self.folds} folds (a group is the "
                f"recordings of one {self.label}, or of several that share recordings); wanted: "
                "at least one group for each fold"
            )
        parts = np.array(
            assign(
                groups,
                [""] * len(groups),
                seed=seed,
                fill_all=True,
                fractions=[1 / self.folds] * self.folds,
                purpose="folds",
            ),
            np.int8,
        )
        folds = []
        for number in range(self.folds):
            split = np.full(len(classes), UNUSED, np.int8)
            split[used[parts == number]] = _TEST
            rest = np.flatnonzero(parts != number)
            own = [groups[i] for i in rest]
            by_group = len(set(own)) >= _LEAST_GROUPS
            split[used[rest]] = divide_training(
                segments, used[rest], seed, f"fold {number}", groups=own if by_group else None
            )
            if self.train_groups:
                self._train_on_few(split, used, groups, seed, number)
            folds.append(split)
        return folds

    def _train_on_few(
        self,
        split: NDArray[np.int8],
        used: NDArray[np.int64],
        groups: Sequence[str],
        seed: int,
        number: int,
    ) -> None:
        """Leave `train_groups` groups in training, drawn by the seed; the others are not used.

        Args:
            split: ``(segment,)``, changed in place.
            used: indices of the segments with a known group.
            groups: group of each segment in ``used``.
            seed: seed of the draw.
            number: number of the fold.
        """
        trained = {group for i, group in zip(used, groups, strict=True) if split[i] == 0}
        if len(trained) < self.train_groups:
            raise InputError(
                f"`split={self}`: fold {number} has {len(trained)} groups of {self.label} to train "
                f"on; wanted: {self.train_groups}"
            )
        drawn = sorted(trained, key=lambda g: (draw(seed, "few", f"{number}\0{g}")[0], g))
        kept = set(drawn[: self.train_groups])
        for i, group in zip(used, groups, strict=True):
            if split[i] == 0 and group not in kept:
                split[i] = UNUSED

    def _halve(self, segments: Segments, seed: int) -> list[NDArray[np.int8]]:
        """Make two folds; each class of ``other`` trains on half the classes and tests the rest."""
        classes = segments.classes(self.label, str(self))
        others = segments.classes(self.other, str(self))
        cells = list(zip(others, classes, strict=True))
        used = [i for i, (other, name) in enumerate(cells) if other and name]
        of_recording: dict[str, tuple[str, str]] = {}
        known: dict[str, set[str]] = defaultdict(set)
        for i in used:
            recording = segments.recordings[i]
            if of_recording.setdefault(recording, cells[i]) != cells[i]:
                raise InputError(
                    f"`split={self}`: the recording {recording} has segments of several classes "
                    f"of {self.label} or {self.other}; wanted: one of each in a recording"
                )
            known[cells[i][0]].add(cells[i][1])
        if len(known) < 2 or len(set().union(*known.values())) < 2:
            raise InputError(f"`split={self}`: wanted: at least two classes of each label")
        trained = _halves(known, seed)
        folds = []
        for number in range(self.folds):
            split = np.full(len(cells), UNUSED, np.int8)
            own = np.array([i for i in used if (cells[i] in trained) == (number == 0)], np.int64)
            split[used] = _TEST
            split[own] = divide_training(segments, own, seed, f"half {number}")
            folds.append(split)
        return folds


def divide_training(
    segments: Segments,
    rows: NDArray[np.int64],
    seed: int,
    purpose: str,
    *,
    groups: Sequence[str] | None = None,
) -> NDArray[np.int8]:
    """Divide segments into train (0) and validation (1), about 7:2, stratified by the main label.

    Args:
        segments: labels and recordings.
        rows: indices of the segments to divide.
        seed: decides the order of groups of equal size.
        purpose: name of the draw, so that folds with the same seed draw other numbers.
        groups: group of each segment in ``rows``, which stays in one split; default: its recording.
    """
    main = segments.labels[segments.main]
    return np.array(
        assign(
            Picked(segments.recordings, rows) if groups is None else groups,
            [main[i] for i in rows],
            seed=seed,
            fill_all=groups is not None,
            fractions=_FRACTIONS,
            purpose=purpose,
        ),
        np.int8,
    )


def divide_for_teacher(
    segments: Segments, training: NDArray[np.int64], label: str, seed: int
) -> NDArray[np.int8]:
    """Divide a student's training recordings into its teacher's train and validation, about 80:20.

    Args:
        segments: labels and recordings.
        training: indices of the student's training segments.
        label: what the teacher learns; segments without it are not used.
        seed: decides the order of recordings of equal size.

    Returns:
        ``(segment,)`` int8: 0 train, 1 validation, -1 all others.

    Raises:
        InputError: there is no such label, or too few recordings have it.
    """
    classes = segments.classes(label, f"teacher:{label}")
    rows = [i for i in training.tolist() if classes[i]]
    split = np.full(len(classes), UNUSED, np.int8)
    split[rows] = assign(
        Picked(segments.recordings, np.array(rows, np.int64)),
        [classes[i] for i in rows],
        seed=seed,
        fractions=_TEACHER_FRACTIONS,
        purpose="teacher",
    )
    if not ((split == 0).any() and (split == 1).any()):
        raise InputError(
            f"{len(rows)} training segments have a {label}, too few to be divided into train and "
            "validation; wanted: several recordings of a class"
        )
    return split


def _linked(values: NDArray[np.object_], recordings: NDArray[np.signedinteger]) -> list[str]:
    """Return a group for each segment; values that occur in the same recording form one group.

    Args:
        values: ``(segment,)`` texts.
        recordings: number of each segment's recording.
    """
    codes, names = coded(values, len(values))
    above: dict[str, str] = {}

    def top(value: str) -> str:
        while (next_ := above.get(value, value)) != value:
            value = next_
        return value

    first: dict[int, str] = {}
    pairs = np.unique(recordings.astype(np.int64) * max(1, len(names)) + codes)
    for pair in pairs.tolist():
        recording, code = divmod(pair, len(names))
        one, two = sorted((top(names[code]), top(first.setdefault(recording, names[code]))))
        if one != two:
            above[two] = one
    groups: list[str] = np.array([top(name) for name in names], object)[codes].tolist()
    return groups


def _halves(known: Mapping[str, set[str]], seed: int) -> set[tuple[str, str]]:
    """Return the pairs (class of OTHER, class of LABEL) that the first fold trains on.

    Each class of OTHER takes half of its classes of LABEL. It takes the classes that were taken
    least often so far, and the seed decides between equals. So each class of LABEL is trained on
    with about half of the classes of OTHER; if all pairs occur, with at most one more than half.

    Args:
        known: class of OTHER -> the classes of LABEL that occur with it.
        seed: seed of the draws.
    """
    # Class of LABEL -> classes of OTHER that train on it, minus classes of OTHER that test it.
    surplus: dict[str, int] = defaultdict(int)
    chosen: set[tuple[str, str]] = set()
    round_up = 0
    for other in sorted(known, key=lambda name: (draw(seed, "half", name)[0], name)):
        drawn = {name: draw(seed, "half", f"{other}\0{name}")[0] for name in known[other]}
        order = sorted(known[other], key=lambda name: (surplus[name], drawn[name], name))
        half = (len(order) + round_up) // 2
        round_up ^= len(order) % 2
        for place, name in enumerate(order):
            surplus[name] += 1 if place < half else -1
        chosen.update((other, name) for name in order[:half])
    return chosen
