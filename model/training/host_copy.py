"""Copies of tensors in host memory, so that a thread can write a state that training changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antigram.pipeline.storage.files import size_text

__all__ = ["HostCopy", "available_memory"]

_SHARE = 0.5  # share of the available memory that a copy may take; others need memory, too
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # of version 2, as a container sees its own


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

    def copy(self, tree: Any) -> Any:  # noqa: ANN401 - dicts and lists of anything
        """Return a tree with copies of all tensors, in the tensors' own memory layout.

        Copies from a GPU are queued in the current stream, so that later steps cannot change what
        is copied; wait for an event of that stream before the copies are read.

        Args:
            tree: tensors in dicts, lists and tuples; other values are not copied.

        Raises:
            MemoryError: there is too little memory.
        """
        tensors = list(_tensors(tree))
        self._fit(tensors)
        for buffer, tensor in zip(self._memory, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        buffers = iter(self._memory)
        return _replaced(tree, lambda _: next(buffers))

    def _fit(self, tensors: list[Tensor]) -> bool:
        """Allocate memory unless the memory of the last copy fits; return whether it did not."""
        if (forms := [_form(tensor) for tensor in tensors]) == self._forms:
            return False
        self._memory, self._forms = [], []
        size = sum(tensor.nbytes for tensor in tensors)
        if size > _SHARE * available_memory():
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


def available_memory() -> float:
    """Return the bytes of memory that this process can still take; infinite if unknown."""
    least = float("inf")
    try:
        text = _MEMINFO.read_text()
        least = 1024.0 * int(text.partition("MemAvailable:")[2].split()[0])
        most = int((_CGROUP / "memory.max").read_text())  # "max" without a limit: ValueError
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        least = min(least, most - used + int(stat["inactive_file"]))  # those make way
    except (OSError, ValueError, KeyError, IndexError):
        pass
    return least
