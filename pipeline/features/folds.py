"""Make folds of a feature store: views with their own split, mean and standard deviation.

A fold ``NAME@K.zarr`` is stored beside its store ``NAME.zarr`` and holds nothing but its split.
Features, labels, ids and sources are read from the store, so that audio is prepared once, however
many folds there are; `FeatureStore` opens folds like stores. ``NAME@K-LABEL.zarr`` is for the
teacher of a fold: it divides the fold's training segments into train and validation of the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.designs import Design, Segments, divide_for_teacher
from antigram.pipeline.features.scale import ordered_sum
from antigram.pipeline.features.store import (
    FORMAT,
    VERSION,
    FeatureStore,
    fold_fingerprint,
)
from antigram.pipeline.storage.array import StoredArray
from antigram.pipeline.storage.chunks import ArraySpec, encode, write_chunk
from antigram.pipeline.storage.durable import flush_filesystem
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    write_manifest,
)
from antigram.pipeline.storage.publish import discard, publish, recover, work_folder
from antigram.pipeline.storage.text_table import TextTable
from antigram.pipeline.storage.verification import verify_group
from antigram.pipeline.workspace import is_locked, locked, plain_name

__all__ = ["make_folds", "make_teacher_view"]

_LEAST_RATIO = 1e-6  # least standard deviation of a fold, relative to its store
_PATIENCE_S = 30  # to wait for another process that makes the same fold
_POLL_S = 0.05
_AT_ONCE = 1 << 16  # segments


class _Fold(NamedTuple):
    """A fold to be made: its file, split, main label and attribute ``fold``."""

    path: Path
    split: NDArray[np.int8]
    main_label: str
    origin: Mapping[str, Any]


def make_folds(store: FeatureStore, design: str, *, seed: int) -> list[Path]:
    """Make the folds of a design, ``NAME@0.zarr`` and so on, beside their store.

    An existing fold is left alone if it is intact and was made with the same design, seed and
    store; otherwise it is replaced.

    Args:
        store: a store, not a fold.
        design: ``kfold:LABEL:K``: the classes of LABEL are divided into K parts, each of which is
            the test split of one fold; the other classes are divided into train and validation,
            about 7:2. If these are fewer than three, their recordings are divided instead.
            ``kfold:LABEL:K:N``: the same, but only N of the classes for training are used.
            ``confounded:LABEL:OTHER``: each class of OTHER has half of LABEL's classes in train and
            validation, and the other half in test; in the second fold the halves are swapped.
        seed: seed of the draws of parts and halves.

    Returns:
        Paths of the folds, in order.

    Raises:
        InputError: ``store`` is a fold, ``design`` does not name a design, or the store has no such
            label, too few groups or too few recordings.
        StoredDataError: the store is damaged.
    """
    if store.base is not None:
        raise InputError(f"{store.path}: is a fold of {store.base.name}; make folds of that store")
    parsed = Design.parse(design)
    splits = parsed.divide(_segments(store), seed)
    return _make(
        store,
        [
            _Fold(
                _beside(store, f"{store.name}@{number}"),
                split,
                store.main_label,
                _origin(store, str(parsed), number, seed),
            )
            for number, split in enumerate(splits)
        ],
    )


def make_teacher_view(fold: FeatureStore, label: str, *, seed: int) -> Path:
    """Make the view that a teacher is trained on, from the student's training segments alone.

    The training segments of the fold are divided at random into train and validation, about 80:20,
    by recording and stratified by ``label``; nothing else is used, and there is no test split. So
    neither the teacher's weights nor the choice of its best epoch know anything of the segments
    that the student is validated and tested on.

    Args:
        fold: fold, or store, that the student is trained on.
        label: label that the teacher learns; it is the main label of the view.
        seed: seed of the division.

    Returns:
        Path of the view: ``NAME@K-LABEL.zarr`` for a fold, ``NAME@LABEL.zarr`` for a store.

    Raises:
        InputError: the store has no such label, or too few recordings that have it.
        StoredDataError: the store is damaged.
    """
    base = fold if fold.base is None else fold.base
    split = divide_for_teacher(_segments(base), fold.rows("train"), label, seed)
    number = 0 if fold.base is None else int(fold.root["fold"]["number"])
    origin = _origin(base, f"teacher:{label}", number, seed)
    path = _beside(base, fold.name + ("@" if fold.base is None else "-") + label)
    return _make(base, [_Fold(path, split, label, {**origin, "within": fold.fingerprint})])[0]


@dataclass(frozen=True, slots=True)
class _Labels(Mapping[str, Sequence[str]]):
    """Class of each segment for each label of a store, made when it is read."""

    store: FeatureStore

    def __getitem__(self, label: str) -> Sequence[str]:
        names = self.store.classes[label]
        table = np.array([*names, ""], object)  # the class -1 takes the last entry, an empty text
        of_segments: list[str] = table[self.store.labels(label)].tolist()
        return of_segments

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.classes)

    def __len__(self) -> int:
        return len(self.store.classes)


def _segments(store: FeatureStore) -> Segments:
    """Return the labels and recordings of a store, from which a design makes folds."""
    kept_together, ids = store.recipe.kept_together, store.clip_ids
    # Sources take as much memory as ids, and do not matter where recordings are divided.
    sources = ids if store.recipe.longer == "segment" else store.sources
    spans = (slice(start, start + _AT_ONCE) for start in range(0, len(store), _AT_ONCE))
    parts = ([*map(kept_together, ids[span], sources[span])] for span in spans)
    return Segments(_Labels(store), TextTable.of(parts), store.main_label)


def _origin(store: FeatureStore, design: str, number: int, seed: int) -> dict[str, Any]:
    """Return the attribute ``fold``: the store that a fold belongs to, and how it was divided."""
    return {
        "of": store.path.name,
        "fingerprint": store.fingerprint,
        "design": design,
        "number": number,
        "seed": seed,
    }


def _beside(store: FeatureStore, name: str) -> Path:
    return store.path.with_name(f"{plain_name(name)}.zarr")


def _make(base: FeatureStore, folds: Sequence[_Fold]) -> list[Path]:
    """Make the folds that do not exist yet, reading the store's features once."""
    missing = [fold for fold in folds if not _is_there(fold)]
    own = [fold for fold in missing if not np.array_equal(fold.split, base.split)]
    trained = np.zeros(len(base), bool)
    for fold in own:
        trained |= fold.split == 0
    sums = _sums(base.features, trained)
    for fold in missing:
        mean, std = base.mean, base.std  # a fold with the store's own split keeps these
        if any(fold is each for each in own):
            mean, std = _scale(base, fold, *sums)
        _write(fold, mean, std)
    return [fold.path for fold in folds]


