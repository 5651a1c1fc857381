"""The backend of an exported HDF5 file, for exchange and reading; it cannot be written to.

A file holds the groups, arrays and attributes of a store or cache under the same names. Datasets
are contiguous, so that rows are read from a map of the file, as from chunk files. Zarr's documents
and the manifests are stored in ``/zarr``, so that every chunk is checked by its checksum and an
import restores the exported bytes.

Messages name an object in a file by a path that continues inside the file:
``cache.h5/layer05/zarr.json``.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import (
    MOST_DOCUMENT,
    REPLACED,
    WRITTEN,
    Entry,
    OverwrittenError,
    RowLayout,
)
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    STRING,
    ArraySpec,
    chunk_key,
    crc32c,
    encode,
)
from antigram.pipeline.storage.files import Identity, identity_at, map_noted, read_now, read_soon
from antigram.pipeline.storage.layout import spec_of

__all__ = ["FORMAT", "SUFFIX", "VERSION", "ExportedFile", "FileRows", "SingleFile"]

FORMAT = "antigram/hdf5"
VERSION = 1
SUFFIX = ".h5"
_MOST_OBJECTS = 2_000  # a cache of 19 layers has a tenth of that
_CHUNK = re.compile(r"(?P<name>.+)/c/(?P<index>\d{1,12})(/0)*")


class SingleFile:
    """An exported file: its structure is checked, and the file is mapped.

    Args:
        path: the file.

    Raises:
        InputError: the path is an HDF5 file that antigram did not write.
        StoredDataError: the file is damaged, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self.documents: dict[str, bytes] = {}
        self._numbers: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._texts: dict[str, list[str]] = {}
        self._specs: dict[str, ArraySpec] = {}
        try:
            self._raw, self.identity = map_noted(path)
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != np.bytes_(FORMAT):
                    raise InputError(
                        f"{path}: HDF5, but not written by `antigram export`; wanted {FORMAT}"
                    )
                if file.attrs.get("format_version") != VERSION:
                    raise StoredDataError(
                        f"{path}: exported in format version {file.attrs.get('format_version')}, "
                        f"this antigram reads {VERSION}. Update antigram."
                    )
                for name, dataset in _datasets(file, path):
                    self._take(name, dataset)
        except (InputError, StoredDataError):
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DamagedError(f"{path}: unreadable as HDF5: {error}. Export it again.") from None

    def _take(self, name: str, dataset: Any) -> None:  # noqa: ANN401 - h5py has no types
        """Note offset and shape of a dataset, after checking that it is inside the file."""
        import h5py

        if dataset.chunks is not None or dataset.external or dataset.is_virtual:
            raise DamagedError(f"{self.path}: {name} is not contiguous in this file")
        text = h5py.check_string_dtype(dataset.dtype)
        if text is not None and text.length is None:  # stored in a heap without checksums
            raise DamagedError(f"{self.path}: {name} holds texts of variable length")
        offset, size = dataset.id.get_offset(), dataset.size * dataset.dtype.itemsize
        if size and (offset is None or offset + size > self._raw.size):
            raise DamagedError(f"{self.path}: {name} extends beyond the end of the file")
        if text is not None:
            cells = self._raw[offset or 0 : (offset or 0) + size].view(f"S{dataset.dtype.itemsize}")
            self._texts[name] = [cell.decode() for cell in cells.tolist()]
        elif name.startswith("zarr/"):
            if dataset.dtype != np.uint8 or size > MOST_DOCUMENT:
                raise DamagedError(f"{self.path}: {name}: {size} bytes of {dataset.dtype}")
            document = self._raw[offset : offset + size].tobytes()
            self.documents[name.removeprefix("zarr/")] = document
        else:
            self._numbers[name] = offset or 0, dataset.shape, dataset.dtype

    @property
    def names(self) -> list[str]:
        """Keys of all documents, and a prefix of the chunk keys of each array."""
        return [*self.documents, *(f"{name}/c/" for name in (*self._numbers, *self._texts))]

    def has_array(self, name: str) -> bool:
        """Whether there is a dataset with this name."""
        return name in self._numbers or name in self._texts

    def spec(self, name: str) -> ArraySpec:
        """Return the layout of an array, from its ``zarr.json``.

        Raises:
            FileNotFoundError: there is no such document.
            DamagedError: the document does not describe an array of antigram.
        """
        if name not in self._specs:
            document = f"{name}/zarr.json"
            if document not in self.documents:
                where = str(self.path / document)
                raise FileNotFoundError(errno.ENOENT, "not in the file", where)
            try:
                self._specs[name] = spec_of(name, json.loads(self.documents[document]))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise DamagedError(
                    f"{self.path}/{document}: not an array of antigram's ({error}). "
                    "Export it again."
                ) from None
        return self._specs[name]

    def rows(self, name: str, spec: ArraySpec) -> NDArray[np.uint8]:
        """Return the rows of an array of numbers, (row, byte of the row), without a copy.

        Raises:
            DamagedError: the array is missing, or has another shape or dtype than its metadata.
        """
        offset, shape, dtype = self._numbers.get(name, (0, (), np.dtype(np.void)))
        if shape != spec.shape or dtype != np.dtype(spec.dtype).newbyteorder("<"):
            raise DamagedError(
                f"{self.path}: {name} is {shape} {dtype}, wanted {spec.shape} {spec.dtype}"
            )
        size = spec.shape[0] * spec.row_bytes
        return self._raw[offset : offset + size].reshape(spec.shape[0], spec.row_bytes)

    def chunk(self, name: str, spec: ArraySpec, index: int) -> NDArray[np.uint8]:
        """Return the bytes of a chunk, as in a chunk file but without the checksum.

        Raises:
            DamagedError: the array is missing, or has another shape or dtype than its metadata.
        """
        span = spec.span(index)
        if spec.dtype == STRING:
            texts = self._texts.get(name, [])
            if len(texts) != spec.shape[0]:
                raise DamagedError(f"{self.path}: {name}: {len(texts)} texts of {spec.shape[0]}")
            return encode(spec, index, texts[span])
        data = self.rows(name, spec)[span].reshape(-1)
        if span.stop - span.start == spec.rows:
            return data
        rows = data.view(np.dtype(spec.dtype).newbyteorder("<")).reshape(-1, *spec.shape[1:])
        return encode(spec, index, rows)  # the last chunk, with padding


