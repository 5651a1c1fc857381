"""Export a store or cache to one HDF5 file, and import it again: the same bytes, chunk by chunk."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.chunks import STRING, array_digest, write_chunk
from antigram.pipeline.storage.durable import atomic_path, flush_filesystem
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.storage.hdf5 import FORMAT, SUFFIX, VERSION, inside, read_bytes
from antigram.pipeline.storage.manifest import FOLDER, Problem, read_manifest, verify_group
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.publish import check_goal, discard, publish, recover, work_folder
from antigram.pipeline.storage.root import has_parts

__all__ = ["export_file", "import_file", "verify_export"]

_EXPORT_AGAIN = "Export it again."
OnProgress = Callable[[str, int, int], None]
_MOST_ATTRIBUTE = 60_000  # bytes: what every HDF5 library takes
_NAME = re.compile(r"[A-Za-z0-9_.+@ -]+")


def _groups(path: Path) -> list[Path]:
    """Groups with a manifest of their own: the store or cache itself, and a cache's layers."""
    layers = sorted(p for p in path.glob("layer[0-9][0-9]") if p.is_dir())
    return [path, *layers]


def export_file(path: Path, goal: Path, on_progress: OnProgress = lambda *_: None) -> int:
    """Write a store or cache as one HDF5 file, whole or not at all.

    Args:
        path: the store or cache.
        goal: ``FILE.h5``; replaced if it is there.
        on_progress: told of progress.

    Returns:
        Bytes of the file.

    Raises:
        InputError: the goal is no ``.h5`` file, or its folder or the room for it is missing.
        DamagedError: what is exported is damaged; nothing is left behind.
    """
    import h5py

    if not path.is_dir():
        raise InputError(f"{path}: is an exported file already; copy it, or import it first")
    if not has_parts(path):
        raise InputError(f"{path}: no store or cache there; `antigram status` lists what is")
    if goal.suffix != SUFFIX:
        raise InputError(f"`goal` {goal}: wanted a name that ends in {SUFFIX}")
    check_goal("`goal`", goal)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if size > (free := shutil.disk_usage(goal.absolute().parent).free):
        raise InputError(f"`goal` {goal}: {size_text(size)} wanted, {size_text(free)} free")
    done = 0
    with (
        atomic_path(goal, work_folder(goal)) as beside,
        h5py.File(beside, "w", libver="latest") as file,
    ):
        # Fixed lengths: HDF5 keeps variable ones in a heap without a checksum, and a flipped
        # bit there makes the library loop for ever.
        file.attrs["format"], file.attrs["format_version"] = np.bytes_(FORMAT), VERSION
        for folder in _groups(path):
            prefix = "" if folder == path else f"{folder.name}/"
            manifest = read_manifest(folder)
            manifest.check_metadata(folder, "Nothing was exported.")
            for name in manifest.arrays:
                array = MappedArray(folder, name, manifest.crcs(name), "Nothing was exported.")
                for part in _copy(file, prefix + name, array):
                    done += part
                    on_progress("exported", min(done, size), size)
            for document in (*manifest.metadata, f"{FOLDER}/zarr.json"):
                raw = np.frombuffer(read_bytes(folder / document), np.uint8)
                file.create_dataset(f"zarr/{prefix}{document}", data=raw)
                _note(file, PurePosixPath(prefix + document).parent, raw.tobytes())
    return goal.stat().st_size


def _note(file: Any, place: PurePosixPath, document: bytes) -> None:  # noqa: ANN401
    """Attributes of a group or array, as JSON, for people; ours are read from ``/zarr``."""
    if place.name == FOLDER:
        return
    for key, value in json.loads(document).get("attributes", {}).items():
        text = json.dumps(value).encode()
        if len(text) < _MOST_ATTRIBUTE:
            file[str(place)].attrs[key] = np.bytes_(text)


def _copy(file: Any, name: str, array: MappedArray) -> Iterator[int]:  # noqa: ANN401
    """Write an array as a contiguous dataset; yields the bytes written, part by part."""
    spec = array.spec
    if spec.dtype == STRING:
        import h5py

        texts = [text.encode() for text in array.read_text()]
        longest = max(1, *map(len, texts))
        data = np.array(texts, h5py.string_dtype("utf-8", longest))
        file.create_dataset(name, data=data)
        yield data.nbytes
        return
    dataset = file.create_dataset(name, spec.shape, np.dtype(spec.dtype).newbyteorder("<"))
    for index in range(spec.chunks):
        span = spec.span(index)
        rows = array.chunk(index)[: span.stop - span.start]
        dataset[span] = rows
        yield rows.nbytes