def _is_there(fold: _Fold) -> bool:
    """Whether a fold exists, is intact, and has the wanted split, main label and origin."""
    try:
        there = FeatureStore(fold.path)
        same = np.array_equal(there.split, fold.split)
    except (InputError, StoredDataError):
        return False
    same = same and there.main_label == fold.main_label and there.root.get("fold") == fold.origin
    return same and not any(verify_group(Folder(fold.path), content=False))


def _sums(
    features: StoredArray, wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sum and sum of squares of each wanted row; zeros for the other rows."""
    totals, squares = np.zeros((2, len(features)))
    for index in range(features.spec.chunks):
        span = features.spec.span(index)
        rows = np.flatnonzero(wanted[span])
        if len(rows):
            values = features.chunk(index)[rows].astype(np.float64).reshape(len(rows), -1)
            totals[span.start + rows] = values.sum(axis=1)
            squares[span.start + rows] = np.einsum("ij,ij->i", values, values)
    return totals, squares


def _scale(
    base: FeatureStore,
    fold: _Fold,
    totals: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> tuple[float, float]:
    """Return mean and standard deviation of the magnitudes of a fold's training segments.

    Args:
        base: the store; its features are normalised by its own mean and deviation.
        fold: the fold whose training segments are used.
        totals: sum of each row of the store.
        squares: sum of squares of each row of the store.

    Raises:
        InputError: the segments are almost silent: their deviation is too small to divide by.
    """
    train = np.flatnonzero(fold.split == 0)
    count = len(train) * math.prod(base.shape)
    mean = ordered_sum(totals[train]) / count
    std = math.sqrt(max(0.0, ordered_sum(squares[train]) / count - mean**2))
    if not std >= _LEAST_RATIO:  # refuses NaN, too
        raise InputError(
            f"{fold.path}: the {len(train)} training segments of this fold are almost silent: the "
            f"standard deviation of their magnitudes is {std * base.std:.2g}, of the whole store's "
            f"{base.std:.2g}. Use another `split` or `seed`."
        )
    return base.mean + base.std * mean, base.std * std


def _write(fold: _Fold, mean: float, std: float) -> None:
    """Write a fold beside its goal, then rename it; a fold that another process made is kept."""
    end = time.monotonic() + _PATIENCE_S
    while is_locked(fold.path) and time.monotonic() < end:
        time.sleep(_POLL_S)
    with locked(fold.path, "making"):
        recover(fold.path)
        if _is_there(fold):
            return
        partial = work_folder(fold.path)
        discard(partial)
        group = Folder(partial / "store")
        spec = ArraySpec("split", (len(fold.split),), "int8", len(fold.split))
        root = {
            "format": FORMAT,
            "format_version": VERSION,
            "complete": True,
            "mean": mean,
            "std": std,
            "main_label": fold.main_label,
            "fold": dict(fold.origin),
            "versions": versions(("antigram", "numpy", "zarr")),
        }
        create_group(group, {})
        create_arrays(group, [spec])
        written = {"split": [write_chunk(group, spec, 0, encode(spec, 0, fold.split))]}
        # The fingerprint needs the manifest's digest, and the manifest the root's checksum.
        create_group(group, {"antigram": root})
        root["fingerprint"] = fold_fingerprint(root, write_manifest(group, written))
        create_group(group, {"antigram": root})
        write_manifest(group, written)
        flush_filesystem(partial)
        publish(partial / "store", fold.path)
        discard(partial)
