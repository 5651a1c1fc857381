"""What a finished group of chunked arrays must hold, byte by byte; and finding what it does not.

The manifest is the attributes of a Zarr group ``manifest`` inside the group it describes:

* ``arrays``: array -> ``crc32c`` (of each chunk, by index) and ``sha256`` (over the SHA-256 of all
  chunks, in order),
* ``metadata``: crc32c of each ``zarr.json``,
* ``digest``: SHA-256 over the two.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.chunks import CRC_BYTES, ArraySpec, Written, array_digest, crc32c
from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.storage.files import map_file
from antigram.pipeline.storage.hashing import canonical_json, digest
from antigram.pipeline.storage.hdf5 import read_bytes

__all__ = [
    "Manifest",
    "Problem",
    "create_arrays",
    "create_group",
    "drop_strangers",
    "read_manifest",
    "verify_group",
    "write_manifest",
]

FOLDER = "manifest"
_CHUNKS_AHEAD = 64
FORMAT = {"format": "antigram/manifest", "format_version": 1}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a store, cache or run."""

    path: Path
    problem: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Checksums of a group: of each chunk of each array, and of the metadata."""

    arrays: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, int]

    def crcs(self, array: str) -> Sequence[int]:
        """crc32c of each chunk of an array, by index."""
        found: Sequence[int] = self.arrays[array]["crc32c"]
        return found

    def check_metadata(self, folder: Path, repair: str) -> None:
        """Hold each ``zarr.json`` against its checksum, before it is believed.

        Raises:
            DamagedError: one is missing or not as it was written.
        """
        for name, wanted in self.metadata.items():
            path = folder / name
            try:
                whole = crc32c(read_bytes(path)) == wanted
            except OSError:
                whole = False
            if not whole:
                raise DamagedError(f"{path}: missing, or not as it was written. {repair}")

    def digests(self) -> dict[str, str]:
        """SHA-256 of each array: its content, for a fingerprint."""
        return {name: entry["sha256"] for name, entry in self.arrays.items()}


def create_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write a group's ``zarr.json``, in place of another if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    write_text(folder / "zarr.json", json.dumps(document, indent=2) + "\n")


def create_arrays(folder: Path, specs: Sequence[ArraySpec]) -> None:
    """Write the ``zarr.json`` of each array; `chunks.write_chunk` writes the chunks.

    zarr says what stands in them, in memory; it would delete chunks that are already there.
    """
    import zarr  # here, as it takes half a second that workers and `--help` need not wait for
    from zarr.codecs import BytesCodec, Crc32cCodec

    memory: dict[str, Any] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(memory))
    for spec in specs:
        text = spec.dtype == "string"
        group.create_array(
            spec.name,
            shape=spec.shape,
            chunks=(spec.rows, *spec.shape[1:]),
            dtype=str if text else spec.dtype,
            serializer="auto" if text else BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=spec.fill,
            attributes=dict(spec.attributes),
        )
    names = {f"{spec.name}/zarr.json" for spec in specs}
    for key in sorted(names):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / key, memory[key].to_bytes().decode() + "\n")


def write_manifest(folder: Path, arrays: Mapping[str, Sequence[Written]]) -> Manifest:
    """Write the manifest of a group whose chunks and metadata are all in place."""
    entries = {
        name: {
            "crc32c": [chunk.crc32c for chunk in chunks],
            "sha256": array_digest([chunk.sha256 for chunk in chunks]),
        }
        for name, chunks in sorted(arrays.items())
    }
    metadata = {
        path.relative_to(folder).as_posix(): crc32c(path.read_bytes())
        for path in _metadata_files(folder, entries)
    }
    content = {**FORMAT, "arrays": entries, "metadata": metadata}
    document = _as_group(content)
    (folder / FOLDER).mkdir(exist_ok=True)
    write_text(folder / FOLDER / "zarr.json", canonical_json(document) + "\n")
    return Manifest(entries, metadata)


def _as_group(content: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as Zarr metadata, with its own digest."""
    attributes = {**content, "digest": digest(content)}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _metadata_files(folder: Path, arrays: Mapping[str, object]) -> Iterator[Path]:
    """``zarr.json`` of the group, of its arrays, and of the groups between."""
    parents = {Path(name).parent for name in arrays} | {Path(name) for name in arrays} | {Path()}
    for relative in sorted(parents):
        yield folder / relative / "zarr.json"


def read_manifest(folder: Path) -> Manifest:
    """Read a group's manifest and check it against its own digest.

    Raises:
        DamagedError: missing, unreadable, or not as it was written.
    """
    path = folder / FOLDER / "zarr.json"
    try:
        raw = read_bytes(path)
        document = json.loads(raw)
        content = dict(document["attributes"])
        del content["digest"]
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; without it nothing can be checked") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: unreadable: {error}") from None
    # A flipped bit may leave JSON that means the same: the bytes themselves are held to the text.
    if raw != (canonical_json(_as_group(content)) + "\n").encode("utf-8", "surrogatepass"):
        raise DamagedError(f"{path}: does not match its own digest")
    if {key: content.get(key) for key in FORMAT} != FORMAT:
        raise DamagedError(
            f"{path}: {content.get('format')} version {content.get('format_version')}; "
            f"this antigram reads {FORMAT['format']} version {FORMAT['format_version']}"
        )
    arrays, metadata = content.get("arrays"), content.get("metadata")
    if not isinstance(arrays, dict) or not isinstance(metadata, dict):
        raise DamagedError(f"{path}: without arrays or metadata")
    for name, entry in arrays.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("crc32c"), list):
            raise DamagedError(f"{path}: the entry of {name} lacks its checksums")
        if not isinstance(entry.get("sha256"), str):
            raise DamagedError(f"{path}: the entry of {name} lacks its SHA-256")
    return Manifest(arrays, metadata)


