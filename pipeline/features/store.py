"""Open a feature store: features mapped, labels in memory, everything checked that is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.chunks import STRING
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.manifest import Manifest, read_manifest
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import read_root

__all__ = [
    "FORMAT",
    "VERSION",
    "FeatureStore",
    "store_fingerprint",
]

FORMAT = "antigram/features"
VERSION = 1
_NO_LABEL = -1


def store_fingerprint(root: Mapping[str, Any], manifest: Manifest) -> str:
    """SHA-256 of recipe and content: what a cache is tied to.

    Content is every array, and the mean, standard deviation and classes the numbers stand for.
    """
    return digest(
        {
            "format": [FORMAT, VERSION],
            "recipe": root["recipe"],
            "mean": root["mean"],
            "std": root["std"],
            "classes": root["classes"],
            "arrays": manifest.digests(),
        }
    )


def _are_classes(classes: object) -> bool:
    """Whether each label has a list of names."""
    return isinstance(classes, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in classes.values()
    )


class FeatureStore:
    """A finished feature store, read only.

    Args:
        path: ``NAME.zarr``, or a file that was exported.
        backend: that it lies in, if not in that folder or file.

    Raises:
        InputError: there is none, or it is something else.
        StoredDataError: damaged, incomplete or of a newer version.
    """

    def __init__(self, path: str | Path, backend: Backend | None = None) -> None:
        self.path = path = Path(path)
        self._group = open_backend(path) if backend is None else backend
        self.root = read_root(self._group, FORMAT, VERSION, "feature store")
        if self.root.get("complete") is not True:
            raise DamagedError(f"{path}: not complete; run the same `antigram prepare` again")
        self._manifest = read_manifest(self._group)
        self._manifest.check_metadata(self._group, self._repair)
        try:
            self.recipe = Recipe.from_json(self.root["recipe"])
            self.mean, self.std = float(self.root["mean"]), float(self.root["std"])
            self.fingerprint = str(self.root["fingerprint"])
            self.main_label = str(self.root["main_label"])
            self.classes: dict[str, list[str]] = self.root["classes"]
            whole = store_fingerprint(self.root, self._manifest) == self.fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path}: its attributes lack {error}; prepare it again") from None
        if not _are_classes(self.classes):
            raise DamagedError(f"{path}: its classes are not lists of names. {self._repair}")
        if self.main_label not in self.classes:
            raise DamagedError(f"{path}: its main label {self.main_label!r} is none of its labels")
        if not whole:
            raise DamagedError(f"{path}: does not match its fingerprint. {self._repair}")
        self.features = self._array("features")
        self.features.require([self.recipe.dtype], (None, *self.recipe.shape))
        self._labels: dict[str, NDArray[np.int32]] = {}

    @property
    def name(self) -> str:
        """Name in the workspace."""
        return self.path.name.removesuffix(".zarr")

    @property
    def _repair(self) -> str:
        return f"Run `antigram verify {self.path}`; `antigram prepare` makes it again."

    def _array(self, name: str, dtype: str | None = None) -> MappedArray:
        """An array of the store; with ``dtype``, one that has a value of it for each clip."""
        if name not in self._manifest.arrays:
            raise DamagedError(f"{self.path}: no array {name} in its manifest. {self._repair}")
        array = MappedArray(self._group, name, self._manifest.crcs(name), self._repair)
        if dtype is not None:
            array.require([dtype], (len(self),))
        return array

    def _numbers(self, name: str, dtype: str, least: int, most: int) -> NDArray[Any]:
        """A number for each clip, none outside of a range."""
        values = self._array(name, dtype).read()
        wrong = np.flatnonzero((values < least) | (values > most))
        if len(wrong):
            raise DamagedError(
                f"{self.path / name}: row {wrong[0]} is {values[wrong[0]]}, wanted {least} to "
                f"{most}. {self._repair}"
            )
        return values

    def __len__(self) -> int:
        return len(self.features)

    @property
    def shape(self) -> tuple[int, int]:
        """(frame, freq) of a clip."""
        return self.features.shape[1], self.features.shape[2]

    @property
    def silence(self) -> float:
        """What a magnitude of zero became."""
        return -self.mean / self.std

    def labels(self, label: str) -> NDArray[np.int32]:
        """Class of each clip, -1 where it is not known.

        Raises:
            InputError: the store has no such label.
            DamagedError: not as it was written, or a class that there is not.
        """
        if label not in self.classes:
            known = ", ".join(self.classes)
            raise InputError(f"{self.path}: no label {label!r}; it has {known}: see `task`")
        if label not in self._labels:
            last = len(self.classes[label]) - 1
            values = self._numbers(f"labels/{label}", "int32", _NO_LABEL, last)
            values.flags.writeable = False  # all who ask share it
            self._labels[label] = values
        return self._labels[label]

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """0 train, 1 validation, 2 test, for each clip."""
        return self._numbers("split", "int8", 0, len(SPLITS) - 1)

    @cached_property
    def clip_ids(self) -> list[str]:
        """Sorted."""
        ids = self._array("clip_id", STRING).read_text()
        for row, (before, after) in enumerate(pairwise(ids), 1):
            if before >= after:
                raise DamagedError(
                    f"{self.path / 'clip_id'}: row {row} is {after!r} behind {before!r}, wanted "
                    f"sorted ids, each once. {self._repair}"
                )
        return ids

    @cached_property
    def recordings(self) -> list[str]:
        """Id of the recording that each segment is of; of a corpus that is cut, the segment's."""
        return [self.recipe.recording_of(clip_id) for clip_id in self.clip_ids]

    @cached_property
    def sources(self) -> list[str]:
        """``PATH#START_S`` of each clip."""
        return self._array("source", STRING).read_text()

    def read_index(self, label: str) -> None:
        """Read all but the features that is known of the clips, before others replace the store."""
        _ = self.labels(label), self.split, self.clip_ids

    @cached_property
    def snr_db(self) -> NDArray[np.float32] | None:
        """Nominal SNR of each clip, NaN where no noise was mixed in; None without noise."""
        return self._array("snr_db").read() if "snr_db" in self._manifest.arrays else None

    def rows(self, split: str, label: str | None = None) -> NDArray[np.int64]:
        """Indices of a split's clips, in order; of those only that have the label, if one is given.

        Raises:
            InputError: no such split or label.
        """
        check_choice("split", split, SPLITS)
        chosen = self.split == SPLITS.index(split)
        if label is not None:
            chosen &= self.labels(label) >= 0
        return np.flatnonzero(chosen)
