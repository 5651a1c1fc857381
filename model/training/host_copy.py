"""Copies of tensors in host memory, so that a thread can write a state that training changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antigram.pipeline.execution.memory import available_memory
from antigram.pipeline.storage.files import size_text

__all__ = ["Copying", "HostCopy"]

_SHARE = 0.5  # share of the available memory that a copy may take; others need memory, too
_MEMINFO = Path("/proc/meminfo")


class Copying:
    """A copy that is being made.

    Attributes:
        tree: the copy; it is complete after `wait`.
    """

    def __init__(
        self,
        tree: Any,  # noqa: ANN401
        job: Future[None],
        event: torch.cuda.Event | None,
        device: torch.device | None,
    ) -> None:
        self.tree, self._job, self._event, self._device = tree, job, event, device

    def settle(self) -> None:
        """Wait until what is copied may change; on a GPU its steps wait, not the host."""
        self._job.result()
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def wait(self) -> None:
        """Wait until the copy is complete."""
        self._job.result()
        if self._event is not None:
            self._event.synchronize()


class HostCopy:
    """Memory for copies of one tree of tensors; each copy replaces the one before.

    The memory is kept between copies: its first use costs more than a copy, most of all on a GPU,
    whose tensors are copied to pinned memory.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self._forms: list[tuple[Any, ...]] = []

    def reserve(self, tree: Any) -> None:  # noqa: ANN401 - dicts and lists of anything
        """Take the memory for a tree, and touch all of it.

        Raises:
            MemoryError: there is too little memory.
        """
        if self._fit(list(_tensors(tree))):
            for buffer in self._memory:
                buffer.zero_()

    def begin(self, tree: Any, executor: Executor, stream: torch.cuda.Stream | None) -> Copying:  # noqa: ANN401
        """Begin to copy all tensors of a tree, in their own memory layout.

        Args:
            tree: tensors in dicts, lists and tuples; other values are not copied.
            executor: copies tensors in host memory.
            stream: copies tensors of a GPU; None without one.

        Raises:
            MemoryError: there is too little memory.
        """
        tensors = list(_tensors(tree))
        self._fit(tensors)
        pairs = list(zip(self._memory, tensors, strict=True))
        buffers = iter(self._memory)
        copied = _replaced(tree, lambda _: next(buffers))
        job = executor.submit(_copy, [pair for pair in pairs if not pair[1].is_cuda])
        if stream is None:
            return Copying(copied, job, None, None)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(stream.device))  # for the last step
        with torch.cuda.stream(stream):
            _copy([pair for pair in pairs if pair[1].is_cuda])
            event.record(stream)
        return Copying(copied, job, event, stream.device)

    def _fit(self, tensors: list[Tensor]) -> bool:
        """Allocate memory unless the memory of the last copy fits; return whether it did not."""
        if (forms := [_form(tensor) for tensor in tensors]) == self._forms:
            return False
        self._memory, self._forms = [], []
        size = sum(tensor.nbytes for tensor in tensors)
        # Where the system does not say what is available, as on macOS, this is tried.
        if _MEMINFO.exists() and size > _SHARE * available_memory():
            raise MemoryError(f"a copy takes {size_text(size)}")
        try:
            self._memory = [
                torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                for tensor in tensors
            ]
        except RuntimeError as error:  # torch's error of an allocation, in host or pinned memory
            if "memory" not in str(error):
                raise
            raise MemoryError(f"a copy takes {size_text(size)}") from None
        self._forms = forms
        return True


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, tensor in pairs:
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.is_cuda


def _tensors(tree: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _replaced(tree: Any, replace: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """Return a tree with other tensors, in the order of `_tensors`."""
    if isinstance(tree, Tensor):
        return replace(tree)
    if isinstance(tree, dict):
        copied = copy.copy(tree)  # a state dict has attributes
        for key, value in tree.items():
            copied[key] = _replaced(value, replace)
        return copied
    if isinstance(tree, list | tuple):
        return type(tree)(_replaced(value, replace) for value in tree)
    return tree
