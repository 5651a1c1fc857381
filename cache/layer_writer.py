"""Write a layer of a cache, chunk by chunk; each chunk is recorded once it is on disk.

Layers are written in the folder beside the cache (`cache.work`). A layer is complete when its
manifest is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from antigram.cache.key import layer_name
from antigram.cache.layer import CacheLayer, layer_fingerprint
from antigram.cache.plan import LayerPlan
from antigram.cache.work import journals_of, note_of, note_path, noted
from antigram.model.choices import Layer
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    Written,
    array_digest,
    chunk_key,
    chunk_path,
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

__all__ = ["LayerWriter", "open_writers"]


class LayerWriter:
    """Writer of one layer, which resumes what an interrupted build of the same layer has written.

    Each rank records its chunks in its own journal. A build in a single process uses the journal of
    rank 0 and reads the journals of all ranks, so that either kind of build can resume the other.

    Args:
        plan: plan of the layer.
        partial: folder beside the cache.
        clips: segments of the store.
        rank: rank of this process.
    """

    def __init__(self, plan: LayerPlan, partial: Path, clips: int, rank: int) -> None:
        self.plan = plan
        self.specs = plan.specs(clips)
        self.folder = partial / layer_name(plan.key.layer)
        self._group = Folder(self.folder)
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
            for path in (note, self.folder, *journals_of(self.folder)):
                remove(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, text)

    def _noted(self) -> Iterator[tuple[int, dict[str, Written]]]:
        """Yield the chunks in the journals, with their checksums; unreadable entries are left out.

        Yields:
            Index of a chunk, and the checksums of the chunk of each array.
        """
        for path in journals_of(self.folder):
            for entry in Journal.read(path):
                chunk, written = entry.get("chunk"), entry.get("written")
                if not isinstance(chunk, int) or not isinstance(written, dict):
                    continue
                try:
                    of_arrays = {s.name: Written.from_json(written.get(s.name)) for s in self.specs}
                except ValueError:
                    continue
                if chunk in range(self.specs[0].chunks):
                    yield chunk, of_arrays

    def adopt(self, old: CacheLayer, inputs: Mapping[int, str] | None = None) -> None:
        """Take over the intact chunks of an existing layer, as hard links if possible.

        Args:
            old: the layer; it has the same arrays.
            inputs: chunks to take over, and the digests of their inputs; by default all chunks that
                are not written yet.
        """
        crcs = {spec.name: read_manifest(old.group).crcs(spec.name) for spec in self.specs}
        chosen = set(range(self.specs[0].chunks)) - self.done if inputs is None else set(inputs)
        for index in sorted(chosen):
            written = {}
            for spec in self.specs:
                key, crc = chunk_key(spec, index), crcs[spec.name][index]
                if not is_intact(old.group, key, spec.rows * spec.row_bytes, crc):
                    break
                path = chunk_path(old.folder, spec, index)
                new_path = chunk_path(self.folder, spec, index)
                new_path.parent.mkdir(parents=True, exist_ok=True)
                new_path.unlink(missing_ok=True)
                try:
                    new_path.hardlink_to(path)
                except OSError:  # a file system without links
                    shutil.copyfile(path, new_path)
                content = sha256(old.group.view(key)[:-CRC_BYTES].data).hexdigest()
                written[spec.name] = asdict(Written(crc, content))
            else:
                self._note(index, written, (inputs or {}).get(index))

    def _note(self, index: int, written: Mapping[str, Any], given: str | None) -> None:
        """Record a chunk that is on disk, and the digest of its input if that is known."""
        noted = {} if given is None else {"input": given}
        self.journal.append({"chunk": index, "written": written, **noted})
        self.done.add(index)
        if given is not None:
            self.inputs[index] = given

    def _is_intact(self, chunk: int, written: Mapping[str, Written]) -> bool:
        """Return whether a recorded chunk is intact on disk; a power cut may undo a rename."""
        return all(
            is_intact(
                self._group,
                chunk_key(spec, chunk),
                spec.rows * spec.row_bytes,
                written[spec.name].crc32c,
            )
            for spec in self.specs
        )

    def write(self, index: int, arrays: tuple[NDArray[Any], ...], given: str | None = None) -> None:
        """Write a chunk of each array, flush them to disk, and record the chunk in the journal.

        Args:
            index: index of the chunk.
            arrays: rows of the chunk, in the order of ``specs``.
            given: digest of the chunk's input, if the order of the input may change between builds.
        """
        written = {
            spec.name: asdict(write_chunk(self._group, spec, index, encode(spec, index, values)))
            for spec, values in zip(self.specs, arrays, strict=True)
        }
        self._note(index, written, given)

    def finish(self) -> None:
        """Write metadata and manifest, which makes the layer complete."""
        noted = dict(self._noted())
        arrays = {
            spec.name: [noted[i][spec.name] for i in range(spec.chunks)] for spec in self.specs
        }
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
        writers = {n: LayerWriter(plan, partial, clips, 0) for n, plan in plans.items()}
        for number, writer in writers.items():
            with suppress(InputError, StoredDataError):  # the layer is missing, or unusable
                if (old := CacheLayer(target, number)).key == writer.plan.key:
                    writer.adopt(old)
        distributed.wait()
        return writers
    distributed.wait()
    # The process of rank 0 has noted the rank of each low-rank layer.
    with_rank = {n: noted(plan, partial) or plan for n, plan in plans.items()}
    return {n: LayerWriter(plan, partial, clips, distributed.rank) for n, plan in with_rank.items()}
