"""Run the teacher once over a feature store and write its rows, chunk by chunk, resumably.

One pass serves all layers asked for, cut off after the deepest. A layer is built in
``.NAME.zarr.partial`` beside the cache and put in place as a whole; a journal for each layer notes
every chunk that is flushed to disk, so that a killed build goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.cache.key import layer_name
from antigram.cache.layer import FORMAT, VERSION, CacheLayer, layer_fingerprint, layers_of
from antigram.cache.pilot import find_rank
from antigram.cache.plan import LayerPlan, run_taps, teacher_net
from antigram.cache.work import (
    drop_finished,
    journals_of,
    note_of,
    note_path,
    noted,
    publish_layers,
    write_root,
)
from antigram.model.loss.codecs import encode_rows
from antigram.model.nets.vgg import Vgg, extractor_digest
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    Written,
    array_digest,
    chunk_path,
    encode,
    write_chunk,
)
from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.storage.files import map_file, remove, size_text
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.journal import Journal
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
    verify_group,
    write_manifest,
)
from antigram.pipeline.storage.mapped import is_whole
from antigram.pipeline.storage.publish import discard, recover, work_folder

__all__ = ["Built", "build_cache"]

_IN_FLIGHT = 2  # chunks that may wait for the disk while the net goes on
_CACHE_BYTES = 8 << 20  # of a CPU
_ROWS_AT_ONCE = 1 << 20  # all

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished cache, and what making it took."""

    path: Path
    clips: int
    computed: int  # clips that went through the net in this run
    layers: Mapping[int, CacheLayer]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Fields of ``cache-grams --json``."""
        return {
            "cache": str(self.path),
            "name": self.path.name.removesuffix(".zarr"),
            "clips": self.clips,
            "computed": self.computed,
            "layers": {str(n): layer.describe() for n, layer in sorted(self.layers.items())},
            "seconds": round(self.seconds, 3),
        }


def build_cache(
    store: FeatureStore,
    teacher: Teacher,
    plans: Mapping[int, LayerPlan],
    target: Path,
    *,
    made_from: Mapping[str, str],
    batch_clips: int = 32,
    device: torch.device,
    on_progress: OnProgress = lambda *_: None,
    distributed: DistributedContext | None = None,
) -> Built:
    """Make the layers of a cache that are not there yet, or are there with another key or damaged.

    Of a damaged layer only the damaged chunks are made again.

    Args:
        store: the features.
        teacher: the net.
        plans: from `plan_layers`.
        target: ``NAME.zarr``.
        made_from: names of store and checkpoint, for people; no part of the key.
        batch_clips: clips in a batch of the net; no batch spans two chunks.
        device: where the net runs.
        on_progress: told of progress.
        distributed: of processes that build together, each its own chunks; all must call this.

    Raises:
        InputError: the disk has not the room.
        StoredDataError: the store is damaged.
    """
    begun = time.perf_counter()
    distributed = distributed or DistributedContext()
    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "features": store.fingerprint,
        "made_from": dict(made_from),
        "versions": versions(("antigram", "numpy", "torch", "zarr")),
    }
    if distributed.leads:
        recover(target)
    distributed.wait()
    there, foreign = _layers_there(target, store, teacher)
    missing = {}
    for number, plan in plans.items():
        if number not in there or there[number].key != plan.key:
            missing[number] = plan
        elif any(verify_group(there[number].folder, content=False)):
            missing[number] = replace(plan, rank=_rank(there[number]), pilot=there[number].pilot)
    computed = 0
    partial = work_folder(target)
    if missing:
        if distributed.leads:
            for number, plan in missing.items():
                missing[number] = noted(plan, partial) or find_rank(
                    plan, store, teacher, batch_clips, device
                )
            _check_free(target, missing, len(store))
            if not partial.is_dir():
                discard(partial)  # something else, in its place
        store.read_index(store.main_label)  # others may replace the store from now on
        store.features.hold()
        writers = _begin(missing, partial, target, len(store), distributed)
        with ExitStack() as open_journals:
            for writer in writers.values():
                open_journals.enter_context(writer.journal)
            computed = _fill(store, teacher, writers, batch_clips, device, on_progress, distributed)
        computed = int(distributed.sum(torch.tensor(computed, device=device)))  # all are done
        if distributed.leads:
            for writer in writers.values():
                writer.finish()
            publish_layers(target, partial, root, missing, whole_swap=foreign)
    if distributed.leads:
        write_root(target, root, partial)
        drop_finished(partial, plans)
    distributed.wait()
    opened = {n: CacheLayer(target, n) for n in plans}
    return Built(target, len(store), computed, opened, time.perf_counter() - begun)


def _layers_there(
    target: Path, store: FeatureStore, teacher: Teacher
) -> tuple[dict[int, CacheLayer], bool]:
    """Layers of a cache that were made from this store and net; whether it is another's cache."""
    with torch.device("meta"):
        net = Vgg(teacher.arch, 0)
    found = {}
    for number in layers_of(target):
        try:
            layer = CacheLayer(target, number)
        except (InputError, StoredDataError):
            continue  # its metadata is damaged: made again if it is asked for
        key = layer.key
        if (
            key.features != store.fingerprint
            or key.arch != teacher.arch
            or key.extractor != extractor_digest(teacher.state, net, number, key.tap)
        ):
            return {}, True  # replaced once the new one is whole
        found[number] = layer
    return found, not layers_of(target)


