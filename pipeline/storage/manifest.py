"""The manifest of a group of arrays.

The manifest is the attributes of a Zarr group ``manifest`` inside the group it describes:

* ``arrays``: array -> ``crc32c`` (of each chunk, by index) and ``sha256`` (over the SHA-256 of all
  chunks, in order),
* ``metadata``: crc32c of each ``zarr.json``,
* ``digest``: SHA-256 over ``arrays`` and ``metadata``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.backend import Backend, Grouped, Reader, Store, Writer
from antigram.pipeline.storage.chunks import (
    ArraySpec,
    Written,
    array_digest,
    crc32c,
)
from antigram.pipeline.storage.hashing import canonical_json, digest

__all__ = [
    "LAYER_GROUP",
    "Manifest",
    "Problem",
    "chunk_keys",
    "create_arrays",
    "create_group",
    "delete_unlisted",
    "inner_groups",
    "read_manifest",
    "unlisted",
    "write_manifest",
]

DOCUMENT = "zarr.json"  # Zarr's metadata of a group or array
FOLDER = "manifest"
KEY = f"{FOLDER}/{DOCUMENT}"
# A group inside that has a manifest of its own: a layer of a cache, by its number or its name.
LAYER_GROUP = r"(?:layer\d\d|module-[\w%~-]+)"
_INNER = re.compile(LAYER_GROUP)
FORMAT = {"format": "antigram/manifest", "format_version": 1}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in one file of a store, cache or run."""

    path: Path | str  # text: an address in an object store
    problem: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Checksums of all chunks and metadata of a group.

    Attributes:
        arrays: name of an array -> ``crc32c`` of each chunk, and ``sha256``.
        metadata: key of a ``zarr.json`` -> its crc32c.
    """

    arrays: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, int]

    def crcs(self, array: str) -> Sequence[int]:
        """Return the crc32c of each chunk of an array, by index."""
        crcs: Sequence[int] = self.arrays[array]["crc32c"]
        return crcs

    def check_metadata(self, group: Backend, repair: str) -> None:
        """Check each ``zarr.json`` by its checksum.

        Args:
            group: the group.
            repair: what the user can do, for the message.

        Raises:
            DamagedError: a document is missing or damaged.
        """
        for name, wanted in self.metadata.items():
            try:
                intact = crc32c(group.get(name)) == wanted
            except OSError:
                intact = False
            if not intact:
                where = group.where(name)
                raise DamagedError(f"{where}: missing, or not as it was written. {repair}")

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each array, for a fingerprint."""
        return {name: entry["sha256"] for name, entry in self.arrays.items()}


def create_group(group: Writer, attributes: Mapping[str, Any], *, flush: bool = True) -> None:
    """Write a group's ``zarr.json``; an existing one is replaced. For ``flush``, see `Writer`."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    group.put(DOCUMENT, (json.dumps(document, indent=2) + "\n").encode(), flush=flush)


def create_arrays(group: Writer, specs: Sequence[ArraySpec], *, flush: bool = True) -> None:
    """Write the ``zarr.json`` of each array; `chunks.write_chunk` writes the chunks.

    zarr makes the documents in memory: in the group itself, it would delete existing chunks. For
    ``flush``, see `Writer`.
    """
    import zarr  # here, as it takes half a second that workers and `--help` need not wait for
    from zarr.codecs import BytesCodec, Crc32cCodec

    memory: dict[str, Any] = {}
    in_memory = zarr.create_group(zarr.storage.MemoryStore(memory))
    for spec in specs:
        text = spec.dtype == "string"
        in_memory.create_array(
            spec.name,
            shape=spec.shape,
            chunks=(spec.rows, *spec.shape[1:]),
            dtype=str if text else spec.dtype,
            serializer="auto" if text else BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=spec.fill,
            attributes=dict(spec.attributes),
        )
    for key in sorted(f"{spec.name}/{DOCUMENT}" for spec in specs):
        group.put(key, memory[key].to_bytes(), b"\n", flush=flush)


def write_manifest(
    group: Store, arrays: Mapping[str, Sequence[Written]], *, flush: bool = True
) -> Manifest:
    """Write the manifest of a group whose chunks and metadata are all in place.

    For ``flush``, see `Writer`.
    """
    entries = {
        name: {
            "crc32c": [chunk.crc32c for chunk in chunks],
            "sha256": array_digest([chunk.sha256 for chunk in chunks]),
        }
        for name, chunks in sorted(arrays.items())
    }
    metadata = {key: crc32c(group.get(key)) for key in _metadata_keys(entries)}
    content = {**FORMAT, "arrays": entries, "metadata": metadata}
    group.put(KEY, (canonical_json(_as_group(content)) + "\n").encode(), flush=flush)
    return Manifest(entries, metadata)


def _as_group(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest as Zarr metadata of a group, with its own digest."""
    attributes = {**content, "digest": digest(content)}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _metadata_keys(arrays: Iterable[str]) -> list[str]:
    """Return the key of each ``zarr.json``: of the group, its arrays, and groups between them."""
    names = {parent for name in arrays for parent in (name, name.rpartition("/")[0])}
    return [f"{name}/{DOCUMENT}" if name else DOCUMENT for name in sorted(names | {""})]


def read_manifest(group: Backend) -> Manifest:
    """Read a group's manifest, and check it by the digest that it contains.

    Raises:
        DamagedError: the manifest is missing, unreadable, or differs from what was written.
    """
    path = group.where(KEY)
    try:
        raw = group.get(KEY)
        document = json.loads(raw)
        content = dict(document["attributes"])
        del content["digest"]
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; without it nothing can be checked") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: unreadable: {error}") from None
    # A flipped bit may leave JSON of the same meaning, so the bytes themselves are compared.
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


def delete_unlisted(group: Store) -> None:
    """Delete the files of a group that its manifests do not list, left by a killed writer.

    Raises:
        DamagedError: the group, or a group inside it, has no readable manifest.
    """
    for inner in (group, *(group.below(name) for name in _with_manifest(group))):
        keys = [entry.key for entry in inner.list()]
        for key in unlisted(inner, read_manifest(inner), keys):
            inner.delete(key)


def unlisted(group: Backend, manifest: Manifest, keys: Sequence[str]) -> Iterator[str]:
    """Yield the keys of a group that its manifest does not list."""
    expected = {*manifest.metadata, KEY}
    for name, entry in manifest.arrays.items():
        expected.update(key for key, _ in chunk_keys(group, name, entry["crc32c"], keys))
    inner = _with_manifest(group)
    for key in keys:
        if key not in expected and key.partition("/")[0] not in inner:
            yield key


def inner_groups(group: Grouped) -> list[str]:
    """Return the names of inner groups that have manifests of their own: the layers of a cache."""
    return [name for name in group.groups() if _INNER.fullmatch(name)]


def _with_manifest(group: Grouped) -> list[str]:
    """Return the inner groups that have a manifest, even a damaged one."""
    return [name for name in inner_groups(group) if FOLDER in group.below(name).groups()]


def chunk_keys(
    group: Reader, name: str, crcs: Sequence[int], keys: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Yield key and checksum of each chunk; if metadata is unreadable, infer axes from keys."""
    try:
        axes = len(json.loads(group.get(f"{name}/{DOCUMENT}"))["shape"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        first = f"{name}/c/"
        below = (key.removeprefix(first) for key in keys if key.startswith(first))
        axes = max((1 + key.count("/") for key in below), default=1)
    for index, crc in enumerate(crcs):
        yield "/".join([name, "c", str(index), *["0"] * (axes - 1)]), crc