def import_file(source: Path, goal: Path, on_progress: OnProgress = lambda *_: None) -> bool:
    """Make a store or cache from an exported file, every chunk held against its checksum.

    Args:
        source: from `export_file`.
        goal: ``NAME.zarr``; replaced, once the new one is whole, if it is another's.
        on_progress: told of progress.

    Returns:
        Whether it was made; False if the very same is there.

    Raises:
        InputError: not such a file.
        DamagedError: damaged, or hostile; nothing is left behind.
    """
    if (there := inside(source)) is None:
        raise InputError(f"{source}: no such file; wanted one that `antigram export` wrote")
    documents = there[0].documents
    prefixes = _checked_groups(source, documents)
    if _is_same(goal, documents):
        return False
    recover(goal)
    partial = goal.with_name(f".{goal.name}.import")
    discard(partial)
    try:
        for name, raw in documents.items():
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as out:
                out.write(raw)
        for prefix in prefixes:
            _import_group(source / prefix, partial / prefix, on_progress)
        for prefix in prefixes:
            for problem in verify_group(partial / prefix, content=False):
                raise DamagedError(f"{source}: {problem.path.name}: {problem.problem}")
        flush_filesystem(partial)
        publish(partial, goal)
    except BaseException:
        discard(partial)
        raise
    return True


def _checked_groups(source: Path, documents: Mapping[str, bytes]) -> list[str]:
    """Prefixes of the groups with a manifest of their own: ``""`` and, of a cache, its layers.

    Raises:
        DamagedError: a document has a name that antigram does not write.
    """
    for name in documents:
        parts = name.split("/")
        if parts[-1] != "zarr.json" or not all(map(_NAME.fullmatch, parts)) or ".." in parts:
            raise DamagedError(f"{source}: holds a document called {name!r}")
    inner = sorted({name.partition("/")[0] for name in documents})
    return ["", *(f"{name}/" for name in inner if re.fullmatch(r"layer\d\d", name))]


def verify_export(source: Path) -> Iterator[Problem]:
    """Problems of an exported file: every array is held against the manifest's SHA-256.

    Args:
        source: from `export_file`.

    Raises:
        InputError: HDF5, but not written by `export_file`.
    """
    try:
        if (there := inside(source)) is None:
            raise InputError(f"{source}: no such file")
        for prefix in _checked_groups(source, there[0].documents):
            manifest = read_manifest(source / prefix)
            manifest.check_metadata(source / prefix, _EXPORT_AGAIN)
            for name, entry in manifest.arrays.items():
                array = MappedArray(source / prefix, name, manifest.crcs(name), _EXPORT_AGAIN)
                parts = (array.raw_chunk(index) for index in range(array.spec.chunks))
                content = array_digest([sha256(part.data).hexdigest() for part in parts])
                if content != entry["sha256"]:
                    yield Problem(source / prefix / name, "does not match the manifest's SHA-256")
    except StoredDataError as error:
        yield Problem(source, str(error).removeprefix(f"{source}: "))


def _import_group(source: Path, folder: Path, on_progress: OnProgress) -> None:
    manifest = read_manifest(source)
    manifest.check_metadata(source, _EXPORT_AGAIN)
    for name in manifest.arrays:
        array = MappedArray(source, name, manifest.crcs(name), _EXPORT_AGAIN)
        for index in range(array.spec.chunks):
            write_chunk(folder, array.spec, index, array.raw_chunk(index), flush=False)
            on_progress(f"imported {name}", index + 1, array.spec.chunks)


def _is_same(goal: Path, documents: dict[str, bytes]) -> bool:
    """Whether all that a file holds is there, by its metadata, and as it was written."""
    for name, raw in documents.items():
        try:
            if (goal / name).read_bytes() != raw:
                return False
        except OSError:
            return False
    return not any(
        problem for folder in _groups(goal) for problem in verify_group(folder, content=False)
    )
