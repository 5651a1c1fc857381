"""Open a feature store: features mapped, labels in memory, everything checked that is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedError, InputError, StoredDataError
from pipeline.hdf5 import read_bytes
from pipeline.manifest import Manifest, read_manifest
from pipeline.mapped import MappedArray
from pipeline.recipe import Recipe, digest
from pipeline.split import SPLITS

__all__ = ["FORMAT", "VERSION", "FeatureStore", "read_root", "store_fingerprint"]

FORMAT = "antigram/features"
VERSION = 1


def read_root(path: Path, wanted: str, version: int, what: str) -> dict[str, Any]:
    """Attribute ``antigram`` of a group.

    Args:
        path: the group's folder.
        wanted: value of ``format``.
        version: newest ``format_version`` that can be read.
        what: "feature store" or "Gram cache", for the message.

    Raises:
        InputError: there is no such group, or it is something else.
        StoredDataError: it is unreadable, incomplete, or of a newer version.
    """
    document = path / "zarr.json"
    try:
        attributes = json.loads(read_bytes(document))["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no {what} there; `antigram status` lists what is") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{document}: unreadable ({error}); make the {what} again") from None
    root = attributes.get("antigram") if isinstance(attributes, dict) else None
    if not isinstance(root, dict) or root.get("format") != wanted:
        found = root.get("format") if isinstance(root, dict) else "no antigram attribute"
        raise InputError(f"{path}: not a {what} ({found}), wanted {wanted}")
    if not isinstance(number := root.get("format_version"), int):
        raise DamagedError(f"{document}: format_version is {number!r}; make the {what} again")
    if number > version:
        raise StoredDataError(
            f"{path}: written by format version {number}, "
            f"this antigram reads up to {version}. Update antigram."
        )
    return root


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


class FeatureStore:
    """A finished feature store, read only.

    Args:
        path: ``NAME.zarr``.

    Raises:
        InputError: there is none, or it is something else.
        StoredDataError: damaged, incomplete or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = read_root(path, FORMAT, VERSION, "feature store")
        if self.root.get("complete") is not True:
            raise DamagedError(f"{path}: not complete; run the same `antigram prepare` again")
        self._manifest = read_manifest(path)
        self._manifest.check_metadata(path, self._repair)
        try:
            self.recipe = Recipe.from_json(self.root["recipe"])
            self.mean, self.std = float(self.root["mean"]), float(self.root["std"])
            self.fingerprint = str(self.root["fingerprint"])
            self.main_label = str(self.root["main_label"])
            self.classes: dict[str, list[str]] = self.root["classes"]
            whole = store_fingerprint(self.root, self._manifest) == self.fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path}: its attributes lack {error}; prepare it again") from None
        if self.main_label not in self.classes:
            raise DamagedError(f"{path}: its main label {self.main_label!r} is none of its labels")
        if not whole:
            raise DamagedError(f"{path}: does not match its fingerprint. {self._repair}")
        self.features = self._array("features")

    @property
    def name(self) -> str:
        """Name in the workspace."""
        return self.path.name.removesuffix(".zarr")

    @property
    def _repair(self) -> str:
        return f"Run `antigram verify {self.path}`; `antigram prepare` makes it again."

    def _array(self, name: str) -> MappedArray:
        if name not in self._manifest.arrays:
            raise DamagedError(f"{self.path}: no array {name} in its manifest. {self._repair}")
        return MappedArray(self.path, name, self._manifest.crcs(name), self._repair)

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
        """
        if label not in self.classes:
            known = ", ".join(self.classes)
            raise InputError(f"{self.path}: no label {label!r}; it has {known}: see --task")
        return self._array(f"labels/{label}").read().astype(np.int32, copy=False)

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """0 train, 1 validation, 2 test, for each clip."""
        return self._array("split").read()

    @cached_property
    def clip_ids(self) -> list[str]:
        """Sorted."""
        return self._array("clip_id").read_text()

    @cached_property
    def recordings(self) -> list[str]:
        """Id of the recording that each segment is of; of a corpus that is cut, the segment's."""
        return [self.recipe.recording_of(clip_id) for clip_id in self.clip_ids]

    @cached_property
    def sources(self) -> list[str]:
        """``PATH#START_S`` of each clip."""
        return self._array("source").read_text()

    @cached_property
    def snr_db(self) -> NDArray[np.float32] | None:
        """Nominal SNR of each clip, NaN where no noise was mixed in; None without noise."""
        return self._array("snr_db").read() if "snr_db" in self._manifest.arrays else None

    def rows(self, split: str, label: str | None = None) -> NDArray[np.int64]:
        """Indices of a split's clips, in order; of those only that have the label, if one is given.

        Raises:
            InputError: no such split or label.
        """
        if split not in SPLITS:
            raise InputError(f"split {split!r}: wanted {', '.join(SPLITS)}")
        chosen = self.split == SPLITS.index(split)
        if label is not None:
            chosen &= self.labels(label) >= 0
        return np.flatnonzero(chosen)
