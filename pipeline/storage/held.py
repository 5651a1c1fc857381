"""Stored data in use for long, as by a training: kept as it was opened, and looked at again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from antigram.pipeline.storage.mapped import MappedArray

__all__ = ["Held"]


class Held:
    """Arrays in use for long: kept as they are now, and looked at again.

    Args:
        arrays: all of whose chunks are mapped at once.
        on_message: told of what happened to their files.

    Raises:
        DamagedError: a chunk is missing, or of another size.
        InputError: the process may not map so many files.
    """

    def __init__(self, arrays: Iterable[MappedArray], on_message: Callable[[str], None]) -> None:
        self._arrays, self._on_message = tuple(arrays), on_message
        for array in self._arrays:
            array.hold()

    def look(self) -> None:
        """`MappedArray.look` at all of them.

        Raises:
            DamagedError: a file was truncated or overwritten in place; names it.
        """
        for array in self._arrays:
            for line in array.look():
                self._on_message(line)
