"""Write a layer of a cache, chunk by chunk; each chunk is recorded once it is on disk.

Layers are written in the folder beside the cache (`cache.work`). A layer is complete when its
manifest is written.

Norms, energy and augmentation parameters have up to a million rows a chunk. Until the layer is
complete, those of each chunk of the values are a file in the folder ``layerNN.parts``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.cache.key import layer_name
from antigram.cache.layer import SMALL, CacheLayer, layer_fingerprint
from antigram.cache.plan import LayerPlan
from antigram.cache.work import journals_of, note_of, note_path, noted, parts_of
from antigram.model.choices import Layer
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    ArraySpec,
    Written,
    array_digest,
    chunk_key,
    chunk_path,
    crc32c,
    encode,
    is_intact,
    write_chunk,
)
from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.journal import Journal
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
    write_manifest,
)

__all__ = ["LayerWriter", "open_writers", "write_arrays"]


@dataclass(frozen=True, slots=True)
class _Noted:
    """Checksums of a chunk in a journal: of its large arrays, and the crc32c of its norms."""

    written: Mapping[str, Written]
    part: int


class LayerWriter:
    """Writer of one layer, which resumes what an interrupted build of the same layer has written.

    Each rank records its chunks in its own journal. A build in a single process uses the journal of
    rank 0 and reads the journals of all ranks, so that either kind of build can resume the other.

    Args:
        plan: plan of the layer.
        partial: folder beside the cache.
        clips: segments of the store.
        rank: rank of this process.
        small_rows: rows in a chunk of norms, if the layer is to have the layout of an earlier one.
    """

    def __init__(
        self, plan: LayerPlan, partial: Path, clips: int, rank: int, small_rows: int | None = None
    ) -> None:
        self.plan = plan
        self.specs = plan.specs(clips, small_rows)
        self.folder = partial / layer_name(plan.key.layer)
        self._group, self._parts = Folder(self.folder), Folder(parts_of(self.folder))
        if rank == 0:
            self._prepare(partial)
        suffix = f".{rank}.jsonl" if rank else ".jsonl"
        self.journal = Journal(self.folder.with_suffix(suffix))
        self.done = {chunk for chunk, written in self._noted() if self._is_intact(chunk, written)}
        # Digest of the input of a chunk, where it was noted: see `write`.
        self.inputs: dict[int, str] = {
            entry["chunk"]: entry["input"]
            for path in journals_of(self.folder)
            for entry in Journal.read(path)
            if entry.get("chunk") in self.done and isinstance(entry.get("input"), str)
        }

    def _prepare(self, partial: Path) -> None:
        """Keep the chunks of an interrupted build of the same layer; delete any other chunks."""
        plan = self.plan
        staged = partial / "root" / self.folder.name
        if staged.is_dir() and not self.folder.exists():
            staged.rename(self.folder)  # the build was killed while it published the layer
        note, text = note_path(partial, plan.key.layer), canonical_json(note_of(plan))
        if not note.is_file() or note.read_bytes() != text.encode() or not self.folder.is_dir():
            for path in (note, self.folder, self._parts.path, *journals_of(self.folder)):
                remove(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, text)

    @property
    def _large(self) -> list[ArraySpec]:
        """Arrays whose chunks are written at once: the values, and the scales of int8 rows."""
        return [spec for spec in self.specs if spec.name not in SMALL]

    @property
    def _small(self) -> list[ArraySpec]:
        """Arrays whose chunks are written at the end."""
        return [spec for spec in self.specs if spec.name in SMALL]

    def _noted(self) -> Iterator[tuple[int, _Noted]]:
        """Yield index and checksums of each chunk in the journals, except unreadable entries."""
        names = [spec.name for spec in self._large]
        for path in journals_of(self.folder):
            for entry in Journal.read(path):
                match entry:
                    case {"chunk": int(chunk), "written": dict(written), "part": int(part)}:
                        with suppress(ValueError):
                            of = {name: Written.from_json(written.get(name)) for name in names}
                            if chunk in range(self.specs[0].chunks):
                                yield chunk, _Noted(of, part)

    def adopt(self, old: CacheLayer, inputs: Mapping[int, str] | None = None) -> None:
        """Take over the intact chunks of an existing layer, as hard links if possible.

        Args:
            old: the layer; it has the same arrays.
            inputs: chunks to take over, and the digests of their inputs; by default all chunks that
                are not written yet.

        Raises:
            DamagedError: the metadata of the layer are damaged.
        """
        manifest = read_manifest(old.group)
        small = [old.array(spec.name) for spec in self._small]
        chosen = set(range(self.specs[0].chunks)) - self.done if inputs is None else set(inputs)
        for index in sorted(chosen):
            written = {}
            for spec in self._large:
                crc = manifest.crcs(spec.name)[index]
                key = chunk_key(spec, index)
                if not is_intact(old.group, key, spec.rows * spec.row_bytes, crc):
                    break
                self._link(
                    chunk_path(old.folder, spec, index), chunk_path(self.folder, spec, index)
                )
                content = sha256(old.group.view(key)[:-CRC_BYTES].data).hexdigest()
                written[spec.name] = Written(crc, content)
            else:
                with suppress(StoredDataError):  # its norms are damaged
                    rows = [array.read_span(old.values.spec.span(index)) for array in small]
                    self._note(index, written, rows, (inputs or {}).get(index))

    @staticmethod
    def _link(path: Path, new_path: Path) -> None:
        """Take over a file of an existing layer."""
        new_path.parent.mkdir(parents=True, exist_ok=True)
        new_path.unlink(missing_ok=True)
        try:
            new_path.hardlink_to(path)
        except OSError:  # a file system without links
            shutil.copyfile(path, new_path)

    def _note(
        self,
        index: int,
        written: Mapping[str, Written],
        rows: Sequence[NDArray[Any]],
        given: str | None,
    ) -> None:
        """Write the part of norms of a chunk whose large arrays are on disk, and record the chunk.

        Args:
            index: index of the chunk.
            written: checksums of the chunk of each large array.
            rows: rows of the small arrays.
            given: digest of the chunk's input, if that is known.
        """
        raw = b"".join(np.ascontiguousarray(each, "<f4").tobytes() for each in rows)
        self._parts.put(str(index), raw)
        entry = {
            "chunk": index,
            "written": {name: asdict(checksums) for name, checksums in written.items()},
            "part": crc32c(raw),
        }
        self.journal.append(entry if given is None else {**entry, "input": given})
        self.done.add(index)
        if given is not None:
            self.inputs[index] = given

    def _is_intact(self, chunk: int, noted: _Noted) -> bool:
        """Return whether a recorded chunk is intact on disk; a power cut may undo a rename."""
        return self._part(chunk, noted.part) != b"" and all(
            is_intact(
                self._group,
                chunk_key(spec, chunk),
                spec.rows * spec.row_bytes,
                noted.written[spec.name].crc32c,
            )
            for spec in self._large
        )

    def _part(self, chunk: int, crc: int) -> bytes:
        """Return the part of norms of a chunk; empty if it is not as it was recorded."""
        with suppress(OSError):
            raw = self._parts.get(str(chunk))
            return raw if crc32c(raw) == crc else b""
        return b""

    def write(self, index: int, arrays: tuple[NDArray[Any], ...], given: str | None = None) -> None:
        """Write a chunk of each array, flush them to disk, and record the chunk in the journal.

        Args:
            index: index of the chunk.
            arrays: rows of the chunk, in the order of ``specs``.
            given: digest of the chunk's input, if the order of the input may change between builds.
        """
        self._note(index, *write_arrays(self.folder, self.specs, index, arrays), given)

    def note(
        self, index: int, written: Mapping[str, Written], rows: Sequence[NDArray[Any]]
    ) -> None:
        """Record a chunk from what `write_arrays` returned in another process."""
        self._note(index, written, rows, None)

    def finish(self) -> None:
        """Write norms, metadata and manifest, which makes the layer complete.

        Raises:
            DamagedError: a part of the norms is not as it was written.
        """
        noted, small = dict(self._noted()), self._small
        arrays = {
            spec.name: [noted[index].written[spec.name] for index in range(spec.chunks)]
            for spec in self._large
        }
        arrays |= {spec.name: [] for spec in small}
        for index in range(small[0].chunks):
            for spec, rows in zip(small, self._joined(index, noted), strict=True):
                chunk = write_chunk(self._group, spec, index, encode(spec, index, rows))
                arrays[spec.name].append(chunk)
        plan = self.plan
        attributes = {
            "complete": True,
            "key": plan.key.to_json(),
            "channels": plan.channels,
            "positions": plan.positions,
            "pilot": dict(plan.pilot),
        }
        content = {
            name: array_digest([w.sha256 for w in chunks]) for name, chunks in arrays.items()
        }
        attributes["fingerprint"] = layer_fingerprint(attributes, content)
        create_group(self._group, {"antigram": attributes})
        create_arrays(self._group, self.specs)
        write_manifest(self._group, arrays)

    def _joined(self, index: int, noted: Mapping[int, _Noted]) -> list[NDArray[np.float32]]:
        """Return the rows of one chunk of each small array, joined from the parts.

        Args:
            index: index of the chunk.
            noted: checksums of each chunk of the values.
        """
        values, small = self.specs[0], self._small
        span = small[0].span(index)
        rows = [np.empty((span.stop - span.start, *spec.shape[1:]), "<f4") for spec in small]
        for chunk in range(span.start // values.rows, -(-span.stop // values.rows)):
            own = values.span(chunk)
            flat = np.frombuffer(self._part(chunk, noted[chunk].part), "<f4")
            sizes = [(own.stop - own.start) * math.prod(spec.shape[1:]) for spec in small]
            if flat.size != sum(sizes):
                raise DamagedError(
                    f"{self._parts.where(str(chunk))}: not as it was written. Check the disk, and "
                    "run the same command again."
                )
            for out, part in zip(rows, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
                first = own.start - span.start
                out[first : first + own.stop - own.start] = part.reshape(-1, *out.shape[1:])
        return rows


def write_arrays(
    folder: Path, specs: Sequence[ArraySpec], index: int, arrays: Sequence[NDArray[Any]]
) -> tuple[dict[str, Written], list[NDArray[Any]]]:
    """Write the chunk of each large array, and flush it to disk.

    Args:
        folder: folder of the layer.
        specs: layout of all arrays of the layer.
        index: index of the chunk.
        arrays: rows of the chunk, in the order of ``specs``.

    Returns:
        Checksums by name of the array, and the rows of the small arrays, which are written later.
    """
    rows = dict(zip([spec.name for spec in specs], arrays, strict=True))
    written = {
        spec.name: write_chunk(Folder(folder), spec, index, encode(spec, index, rows[spec.name]))
        for spec in specs
        if spec.name not in SMALL
    }
    return written, [rows[spec.name] for spec in specs if spec.name in SMALL]


def open_writers(
    plans: Mapping[Layer, LayerPlan],
    partial: Path,
    target: Path,
    clips: int,
    distributed: DistributedContext,
) -> dict[Layer, LayerWriter]:
    """Open a writer for each layer; rank 0 prepares the folder before other ranks use it.

    Args:
        plans: layers to build, by number.
        partial: folder beside the cache.
        target: path of the cache; the intact chunks of its damaged layers are taken over.
        clips: segments of the store.
        distributed: rank and world size.
    """
    if distributed.leads:
        writers = {}
        for number, plan in plans.items():
            old, small_rows = _to_repair(target, number, plan)
            writers[number] = writer = LayerWriter(plan, partial, clips, 0, small_rows)
            if old is not None:
                with suppress(StoredDataError):  # all is built again
                    writer.adopt(old)
        distributed.wait()
        return writers
    distributed.wait()
    # The process of rank 0 has noted the rank of each low-rank layer.
    with_rank = {n: noted(plan, partial) or plan for n, plan in plans.items()}
    return {n: LayerWriter(plan, partial, clips, distributed.rank) for n, plan in with_rank.items()}


def _to_repair(
    target: Path, number: Layer, plan: LayerPlan
) -> tuple[CacheLayer | None, int | None]:
    """Return the existing layer with the key of a plan, and the rows in a chunk of its norms.

    A repaired layer keeps its layout, as its fingerprint depends on it.
    """
    with suppress(InputError, StoredDataError):  # the layer is missing, or unusable
        if (old := CacheLayer(target, number)).key == plan.key:
            return old, old.array("norm").spec.rows
    return None, None
