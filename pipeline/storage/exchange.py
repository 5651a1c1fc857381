"""Export a store or cache to one HDF5 file, and import it again with the same bytes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import Backend, Writer
from antigram.pipeline.storage.chunks import STRING, array_digest, write_chunk
from antigram.pipeline.storage.durable import atomic_path, flush_filesystem
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hdf5 import FORMAT, SUFFIX, VERSION, ExportedFile
from antigram.pipeline.storage.manifest import (
    FOLDER,
    Problem,
    inner_groups,
    read_manifest,
)
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.opening import is_exported
from antigram.pipeline.storage.publish import check_goal, discard, publish, recover, work_folder
from antigram.pipeline.storage.root import has_parts
from antigram.pipeline.storage.verification import verify_group

__all__ = ["export_file", "import_file", "verify_export"]

_EXPORT_AGAIN = "Export it again."
OnProgress = Callable[[str, int, int], None]
Group = TypeVar("Group", bound=Backend)
_MOST_ATTRIBUTE = 60_000  # bytes; the limit of all HDF5 libraries
_NAME = re.compile(r"[A-Za-z0-9_.+@ -]+")


def _groups(root: Group) -> Iterator[tuple[str, Group]]:
    """Yield the groups that have a manifest, each with the prefix of its keys below the root."""
    yield "", root
    for name in inner_groups(root):
        yield f"{name}/", root.below(name)


def export_file(path: Path, goal: Path, on_progress: OnProgress = lambda *_: None) -> int:
    """Write a store or cache as one HDF5 file, atomically.

    Args:
        path: the store or cache.
        goal: the file to write, ``FILE.h5``; an existing file is replaced.
        on_progress: called with a stage, the bytes done and the bytes in total.

    Returns:
        Size of the file in bytes.

    Raises:
        InputError: ``path`` is not a store or cache, ``goal`` is not an ``.h5`` file, its folder
            does not exist, or there is too little free disk space.
        DamagedError: the store or cache is damaged; nothing is written.
    """
    import h5py

    if not path.is_dir():
        raise InputError(f"{path}: is an exported file already; copy it, or import it first")
    source = Folder(path)
    if not has_parts(source):
        raise InputError(f"{path}: no store or cache there; `antigram status` lists what is")
    if goal.suffix != SUFFIX:
        raise InputError(f"`goal` {goal}: wanted a name that ends in {SUFFIX}")
    check_goal("`goal`", goal)
    size = sum(entry.size for entry in source.list())
    if size > (free := shutil.disk_usage(goal.absolute().parent).free):
        raise InputError(f"`goal` {goal}: {size_text(size)} wanted, {size_text(free)} free")
    done = 0
    with (
        atomic_path(goal, work_folder(goal)) as temporary,
        h5py.File(temporary, "w", libver="latest") as file,
    ):
        # Strings of fixed length: HDF5 stores others in a heap without a checksum, where a flipped
        # bit makes the library loop for ever.
        file.attrs["format"], file.attrs["format_version"] = np.bytes_(FORMAT), VERSION
        for prefix, group in _groups(source):
            manifest = read_manifest(group)
            manifest.check_metadata(group, "Nothing was exported.")
            for name in manifest.arrays:
                array = MappedArray(group, name, manifest.crcs(name), "Nothing was exported.")
                for part in _copy(file, prefix + name, array):
                    done += part
                    on_progress("exported", min(done, size), size)
            for document in (*manifest.metadata, f"{FOLDER}/zarr.json"):
                raw = np.frombuffer(group.get(document), np.uint8)
                file.create_dataset(f"zarr/{prefix}{document}", data=raw)
                _note(file, PurePosixPath(prefix + document).parent, raw.tobytes())
    return goal.stat().st_size


def _note(file: Any, parent: PurePosixPath, document: bytes) -> None:  # noqa: ANN401
    """Write attributes as JSON for people who open the file; antigram reads ``/zarr`` instead."""
    if parent.name == FOLDER:
        return
    for key, value in json.loads(document).get("attributes", {}).items():
        text = json.dumps(value).encode()
        if len(text) < _MOST_ATTRIBUTE:
            file[str(parent)].attrs[key] = np.bytes_(text)


def _copy(file: Any, name: str, array: MappedArray) -> Iterator[int]:  # noqa: ANN401
    """Write an array as a contiguous dataset; yield the number of bytes of each part."""
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
    """Import a store or cache from an exported file; every chunk is checked by its checksum.

    Args:
        source: file that `export_file` wrote.
        goal: path of the store or cache, ``NAME.zarr``. An existing store or cache that differs is
            replaced when the new one is complete.
        on_progress: called with a stage, the chunks done and the chunks in total.

    Returns:
        Whether it was imported; False if an identical one exists.

    Raises:
        InputError: ``source`` does not exist, or was not written by `export_file`.
        DamagedError: the file is damaged or malicious; nothing is imported.
    """
    if not is_exported(source):
        raise InputError(f"{source}: no such file; wanted one that `antigram export` wrote")
    exported = ExportedFile.at(source)
    _check_names(exported)
    if _is_same(Folder(goal), exported.file.documents):
        return False
    recover(goal)
    partial = goal.with_name(f".{goal.name}.import")
    discard(partial)
    folder = Folder(partial)
    try:
        for name, raw in exported.file.documents.items():
            folder.put(name, raw, flush=False)
        for prefix, group in _groups(exported):
            _import_group(group, Folder(partial / prefix), on_progress)
        for _, finished in _groups(folder):
            for problem in verify_group(finished, content=False):
                raise DamagedError(f"{source}: {Path(problem.path).name}: {problem.problem}")
        flush_filesystem(partial)
        publish(partial, goal)
    except BaseException:
        discard(partial)
        raise
    return True


def _check_names(exported: ExportedFile) -> None:
    """Raise if a document in the file has a name that antigram does not write.

    Raises:
        DamagedError: the message has the name.
    """
    for name in exported.file.documents:
        parts = name.split("/")
        if parts[-1] != "zarr.json" or not all(map(_NAME.fullmatch, parts)) or ".." in parts:
            raise DamagedError(f"{exported.where()}: holds a document called {name!r}")


def verify_export(source: Path) -> Iterator[Problem]:
    """Yield the problems of an exported file; each array is checked by the manifest's SHA-256.

    Args:
        source: file that `export_file` wrote.

    Raises:
        InputError: the file does not exist, or was not written by `export_file`.
    """
    try:
        if not is_exported(source):
            raise InputError(f"{source}: no such file")
        exported = ExportedFile.at(source)
        _check_names(exported)
        for _, group in _groups(exported):
            manifest = read_manifest(group)
            manifest.check_metadata(group, _EXPORT_AGAIN)
            for name, entry in manifest.arrays.items():
                array = MappedArray(group, name, manifest.crcs(name), _EXPORT_AGAIN)
                parts = (array.raw_chunk(index) for index in range(array.spec.chunks))
                content = array_digest([sha256(part.data).hexdigest() for part in parts])
                if content != entry["sha256"]:
                    yield Problem(Path(array.where), "does not match the manifest's SHA-256")
    except StoredDataError as error:
        yield Problem(source, str(error).removeprefix(f"{source}: "))


def _import_group(source: Backend, target: Writer, on_progress: OnProgress) -> None:
    manifest = read_manifest(source)
    manifest.check_metadata(source, _EXPORT_AGAIN)
    for name in manifest.arrays:
        array = MappedArray(source, name, manifest.crcs(name), _EXPORT_AGAIN)
        for index in range(array.spec.chunks):
            write_chunk(target, array.spec, index, array.raw_chunk(index), flush=False)
            on_progress(f"imported {name}", index + 1, array.spec.chunks)


def _is_same(folder: Folder, documents: Mapping[str, bytes]) -> bool:
    """Whether a folder holds the same store or cache as a file, and is intact."""
    for name, raw in documents.items():
        try:
            if folder.get(name) != raw:
                return False
        except OSError:
            return False
    return not any(
        problem for _, group in _groups(folder) for problem in verify_group(group, content=False)
    )
