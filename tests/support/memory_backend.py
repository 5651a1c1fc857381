"""A backend without files, to show that readers of a store need only keys and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.backend import Entry, RowLayout, WrongSizeError


@dataclass(frozen=True, slots=True)
class Memory:
    """A `Backend` of the objects in a dictionary."""

    objects: Mapping[str, bytes]
    prefix: str = ""

    def get(self, key: str) -> bytes:
        try:
            return self.objects[self.prefix + key]
        except KeyError:
            raise FileNotFoundError(2, "not there", self.where(key)) from None

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        return np.frombuffer(self.get(key), np.uint8)[start:stop]

    def view_rows(
        self, name: str, keys: Sequence[str], layout: RowLayout, *, mapped: bool = True
    ) -> MemoryRows:
        return MemoryRows(self, keys, layout)

    def head(self, key: str) -> Entry | None:
        raw = self.objects.get(self.prefix + key)
        return None if raw is None else Entry(key, len(raw), id(raw))

    def list(self) -> Iterator[Entry]:
        keys = (key.removeprefix(self.prefix) for key in self.objects if self._holds(key))
        for key in sorted(keys, key=lambda key: key.split("/")):
            if (entry := self.head(key)) is not None:
                yield entry

    def _holds(self, key: str) -> bool:
        return key.startswith(self.prefix)

    def groups(self) -> Sequence[str]:
        keys = (key.removeprefix(self.prefix) for key in self.objects if self._holds(key))
        return sorted({key.partition("/")[0] for key in keys if "/" in key})

    def below(self, name: str) -> Memory:
        return Memory(self.objects, f"{self.prefix}{name}/")

    def reopened(self) -> Memory:
        return self

    def where(self, key: str = "") -> str:
        return f"memory:{self.prefix}{key}".rstrip("/")


class MemoryRows:
    """A `RowView` that copies objects when they are opened."""

    def __init__(self, backend: Memory, keys: Sequence[str], layout: RowLayout) -> None:
        self._backend, self._keys, self._layout = backend, keys, layout
        self.apart = layout.rows
        self.table = np.zeros((len(keys) * layout.rows, layout.row_bytes), np.uint8)

    def open(self, index: int) -> None:
        raw = self._backend.get(self._keys[index])
        if len(raw) != self._layout.size:
            raise WrongSizeError(len(raw))
        self.part(index)[:] = np.frombuffer(raw, np.uint8)[: self._layout.data]

    def expect(self, index: int, first: int, size: int) -> None:
        """Do nothing, as the object is in memory."""

    def fetch(self, index: int) -> None:
        """Do nothing, as the object is in memory."""

    def part(self, index: int) -> NDArray[np.uint8]:
        first = index * self.apart
        return self.table[first : first + self.apart].reshape(-1)

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        return self.part(index)[offsets[:, None] + np.arange(size)]

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        return []
