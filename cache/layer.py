"""What a cache holds: its root and its layers, read from disk with numpy alone.

Nothing here imports torch, so that `status` and `verify` answer at once; `cache.grams` makes
tensors of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.cache.key import CacheKey, layer_name
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
    "ARRAY_OF",
    "FORMAT",
    "VERSION",
    "CacheLayer",
    "choose_cache",
    "layer_fingerprint",
    "layers_of",
    "open_root",
]

FORMAT = "antigram/grams"
VERSION = 1
# codec -> the array that holds its rows
ARRAY_OF = {"packed": "gram", "factor": "factor", "lowrank": "vectors", "map": "map"}


def open_root(path: Path) -> dict[str, Any]:
    """Attribute ``antigram`` of a cache.

    Raises:
        InputError: there is no cache.
        StoredDataError: damaged, or of a newer version.
    """
    group = open_backend(path)
    root = read_root(group, FORMAT, VERSION, "Gram cache")
    read_manifest(group).check_metadata(group, "Build the cache again.")
    if not isinstance(root.get("features"), str):
        raise DamagedError(f"{path}: its attributes lack the features; build it again")
    return root


def layers_of(path: Path) -> list[int]:
    """Layers a cache holds, sorted."""
    return _numbers(open_backend(path))


def _numbers(cache: Backend) -> list[int]:
    return [int(name.removeprefix("layer")) for name in inner_groups(cache)]


def choose_cache(caches: Sequence[Path], store: FeatureStore) -> Path:
    """Return the cache of a store that was made last.

    Args:
        caches: all there are, the one made last at the end.
        store: the features of the run.

    Raises:
        InputError: none was made from it; the message says how to make one.
        StoredDataError: none that opens was, and another is damaged.
    """
    roots: dict[Path, dict[str, Any]] = {}
    damaged: list[StoredDataError] = []
    for path in caches:
        try:
            roots[path] = open_root(path)
        except InputError:
            continue  # named explicitly, it would say what is wrong with it
        except StoredDataError as error:
            damaged.append(error)
    fitting = [p for p, root in roots.items() if root["features"] == store.fingerprint]
    # One that was made from an older store of this name: opening it says that it is stale.
    stale = [p for p, r in roots.items() if r.get("made_from", {}).get("store") == store.name]
    if not fitting and not stale:
        if damaged:  # which may be the one of this store
            raise damaged[-1]
        raise InputError(
            f"no Gram cache of the store {store.name}: make one with "
            f"`antigram cache-grams` with `ckpt=FILE`, `layers=N` and `data={store.name}`"
        )
    return (fitting or stale)[-1]


def layer_fingerprint(attributes: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """SHA-256 over what a layer is and the digests of its arrays.

    Args:
        attributes: of the layer's group; the fingerprint itself is left out.
        content: array -> SHA-256, as the manifest has them.
    """
    rest = {key: value for key, value in attributes.items() if key != "fingerprint"}
    return digest({**rest, "content": dict(content)})


class CacheLayer:
    """One layer of a cache, read only.

    Args:
        path: the cache.
        layer: number of the convolution layer.
        backend: that the cache lies in, if not in that folder or file.

    Raises:
        InputError: the cache has not this layer.
        StoredDataError: damaged or incomplete.
    """

    def __init__(self, path: Path, layer: int, backend: Backend | None = None) -> None:
        self.path = path
        self._backend = backend
        self.folder = path / layer_name(layer)
        cache = open_backend(path) if backend is None else backend
        if self.folder.name not in inner_groups(cache):
            there = ", ".join(str(n) for n in _numbers(cache)) or "none"
            raise InputError(
                f"{path}: layer {layer} is not cached (there: {there}). "
                f"Add it with `antigram cache-grams` and `layers={layer}`."
            )
        self.group = cache.below(self.folder.name)
        manifest: Manifest = read_manifest(self.group)
        manifest.check_metadata(self.group, self._repair)
        try:
            found = json.loads(self.group.get(DOCUMENT))["attributes"]["antigram"]
            complete = found["complete"]
            self.key = CacheKey.from_json(found["key"])
            self.channels, self.positions = int(found["channels"]), int(found["positions"])
            self.fingerprint = str(found["fingerprint"])
            self.pilot: Mapping[str, Any] = found.get("pilot") or {}
            whole = layer_fingerprint(found, manifest.digests()) == self.fingerprint
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{self.folder}: unreadable ({error}). {self._repair}") from None
        if complete is not True:
            raise DamagedError(f"{self.folder}: not complete. {self._repair}")
        if not whole:
            raise DamagedError(f"{self.folder}: does not match its fingerprint. {self._repair}")

        def array(name: str) -> MappedArray:
            if name not in manifest.arrays:
                raise DamagedError(f"{self.folder}: no array {name}. {self._repair}")
            return MappedArray(self.group, name, manifest.crcs(name), self._repair)

        self._array = array
        self.values = self._values()

    def _values(self) -> MappedArray:
        """The rows; all arrays of the layer are held against what its key says of them."""
        key, codec = self.key, self.key.codec
        if codec not in ARRAY_OF:
            raise DamagedError(f"{self.folder}: unknown codec {codec!r}. {self._repair}")
        values = self._array(ARRAY_OF[codec])
        axes: tuple[int | None, ...] = (
            (values.shape[0], key.views.count) if key.views else (values.shape[0],)
        )
        if codec == "lowrank":  # its rank stands nowhere else
            values.require([key.dtype], (*axes, self.channels, None))
        else:
            shapes = {
                "packed": (self.channels * (self.channels + 1) // 2,),
                "factor": (self.channels, self.positions),
                "map": (self.positions,),
            }
            values.require([key.dtype], (*axes, *shapes[codec]))
        for name in ("norm", "row_norm", *(["energy"] if codec == "lowrank" else [])):
            self._array(name).require(["float32"], axes)
        if key.views:
            self._array("views").require(["float32"], (*axes, len(COLUMNS)))
        return values

    def check_clips(self, count: int) -> None:
        """Refuse a layer of other clips than a store has.

        Raises:
            DamagedError: it has more or fewer.
        """
        if len(self.values) != count:
            raise DamagedError(
                f"{self.folder}: {len(self.values)} rows, the store has {count} clips. "
                f"{self._repair}"
            )

    # 8 bytes a clip: read at once, so that a batch gathers from one map and not from three.
    @cached_property
    def norm(self) -> NDArray[np.float32]:
        """(clip,) ||G|| before it was divided by it."""
        return self._array("norm").read()

    @cached_property
    def row_norm(self) -> NDArray[np.float32]:
        """(clip,) norm of what the stored row stands for."""
        return self._array("row_norm").read()

    @cached_property
    def energy(self) -> NDArray[np.float32] | None:
        """(clip,) share of ||G||^2 that a low rank keeps; None for other codecs."""
        return self._array("energy").read() if self.key.codec == "lowrank" else None

    @cached_property
    def params(self) -> NDArray[np.float32] | None:
        """(clip, view, number) what was drawn for each view; None if clips are as they are."""
        return self._array("views").read() if self.key.views else None

    @property
    def views(self) -> int:
        """Rows of a clip."""
        return self.key.views.count if self.key.views else 1

    @classmethod
    def touched(cls, path: Path, layer: int, backend: Backend | None = None) -> CacheLayer:
        """Open a layer and `touch` it."""
        opened = cls(path, layer, backend)
        opened.touch()
        return opened

    def __reduce__(self) -> tuple[Callable[..., CacheLayer], tuple[Path, int, Backend | None]]:
        """Opened anew in another process."""
        return CacheLayer.touched, (self.path, self.key.layer, self._backend)

    def touch(self) -> None:
        """Read the norms, which a training needs from the beginning.

        Raises:
            DamagedError: they are not as they were written.
        """
        _ = self.norm, self.row_norm, self.energy, self.params

    @property
    def _repair(self) -> str:
        return f"See `antigram verify {self.path}`; the same `antigram cache-grams` makes it again."

    def describe(self) -> dict[str, Any]:
        """Fields of ``cache-grams --json``."""
        return {
            "codec": self.key.codec,
            "dtype": self.key.dtype,
            "channels": self.channels,
            "positions": self.positions,
            "bytes_per_clip": self._bytes_per_clip,
            "fingerprint": self.fingerprint,
            **({"views": self.views} if self.key.views else {}),
            **self._lowrank(),
        }

    @property
    def _bytes_per_clip(self) -> int:
        beside = (8 if self.energy is None else 12) * self.views
        drawn = 0 if self.params is None else self.params[0].nbytes
        return self.values.spec.row_bytes + beside + drawn

    def _lowrank(self) -> dict[str, Any]:
        """What a low rank costs: asked and kept energy, and the errors that this means."""
        if self.energy is None:
            return {}
        least = max(0.0, float(self.energy.min()) - 6e-8)  # float32 rounds
        rounding = 2e-4 if self.key.dtype == "float16" else 1e-6
        return {
            "rank": self.values.shape[-1],
            "energy_least": float(self.energy.min()),
            "energy_mean": float(self.energy.mean(dtype=np.float64)),
            "energy_short": int((self.energy < (self.key.energy or 0.0)).sum()),
            "cosine_error_sample": self.pilot.get("cosine_error"),
            # Of two unit vectors whose cosine is sqrt(energy), inner products with a third differ
            # by no more than their distance.
            "cosine_error_bound": (2 - 2 * least**0.5) ** 0.5 + rounding,
        }
