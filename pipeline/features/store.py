"""Read a feature store: features are memory-mapped, and everything that is read is checked.

A *fold* is a view of a store. It has its own split, mean and standard deviation; everything else is
read from the store beside it (`pipeline.features.folds` makes folds).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.augmentation import Levels
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import DamagedError, InputError, StaleError, StoredDataError
from antigram.pipeline.features.designs import UNUSED, is_design
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.scaled import ScaledArray
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.storage.array import StoredArray
from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.chunks import STRING
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.manifest import Manifest, read_manifest
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import read_root
from antigram.pipeline.storage.text_index import numbers_of
from antigram.pipeline.storage.text_table import TextTable

__all__ = [
    "FORMAT",
    "VERSION",
    "FeatureStore",
    "fold_fingerprint",
    "is_fold",
    "store_fingerprint",
]

FORMAT = "antigram/features"
# format_version of stores and folds. In a store of version 1, all arrays have the same number of
# rows a chunk; there are no folds of version 1, so that an antigram that knows none refuses them.
VERSION = 2
# Version that a fingerprint names: that in which this kind of fingerprint was introduced.
_OF_STORE, _OF_FOLD = 1, 2
_NO_LABEL = -1
_IDS_AT_ONCE = 1 << 16
_FOLD_FIELDS = {"of": str, "fingerprint": str, "design": str, "number": int, "seed": int}


def store_fingerprint(root: Mapping[str, Any], manifest: Manifest) -> str:
    """Return the SHA-256 of recipe and contents, by which caches refer to a store.

    The contents are all arrays, the mean, the standard deviation and the names of the classes.
    """
    return digest(
        {
            "format": [FORMAT, _OF_STORE],
            "recipe": root["recipe"],
            "mean": root["mean"],
            "std": root["std"],
            "classes": root["classes"],
            "arrays": manifest.digests(),
        }
    )


def fold_fingerprint(root: Mapping[str, Any], manifest: Manifest) -> str:
    """Return the SHA-256 over a fold's store, split, mean and standard deviation."""
    return digest(
        {
            "format": [FORMAT, _OF_FOLD],
            "store": root["fold"]["fingerprint"],
            "mean": root["mean"],
            "std": root["std"],
            "arrays": manifest.digests(),
        }
    )


def is_fold(path: Path) -> bool:
    """Whether a fold is stored at ``path``, even a damaged one."""
    try:
        return "fold" in read_root(open_backend(path), FORMAT, VERSION, "feature store")
    except (InputError, StoredDataError):
        return False


def _are_classes(classes: object) -> bool:
    """Whether ``classes`` maps each label to a list of names."""
    return isinstance(classes, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in classes.values()
    )


