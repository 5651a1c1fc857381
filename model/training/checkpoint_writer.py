"""Write the metrics and checkpoints of a training in a thread, while the training goes on.

At each moment a killed run can be resumed from what is on disk, as files change in this order:

- metrics.jsonl changes before the last.pt that needs its new entry.
- best.pt changes together with the next last.pt, just before it. Until then the weights of the best
  epoch are kept in memory. So a last.pt never names a best epoch whose weights are lost. A kill
  between the two leaves a best.pt that is newer than last.pt: the resumed run comes to the same
  epoch again, and writes the file again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from antigram.model.training.checkpoint import Checkpoint, write_tensors
from antigram.model.training.host_copy import Copying, HostCopy
from antigram.model.training.resume import BEST, LAST, METRICS
from antigram.model.training.run_files import RunFiles

__all__ = ["CheckpointWriter"]

_PAUSE = 20  # pauses between writes are at least so many times as long as the write before


class CheckpointWriter:
    """Writes metrics.jsonl, best.pt and last.pt in a thread; a context manager around a training.

    What is written is copied to host memory first, while the training goes on: it calls `settle`
    before it changes weights. At most one copy of the state is being written, and at most one other
    copy of the best weights waits for the next write. If there is too little memory for copies, the
    training waits while checkpoints are written.

    An error of the thread is raised by the next call, or at the end of the context. If the training
    raises, the context ends when what was begun is written.

    Args:
        files: files of the run; only the thread may write them inside the context.
        content: returns the content of last.pt, with ``model`` and ``optimiser``.
        checkpoint: makes the checkpoint of a network from its weights.
        device: device of the network.
        save_every_s: least number of seconds between two writes within an epoch.
        on_message: called with a line if there is too little memory for copies.
    """

    def __init__(
        self,
        files: RunFiles,
        content: Callable[[], Mapping[str, Any]],
        checkpoint: Callable[[Mapping[str, Tensor]], Checkpoint],
        *,
        device: torch.device,
        save_every_s: float,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._files, self._content, self._checkpoint = files, content, checkpoint
        self._save_every_s, self._on_message = save_every_s, on_message
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="checkpoints-copy")
        self._stream = _stream(device)
        self._copying: Copying | None = None  # not settled yet
        self._error: BaseException | None = None
        self._reserved: Future[None] | None = None
        self._write: Future[None] | None = None
        self._ended, self._took = time.perf_counter(), 0.0  # of the last write, in seconds
        self._state = HostCopy()
        self._best = [HostCopy(), HostCopy()]  # the first is free, the second may be being written
        # The best weights if they are not yet written, and their copy.
        self._waiting: tuple[Checkpoint, Copying | None] | None = None
        self._copies = True

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for executor in (self._copier, self._executor):
            executor.shutdown()  # waits for what was begun
        self._state, self._best, self._waiting = HostCopy(), [], None
        if kind is None:
            self._raise()

    @property
    def writing(self) -> bool:
        """Whether checkpoints are being written."""
        return self._write is not None and not self._write.done()

    def settle(self) -> None:
        """Wait until all is copied that is to be saved; call this before weights change."""
        if self._copying is not None:
            self._copying.settle()
            self._copying = None

    def due(self, *, epoch_ends: bool = False) -> bool:
        """Return whether the state may be saved now; call this after each step.

        Args:
            epoch_ends: whether this is the end of an epoch, where ``save_every_s`` does not count.
        """
        self._raise()
        if self._reserved is None and self._copies:
            self._reserved = self._submit(partial(self._reserve, self._content()))
        if self.writing:
            return False
        least = 0.0 if epoch_ends else self._save_every_s
        return time.perf_counter() - self._ended > max(least, _PAUSE * self._took)

    def save(self) -> None:
        """Write last.pt as the training stands now, with best.pt if a better one waits."""
        self._save()

    def end_epoch(self, metrics: bytes, *, best: bool, over: bool) -> None:
        """Write the metrics after an epoch; write the checkpoints, too, if they are due.

        Args:
            metrics: content of metrics.jsonl.
            best: whether the network has its best weights so far.
            over: whether the training ends; all is on disk then when this returns.
        """
        due = self.due(epoch_ends=True)
        self._submit(partial(self._files.write_bytes, METRICS, metrics))
        if over:
            self._save_directly(best=best)
        elif due:
            self._save(best=best)
        elif best:
            self._keep_best()

    def _save(self, *, best: bool = False) -> None:
        """Begin to copy the state and to write it.

        Args:
            best: whether the network has its best weights so far.
        """
        begun, content = time.perf_counter(), self._content()
        if (copy := self._begin_copy(self._state, content)) is None:
            self._save_directly(best=best)
            return
        if best:
            self._waiting = (self._checkpoint(copy.tree["model"]), copy)
        job = partial(self._write_files, copy.tree, copy, self._take_waiting(), begun)
        self._write = self._submit(job)

    def _save_directly(self, *, best: bool) -> None:
        """Write the state without a copy, and wait until it is written."""
        content = self._content()
        if best:
            self._waiting = (self._checkpoint(content["model"]), None)
        job = partial(self._write_files, content, None, self._take_waiting())
        self._write = self._submit(job)
        self._write.result()
        self._raise()

    def _keep_best(self) -> None:
        """Keep the weights in memory until the next write."""
        copy = self._begin_copy(self._best[0], self._content()["model"])
        if copy is None:
            self._save_directly(best=True)
        else:
            self._waiting = (self._checkpoint(copy.tree), copy)

    def _take_waiting(self) -> tuple[Checkpoint, Copying | None] | None:
        """Return the best weights that wait; the other memory for them becomes the free one."""
        waiting, self._waiting = self._waiting, None
        self._best.reverse()
        return waiting

    def _begin_copy(self, memory: HostCopy, tree: Any) -> Copying | None:  # noqa: ANN401
        """Begin to copy a tree; return None if there is too little memory for copies."""
        self.settle()
        if self._reserved is not None:
            self._reserved.result()
            self._raise()
        if self._copies:
            try:
                self._copying = memory.begin(tree, self._copier, self._stream)
                return self._copying
            except MemoryError as error:
                self._copies = False
                self._on_message(
                    f"too little memory to copy the training's state ({error}): the training waits "
                    "while checkpoints are written"
                )
        return None

    def _reserve(self, content: Mapping[str, Any]) -> None:
        """Take memory for copies; without it, `_begin_copy` fails in the same way, and says so."""
        try:
            self._state.reserve(content)
        except MemoryError:
            return

    def _write_files(
        self,
        content: Mapping[str, Any],
        copy: Copying | None,
        waiting: tuple[Checkpoint, Copying | None] | None,
        begun: float | None = None,
    ) -> None:
        begun = begun or time.perf_counter()
        best, copy_of_best = waiting or (None, None)
        for each in (copy, copy_of_best):
            if each is not None:
                each.wait()
        contents = {LAST: content} if best is None else {BEST: best.to_plain(), LAST: content}
        self._files.write_all(
            {name: partial(write_tensors, content=plain) for name, plain in contents.items()}
        )
        self._ended = time.perf_counter()
        self._took = self._ended - begun

    def _submit(self, job: Callable[[], None]) -> Future[None]:
        return self._executor.submit(self._unless_failed, job)

    def _unless_failed(self, job: Callable[[], None]) -> None:
        """Run a job in the thread; after an error nothing more is written."""
        if self._error is None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a second stream of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