def verify_group(folder: Path, *, content: bool = True) -> Iterator[Problem]:
    """Read every byte of a group and hold it against the manifest.

    Args:
        folder: the group.
        content: hold it against the SHA-256 too, and not only against every crc32c, which finds
            all accidents at ten times the speed.
    """
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        yield Problem(folder / FOLDER / "zarr.json", str(error).partition(": ")[2])
        return
    for name, wanted in manifest.metadata.items():
        path = folder / name
        try:
            if crc32c(read_bytes(path)) != wanted:
                yield Problem(path, "not as it was written (crc32c)")
        except FileNotFoundError:
            yield Problem(path, "missing")
        except OSError as error:
            yield Problem(path, f"unreadable: {error.strerror}")
    for name, entry in manifest.arrays.items():
        chunks: list[str] = []
        found_problem = False
        files = list(_chunk_files(folder, name, entry["crc32c"]))
        for (path, _), (problem, chunk) in zip(
            files, _verify_chunks(files, content=content), strict=True
        ):
            chunks.append(chunk)
            if problem:
                found_problem = True
                yield Problem(path, problem)
        if content and not found_problem and array_digest(chunks) != entry["sha256"]:
            yield Problem(folder / name, "content does not match the manifest's SHA-256")
    for path in _strangers(folder, manifest):
        yield Problem(path, "unknown file: antigram did not write it")


def drop_strangers(folder: Path) -> None:
    """Delete all files of a group that no manifest in it lists: those of a writer that was killed.

    Raises:
        DamagedError: the group, or a group inside, has no manifest that can be read.
    """
    for group in (folder, *sorted(p.parent for p in folder.glob(f"layer[0-9][0-9]/{FOLDER}"))):
        for path in _strangers(group, read_manifest(group)):
            path.unlink()


def _strangers(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Files of a group that its manifest does not list."""
    expected = {folder / name for name in manifest.metadata} | {folder / FOLDER / "zarr.json"}
    for name, entry in manifest.arrays.items():
        expected.update(path for path, _ in _chunk_files(folder, name, entry["crc32c"]))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in expected and not _in_inner_group(path, folder):
            yield path


def _in_inner_group(path: Path, folder: Path) -> bool:
    """Whether a file belongs to a group inside that has a manifest of its own: a cache's layer."""
    first = path.relative_to(folder).parts[0]
    return re.fullmatch(r"layer\d\d", first) is not None and (folder / first / FOLDER).is_dir()


def _chunk_files(folder: Path, name: str, crcs: Sequence[int]) -> Iterator[tuple[Path, int]]:
    try:
        axes = len(json.loads(read_bytes(folder / name / "zarr.json"))["shape"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        axes = 1 + sum(1 for _ in _zeros_below(folder / name / "c" / "0"))
    for index, crc in enumerate(crcs):
        yield (folder / name / "c" / str(index)).joinpath(*["0"] * (axes - 1)), crc


def _zeros_below(path: Path) -> Iterator[Path]:
    """Folders ``0/0/...`` below a chunk's: the axes, where an array's metadata is unreadable."""
    while path.is_dir():
        path /= "0"
        yield path


def _verify_chunks(
    files: Sequence[tuple[Path, int]], *, content: bool
) -> Iterator[tuple[str, str]]:
    """`_verify_chunk` of each, in order, by as many threads as there are cores: hashing is slow."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for start in range(0, len(files), _CHUNKS_AHEAD):  # so that few are in memory
            part = files[start : start + _CHUNKS_AHEAD]
            yield from threads.map(lambda f: _verify_chunk(*f, content=content), part)


def _verify_chunk(path: Path, wanted: int, *, content: bool) -> tuple[str, str]:
    """Return what is wrong with a chunk file ('' if nothing), and its SHA-256 if asked for."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= CRC_BYTES:
            return "truncated" if status.st_size else "empty", ""
        raw = map_file(path)
    except FileNotFoundError:
        return "missing", ""
    except OSError as error:
        return f"unreadable: {error.strerror}", ""
    data, tail = raw[:-CRC_BYTES], int.from_bytes(raw[-CRC_BYTES:].tobytes(), "little")
    crc = crc32c(data)
    if crc != tail:
        return "damaged: truncated, or a bit has flipped (its own crc32c)", ""
    if crc != wanted:
        return "another chunk or an older version of it (the manifest's crc32c)", ""
    return "", sha256(data.data).hexdigest() if content else ""