class FeatureStore:
    """A finished feature store, or a fold of a store, opened for reading.

    Args:
        path: folder ``NAME.zarr`` or ``NAME@K.zarr``, or an exported HDF5 file.
        backend: where the store's keys are read from; default: the folder or file at ``path``.

    Attributes:
        path: path of the store.
        root: root attribute ``antigram``; for a fold, the store's attribute with the fold's fields.
        recipe: recipe that the store was made with.
        mean: mean of the training split, which was subtracted from the features.
        std: standard deviation of the training split, by which the features were divided.
        fingerprint: SHA-256 of recipe and contents; a fold's fingerprint differs from its store's.
        main_label: name of the main label.
        classes: label -> names of its classes.
        features: ``(clip, frame, freq)`` float32 or float16, normalised; memory-mapped. A fold
            rescales the features of its store as they are read, to float32.
        base: the store that a fold belongs to; None for a store.

    Raises:
        InputError: ``path`` does not exist, or is not a feature store.
        StoredDataError: the store is damaged, incomplete or of a newer version; or the store of a
            fold is missing, or is not the store that the fold was made from.
    """

    def __init__(self, path: str | Path, backend: Backend | None = None) -> None:
        self.path = path = Path(path)
        self._group = open_backend(path) if backend is None else backend
        self.root = read_root(self._group, FORMAT, VERSION, "feature store")
        if self.root.get("complete") is not True:
            raise DamagedError(f"{path}: not complete; run the same `antigram prepare` again")
        self._manifest = read_manifest(self._group)
        self._manifest.check_metadata(self._group, self._repair)
        self.base = self._open_base() if "fold" in self.root else None
        if self.base is not None:
            self.root = {**self.base.root, **self.root}
        try:
            self.recipe = Recipe.from_json(self.root["recipe"])
            self.mean, self.std = float(self.root["mean"]), float(self.root["std"])
            self.fingerprint = str(self.root["fingerprint"])
            self.main_label = str(self.root["main_label"])
            self.classes: dict[str, list[str]] = self.root["classes"]
            made = store_fingerprint if self.base is None else fold_fingerprint
            matches = made(self.root, self._manifest) == self.fingerprint
        except StoredDataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedError(f"{path}: its attributes lack {error}; prepare it again") from None
        if not _are_classes(self.classes):
            raise DamagedError(f"{path}: its classes are not lists of names. {self._repair}")
        if self.main_label not in self.classes:
            raise DamagedError(f"{path}: its main label {self.main_label!r} is none of its labels")
        if not matches:
            raise DamagedError(f"{path}: does not match its fingerprint. {self._repair}")
        stored = self._array("features")
        stored.require([self.recipe.dtype], (None, *self.recipe.shape))
        self.features: StoredArray = stored if self.base is None else self._rescaled(stored)
        self._labels: dict[str, NDArray[np.int32]] = {}

    @property
    def name(self) -> str:
        """Name of the store in its workspace."""
        return self.path.name.removesuffix(".zarr")

    @property
    def _repair(self) -> str:
        return f"Run `antigram verify {self.path}`; `antigram prepare` rebuilds it."

    def _open_base(self) -> FeatureStore:
        """Open the store that this fold belongs to, which is stored beside it.

        Raises:
            DamagedError: the fold does not name its store, or holds more than a split.
            StaleError: the store is missing, or was replaced by another store.
        """
        fold = self.root["fold"]
        fields = fold if isinstance(fold, dict) else {}
        known = all(type(fields.get(name)) is kind for name, kind in _FOLD_FIELDS.items())
        if not known or Path(fields["of"]).name != fields["of"] or not fields["of"].strip("."):
            raise DamagedError(f"{self.path}: does not say what it is a fold of. {self._repair}")
        if set(self._manifest.arrays) != {"split"}:
            raise DamagedError(
                f"{self.path}: is a fold, but does not hold exactly one split. {self._repair}"
            )
        path = self.path.with_name(fields["of"])
        again = "Prepare it again, with the `split` that made the folds, or remove the fold."
        try:
            if is_fold(path):
                raise DamagedError(f"{self.path}: is a fold of {path}, which is a fold itself")
            base = FeatureStore(path)
        except InputError as error:
            raise StaleError(f"{self.path}: is a fold of a store: {error}. {again}") from None
        if base.fingerprint != fields["fingerprint"]:
            raise StaleError(
                f"{self.path}: is a fold of {path} with the fingerprint "
                f"{fields['fingerprint'][:12]}, which now has {base.fingerprint[:12]}. {again}"
            )
        return base

    def _rescaled(self, stored: StoredArray) -> StoredArray:
        """Return the features of the store, normalised by the fold's mean and deviation."""
        if self.base is None or (self.base.mean, self.base.std) == (self.mean, self.std):
            return stored
        shift = (self.base.mean - self.mean) / self.std
        return ScaledArray(stored, np.float32(self.base.std / self.std), np.float32(shift))

    @property
    def design(self) -> str:
        """How the segments were divided: the recipe's ``split``, or the design of a fold."""
        return self.recipe.split if self.base is None else str(self.root["fold"]["design"])

    def _array(self, name: str, dtype: str | None = None) -> MappedArray:
        """Return an array; with ``dtype``, check that it has one value of this type per segment."""
        if name not in self._manifest.arrays:
            if self.base is not None:
                return self.base._array(name, dtype)
            raise DamagedError(f"{self.path}: no array {name} in its manifest. {self._repair}")
        array = MappedArray(self._group, name, self._manifest.crcs(name), self._repair)
        if dtype is not None:
            array.require([dtype], (len(self),))
        return array

    def _numbers(self, name: str, dtype: str, least: int, most: int) -> NDArray[Any]:
        """Return an array with one number for each segment, checked to be within a range."""
        array = self._array(name, dtype)
        values = array.read()
        wrong = np.flatnonzero((values < least) | (values > most))
        if len(wrong):
            raise DamagedError(
                f"{array.where}: row {wrong[0]} is {values[wrong[0]]}, wanted {least} to "
                f"{most}. {self._repair}"
            )
        return values

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return a segment, so that a store can be used as a map-style Dataset of PyTorch.

        Args:
            row: index of the segment; negative ones count from the end.

        Returns:
            ``x``, ``(1, frame, freq)`` float32 features as a network takes them; ``labels``, the
            index of the class of each label, -1 where it is not known; and ``clip_id``.

        Raises:
            IndexError: there is no such row.
        """
        index = range(len(self))[row]
        labels = {label: int(self.labels(label)[index]) for label in self.classes}
        x = self.features.take([index]).astype(np.float32, copy=False)
        return {"x": x, "labels": labels, "clip_id": self.clip_ids[index]}

    def features_of(
        self, segments: slice | Sequence[int] | NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the features of some segments, ``(segment, frame, freq)`` float32.

        Args:
            segments: indices of segments; or a slice, which is faster.

        Raises:
            DamagedError: the features are damaged.
        """
        if isinstance(segments, slice):
            return self.features.read_span(segments).astype(np.float32, copy=False)
        rows = np.asarray(segments, np.int64)
        x = np.empty((len(rows), *self.shape), np.float32)
        self.features.gather(rows, x)
        return x

    @property
    def shape(self) -> tuple[int, int]:
        """(frame, freq) of a segment."""
        return self.features.shape[1], self.features.shape[2]

    @property
    def levels(self) -> Levels:
        """What normalised values say about loudness, for augmentation."""
        return self.recipe.levels(self.mean, self.std)

    def labels(self, label: str) -> NDArray[np.int32]:
        """Return the class of each segment, as an index into ``classes[label]``.

        Returns:
            ``(clip,)`` int32, read only; -1 where the class is not known.

        Raises:
            InputError: the store has no such label.
            DamagedError: the array is damaged, or has an index without a class.
        """
        if label not in self.classes:
            known = ", ".join(self.classes)
            raise InputError(f"{self.path}: no label {label!r}; it has {known}: see `task`")
        if label not in self._labels:
            last = len(self.classes[label]) - 1
            values = self._numbers(f"labels/{label}", "int32", _NO_LABEL, last)
            values.flags.writeable = False  # the array is shared by all callers
            self._labels[label] = values
        return self._labels[label]

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """Split of each segment, ``(clip,)`` int8: 0 train, 1 validation, 2 test.

        In a fold, and in a store that was prepared with a design, -1 marks segments that are in no
        split.
        """
        unused = self.base is not None or is_design(self.recipe.split)
        return self._numbers("split", "int8", UNUSED if unused else 0, len(SPLITS) - 1)

    @cached_property
    def clip_ids(self) -> Sequence[str]:
        """Ids of the segments, sorted; decoded when they are read, a slice is a list."""
        array = self._array("clip_id", STRING)
        return TextTable.of(self._sorted(array.text_chunks()))

    def _sorted(self, chunks: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yield chunks of ids, after checking that all ids are sorted, each once."""
        row, last = 0, ""
        for ids in chunks:
            ordered = not row or not ids or last < ids[0]
            if not (ordered and all(map(operator.lt, ids, ids[1:]))):
                pairs = pairwise(ids) if ordered else ((last, ids[0]),)
                at, (before, after) = next(
                    (at, pair) for at, pair in enumerate(pairs, ordered) if pair[0] >= pair[1]
                )
                raise DamagedError(
                    f"{self.path / 'clip_id'}: row {row + at} is {after!r} behind {before!r}, "
                    f"wanted sorted ids, each once. {self._repair}"
                )
            row, last = row + len(ids), ids[-1] if ids else last
            yield ids

    @cached_property
    def recordings(self) -> Sequence[str]:
        """Id of each segment's recording; in a corpus that is cut, the segment's own id."""
        if self.recipe.longer == "cut":
            return self.clip_ids
        size = range(0, len(self), _IDS_AT_ONCE)
        parts = (self.clip_ids[start : start + _IDS_AT_ONCE] for start in size)
        return TextTable.of([self.recipe.recording_of(own) for own in part] for part in parts)

    @cached_property
    def recording_numbers(self) -> NDArray[np.signedinteger]:
        """Number of each segment's recording, ``(clip,)`` int32: equal where `recordings` are."""
        if self.recipe.longer == "cut":
            return np.arange(len(self), dtype=np.int32)
        return numbers_of(map(self.recipe.recording_of, self.clip_ids), len(self))

    @cached_property
    def sources(self) -> Sequence[str]:
        """``PATH#START_S`` of each segment: file within the corpus, and start in seconds."""
        return self._array("source", STRING).read_text()

    def read_index(self, label: str) -> None:
        """Read a label, the split and the ids into memory, in case the open store is replaced."""
        _ = self.labels(label), self.split, self.clip_ids

    @cached_property
    def snr_db(self) -> NDArray[np.float32] | None:
        """Nominal SNR of each segment in dB, NaN if it stayed clean; None without noise."""
        if self.base is not None:
            return self.base.snr_db
        return self._array("snr_db").read() if "snr_db" in self._manifest.arrays else None

    def rows(self, split: str, label: str | None = None) -> NDArray[np.int64]:
        """Return the indices of a split's segments, in order.

        Args:
            split: train, validation or test.
            label: leave out segments whose class of this label is not known; None keeps all.

        Returns:
            ``(clip,)`` int64.

        Raises:
            InputError: the store has no such split or label.
        """
        check_choice("split", split, SPLITS)
        chosen = self.split == SPLITS.index(split)
        if label is not None:
            chosen &= self.labels(label) >= 0
        return np.flatnonzero(chosen)
