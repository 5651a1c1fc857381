"""Read a cache, through memory maps: by the ids of segments, or as a `GramSource`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.cache.ids import read_ids
from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.model.choices import Layer, layer_order
from antigram.model.loss.codecs import Rows, inverse_square
from antigram.model.loss.sources import TapSpec
from antigram.model.training.resident import bytes_of, on_device
from antigram.pipeline.errors import DamagedError, InputError, StaleError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.text_index import TextIndex

__all__ = ["GramCache", "LayerRows"]


Taken = tuple[Tensor, ...]  # values of some rows as stored, and their scales if they are int8


class LayerRows:
    """Rows of one layer as tensors, read from disk or gathered from a device.

    Args:
        layer: layer on disk.
    """

    def __init__(self, layer: CacheLayer) -> None:
        self.layer = layer
        self.arrays = tuple(a for a in (layer.values, layer.scale) if a is not None)
        self.kept: Taken | None = None  # all values, on the device of `keep_on`
        self._norms: dict[torch.device, Tensor] = {}  # norms (row, 2), by device

    def __reduce__(self) -> tuple[type[LayerRows], tuple[CacheLayer]]:
        """Pickle the layer alone; another process reads the tensors again."""
        return LayerRows, (self.layer,)

    def take(self, clips: NDArray[np.int64], view: int = 0, *, pin: bool = False) -> Taken:
        """Read the values of some segments, as stored, into host memory.

        Args:
            clips: indices into the store.
            view: number of the view, from 0; ignored if the layer has no views.
            pin: whether to read into pinned memory.
        """
        of_view = view if self.layer.key.views else None
        return tuple(_taken(array, clips, of_view, pin=pin) for array in self.arrays)

    def keep_on(self, device: torch.device) -> None:
        """Copy all values to a device; `kept_rows` gathers from them."""
        kept = (on_device(array, device) for array in self.arrays)
        self.kept = tuple(t.flatten(0, 1) if self.layer.key.views else t for t in kept)

    def kept_rows(self, indices: Tensor) -> Taken:
        """Return the values of some rows on the device of `keep_on`; see `row_indices`."""
        if self.kept is None:
            raise RuntimeError("keep_on() was not called")
        return tuple(kept.index_select(0, indices.to(kept.device)) for kept in self.kept)

    def read(self, clips: NDArray[np.int64], view: int = 0) -> Rows:
        """Read the rows of some segments into host memory; int8 rows as float32."""
        return self.with_energy(self.take(clips, view), self.row_indices(clips, view))

    def row_indices(self, clips: NDArray[np.int64], view: int) -> Tensor:
        """Return ``(row,)`` indices of a view's rows among the rows of all segments and views."""
        return torch.from_numpy(clips * self.layer.views + view)

    def with_energy(self, taken: Taken, indices: Tensor) -> Rows:
        """Return rows as `rows_of` does, in host memory, with the energy of ``lowrank`` rows."""
        rows = self.rows_of(taken, indices)
        if self.layer.energy is None:
            return rows
        energy = self.layer.energy.reshape(-1)[indices.numpy()]
        return replace(rows, energy=torch.from_numpy(energy))

    def rows_of(self, taken: Taken, indices: Tensor) -> Rows:
        """Return values together with their norms, on the device of the values.

        Int8 values are widened there, so that no more than one byte of each goes to the device.

        Args:
            taken: values of the rows, and their scales if they are int8.
            indices: indices of the rows, from `row_indices`, on the same device.
        """
        data, *scale = taken
        norm, row_norm, inverse = self._norms_on(data.device).index_select(1, indices).unbind()
        key = self.layer.key
        rows = Rows(key.codec, data, norm, row_norm, grid=key.grid, inverse=inverse)
        return replace(rows, scale=scale[0]).widened() if scale else rows

    def _norms_on(self, device: torch.device) -> Tensor:
        """Return ``(3, row)``: both norms of every row, and one over the square of the second.

        A batch gathers them at once. They take 12 bytes a row, are copied to a device once and stay
        on it.
        """
        if (norms := self._norms.get(device)) is None:
            pair = (self.layer.norm.reshape(-1), self.layer.row_norm.reshape(-1))
            norm, row_norm = map(torch.from_numpy, pair)
            norms = torch.stack([norm, row_norm, inverse_square(row_norm)]).to(device)
            self._norms[device] = norms
        return norms