def _datasets(
    group: Any,  # noqa: ANN401
    path: Path,
    prefix: str = "",
    names: list[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield all datasets of a file; only hard links are followed, and at most `_MOST_OBJECTS`."""
    import h5py

    names = [] if names is None else names
    for name in group:
        names.append(name)
        if len(names) > _MOST_OBJECTS:
            raise DamagedError(f"{path}: more than {_MOST_OBJECTS} objects in it")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DamagedError(f"{path}: {prefix}{name} is a link to elsewhere")
        member = group[name]
        if isinstance(member, h5py.Dataset):
            yield f"{prefix}{name}", member
        elif prefix.count("/") < 8:
            yield from _datasets(member, path, f"{prefix}{name}/", names)


class FileRows:
    """A `RowView` of a contiguous dataset; only a padded last chunk is a copy.

    Args:
        file: the file.
        name: name of the dataset.
        spec: layout of the array.
    """

    def __init__(self, file: SingleFile, name: str, spec: ArraySpec) -> None:
        self._file, self._name, self._spec = file, name, spec
        self.table = file.rows(name, spec)
        self.apart = spec.rows
        self._noted: Identity | None = file.identity  # None: the map can no longer change

    def open(self, index: int) -> None:
        """Do nothing, as the file is mapped already; see `RowView`."""

    def expect(self, index: int, first: int, size: int) -> None:
        """Have some bytes of a chunk read soon; see `RowView`."""
        address, rows = self._span(index)
        read_soon(address + first, min(size, rows - first))

    def fetch(self, index: int) -> None:
        """Read a chunk into memory; see `RowView`."""
        read_now(*self._span(index))

    def _span(self, index: int) -> tuple[int, int]:
        """Return address and size of the rows of a chunk, without padding."""
        rows = self.table[self._spec.span(index)]
        return rows.__array_interface__["data"][0], rows.nbytes

    def part(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of the rows of a chunk; see `RowView`."""
        return self._file.chunk(self._name, self._spec, index)

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Return some bytes of a chunk; see `RowView`."""
        pieces: NDArray[np.uint8] = self.part(index)[offsets[:, None] + np.arange(size)]
        return pieces

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Check the file; if it was written to, read all chunks of the array. See `RowView`."""
        path, was = self._file.path, self._noted
        if was is None or not chosen or (now := identity_at(path)) == was:
            return []
        if now is None or not now.is_same_file(was):
            self._noted = None
            return [f"{path}: {REPLACED}"]
        if now.size != was.size:
            raise OverwrittenError(str(path), now.size)
        if not all(intact(index) for index in range(self._spec.chunks)):
            raise OverwrittenError(f"{path}/{self._name}", now.size)
        self._noted = now
        return [f"{path}: {WRITTEN}"]


@lru_cache(maxsize=16)
def _opened(path: Path, _size: int, _mtime_ns: int) -> SingleFile:
    return SingleFile(path)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A `Backend` in one HDF5 file, read only; `pipeline.storage.exchange` writes such files.

    Chunks have the same keys and bytes as in a folder. The checksum after a chunk is not stored;
    it is computed when the chunk is read.

    Attributes:
        file: the file.
        prefix: path of the root within the file, with a trailing slash, or empty.
    """

    file: SingleFile
    prefix: str = ""

    @classmethod
    def at(cls, path: Path, prefix: str = "") -> ExportedFile:
        """Open a file; if it is open already and has not changed, it is reused.

        Raises:
            InputError: the path is an HDF5 file that antigram did not write.
            StoredDataError: the file is damaged, or of a newer version.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}. Export it again.") from None
        return cls(_opened(path, status.st_size, status.st_mtime_ns), prefix)

    def __reduce__(self) -> tuple[Callable[[Path, str], ExportedFile], tuple[Path, str]]:
        """Open the file again in another process."""
        return ExportedFile.at, (self.file.path, self.prefix)

    def get(self, key: str) -> bytes:
        """Return the bytes of a document or chunk; see `Reader`."""
        document = self.file.documents.get(self.prefix + key)
        return self.view(key).tobytes() if document is None else document

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return bytes of an object; only checksums and padding need a copy. See `Viewer`."""
        if (document := self.file.documents.get(self.prefix + key)) is not None:
            return np.frombuffer(document, np.uint8)[start:stop]
        name, spec, index = self._chunk(key)
        data = self.file.chunk(name, spec, index)
        if stop is None or stop > data.size:
            tail = crc32c(data).to_bytes(CRC_BYTES, "little")
            data = np.concatenate([data, np.frombuffer(tail, np.uint8)])
        part = data[start:stop]
        part.flags.writeable = False
        return part

    def _chunk(self, key: str) -> tuple[str, ArraySpec, int]:
        """Return the dataset, layout and index of the chunk that a key names."""
        match = _CHUNK.fullmatch(key)
        if match is not None and self.file.has_array(name := self.prefix + match["name"]):
            spec, index = self.file.spec(name), int(match["index"])
            if index < spec.chunks and key == chunk_key(replace(spec, name=match["name"]), index):
                return name, spec, index
        raise FileNotFoundError(errno.ENOENT, "not in the file", self.where(key))

    def view_rows(
        self, name: str, keys: Sequence[str], layout: RowLayout, *, mapped: bool = True
    ) -> FileRows:
        """Return the rows of a dataset, of which one map serves all; see `RowViewer`."""
        full = self.prefix + name
        return FileRows(self.file, full, self.file.spec(full))

    def head(self, key: str) -> Entry | None:
        """Return size of an object and identity of the file; see `Header`."""
        if (document := self.file.documents.get(self.prefix + key)) is not None:
            return Entry(key, len(document), self.file.identity)
        try:
            name, spec, index = self._chunk(key)
        except FileNotFoundError:
            return None
        if spec.dtype == STRING:
            size = self.file.chunk(name, spec, index).size
        else:
            size = self.file.rows(name, spec).shape[1] * spec.rows
        return Entry(key, size + CRC_BYTES, self.file.identity)

    def list(self) -> Iterator[Entry]:
        """Yield all objects; see `Lister`."""
        keys = []
        for document in self.file.documents:
            if not document.startswith(self.prefix):
                continue
            keys.append(key := document.removeprefix(self.prefix))
            name = document.removesuffix("/zarr.json")
            if self.file.has_array(name):
                spec = replace(self.file.spec(name), name=key.removesuffix("/zarr.json"))
                keys += [chunk_key(spec, index) for index in range(spec.chunks)]
        for key in sorted(keys, key=lambda key: key.split("/")):
            if (entry := self.head(key)) is not None:
                yield entry

    def groups(self) -> Sequence[str]:
        """Return the names of the groups below the prefix; see `Grouped`."""
        inner = (n.removeprefix(self.prefix) for n in self.file.names if n.startswith(self.prefix))
        return sorted({name.partition("/")[0] for name in inner if "/" in name})

    def below(self, name: str) -> ExportedFile:
        """Return the backend of a group; see `Grouped`."""
        return ExportedFile(self.file, f"{self.prefix}{name}/")

    def reopened(self) -> ExportedFile:
        """Return a backend for the file that is at the path now; see `Grouped`."""
        return ExportedFile.at(self.file.path, self.prefix)

    def where(self, key: str = "") -> str:
        """Return a path that continues inside the file; see `Grouped`."""
        return str(self.file.path / self.prefix / key)
