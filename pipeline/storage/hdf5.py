"""Stores and caches in one HDF5 file: for exchange, and to read from; never to work in.

A file holds the same groups, arrays and attributes under the same names. Datasets are contiguous,
so that rows are read from a map of the file as they are from chunk files. Zarr's own documents and
the manifests lie in ``/zarr``: every chunk is held against its checksum, and an import gives back
the very bytes of what was exported.

What lies in a file is named by a path that goes on inside it: ``cache.h5/layer05/zarr.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.chunks import STRING, ArraySpec, encode
from antigram.pipeline.storage.files import map_noted
from antigram.pipeline.storage.regular import read_regular

__all__ = ["FORMAT", "SUFFIX", "VERSION", "SingleFile", "inside", "names_in", "read_bytes"]

FORMAT = "antigram/hdf5"
VERSION = 1
SUFFIX = ".h5"
_MOST_DOCUMENT = 256 << 20  # bytes: a manifest of 20 million chunks
_MOST_OBJECTS = 2_000  # a cache of 19 layers has a tenth of that


class SingleFile:
    """An exported file, checked before anything of it is read, and mapped.

    Args:
        path: the file.

    Raises:
        InputError: HDF5, but not ours.
        StoredDataError: not as it was written, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self.documents: dict[str, bytes] = {}
        self._numbers: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._texts: dict[str, list[str]] = {}
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
        """Note where a dataset lies, having checked that it lies inside the file."""
        import h5py

        if dataset.chunks is not None or dataset.external or dataset.is_virtual:
            raise DamagedError(f"{self.path}: {name} is not contiguous in this file")
        text = h5py.check_string_dtype(dataset.dtype)
        if text is not None and text.length is None:  # in a heap that nothing checks
            raise DamagedError(f"{self.path}: {name} holds texts of variable length")
        place, size = dataset.id.get_offset(), dataset.size * dataset.dtype.itemsize
        if size and (place is None or place + size > self._raw.size):
            raise DamagedError(f"{self.path}: {name} goes on behind the end of the file")
        if text is not None:
            cells = self._raw[place or 0 : (place or 0) + size].view(f"S{dataset.dtype.itemsize}")
            self._texts[name] = [cell.decode() for cell in cells.tolist()]
        elif name.startswith("zarr/"):
            if dataset.dtype != np.uint8 or size > _MOST_DOCUMENT:
                raise DamagedError(f"{self.path}: {name}: {size} bytes of {dataset.dtype}")
            document = self._raw[place : place + size].tobytes()
            self.documents[name.removeprefix("zarr/")] = document
        else:
            self._numbers[name] = place or 0, dataset.shape, dataset.dtype

    def chunk(self, name: str, spec: ArraySpec, index: int) -> NDArray[np.uint8]:
        """Bytes of a chunk as its file would hold them, less the checksum.

        Raises:
            DamagedError: the array is missing, or has another shape or dtype than its metadata.
        """
        span = spec.span(index)
        if spec.dtype == STRING:
            texts = self._texts.get(name, [])
            if len(texts) != spec.shape[0]:
                raise DamagedError(f"{self.path}: {name}: {len(texts)} texts of {spec.shape[0]}")
            return encode(spec, index, texts[span])
        place, shape, dtype = self._numbers.get(name, (0, (), np.dtype(np.void)))
        if shape != spec.shape or dtype != np.dtype(spec.dtype).newbyteorder("<"):
            raise DamagedError(
                f"{self.path}: {name} is {shape} {dtype}, wanted {spec.shape} {spec.dtype}"
            )
        first = place + span.start * spec.row_bytes
        data = self._raw[first : first + (span.stop - span.start) * spec.row_bytes]
        if span.stop - span.start == spec.rows:
            return data
        rows = data.view(np.dtype(spec.dtype).newbyteorder("<")).reshape(-1, *spec.shape[1:])
        return encode(spec, index, rows)  # the last one, with what pads it


def _datasets(
    group: Any,  # noqa: ANN401
    path: Path,
    prefix: str = "",
    seen: list[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """All datasets of a file, by plain links only; ``seen`` counts them, as links may go round."""
    import h5py

    seen = [] if seen is None else seen
    for name in group:
        seen.append(name)
        if len(seen) > _MOST_OBJECTS:
            raise DamagedError(f"{path}: more than {_MOST_OBJECTS} objects in it")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DamagedError(f"{path}: {prefix}{name} is a link to elsewhere")
        member = group[name]
        if isinstance(member, h5py.Dataset):
            yield f"{prefix}{name}", member
        elif prefix.count("/") < 8:
            yield from _datasets(member, path, f"{prefix}{name}/", seen)


@lru_cache(maxsize=16)
def _opened(path: Path, _size: int, _mtime_ns: int) -> SingleFile:
    return SingleFile(path)


def inside(path: Path) -> tuple[SingleFile, str] | None:
    """The exported file that a path leads into, and the rest of the path, with a slash behind."""
    for place in (path, *path.parents):
        if place.suffix == SUFFIX and place.is_file():
            status = place.stat()
            rest = path.relative_to(place).as_posix()
            file = _opened(place, status.st_size, status.st_mtime_ns)
            return file, "" if rest == "." else f"{rest}/"
    return None


def read_bytes(path: Path) -> bytes:
    """Content of a metadata file, in a folder or in an exported file.

    Raises:
        OSError: no regular file, or of absurd size; FileNotFoundError: it is not there.
    """
    if (there := inside(path)) is None:
        return read_regular(path, _MOST_DOCUMENT)
    file, name = there
    try:
        return file.documents[name.removesuffix("/")]
    except KeyError:
        raise FileNotFoundError(2, "not in the file", str(path)) from None


def names_in(path: Path) -> list[str]:
    """Names of what lies in a group that has metadata: in a folder or in an exported file."""
    if (there := inside(path)) is None:
        return sorted(p.parent.name for p in path.glob("*/zarr.json"))
    file, prefix = there
    inner = (name.removeprefix(prefix) for name in file.documents if name.startswith(prefix))
    return sorted({name.partition("/")[0] for name in inner if name.count("/") >= 1})
