"""Batches of a feature store: gathered from its maps by a thread, one or more ahead of the net."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.loss.sources import GramSource, Sources, TeacherRows
from antigram.model.training.resident import bytes_of, on_device
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Batch", "Batches"]

_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Some segments (clips) of a store, on the device of the net.

    Attributes:
        clips: (batch,) their indices in the store, in host memory.
        x: (batch, 1, frame, freq) float32 features.
        y: (batch,) int64 classes.
        read: what the Gram source has stored for them, in host memory.
        weight: of the loss, so that the mean over a team's shares is that over the clips; 0 if
            these clips stand for no share.
        rows: of the teachers, on the device, which a step takes from here, so that the batch serves
            one step; None if a live net is among them: the step then asks the sources.
    """

    clips: NDArray[np.int64]
    x: Tensor
    y: Tensor
    read: Any
    weight: float = 1.0
    rows: TeacherRows | None = None


class _Loaded(NamedTuple):
    """A batch in host memory; ``x`` are indices where the device holds the features."""

    clips: NDArray[np.int64]
    x: Tensor
    y: Tensor
    read: Any
    weight: float


def _pinned(values: NDArray[np.int64], pin: bool) -> Tensor:  # noqa: FBT001
    tensor = torch.from_numpy(values)
    return tensor.pin_memory() if pin else tensor


class Batches:
    """Gives the batches of one pass over some rows, and measures how long the net waited.

    Args:
        store: features and labels.
        task: the label to learn.
        grams: source of the teacher's rows, if there is AT.
        batch_clips: clips in a batch; the last one may be shorter.
        device: where the net is.
        labels: ``(clip,)`` int32 classes by the net's own numbers, -1 for none; by default those
            of the store.
        rescale: scale and shift of the features, for a net that was trained on another store.
        views: how clips are augmented in training, where the source of Grams leaves it open.
        device_memory: bytes of the device that features and rows may take, as a whole or not at
            all; augmented and rescaled features are made on the host.
        rank: number of this process among those that share each batch.
        ranks: how many there are.
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
        device_memory: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rank, self.ranks = rank, ranks
        self.store = store
        self.labels = store.labels(task) if labels is None else labels
        self.rescale = rescale
        self.grams, self.views = grams, views
        self.batch_clips = batch_clips
        self.device = device
        self.wait_s = 0.0
        self._beside: torch.cuda.Stream | None = None
        self.data_bytes = bytes_of(store.features) + (grams.stored_bytes if grams else 0)
        fixed = views is None and (grams is None or grams.views is None)
        self.resident = fixed and rescale == (1.0, 0.0) and self.data_bytes <= device_memory
        if self.resident:
            self._features = on_device(store.features, device)
            if grams is not None:
                grams.keep_on(device)

    def _load(self, whole: NDArray[np.int64], epoch: int) -> _Loaded:
        clips = whole[self.rank :: self.ranks]
        weight = len(clips) * self.ranks / len(whole)
        if not len(clips):
            clips = whole[:1]  # every process takes part in every step
        # Pinned, small or not: a copy from other memory waits for those before it.
        pin = self.device.type == "cuda"
        y = _pinned(self.labels[clips].astype(np.int64), pin)
        if self.resident:
            return _Loaded(clips, _pinned(clips, pin), y, self._read(clips, epoch), weight)
        x = torch.empty((len(clips), 1, *self.store.shape), pin_memory=pin)
        self.store.features.gather(clips, x.numpy()[:, 0])
        if self.rescale != (1.0, 0.0):
            scale, shift = self.rescale
            x.mul_(scale).add_(shift)
        if (params := self._params(clips, epoch)) is not None:
            apply_views(x.numpy()[:, 0], params, self.store.silence)
        return _Loaded(clips, x, y, self._read(clips, epoch), weight)

    def _read(self, clips: NDArray[np.int64], epoch: int) -> Any:  # noqa: ANN401 - the source's own
        return self.grams.read(clips, epoch) if self.grams else {}

    def _params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """What turns the clips into the views of an epoch: as stored with their Grams, or drawn."""
        if self.grams is not None and self.grams.views is not None:
            return self.grams.params(clips, epoch)
        if self.views is None or epoch == 0:
            return None
        ids = [self.store.clip_ids[i] for i in clips.tolist()]
        return self.views.params(ids, self.views.of_epoch(epoch), self.store.shape)

    def passes(self, rows: NDArray[np.int64], epoch: int = 0) -> Iterator[Batch]:
        """Batches of these rows, in order; ``epoch``, from 1, decides how they are augmented."""
        size = self.batch_clips
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.wait_s = 0.0
        moved = self._ahead(parts, epoch)
        if self.device.type == "cuda":
            yield from self._move_ahead(moved)
        else:
            yield from map(self._move, moved)

    def _move(self, loaded: _Loaded) -> Batch:
        x = loaded.x.to(self.device, non_blocking=True)
        if self.resident:
            x = self._features.index_select(0, x).float()[:, None]
        y = loaded.y.to(self.device, non_blocking=True)
        rows = None
        if isinstance(self.grams, Sources) and self.grams.stored:
            rows = self.grams.batch_rows(loaded.read, x)
        return Batch(loaded.clips, x, y, loaded.read, loaded.weight, rows)

    def _move_ahead(self, loaded: Iterator[_Loaded]) -> Iterator[Batch]:
        """Copy each batch to the GPU while the one before it is in use, in a stream beside."""
        # One for all passes: memory of a stream is used again by that stream alone.
        if self._beside is None:
            self._beside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        beside = self._beside
        beside.wait_stream(torch.cuda.current_stream(self.device))
        before: tuple[Batch, torch.cuda.Event] | None = None
        for each in loaded:
            with torch.cuda.stream(beside):
                now = self._move(each), beside.record_event()
            if before is not None:
                yield self._arrived(*before)
            before = now
        if before is not None:
            yield self._arrived(*before)

    def _arrived(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        """Let the net's stream wait for a copy, and the copy's memory for the net."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in (batch.x, batch.y, *(batch.rows.tensors() if batch.rows else ())):
            tensor.record_stream(stream)
        return batch

    def _ahead(self, parts: Sequence[NDArray[np.int64]], epoch: int) -> Iterator[_Loaded]:
        """Load parts in a thread; an error there is raised here."""
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
                for part in parts:
                    if stop.is_set():
                        return
                    put(self._load(part, epoch))
            except BaseException as error:  # noqa: BLE001 - raised again in the other thread
                put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            for _ in parts:
                begun = time.perf_counter()
                item = ready.get()
                self.wait_s += time.perf_counter() - begun
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
