"""Read the root and the layers of a cache with numpy.

This module does not import torch, so that `status` and `verify` start fast. `cache.grams` turns
layers into tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.cache.key import CacheKey, layer_name, layer_of
from antigram.model.choices import ROW_DTYPES, Layer, layer_order, matrix_side
from antigram.pipeline.audio.augmentation import COLUMNS
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.backend import Backend
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.manifest import DOCUMENT, Manifest, inner_groups, read_manifest
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import read_root

__all__ = [
    "BATCHES",
    "FORMAT",
    "SCALE",
    "SMALL",
    "VERSION",
    "CacheLayer",
    "choose_cache",
    "layer_fingerprint",
    "layers_of",
    "open_root",
    "scales_of",
    "values_name",
    "version_of",
]

FORMAT = "antigram/grams"
# Version 1 has neither layers with names, nor norms with more rows a chunk than the values, and
# version 2 no int8 rows.
VERSION = 3
BATCHES = "batches"  # `source` in the root of a cache that was built from batches, without a store
# Name of the array that has the rows, by codec: see `values_name`.
_ARRAY_OF = {"packed": "gram", "factor": "factor", "lowrank": "vectors", "map": "map"}
SMALL = ("norm", "row_norm", "energy", "views")  # float32 arrays with few values for each segment
SCALE = "scale"  # name of the array that has the scales of int8 rows


def open_root(path: Path) -> dict[str, Any]:
    """Read the attribute ``antigram`` of a cache.

    Raises:
        InputError: there is no cache at ``path``.
        StoredDataError: the cache is damaged, or was written by a newer version.
    """
    group = open_backend(path)
    root = read_root(group, FORMAT, VERSION, "Gram cache")
    read_manifest(group).check_metadata(group, "Rebuild the cache.")
    if not isinstance(root.get("features"), str):
        raise DamagedError(f"{path}: its attributes lack the features; rebuild it")
    return root


def layers_of(path: Path) -> list[Layer]:
    """Return the layers of a cache, sorted."""
    return _layers(open_backend(path))


def _layers(cache: Backend) -> list[Layer]:
    return sorted((layer_of(name) for name in inner_groups(cache)), key=layer_order)


def version_of(dtypes: Iterable[str]) -> int:
    """Return the ``format_version`` of a cache whose rows have some dtypes."""
    return 3 if "int8" in dtypes else 2


def values_name(key: CacheKey) -> str:
    """Return the name of the array that has a layer's rows.

    Int8 rows have another name, so that a reader that does not know their scales finds none.
    """
    return _ARRAY_OF[key.codec] + ("_int8" if key.dtype == "int8" else "")


def scales_of(key: CacheKey, side: int) -> int:
    """Return the number of scales of a row; 0 unless it is int8.

    Args:
        key: key of the layer.
        side: number of rows of the square matrix that is compared.
    """
    return side if key.dtype == "int8" else 0


def choose_cache(caches: Sequence[Path], store: FeatureStore) -> Path:
    """Return the latest cache of a store.

    Args:
        caches: paths of all caches, the latest at the end.
        store: features of the run.

    Raises:
        InputError: no cache was built from the store; the message says how to build one.
        StoredDataError: no intact cache was built from the store, and another cache is damaged.
    """
    roots: dict[Path, dict[str, Any]] = {}
    damaged: list[StoredDataError] = []
    for path in caches:
        try:
            roots[path] = open_root(path)
        except InputError:
            continue  # not a cache; the error is raised if the user names it
        except StoredDataError as error:
            damaged.append(error)
    fitting = [p for p, root in roots.items() if root["features"] == store.fingerprint]
    # A cache of an earlier store of this name is returned, too: opening it raises StaleError.
    stale = [p for p, r in roots.items() if r.get("made_from", {}).get("store") == store.name]
    if not fitting and not stale:
        if damaged:  # it may be the cache of this store
            raise damaged[-1]
        raise InputError(
            f"no Gram cache of the store {store.name}: make one with "
            f"`antigram cache-grams` with `ckpt=FILE`, `layers=N` and `data={store.name}`"
        )
    return (fitting or stale)[-1]


def layer_fingerprint(attributes: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """Return the SHA-256 over a layer's attributes and the digests of its arrays.

    Args:
        attributes: attributes of the layer's group; a fingerprint among them is ignored.
        content: SHA-256 of each array, from the manifest.
    """
    described = {key: value for key, value in attributes.items() if key != "fingerprint"}
    return digest({**described, "content": dict(content)})


class CacheLayer:
    """One layer of a cache, read only.

    Args:
        path: path of the cache.
        layer: number of a convolution layer, or name of a module.
        backend: storage of the cache; by default the folder or file at ``path``.

    Raises:
        InputError: the cache does not have this layer.
        StoredDataError: the layer is damaged or incomplete.
    """

    def __init__(self, path: Path, layer: Layer, backend: Backend | None = None) -> None:
        self.path = path
        self._backend = backend
        self.folder = path / layer_name(layer)
        cache = open_backend(path) if backend is None else backend
        if self.folder.name not in inner_groups(cache):
            cached = ", ".join(str(n) for n in _layers(cache)) or "none"
            raise InputError(
                f"{path}: layer {layer} is not cached (cached layers: {cached}). "
                f"Add it with `antigram cache-grams` and `layers={layer}`."
            )
        self.group = cache.below(self.folder.name)
        manifest: Manifest = read_manifest(self.group)
        manifest.check_metadata(self.group, self._repair)
        try:
            stored = json.loads(self.group.get(DOCUMENT))["attributes"]["antigram"]
            complete = stored["complete"]
            self.key = CacheKey.from_json(stored["key"])
            self.channels, self.positions = int(stored["channels"]), int(stored["positions"])
            self.fingerprint = str(stored["fingerprint"])
            self.pilot: Mapping[str, Any] = stored.get("pilot") or {}
            intact = layer_fingerprint(stored, manifest.digests()) == self.fingerprint
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{self.folder}: unreadable ({error}). {self._repair}") from None
        if complete is not True:
            raise DamagedError(f"{self.folder}: not complete. {self._repair}")
        if not intact:
            raise DamagedError(f"{self.folder}: does not match its fingerprint. {self._repair}")

        self._manifest = manifest
        self.scale: MappedArray | None = None  # of int8 rows
        self.values = self._values()

    def array(self, name: str) -> MappedArray:
        """Return an array of the layer.

        Raises:
            DamagedError: the layer does not have the array, or its metadata are damaged.
        """
        if name not in self._manifest.arrays:
            raise DamagedError(f"{self.folder}: no array {name}. {self._repair}")
        return MappedArray(self.group, name, self._manifest.crcs(name), self._repair)

    def _values(self) -> MappedArray:
        """Open the array of rows, after checking the shapes of all arrays against the key."""
        key, codec = self.key, self.key.codec
        if codec not in _ARRAY_OF:
            raise DamagedError(f"{self.folder}: unknown codec {codec!r}. {self._repair}")
        if key.dtype not in ROW_DTYPES or (key.dtype == "int8" and codec == "map"):
            raise DamagedError(f"{self.folder}: unknown dtype {key.dtype!r}. {self._repair}")
        values = self.array(values_name(key))
        axes: tuple[int | None, ...] = (
            (values.shape[0], key.views.count) if key.views else (values.shape[0],)
        )
        if key.grid is not None and key.grid[0] * key.grid[1] != self.positions:
            raise DamagedError(
                f"{self.folder}: {self.positions} positions, its grid has {key.grid}. "
                f"{self._repair}"
            )
        if codec == "lowrank":  # any rank is accepted
            values.require([key.dtype], (*axes, self.side, None))
        else:
            shapes = {
                "packed": (self.side * (self.side + 1) // 2,),
                "factor": (self.channels, self.positions),
                "map": (self.positions,),
            }
            values.require([key.dtype], (*axes, *shapes[codec]))
        for name in ("norm", "row_norm", *(["energy"] if codec == "lowrank" else [])):
            self.array(name).require(["float32"], axes)
        if key.views:
            self.array("views").require(["float32"], (*axes, len(COLUMNS)))
        if count := scales_of(key, self.side):
            self.scale = self.array(SCALE)
            self.scale.require(["float16"], (*axes, count))
        return values

    @property
    def side(self) -> int:
        """Number of rows of the square matrix that is compared: see `matrix_side`."""
        return matrix_side(self.key.aggregation, self.channels, self.positions)

    def check_clips(self, count: int) -> None:
        """Raise if the layer does not have a row for each segment of a store.

        Args:
            count: segments of the store.

        Raises:
            DamagedError: the layer has more or fewer rows.
        """
        if len(self.values) != count:
            raise DamagedError(
                f"{self.folder}: {len(self.values)} rows, the store has {count} clips. "
                f"{self._repair}"
            )

    def check_ids(self, ids: Sequence[str] | None) -> None:
        """Raise if the cache has ids, but not one for each row of the layer.

        Args:
            ids: ids of the cache's segments; None if the cache has none.

        Raises:
            DamagedError: there are more or fewer ids.
        """
        if ids is not None and len(ids) != len(self.values):
            raise DamagedError(
                f"{self.folder}: {len(self.values)} rows, the cache has {len(ids)} ids. "
                f"{self._repair}"
            )

    # Norms take 8 bytes a segment. They are read at once, so that a batch gathers from one memory
    # map instead of three.
    @cached_property
    def norm(self) -> NDArray[np.float32]:
        """``(clip,)`` norm by which each Gram or map was divided before it was stored."""
        return self.array("norm").read()

    @cached_property
    def row_norm(self) -> NDArray[np.float32]:
        """``(clip,)`` norm of the matrix or map that the stored row represents."""
        return self.array("row_norm").read()

    @cached_property
    def energy(self) -> NDArray[np.float32] | None:
        """``(clip,)`` share of ||G||^2 that a ``lowrank`` row keeps; None for other codecs."""
        return self.array("energy").read() if self.key.codec == "lowrank" else None

    @cached_property
    def params(self) -> NDArray[np.float32] | None:
        """``(clip, view, parameter)`` of the augmentation; None without augmentation."""
        return self.array("views").read() if self.key.views else None

    @property
    def views(self) -> int:
        """Number of rows of a segment: the number of its views, or 1."""
        return self.key.views.count if self.key.views else 1

    @classmethod
    def touched(cls, path: Path, layer: Layer, backend: Backend | None = None) -> CacheLayer:
        """Open a layer and `touch` it."""
        opened = cls(path, layer, backend)
        opened.touch()
        return opened

    def __reduce__(self) -> tuple[Callable[..., CacheLayer], tuple[Path, Layer, Backend | None]]:
        """Pickle the path instead of the content; another process opens the layer again."""
        return CacheLayer.touched, (self.path, self.key.layer, self._backend)

    def touch(self) -> None:
        """Read norms, energy and augmentation parameters, which a training needs from the start.

        Raises:
            DamagedError: one of these arrays is damaged.
        """
        _ = self.norm, self.row_norm, self.energy, self.params

    @property
    def _repair(self) -> str:
        return f"See `antigram verify {self.path}`; the same `antigram cache-grams` rebuilds it."

    def describe(self) -> dict[str, Any]:
        """Return fields of ``cache-grams --json``."""
        return {
            "codec": self.key.codec,
            "dtype": self.key.dtype,
            "channels": self.channels,
            "positions": self.positions,
            **({"grid": list(self.key.grid)} if self.key.grid else {}),
            "bytes_per_clip": self._bytes_per_clip,
            "fingerprint": self.fingerprint,
            **({"views": self.views} if self.key.views else {}),
            **self._lowrank(),
        }

    @property
    def _bytes_per_clip(self) -> int:
        scalars = (8 if self.energy is None else 12) * self.views
        params = 0 if self.params is None else self.params[0].nbytes
        scales = 0 if self.scale is None else self.scale.spec.row_bytes
        return self.values.spec.row_bytes + scales + scalars + params

    def _lowrank(self) -> dict[str, Any]:
        """Return rank, energies and errors of the cosine; empty for other codecs."""
        if self.energy is None:
            return {}
        least = max(0.0, float(self.energy.min()) - 6e-8)  # minus the rounding error of float32
        rank = self.values.shape[-1]
        # Int8 values are off by at most 1/254 of the largest of their row of V, and ||V||^2 is at
        # most sqrt(rank), as ||V V^T|| is 1.
        apart = rank**0.75 / 254
        int8 = 2 * apart + apart**2
        rounding = {"float32": 1e-6, "float16": 2e-4, "int8": int8}[self.key.dtype]
        return {
            "rank": rank,
            "energy_least": float(self.energy.min()),
            "energy_mean": float(self.energy.mean(dtype=np.float64)),
            "energy_short": int((self.energy < (self.key.energy or 0.0)).sum()),
            "cosine_error_sample": self.pilot.get("cosine_error"),
            # Exact and stored matrix, both divided by their norms, have a cosine of sqrt(energy).
            # Inner products with a third unit vector differ by no more than their distance.
            "cosine_error_bound": (2 - 2 * least**0.5) ** 0.5 + rounding,
        }
