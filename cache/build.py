"""Build a cache: run the teacher once over a feature store, and write its rows chunk by chunk.

One pass computes all requested layers and stops at the deepest layer. Layers are built in
``.NAME.zarr.partial`` beside the cache, and each is moved into the cache atomically. A journal for
each layer records every chunk that is flushed to disk, so that a killed build is resumed.
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

from antigram.cache.cluster_pass import compute_on_cluster
from antigram.cache.layer import CacheLayer, layers_of
from antigram.cache.layer_writer import open_writers
from antigram.cache.pilot import find_rank
from antigram.cache.plan import LayerPlan
from antigram.cache.teacher_pass import compute_chunks
from antigram.cache.work import drop_finished, noted, publish_layers, write_root
from antigram.model.choices import Layer, layer_order
from antigram.model.training.any_teacher import AnyTeacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.storage.publish import discard, recover, work_folder
from antigram.pipeline.storage.verification import is_unchanged
from antigram.pipeline.workspace import locked

__all__ = ["Built", "build_cache"]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished cache, and the cost of building it.

    Attributes:
        path: path of the cache.
        clips: segments in the cache.
        computed: segments that went through the teacher in this build.
        layers: layers of this build, by number.
        seconds: duration of this build.
    """

    path: Path
    clips: int
    computed: int
    layers: Mapping[Layer, CacheLayer]
    seconds: float

    def _sorted(self) -> list[tuple[Layer, CacheLayer]]:
        return sorted(self.layers.items(), key=lambda pair: layer_order(pair[0]))

    def to_json(self) -> dict[str, Any]:
        """Return fields of ``cache-grams --json``."""
        return {
            "cache": str(self.path),
            "name": self.path.name.removesuffix(".zarr"),
            "clips": self.clips,
            "computed": self.computed,
            "layers": {str(n): layer.describe() for n, layer in self._sorted()},
            "seconds": round(self.seconds, 3),
        }


def build_cache(
    store: FeatureStore,
    teacher: AnyTeacher,
    plans: Mapping[Layer, LayerPlan],
    target: Path,
    *,
    made_from: Mapping[str, str],
    batch_clips: int = 32,
    device: torch.device,
    on_progress: OnProgress = lambda *_: None,
    distributed: DistributedContext | None = None,
    cluster: DaskCluster | None = None,
    check_all: bool = False,
) -> Built:
    """Build the layers of a cache that are missing, damaged, or whose key differs from the plan's.

    In a damaged layer, only the damaged chunks are rebuilt. Rank 0 holds the lock of ``target``
    throughout.

    Args:
        store: features.
        teacher: network that computes the rows.
        plans: layers to build, from `plan_layers`.
        target: path of the cache, ``NAME.zarr``.
        made_from: names of store and checkpoint, for display only; not part of the key.
        batch_clips: segments in a batch; no batch spans two chunks.
        device: device that the teacher runs on.
        on_progress: called with the name of the stage, the segments done so far and the total.
        distributed: rank and world size; taken from torchrun's environment by default. Each rank
            builds its own chunks, and all ranks must call this function.
        cluster: Dask cluster whose workers compute the chunks in place of this process, on CPUs;
            they need the file system of this machine. A low rank is still found here.
        check_all: read every chunk of an existing layer; by default, chunks of a layer larger than
            8 GB are looked up with their sizes, and only some of them are read.

    Raises:
        InputError: there is too little free disk space, or another process is building ``target``.
        StoredDataError: the store is damaged.
    """
    start = time.perf_counter()
    distributed = distributed or DistributedContext()
    root = {
        "features": store.fingerprint,
        "made_from": dict(made_from),
        "versions": versions(("antigram", "numpy", "torch", "zarr")),
    }
    with locked(target, "building") if distributed.leads else nullcontext():
        if distributed.leads:
            recover(target)
        distributed.wait()
        existing, replaces = _existing_layers(target, store, teacher)
        missing = _missing(plans, existing, check_all=check_all)
        computed = 0
        partial = work_folder(target)
        if missing:
            computed = _make_layers(
                store,
                teacher,
                missing,
                target,
                batch_clips,
                device,
                on_progress,
                distributed,
                cluster,
            )
            if distributed.leads:
                publish_layers(
                    target, partial, root, missing, store.clip_ids, replace_cache=replaces
                )
        if distributed.leads:
            write_root(target, root, partial, store.clip_ids)
            drop_finished(partial, plans)
        distributed.wait()
    opened = {n: CacheLayer(target, n) for n in plans}
    return Built(target, len(store), computed, opened, time.perf_counter() - start)