def _rank(layer: CacheLayer) -> int | None:
    return int(layer.values.shape[-1]) if layer.key.codec == "lowrank" else None


def _check_free(target: Path, missing: Mapping[int, LayerPlan], clips: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = clips * sum(plan.bytes_per_clip for plan in missing.values())
    free = shutil.disk_usage(target.parent).free
    if wanted > free:
        raise InputError(
            f"{target.parent}: {size_text(free)} free, the cache takes {size_text(wanted)}. "
            "Make room, ask for fewer layers, or use --workspace on another disk."
        )


class _LayerWriter:
    """One layer in the making: its chunks, and the journals of those that are done.

    Each process of a team notes its chunks in a journal of its own; the first one's journal is
    that of a build by one process, so that either can go on with what the other began.
    """

    def __init__(self, plan: LayerPlan, partial: Path, clips: int, rank: int) -> None:
        self.plan = plan
        self.specs = plan.specs(clips)
        self.folder = partial / layer_name(plan.key.layer)
        if rank == 0:
            self._prepare(partial)
        own = f".{rank}.jsonl" if rank else ".jsonl"
        self.journal = Journal(self.folder.with_suffix(own))
        self.done = {chunk for chunk, written in self._noted() if self._is_whole(chunk, written)}

    def _prepare(self, partial: Path) -> None:
        """Keep what an interrupted build of the same layer has done; clear away another's."""
        plan = self.plan
        staged = partial / "root" / self.folder.name
        if staged.is_dir() and not self.folder.exists():
            staged.rename(self.folder)  # killed while it was being published
        note, text = note_path(partial, plan.key.layer), canonical_json(note_of(plan))
        if not note.is_file() or note.read_bytes() != text.encode() or not self.folder.is_dir():
            for path in (note, self.folder, *journals_of(self.folder)):
                remove(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, text)

    def _noted(self) -> Iterator[tuple[int, dict[str, Written]]]:
        """Chunks that the journals note, and what was written; what cannot be understood is not."""
        for path in journals_of(self.folder):
            for entry in Journal.read(path):
                chunk, written = entry.get("chunk"), entry.get("written")
                if not isinstance(chunk, int) or not isinstance(written, dict):
                    continue
                try:
                    found = {s.name: Written.from_json(written.get(s.name)) for s in self.specs}
                except ValueError:
                    continue
                if chunk in range(self.specs[0].chunks):
                    yield chunk, found

    def adopt(self, old: CacheLayer) -> None:
        """Take over the whole chunks of a damaged layer; they are linked, not copied."""
        crcs = {spec.name: read_manifest(old.folder).crcs(spec.name) for spec in self.specs}
        for index in set(range(self.specs[0].chunks)) - self.done:
            written = {}
            for spec in self.specs:
                path = chunk_path(old.folder, spec, index)
                if not is_whole(path, spec.rows * spec.row_bytes, crcs[spec.name][index]):
                    break
                goal = chunk_path(self.folder, spec, index)
                goal.parent.mkdir(parents=True, exist_ok=True)
                goal.unlink(missing_ok=True)
                try:
                    goal.hardlink_to(path)
                except OSError:  # a file system without links
                    shutil.copyfile(path, goal)
                content = sha256(map_file(path)[:-CRC_BYTES].data).hexdigest()
                written[spec.name] = asdict(Written(crcs[spec.name][index], content))
            else:
                self.journal.append({"chunk": index, "written": written})
                self.done.add(index)

    def _is_whole(self, chunk: int, written: Mapping[str, Written]) -> bool:
        """Whether a chunk that the journal notes is there: a power cut may lose a rename."""
        return all(
            is_whole(
                chunk_path(self.folder, spec, chunk),
                spec.rows * spec.row_bytes,
                written[spec.name].crc32c,
            )
            for spec in self.specs
        )

    def write(self, index: int, arrays: tuple[NDArray[Any], ...]) -> None:
        """Write a chunk of each array, flush them to disk, and note it."""
        written = {
            spec.name: asdict(write_chunk(self.folder, spec, index, encode(spec, index, values)))
            for spec, values in zip(self.specs, arrays, strict=True)
        }
        self.journal.append({"chunk": index, "written": written})
        self.done.add(index)

    def finish(self) -> None:
        """Write metadata and manifest; the group is then complete."""
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
        create_group(self.folder, {"antigram": attributes})
        create_arrays(self.folder, self.specs)
        write_manifest(self.folder, arrays)


def _begin(
    plans: Mapping[int, LayerPlan],
    partial: Path,
    target: Path,
    clips: int,
    distributed: DistributedContext,
) -> dict[int, _LayerWriter]:
    """Writers of the layers that are to be made; the first process clears the way for the rest."""
    if distributed.leads:
        writers = {n: _LayerWriter(plan, partial, clips, 0) for n, plan in plans.items()}
        for number, writer in writers.items():
            with suppress(InputError, StoredDataError):  # not there, or of no use
                if (old := CacheLayer(target, number)).key == writer.plan.key:
                    writer.adopt(old)
        distributed.wait()
        return writers
    distributed.wait()
    known = {n: noted(plan, partial) or plan for n, plan in plans.items()}  # with its rank
    return {n: _LayerWriter(plan, partial, clips, distributed.rank) for n, plan in known.items()}


def _fill(
    store: FeatureStore,
    teacher: Teacher,
    writers: Mapping[int, _LayerWriter],
    batch_clips: int,
    device: torch.device,
    on_progress: OnProgress,
    distributed: DistributedContext,
) -> int:
    """Run the net over the chunks that some layer lacks, while a thread writes the last ones.

    Each process of a team has every so-manieth chunk: whose it is does not depend on what is done.
    """
    plans = {number: writer.plan for number, writer in writers.items()}
    key = next(iter(plans.values())).key
    first = next(iter(writers.values())).specs[0]
    net = teacher_net(teacher, key, device)
    computed, pending = 0, list[Future[None]]()
    memories: list[dict[int, tuple[torch.Tensor, ...]]] = [{} for _ in range(_IN_FLIGHT + 1)]
    turn = 0
    with ThreadPoolExecutor(1) as disk:
        for index in range(distributed.rank, first.chunks, distributed.size):
            span = first.span(index)
            wanted = [n for n, writer in writers.items() if index not in writer.done]
            if wanted:
                x = store.features.read_span(span).astype(np.float32, copy=False)
                if key.views is not None:
                    x, params, place = _views_of(x, store, span, key.views)
                while len(pending) >= _IN_FLIGHT:
                    pending.pop(0).result()
                # Memory of one of the chunks that are written: fresh memory has to be found anew.
                memory = memories[turn := (turn + 1) % len(memories)]
                rows = _run_net(net, x, [plans[n] for n in wanted], batch_clips, device, memory)
                if key.views is not None:
                    rows = {n: (*(a[place] for a in arrays), params) for n, arrays in rows.items()}
                store.features.look(span)  # what was overwritten meanwhile is not written
                pending.append(disk.submit(_write_all, writers, index, rows))
                computed += span.stop - span.start
            on_progress("teacher", span.stop, len(store))
        for future in pending:
            future.result()
    return computed


def _views_of(
    x: NDArray[np.float32], store: FeatureStore, span: slice, views: Views
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Views of a chunk's clips, one behind the other; what was drawn; and the place of each view.

    Only clips of the training split are augmented: those of the others are all their views.
    """
    count = views.count
    ids = store.clip_ids[span]
    params = np.stack([views.params(ids, v, store.shape) for v in range(count)], axis=1)
    fixed = store.split[span] != 0
    params[fixed] = 0
    each = np.where(fixed, 1, count)
    place = (np.cumsum(each) - each)[:, None] + np.where(fixed[:, None], 0, np.arange(count))
    x = np.repeat(x, each, axis=0)
    of_x = np.zeros((len(x), params.shape[2]), np.float32)
    of_x[place] = params
    apply_views(x, of_x, store.silence)
    return x, params, place


def _write_all(
    writers: Mapping[int, _LayerWriter], index: int, rows: Mapping[int, tuple[NDArray[Any], ...]]
) -> None:
    for layer, arrays in rows.items():
        writers[layer].write(index, arrays)


def _run_net(
    net: Vgg,
    x: NDArray[np.float32],
    plans: Sequence[LayerPlan],
    batch_clips: int,
    device: torch.device,
    memory: dict[int, tuple[torch.Tensor, ...]],
) -> dict[int, tuple[NDArray[Any], ...]]:
    """Arrays of one chunk's clips for each layer, in the order of `LayerPlan.specs`.

    They lie in ``memory``, layer -> tensors of an earlier chunk, where those are large enough.
    """
    found = {}
    for plan in plans:
        whole = memory.get(plan.key.layer)
        if whole is None or len(whole[0]) < len(x):
            whole = memory[plan.key.layer] = tuple(
                torch.empty((len(x), *spec.shape[1:]), dtype=getattr(torch, spec.dtype))
                for spec in replace(plan, key=replace(plan.key, views=None)).specs(len(x))
            )
        found[plan.key.layer] = tuple(tensor[: len(x)] for tensor in whole)
    place = dict.fromkeys(found, 0)

    def on_tap(plan: LayerPlan, maps: torch.Tensor) -> None:
        key = plan.key
        dtype = getattr(torch, key.dtype)
        for few in torch.split(maps, _at_once(plan, device)):
            rows = encode_rows(few, key.aggregation, dtype, key.codec, plan.rank)
            first = place[key.layer]
            place[key.layer] += len(few)
            parts = (rows.data, rows.norm, rows.row_norm, rows.energy)
            for whole, part in zip(found[key.layer], parts, strict=False):  # energy: lowrank's
                if part is not None:
                    whole[first : first + len(few)].copy_(part)

    run_taps(net, x, plans, batch_clips, device, on_tap)
    return {layer: tuple(t.numpy() for t in tensors) for layer, tensors in found.items()}


def _at_once(plan: LayerPlan, device: torch.device) -> int:
    """Clips that are encoded at once: on a CPU as many as stay in its cache, a third faster."""
    if device.type != "cpu":
        return _ROWS_AT_ONCE
    largest = 4 * plan.channels * max(plan.channels, plan.positions)  # float32, maps or Gram
    return max(1, _CACHE_BYTES // largest)
