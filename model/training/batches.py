"""Batches of a feature store, which a thread loads ahead of the training."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.loss.sources import GramSource, Sources, TeacherRows
from antigram.model.training.resident import bytes_of, on_device
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.execution.memory import available_memory
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Batch", "Batches"]

_AHEAD = 3  # batches that are loaded ahead
_EXPECTED = 2  # batches that the system reads ahead of these


@dataclass(frozen=True, slots=True)
class Batch:
    """Some segments of a store, on the device of the network.

    Attributes:
        clips: ``(batch,)`` indices of the segments in the store, in host memory.
        x: ``(batch, 1, frame, freq)`` float32 features.
        y: ``(batch,)`` int64 classes.
        read: result of `GramSource.read` for these segments, in host memory.
        weight: factor of the loss, such that the mean over the ranks is the mean over the segments
            of all ranks; 0 if this rank's share of the batch is empty, and the segments only fill
            in for it.
        rows: rows of the teachers, on the device. A step takes them from here, so a batch serves
            one step. None if any teacher is live; the step then asks the sources for rows.
        domains: ``(batch,)`` int64 domains, -1 for none; None in modes without a second label.
    """

    clips: NDArray[np.int64]
    x: Tensor
    y: Tensor
    read: Any
    weight: float = 1.0
    rows: TeacherRows | None = None
    domains: Tensor | None = None


class _Loaded(NamedTuple):
    """A batch in host memory; ``x`` has indices instead if the device holds the features."""

    clips: NDArray[np.int64]
    x: Tensor
    y: Tensor
    read: Any
    weight: float
    domains: Tensor | None


def _pinned(values: NDArray[np.int64], pin: bool) -> Tensor:  # noqa: FBT001
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if pin else tensor


class Batches:
    """Loads the batches of a pass over some segments, and measures the waits for them.

    Args:
        store: features and labels.
        task: label to predict.
        grams: source of the teachers' rows; None without AT.
        batch_clips: segments in a batch; the last batch may have fewer.
        device: device of the network.
        labels: ``(segment,)`` int32 classes, as indices into the network's outputs, -1 for none;
            by default the store's labels.
        rescale: factor and shift of the features, for a network trained on another store.
        views: augmentation of training segments, if ``grams`` has no views of its own.
        domains: ``(segment,)`` int32 classes of a second label, -1 for none, if a loss needs them.
        device_memory: bytes of device memory that data may take. Features and rows are kept there
            only if all of them fit, and are neither augmented nor rescaled.
        rank: number of this process, from 0, among the processes that share each batch.
        ranks: number of the processes that share each batch.
    """

    def __init__(
        self,
        store: FeatureStore,
        task: str,
        grams: GramSource | Sources | None,
        batch_clips: int,
        device: torch.device,
        *,
        labels: NDArray[np.int32] | None = None,
        rescale: tuple[float, float] = (1.0, 0.0),
        views: Views | None = None,
        domains: NDArray[np.int32] | None = None,
        device_memory: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rank, self.ranks = rank, ranks
        self.store = store
        self.labels = store.labels(task) if labels is None else labels
        self.domains = domains
        self.rescale = rescale
        self.grams, self.views = grams, views
        self.batch_clips = batch_clips
        self.device = device
        self.wait_s = 0.0
        self._again = False  # whether memory is too small to keep what was read
        self._copy_stream: torch.cuda.Stream | None = None
        self.data_bytes = bytes_of(store.features) + (grams.stored_bytes if grams else 0)
        fixed = views is None and (grams is None or grams.views is None)
        self.resident = fixed and rescale == (1.0, 0.0) and self.data_bytes <= device_memory
        if self.resident:
            self._features = on_device(store.features, device)
            if grams is not None:
                grams.keep_on(device)

    def _load(self, of_all_ranks: NDArray[np.int64], epoch: int) -> _Loaded:
        clips = of_all_ranks[self.rank :: self.ranks]
        weight = len(clips) * self.ranks / len(of_all_ranks)
        if not len(clips):
            clips = of_all_ranks[:1]  # every rank takes part in every step
        # Small tensors are pinned, too: a copy from other memory waits for the copies before it.
        pin = self.device.type == "cuda"
        y = _pinned(self.labels[clips].astype(np.int64), pin)
        domains = None
        if self.domains is not None:
            domains = _pinned(self.domains[clips].astype(np.int64), pin)
        if self.resident:
            x = _pinned(clips, pin)
            return _Loaded(clips, x, y, self._read(clips, epoch), weight, domains)
        x = torch.empty((len(clips), 1, *self.store.shape), pin_memory=pin)
        self.store.features.gather(clips, x.numpy()[:, 0])
        if self.rescale != (1.0, 0.0):
            scale, shift = self.rescale
            x.mul_(scale).add_(shift)
        if (params := self._params(clips, epoch)) is not None:
            apply_views(x.numpy()[:, 0], params, self.store.levels)
        return _Loaded(clips, x, y, self._read(clips, epoch), weight, domains)

    def _expect(self, of_all_ranks: NDArray[np.int64], epoch: int) -> None:
        """Have the system read later batches, if they were not read or memory cannot keep them."""
        if self.resident:
            return
        clips = of_all_ranks[self.rank :: self.ranks]
        self.store.features.expect(clips, again=self._again)
        if self.grams is not None:
            views = self.grams.views
            view = None if views is None else views.of_epoch(max(epoch, 1))
            for array in self.grams.arrays:
                array.expect(clips, view, again=self._again)

    def _read(self, clips: NDArray[np.int64], epoch: int) -> Any:  # noqa: ANN401 - differs by source
        return self.grams.read(clips, epoch) if self.grams else {}

    def _params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return augmentation parameters for an epoch, stored with the Grams or drawn."""
        if self.grams is not None and self.grams.views is not None:
            return self.grams.params(clips, epoch)
        if self.views is None or epoch == 0:
            return None
        ids = [self.store.clip_ids[i] for i in clips.tolist()]
        return self.views.params(ids, self.views.of_epoch(epoch), self.store.shape)

    def passes(self, rows: NDArray[np.int64], epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of a pass.

        Args:
            rows: ``(segment,)`` indices into the store, in the order of the pass.
            epoch: counted from 1; decides the augmentation. 0 outside training: no augmentation.
        """
        self.wait_s = 0.0
        self._again = 0 < available_memory() < self.data_bytes
        moved = self._ahead(rows, epoch)
        if self.device.type == "cuda":
            yield from self._move_ahead(moved)
        else:
            yield from map(self._move, moved)

    def _move(self, loaded: _Loaded) -> Batch:
        x = loaded.x.to(self.device, non_blocking=True)
        if self.resident:
            x = self._features.index_select(0, x).float()[:, None]
        y = loaded.y.to(self.device, non_blocking=True)
        domains = loaded.domains
        if domains is not None:
            domains = domains.to(self.device, non_blocking=True)
        rows = None
        if isinstance(self.grams, Sources) and self.grams.stored:
            rows = self.grams.batch_rows(loaded.read, x)
        return Batch(loaded.clips, x, y, loaded.read, loaded.weight, rows, domains)

    def _move_ahead(self, loaded: Iterator[_Loaded]) -> Iterator[Batch]:
        """Copy each batch to the GPU in a second stream, while the batch before it is in use."""
        # All passes share the stream, as its memory is reused within the same stream only.
        if self._copy_stream is None:
            self._copy_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        copies = self._copy_stream
        copies.wait_stream(torch.cuda.current_stream(self.device))
        previous: tuple[Batch, torch.cuda.Event] | None = None
        for item in loaded:
            with torch.cuda.stream(copies):
                copied = self._move(item), copies.record_event()
            if previous is not None:
                yield self._arrived(*previous)
            previous = copied
        if previous is not None:
            yield self._arrived(*previous)

    def _arrived(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        """Make the compute stream wait for a copy; record_stream guards the copy's memory."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in (batch.x, batch.y, *(batch.rows.tensors() if batch.rows else ())):
            tensor.record_stream(stream)
        if batch.domains is not None:
            batch.domains.record_stream(stream)
        return batch

    def _ahead(self, rows: NDArray[np.int64], epoch: int) -> Iterator[_Loaded]:
        """Load batches in a thread, and raise its errors in the calling thread."""
        size = self.batch_clips
        starts = range(0, len(rows), size)
        ready: queue.Queue[_Loaded | BaseException] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(item: _Loaded | BaseException) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def work() -> None:
            try:
                lead = _EXPECTED * size
                self._expect(rows[:lead], epoch)
                for start in starts:
                    if stop.is_set():
                        return
                    self._expect(rows[start + lead : start + lead + size], epoch)
                    put(self._load(rows[start : start + size], epoch))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            for _ in starts:
                start = time.perf_counter()
                item = ready.get()
                self.wait_s += time.perf_counter() - start
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