class _Read(Mapping[Layer, Rows]):
    """Rows of a batch in host memory, by layer, as `GramCache.read` returns them.

    Args:
        layers: rows of each layer.
        indices: indices of the batch's rows, from `LayerRows.row_indices`.
        values: what `LayerRows.take` returned; None for layers that are kept on the device.
    """

    def __init__(
        self,
        layers: Mapping[Layer, LayerRows],
        indices: Tensor,
        values: Mapping[Layer, Taken | None],
    ) -> None:
        self.layers, self.indices, self.values_of = layers, indices, values

    def __getitem__(self, layer: Layer) -> Rows:
        values, of_layer = self.values_of[layer], self.layers[layer]
        if values is None:
            values = of_layer.kept_rows(self.indices)
        return of_layer.with_energy(tuple(t.cpu() for t in values), self.indices)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


class GramCache:
    """A cache of a teacher's rows, opened for reading: by segment ids, or as a `GramSource`.

    It can be pickled, so that another process reads the same files.

    Args:
        path: path of the cache.
        store: feature store that the cache must have been built from. Without it, rows are found
            by the ids that the cache holds. A cache that holds none, as earlier versions wrote it,
            needs its store: the one given here, or one in the folder ``features`` beside the
            cache's folder.
        layers: layers to read; by default all layers of the cache.
        wanted: field of the key (``tap``, ``aggregation``, ...) -> value that the run needs.
        device: device that the rows are used on; for a GPU they are read into pinned memory.

    Attributes:
        path: path of the cache.
        layers: number of a layer -> the layer on disk.
        spec: where and how the teacher is compared.

    Raises:
        InputError: there is no such cache or layer, or the cache holds no ids and its store is
            neither given nor beside it.
        StaleError: a field of the cache's key has another value; the message names the field.
        DamagedError: the cache is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        store: FeatureStore | None = None,
        layers: Sequence[Layer] | None = None,
        wanted: Mapping[str, object] | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.path = path = Path(path)
        root = open_root(path)
        numbers = layers_of(path) if layers is None else sorted(set(layers), key=layer_order)
        if not numbers:
            raise InputError(f"{path}: holds no layer; build one with `antigram cache-grams`")
        ids = read_ids(open_backend(path), path) if store is None else None
        if store is None and ids is None:
            store = _store_beside(path, root["features"])
        self._ids, self._store = ids, store
        features = root["features"] if store is None else store.fingerprint
        self.layers = {number: CacheLayer(path, number) for number in numbers}
        keys = [layer.key for layer in self.layers.values()]
        for number, layer in self.layers.items():
            if layer.key.layer != number:
                raise DamagedError(f"{layer.folder}: holds layer {layer.key.layer}, not {number}")
            layer.touch()
            layer.key.require(str(path), {"features": features, **(wanted or {})})
            shared = ("tap", "aggregation", "arch", "views")  # fields that all layers have alike
            layer.key.require(str(path), {name: getattr(keys[0], name) for name in shared})
            layer.check_ids(ids)
            if store is not None:
                layer.check_clips(len(store))
        if root["features"] != features:
            raise StaleError(
                f"{path}: its root names other features than its layers; rebuild the cache"
            )
        self.spec = TapSpec(
            arch=keys[0].arch,
            layers=tuple(self.layers),
            tap=keys[0].tap,
            aggregation=keys[0].aggregation,
            grids={key.layer: key.grid for key in keys if key.grid is not None},
            shapes={n: (layer.channels, layer.positions) for n, layer in self.layers.items()},
        )
        self.views = keys[0].views
        self._rows = {n: LayerRows(layer) for n, layer in self.layers.items()}
        self.stored_bytes = self._bytes()
        self._pin = device is not None and device.type == "cuda"

    def _bytes(self) -> int:
        return sum(bytes_of(array) for array in self.arrays)

    def __len__(self) -> int:
        """Number of segments."""
        return len(next(iter(self.layers.values())).values)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the index of ids, which is made again when it is first used."""
        return {name: value for name, value in vars(self).items() if name != "_row_of"}

    @property
    def identity(self) -> Mapping[str, str]:
        """Fingerprint of each layer: see `GramSource`."""
        return {str(n): layer.fingerprint for n, layer in self.layers.items()}

    @property
    def clip_ids(self) -> Sequence[str]:
        """Ids of the segments, in the order of the rows; a slice is a list."""
        return self._ids if self._ids is not None else self._opened_store.clip_ids

    @property
    def _opened_store(self) -> FeatureStore:
        if self._store is None:
            raise RuntimeError("a cache without ids was opened without its store")
        return self._store

    @cached_property
    def _row_of(self) -> TextIndex:
        return TextIndex(self.clip_ids)

    def indices(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of some segments.

        Args:
            clip_ids: ids of segments, in any order, each any number of times.

        Returns:
            ``(segment,)`` int64.

        Raises:
            InputError: the cache has no segment with one of the ids.
        """
        rows = self._row_of.rows(clip_ids)
        if (rows < 0).any():
            ids, missing = self.clip_ids, clip_ids[int((rows < 0).argmax())]
            raise InputError(
                f"{self.path}: no segment {missing!r} among its {len(ids)} "
                f"segments; wanted ids as it was built with, such as {ids[0]!r}"
            )
        return rows

    def with_layers(self, layers: Sequence[Layer]) -> GramCache:
        """Return this cache with some of its layers alone; nothing is opened again.

        Raises:
            InputError: the cache was not opened with one of the layers.
        """
        if missing := [layer for layer in layers if layer not in self.layers]:
            opened = ", ".join(map(str, self.layers))
            raise InputError(f"{self.path}: no layer {missing[0]}; it has {opened}")
        chosen = copy.copy(self)
        chosen.layers = {n: layer for n, layer in self.layers.items() if n in layers}
        chosen._rows = {n: rows for n, rows in self._rows.items() if n in layers}
        grids = {n: grid for n, grid in self.spec.grids.items() if n in layers}
        chosen.spec = replace(self.spec, layers=tuple(chosen.layers), grids=grids)
        chosen.stored_bytes = chosen._bytes()
        return chosen

    @property
    def arrays(self) -> tuple[MappedArray, ...]:
        """Arrays that rows are read from: see `GramSource`. Norms are in memory."""
        return tuple(array for rows in self._rows.values() for array in rows.arrays)

    def keep_on(self, device: torch.device) -> None:
        """Copy all values to a device: see `GramSource`."""
        for rows in self._rows.values():
            rows.keep_on(device)

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return the parameters of the augmented views used in an epoch: see `GramSource`."""
        stored = next(iter(self.layers.values())).params
        return None if stored is None else stored[clips, self._view(epoch)]

    def _view(self, epoch: int) -> int:
        return self.views.of_epoch(max(epoch, 1)) if self.views else 0

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[Layer, Rows]:
        """Read values from disk: see `GramSource`."""
        view = self._view(epoch)
        values = {
            n: None if rows.kept is not None else rows.take(clips, view, pin=self._pin)
            for n, rows in self._rows.items()
        }
        indices = next(iter(self._rows.values())).row_indices(clips, view)
        return _Read(self._rows, indices.pin_memory() if self._pin else indices, values)

    @overload
    def rows(self, read: Layer, x: Sequence[str]) -> Rows: ...

    @overload
    def rows(self, read: Mapping[Layer, Rows], x: Tensor) -> Mapping[Layer, Rows]: ...

    def rows(
        self, read: Layer | Mapping[Layer, Rows], x: Sequence[str] | Tensor
    ) -> Rows | Mapping[Layer, Rows]:
        """Return the rows of segments: ``rows(layer, clip_ids)``.

        ``rows(read, x)`` is that of `GramSource`.

        Args:
            read: number or name of a layer; or the result of `read`.
            x: ids of segments, in any order; or the features of the batch that was read.

        Returns:
            Rows of the layer in host memory, of the first view if the segments were augmented; or
            the rows of each layer, on the device of the features.

        Raises:
            InputError: the cache has no such layer, or no segment with one of the ids.
        """
        if isinstance(read, int | str):
            if isinstance(x, Tensor):
                raise TypeError("rows: wanted the ids of segments")
            of_layer = self.with_layers([read])
            return of_layer._rows[read].read(self.indices(x))
        if not isinstance(read, _Read) or not isinstance(x, Tensor):
            raise TypeError(f"rows: wanted the result of read(), got {type(read)}")
        indices = read.indices.to(x.device, non_blocking=True)
        return {
            n: self._rows[n].rows_of(
                self._rows[n].kept_rows(indices)
                if taken is None
                else tuple(t.to(x.device, non_blocking=True) for t in taken),
                indices,
            )
            for n, taken in read.values_of.items()
        }


def _taken(array: MappedArray, clips: NDArray[np.int64], view: int | None, *, pin: bool) -> Tensor:
    """Read rows of an array as a tensor, into pinned memory if ``pin`` is set."""
    if not pin:
        return torch.from_numpy(array.take(clips, view))
    shape = array.shape[1 if view is None else 2 :]
    dtype = getattr(torch, array.spec.dtype)
    data = torch.empty((len(clips), *shape), dtype=dtype, pin_memory=True)
    array.take(clips, view, out=data.numpy())
    return data


def _store_beside(path: Path, fingerprint: str) -> FeatureStore:
    """Open the store of a cache without ids, in the folder ``features`` beside the cache's folder.

    Raises:
        InputError: no store there has the fingerprint.
    """
    for candidate in sorted((path.absolute().parent.parent / "features").glob("[!.]*.zarr")):
        with suppress(InputError, StoredDataError):  # a damaged one is none that can be used
            if (store := FeatureStore(candidate)).fingerprint == fingerprint:
                return store
    raise InputError(
        f"{path}: was built without the ids of its segments, and its feature store is not in the "
        "folder features beside it. Give the store that it was built from, or build it again"
    )
