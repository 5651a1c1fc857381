"""Read a Gram cache: a `GramSource` that takes its rows from disk, at memory-map speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.model.loss.codecs import Rows
from antigram.model.loss.sources import TapSpec
from antigram.model.training.resident import bytes_of, on_device
from antigram.pipeline.errors import DamagedError, InputError, StaleError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.mapped import MappedArray

__all__ = ["GramCache", "LayerRows"]


class LayerRows:
    """Rows of one layer as tensors, on the host or where they are kept.

    Args:
        layer: as it lies on disk.
    """

    def __init__(self, layer: CacheLayer) -> None:
        self.layer = layer
        self.kept: Tensor | None = None  # all values, where a device holds them
        self._norms: dict[torch.device, Tensor] = {}  # both norms side by side, by device

    def __reduce__(self) -> tuple[type[LayerRows], tuple[CacheLayer]]:
        """Tensors are read anew in another process."""
        return LayerRows, (self.layer,)

    def take(self, clips: NDArray[np.int64], view: int = 0, *, pin: bool = False) -> Tensor:
        """Values of some clips, as stored, in host memory."""
        values, key = self.layer.values, self.layer.key
        of_view = view if key.views else None
        if not pin:
            return torch.from_numpy(values.take(clips, of_view))
        shape = values.shape[1 if of_view is None else 2 :]
        data = torch.empty((len(clips), *shape), dtype=getattr(torch, key.dtype), pin_memory=True)
        values.take(clips, of_view, out=data.numpy())
        return data

    def keep_on(self, device: torch.device) -> None:
        """Hold all values on a device; `kept_rows` gathers from them."""
        whole = on_device(self.layer.values, device)
        self.kept = whole.flatten(0, 1) if self.layer.key.views else whole

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
        return torch.from_numpy(clips * self.layer.views + view)

    def with_energy(self, data: Tensor, places: Tensor) -> Rows:
        """As `rows_of`, in host memory, with the energy of a low rank, which the loss needs not."""
        rows = self.rows_of(data, places)
        if self.layer.energy is None:
            return rows
        energy = self.layer.energy.reshape(-1)[places.numpy()]
        return replace(rows, energy=torch.from_numpy(energy))

    def rows_of(self, data: Tensor, places: Tensor) -> Rows:
        """Rows of values that were taken, on their device."""
        norm, row_norm = self._norms_on(data.device).index_select(0, places).unbind(1)
        return Rows(self.layer.key.codec, data, norm, row_norm)

    def _norms_on(self, device: torch.device) -> Tensor:
        """(row, 2) both norms of every row, so that a batch gathers them at once.

        8 bytes a row: copied to a device once, and kept there.
        """
        if (norms := self._norms.get(device)) is None:
            both = (self.layer.norm.reshape(-1), self.layer.row_norm.reshape(-1))
            norms = torch.from_numpy(np.stack(both, axis=1)).to(device)
            self._norms[device] = norms
        return norms


class _Read(Mapping[int, Rows]):
    """A batch's rows in host memory: values (None if kept on the device), and where norms are."""

    def __init__(
        self,
        layers: Mapping[int, LayerRows],
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
        device: where its rows are used: for a GPU they are read into pinned memory.

    Raises:
        InputError: no such cache or layer.
        StaleError: made from something else; names the field.
        DamagedError: not as it was written.
    """

    def __init__(
        self,
        path: str | Path,
        store: FeatureStore,
        layers: Sequence[int] | None = None,
        wanted: Mapping[str, object] | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.path = path = Path(path)
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
            layer.check_clips(len(store))
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
        self._rows = {n: LayerRows(layer) for n, layer in self.layers.items()}
        self.stored_bytes = sum(bytes_of(layer.values) for layer in self.layers.values())
        self._pin = device is not None and device.type == "cuda"

    @property
    def arrays(self) -> tuple[MappedArray, ...]:
        """What rows are read from: see `GramSource`; norms are in memory."""
        return tuple(layer.values for layer in self.layers.values())

    def keep_on(self, device: torch.device) -> None:
        """Hold all values on a device: see `GramSource`."""
        for rows in self._rows.values():
            rows.keep_on(device)

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
            n: None if rows.kept is not None else rows.take(clips, view, pin=self._pin)
            for n, rows in self._rows.items()
        }
        places = next(iter(self._rows.values())).places(clips, view)
        return _Read(self._rows, places.pin_memory() if self._pin else places, values)

    def rows(self, read: Mapping[int, Rows], x: Tensor) -> Mapping[int, Rows]:
        """The same as rows on the device: see `GramSource`."""
        if not isinstance(read, _Read):
            raise TypeError(f"rows: wanted what read() gave, got {type(read)}")
        places = read.places.to(x.device, non_blocking=True)
        return {
            n: self._rows[n].rows_of(
                self._rows[n].kept_rows(places)
                if data is None
                else data.to(x.device, non_blocking=True),
                places,
            )
            for n, data in read.values_of.items()
        }
