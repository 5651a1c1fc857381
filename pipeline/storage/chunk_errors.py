"""Errors about chunks that cannot be used: damaged, missing, overwritten, or replaced by others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import Backend, OverwrittenError
from antigram.pipeline.storage.manifest import read_manifest

__all__ = ["ChunkErrors"]


@dataclass(frozen=True, slots=True)
class ChunkErrors:
    """Makes the errors of one array.

    Attributes:
        group: group of the array.
        name: name of the array in the group.
        crcs: crc32c of each chunk, from the group's manifest when it was opened.
        repair: what the user can do about damage.
    """

    group: Backend
    name: str
    crcs: Sequence[int]
    repair: str

    def damaged(self, key: str, size: int) -> DamagedError:
        """Return the error of a chunk of ``size`` bytes that does not match its checksum."""
        return self._replaced(key) or DamagedError(
            f"{self.group.where(key)}: its {size} bytes differ from what was written (crc32c). "
            f"{self.repair}"
        )

    def unreadable(self, key: str, error: OSError) -> DamagedError:
        """Return the error of a chunk that is missing or cannot be read."""
        return self._replaced(key) or DamagedError(
            f"{self.group.where(key)}: {error.strerror}, wanted a chunk. {self.repair}"
        )

    def overwritten(self, error: OverwrittenError) -> DamagedError:
        """Return the error of a chunk that changed while its map was in use."""
        return DamagedError(
            f"{error.where}: was overwritten in place while in use: its {error.size} bytes differ "
            "from what was written (crc32c). Results since the last check are not kept. "
            f"{self.repair}"
        )

    def _replaced(self, key: str) -> DamagedError | None:
        """Return the error to raise if the group was replaced after it was opened; else None."""
        with suppress(StoredDataError, InputError, KeyError):
            now = read_manifest(self.group.reopened())
            if list(now.crcs(self.name)) != list(self.crcs):
                return DamagedError(
                    f"{self.group.where(key)}: {self.group.where()} was replaced by another after "
                    "it was opened. Run the same command again."
                )
        return None
