"""Read a Gram cache: a `GramSource` that takes its rows from disk, at memory-map speed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.key import CacheKey, layer_name
from model.codecs import Rows
from model.resident import bytes_of, on_device
from model.sources import TapSpec
from pipeline.errors import DamagedError, InputError, StaleError, StoredDataError
from pipeline.hdf5 import names_in, read_bytes
from pipeline.manifest import Manifest, read_manifest
from pipeline.mapped import MappedArray
from pipeline.recipe import digest
from pipeline.store import FeatureStore, read_root

__all__ = [
    "ARRAY_OF",
    "FORMAT",
    "VERSION",
    "CacheLayer",
    "GramCache",
    "choose_cache",
    "layer_fingerprint",
    "layers_of",
    "open_root",
]

_CPU = torch.device("cpu")
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
    root = read_root(path, FORMAT, VERSION, "Gram cache")
    read_manifest(path).check_metadata(path, "Build the cache again.")
    if not isinstance(root.get("features"), str):
        raise DamagedError(f"{path}: its attributes lack the features; build it again")
    return root


def layers_of(path: Path) -> list[int]:
    """Layers a cache holds, sorted."""
    if path.is_dir():
        names = [p.name for p in path.glob("layer[0-9][0-9]")]
    else:
        names = [name for name in names_in(path) if re.fullmatch(r"layer\d\d", name)]
    return sorted(int(name.removeprefix("layer")) for name in names)


def choose_cache(caches: Sequence[Path], store: FeatureStore) -> Path:
    """Return the cache of a store that was made last.

    Args:
        caches: all there are, the one made last at the end.
        store: the features of the run.

    Raises:
        InputError: none was made from it; the message says how to make one.
    """
    roots = {}
    for path in caches:
        try:
            roots[path] = open_root(path)
        except (InputError, StoredDataError):
            continue  # named explicitly, it would say what is wrong with it
    fitting = [p for p, root in roots.items() if root["features"] == store.fingerprint]
    # One that was made from an older store of this name: opening it says that it is stale.
    stale = [p for p, r in roots.items() if r.get("made_from", {}).get("store") == store.name]
    if not fitting and not stale:
        raise InputError(
            f"no Gram cache of the store {store.name}: make one with "
            f"`antigram cache-grams --ckpt FILE --layer N --data {store.name}`"
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

    Raises:
        InputError: the cache has not this layer.
        StoredDataError: damaged or incomplete.
    """

    def __init__(self, path: Path, layer: int) -> None:
        self.path = path
        self.folder = path / layer_name(layer)
        if layer not in layers_of(path):
            there = ", ".join(str(n) for n in layers_of(path)) or "none"
            raise InputError(
                f"{path}: layer {layer} is not cached (there: {there}). "
                f"Add it with `antigram cache-grams --layer {layer}`."
            )
        manifest: Manifest = read_manifest(self.folder)
        manifest.check_metadata(self.folder, self._repair)
        try:
            found = json.loads(read_bytes(self.folder / "zarr.json"))["attributes"]["antigram"]
            complete = found["complete"]
            self.key = CacheKey.from_json(found["key"])
            self.channels, self.positions = int(found["channels"]), int(found["positions"])
            self.fingerprint = str(found["fingerprint"])
            self.pilot: Mapping[str, Any] = found.get("pilot") or {}
            whole = layer_fingerprint(found, manifest.digests()) == self.fingerprint
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{self.folder}: unreadable ({error}). {self._repair}") from None
        if complete is not True:
            raise DamagedError(f"{self.folder}: not complete. {self._repair}")
        if not whole:
            raise DamagedError(f"{self.folder}: does not match its fingerprint. {self._repair}")

        def array(name: str) -> MappedArray:
            if name not in manifest.arrays:
                raise DamagedError(f"{self.folder}: no array {name}. {self._repair}")
            return MappedArray(self.folder, name, manifest.crcs(name), self._repair)

        self._array = array
        self.values = array(ARRAY_OF[self.key.codec])
        self.kept: Tensor | None = None  # all values, where a device holds them

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
    def _norms(self) -> dict[torch.device, Tensor]:
        """Both norms side by side, so that a batch gathers them at once; by device."""
        both = np.stack([self.norm.reshape(-1), self.row_norm.reshape(-1)], axis=1)
        return {_CPU: torch.from_numpy(both)}

    @cached_property
    def params(self) -> NDArray[np.float32] | None:
        """(clip, view, number) what was drawn for each view; None if clips are as they are."""
        return self._array("views").read() if self.key.views else None

    @property
    def views(self) -> int:
        """Rows of a clip."""
        return self.key.views.count if self.key.views else 1

    def __getstate__(self) -> dict[str, Any]:
        """Without what is read anew in another process."""
        return {"path": self.path, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["key"].layer)  # type: ignore[misc]
        self.touch()

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

    def take(self, clips: NDArray[np.int64], view: int = 0, *, pin: bool = False) -> Tensor:
        """Values of some clips, as stored, in host memory."""
        of_view = view if self.key.views else None
        if not pin:
            return torch.from_numpy(self.values.take(clips, of_view))
        shape = self.values.shape[1 if of_view is None else 2 :]
        dtype = getattr(torch, self.key.dtype)
        data = torch.empty((len(clips), *shape), dtype=dtype, pin_memory=True)
        self.values.take(clips, of_view, out=data.numpy())
        return data

    def keep_on(self, device: torch.device) -> None:
        """Hold all values on a device; `kept_rows` gathers from them."""
        whole = on_device(self.values, device)
        self.kept = whole.flatten(0, 1) if self.key.views else whole

    def kept_rows(self, places: Tensor) -> Tensor:
        """Values of some rows, where they are kept."""
        if self.kept is None:
            raise RuntimeError("keep_on() was not called")
        return self.kept.index_select(0, places.to(self.kept.device))

    def read(self, clips: NDArray[np.int64], view: int = 0) -> Rows:
        """Rows of some clips, as stored, in host memory."""
        return self.with_energy(self.take(clips, view), self.places(clips, view))

    def places(self, clips: NDArray[np.int64], view: int) -> Tensor:
        """Where the norms of these rows stand: `rows_of` wants it."""
        return torch.from_numpy(clips * self.views + view)

    def with_energy(self, data: Tensor, places: Tensor) -> Rows:
        """As `rows_of`, in host memory, with the energy of a low rank, which the loss needs not."""
        rows = self.rows_of(data, places)
        if self.energy is None:
            return rows
        energy = self.energy.reshape(-1)[places.numpy()]
        return replace(rows, energy=torch.from_numpy(energy))

    def rows_of(self, data: Tensor, places: Tensor) -> Rows:
        """Rows of values that were taken, on their device."""
        if (norms := self._norms.get(data.device)) is None:  # once: 8 bytes a clip stay there
            norms = self._norms[data.device] = self._norms[_CPU].to(data.device)
        norm, row_norm = norms.index_select(0, places).unbind(1)
        return Rows(self.key.codec, data, norm, row_norm)


