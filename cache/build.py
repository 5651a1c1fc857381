"""Run the teacher once over a feature store and write its rows, chunk by chunk, resumably.

One pass serves all layers asked for, cut off after the deepest. A layer is built in
``.NAME.zarr.partial`` beside the cache and put in place as a whole; a journal for each layer notes
every chunk that is flushed to disk, so that a killed build goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from antigram.cache.layer import FORMAT, VERSION, CacheLayer, layers_of
from antigram.cache.layer_writer import open_writers
from antigram.cache.pilot import find_rank
from antigram.cache.plan import LayerPlan
from antigram.cache.teacher_pass import compute_chunks
from antigram.cache.work import drop_finished, noted, publish_layers, write_root
from antigram.model.nets.vgg import Vgg, extractor_digest
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.storage.manifest import verify_group
from antigram.pipeline.storage.publish import discard, recover, work_folder
from antigram.pipeline.workspace import locked

__all__ = ["Built", "build_cache"]


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

    Of a damaged layer only the damaged chunks are made again. The lock of ``target`` is held
    throughout, by the process that leads.

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
        InputError: the disk has not the room, or another process is building ``target``.
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
    with locked(target, "building") if distributed.leads else nullcontext():
        if distributed.leads:
            recover(target)
        distributed.wait()
        there, foreign = _layers_there(target, store, teacher)
        missing = _missing(plans, there)
        computed = 0
        partial = work_folder(target)
        if missing:
            computed = _make_layers(
                store, teacher, missing, target, batch_clips, device, on_progress, distributed
            )
            if distributed.leads:
                publish_layers(target, partial, root, missing, whole_swap=foreign)
        if distributed.leads:
            write_root(target, root, partial)
            drop_finished(partial, plans)
        distributed.wait()
    opened = {n: CacheLayer(target, n) for n in plans}
    return Built(target, len(store), computed, opened, time.perf_counter() - begun)


def _missing(
    plans: Mapping[int, LayerPlan], there: Mapping[int, CacheLayer]
) -> dict[int, LayerPlan]:
    """Plans of the layers that are not there, or damaged; these keep the rank they have."""
    missing = {}
    for number, plan in plans.items():
        if number not in there or there[number].key != plan.key:
            missing[number] = plan
        elif any(verify_group(there[number].group, content=False)):
            missing[number] = replace(plan, rank=_rank(there[number]), pilot=there[number].pilot)
    return missing


def _make_layers(
    store: FeatureStore,
    teacher: Teacher,
    plans: Mapping[int, LayerPlan],
    target: Path,
    batch_clips: int,
    device: torch.device,
    on_progress: OnProgress,
    distributed: DistributedContext,
) -> int:
    """Make layers in the folder beside the cache; all processes do, the first one completes them.

    Returns:
        How many clips went through the teacher, in all processes.
    """
    partial = work_folder(target)
    if distributed.leads:
        plans = {
            number: noted(plan, partial) or find_rank(plan, store, teacher, batch_clips, device)
            for number, plan in plans.items()
        }
        _check_free(target, plans, len(store))
        if not partial.is_dir():
            discard(partial)  # something else, in its place
    store.read_index(store.main_label)  # others may replace the store from now on
    store.features.hold()
    writers = open_writers(plans, partial, target, len(store), distributed)
    with ExitStack() as open_journals:
        for writer in writers.values():
            open_journals.enter_context(writer.journal)
        computed = compute_chunks(
            store, teacher, writers, batch_clips, device, on_progress, distributed
        )
    computed = int(distributed.sum(torch.tensor(computed, device=device)))  # all are done
    if distributed.leads:
        for writer in writers.values():
            writer.finish()
    return computed


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
            "Make room, ask for fewer layers, or use a `workspace` on another disk."
        )
