"""Keep arrays open for a long time, as during a training, and check them for changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from antigram.pipeline.storage.array import StoredArray

__all__ = ["Held"]


class Held:
    """Arrays whose chunks stay mapped as they are now, even if their files are replaced.

    Args:
        arrays: the arrays; all of their chunks are mapped at once.
        on_message: called with a line for each harmless change of the arrays' files.

    Raises:
        DamagedError: a chunk is missing, or has another size.
    """

    def __init__(self, arrays: Iterable[StoredArray], on_message: Callable[[str], None]) -> None:
        self._arrays, self._on_message = tuple(arrays), on_message
        for array in self._arrays:
            array.hold()

    def look(self) -> None:
        """Check all arrays with `StoredArray.look`.

        Raises:
            DamagedError: a file was truncated or overwritten in place; the message names it.
        """
        for array in self._arrays:
            for line in array.look():
                self._on_message(line)