def _missing(
    plans: Mapping[Layer, LayerPlan], existing: Mapping[Layer, CacheLayer], *, check_all: bool
) -> dict[Layer, LayerPlan]:
    """Return the plans of layers that are missing or damaged; a damaged layer keeps its rank."""
    missing = {}
    for number, plan in plans.items():
        layer = existing.get(number)
        if layer is None or layer.key != plan.key:
            missing[number] = plan
        elif not is_unchanged(layer.group, check_all=check_all):
            missing[number] = replace(plan, rank=_rank(layer), pilot=layer.pilot)
    return missing


def _make_layers(
    store: FeatureStore,
    teacher: AnyTeacher,
    plans: Mapping[Layer, LayerPlan],
    target: Path,
    batch_clips: int,
    device: torch.device,
    on_progress: OnProgress,
    distributed: DistributedContext,
    cluster: DaskCluster | None,
) -> int:
    """Build layers in the folder beside the cache, on all ranks; rank 0 completes them.

    Returns:
        Number of segments that went through the teacher, on all ranks.
    """
    partial = work_folder(target)
    if distributed.leads:
        plans = {
            number: noted(plan, partial) or find_rank(plan, store, teacher, batch_clips, device)
            for number, plan in plans.items()
        }
        _check_free(target, plans, len(store))
        if not partial.is_dir():
            discard(partial)  # a file with the folder's name
    store.read_index(store.main_label)  # from here on, another process may replace the store
    store.features.hold()
    writers = open_writers(plans, partial, target, len(store), distributed)
    with ExitStack() as open_journals:
        for writer in writers.values():
            open_journals.enter_context(writer.journal)
        if cluster is None:
            computed = compute_chunks(
                store, teacher, writers, batch_clips, device, on_progress, distributed
            )
        else:
            computed = compute_on_cluster(
                cluster, store, teacher, writers, partial, batch_clips, on_progress
            )
    computed = int(distributed.sum(torch.tensor(computed, device=device)))  # waits for all ranks
    if distributed.leads:
        for writer in writers.values():
            writer.finish()
    return computed


def _existing_layers(
    target: Path, store: FeatureStore, teacher: AnyTeacher
) -> tuple[dict[Layer, CacheLayer], bool]:
    """Open the layers of a cache that were built from this store and teacher.

    Returns:
        Layers by number; and whether the cache is to be replaced, because it has no layer, or a
        layer that was built from another store or teacher.
    """
    existing = {}
    for number in layers_of(target):
        try:
            layer = CacheLayer(target, number)
        except (InputError, StoredDataError):
            continue  # its metadata is damaged; it is rebuilt if requested
        key = layer.key
        if (
            key.features != store.fingerprint
            or key.arch != teacher.arch
            or key.extractor != teacher.digest(number, key.tap)
        ):
            return {}, True  # replaced once the new cache is complete
        existing[number] = layer
    return existing, not layers_of(target)


def _rank(layer: CacheLayer) -> int | None:
    return int(layer.values.shape[-1]) if layer.key.codec == "lowrank" else None


def _check_free(target: Path, missing: Mapping[Layer, LayerPlan], clips: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = clips * sum(plan.bytes_per_clip for plan in missing.values())
    free = shutil.disk_usage(target.parent).free
    if wanted > free:
        raise InputError(
            f"{target.parent}: {size_text(free)} free, the cache takes {size_text(wanted)}. "
            "Make room, ask for fewer layers, or use a `workspace` on another disk."
        )