class _Read(Mapping[int, Rows]):
    """A batch's rows in host memory: values (None if kept on the device), and where norms are."""

    def __init__(
        self,
        layers: Mapping[int, CacheLayer],
        places: Tensor,
        values: Mapping[int, Tensor | None],
    ) -> None:
        self.layers, self.places, self.values_of = layers, places, values

    def __getitem__(self, layer: int) -> Rows:
        values, of_layer = self.values_of[layer], self.layers[layer]
        if values is None:  # they are on the device, or were
            values = of_layer.kept_rows(self.places)
        return of_layer.with_energy(values.cpu(), self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


class GramCache:
    """A `GramSource` that reads a cache.

    Args:
        path: the cache.
        store: the features of the run; the cache must have been made from exactly these.
        layers: layers to read; all of the cache's if None.
        wanted: further fields of the key that the run needs (``tap``, ``aggregation``, ...).

    Raises:
        InputError: no such cache or layer.
        StaleError: made from something else; names the field.
        DamagedError: not as it was written.
    """

    def __init__(
        self,
        path: Path,
        store: FeatureStore,
        layers: Sequence[int] | None = None,
        wanted: Mapping[str, object] | None = None,
    ) -> None:
        self.path = path
        root = open_root(path)
        numbers = layers_of(path) if layers is None else sorted(set(layers))
        if not numbers:
            raise InputError(f"{path}: holds no layer; build one with `antigram cache-grams`")
        self.layers = {number: CacheLayer(path, number) for number in numbers}
        keys = [layer.key for layer in self.layers.values()]
        for number, layer in self.layers.items():
            if layer.key.layer != number:
                raise DamagedError(f"{layer.folder}: holds layer {layer.key.layer}, not {number}")
            layer.touch()
            layer.key.require(str(path), {"features": store.fingerprint, **(wanted or {})})
            alike = ("tap", "aggregation", "arch", "views")
            same = {name: getattr(keys[0], name) for name in alike}
            layer.key.require(str(path), same)
            if len(layer.values) != len(store):
                raise DamagedError(
                    f"{layer.folder}: {len(layer.values)} rows, the store has {len(store)} clips"
                )
        if root["features"] != store.fingerprint:
            raise StaleError(
                f"{path}: its root names other features than its layers; build it again"
            )
        self.spec = TapSpec(
            arch=keys[0].arch,
            layers=tuple(self.layers),
            tap=keys[0].tap,
            aggregation=keys[0].aggregation,
        )
        self.identity: Mapping[str, str] = {
            str(n): layer.fingerprint for n, layer in self.layers.items()
        }
        self.views = keys[0].views
        self.stored_bytes = sum(bytes_of(layer.values) for layer in self.layers.values())
        self._pin = torch.cuda.is_available()

    def keep_on(self, device: torch.device) -> None:
        """Hold all values on a device: see `GramSource`."""
        for layer in self.layers.values():
            layer.keep_on(device)

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """What was drawn for the clips' views of an epoch, when the cache was made."""
        stored = next(iter(self.layers.values())).params
        return None if stored is None else stored[clips, self._view(epoch)]

    def _view(self, epoch: int) -> int:
        return self.views.of_epoch(max(epoch, 1)) if self.views else 0

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[int, Rows]:
        """Values from disk: see `GramSource`."""
        view = self._view(epoch)
        values = {
            n: None if layer.kept is not None else layer.take(clips, view, pin=self._pin)
            for n, layer in self.layers.items()
        }
        places = next(iter(self.layers.values())).places(clips, view)
        return _Read(self.layers, places.pin_memory() if self._pin else places, values)

    def rows(self, read: Mapping[int, Rows], x: Tensor) -> Mapping[int, Rows]:
        """The same as rows on the device: see `GramSource`."""
        if not isinstance(read, _Read):
            raise TypeError(f"rows: wanted what read() gave, got {type(read)}")
        places = read.places.to(x.device, non_blocking=True)
        return {
            n: self.layers[n].rows_of(
                self.layers[n].kept_rows(places)
                if data is None
                else data.to(x.device, non_blocking=True),
                places,
            )
            for n, data in read.values_of.items()
        }
