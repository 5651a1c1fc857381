"""Run the teacher on the workers of a Dask cluster; a task computes and writes one chunk.

A worker opens the store by its path, and reads the weights from a file beside the unfinished
layers, as they are too large to be sent with tasks. The driver notes the chunks in the journals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from antigram.cache.layer_writer import LayerWriter, write_arrays
from antigram.cache.plan import LayerPlan, teacher_net
from antigram.cache.teacher_pass import rows_of_chunk
from antigram.model.choices import Layer
from antigram.model.nets.backbone import Backbone
from antigram.model.training.any_teacher import AnyTeacher
from antigram.model.training.checkpoint import Teacher
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import ArraySpec, Written
from antigram.pipeline.storage.durable import atomic_file

__all__ = ["compute_on_cluster"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Job:
    """What all chunks of a build share.

    Attributes:
        store: path of the feature store.
        fingerprint: fingerprint of the store.
        teacher: the teacher without its weights.
        weights: file of the weights.
        layers: folder, plan and arrays of each layer.
        batch_clips: segments in a batch.
    """

    store: Path
    fingerprint: str
    teacher: Teacher
    weights: Path
    layers: Mapping[Layer, tuple[Path, LayerPlan, Sequence[ArraySpec]]]
    batch_clips: int


class _Opened(NamedTuple):
    """What a worker has opened of a job."""

    job: _Job
    store: FeatureStore
    teacher: Teacher
    net: Backbone
    memory: dict[Layer, tuple[torch.Tensor, ...]]


_opened: _Opened | None = None


def compute_on_cluster(
    cluster: DaskCluster,
    store: FeatureStore,
    teacher: AnyTeacher,
    writers: Mapping[Layer, LayerWriter],
    partial: Path,
    batch_clips: int,
    on_progress: OnProgress,
) -> int:
    """Compute and write the chunks that are missing in at least one layer, on CPUs of a cluster.

    Args:
        cluster: its workers need the file system of this process.
        store: features.
        teacher: network of antigram's own that computes the rows.
        writers: writers of the layers, by number.
        partial: folder beside the cache.
        batch_clips: segments in a batch; no batch spans two chunks.
        on_progress: called with the stage, the segments that are done and their total.

    Returns:
        Number of segments that went through the teacher.

    Raises:
        InputError: the teacher is not a checkpoint's, or a mean Gram; or as for `DaskCluster`.
    """
    if not isinstance(teacher, Teacher) or any(w.plan.key.control for w in writers.values()):
        raise InputError(
            "`scheduler`: its workers run networks of checkpoints; for another `teacher`, and for "
            "`teacher_control=mean-gram`, leave `scheduler` out"
        )
    first = next(iter(writers.values())).specs[0]
    done = sum(
        first.span(i).stop - first.span(i).start
        for i in range(first.chunks)
        if all(i in writer.done for writer in writers.values())
    )
    on_progress("teacher", done, len(store))
    with ExitStack() as at_end:
        token, weights = partial.absolute() / "cluster", partial.absolute() / "weights"
        for path in (token, weights):
            at_end.callback(path.unlink, missing_ok=True)
        token.touch()
        with atomic_file(weights) as file:
            torch.save(teacher.state, file)
        job = _Job(
            store.path.absolute(),
            store.fingerprint,
            replace(teacher, state={}),
            weights,
            {n: (w.folder.absolute(), w.plan, w.specs) for n, w in writers.items()},
            batch_clips,
        )
        cluster.check_files([token, job.store])
        pool = at_end.enter_context(cluster.workers(_set_up, job, token))
        tasks = (
            (index, missing)
            for index in range(first.chunks)
            if (missing := [n for n, writer in writers.items() if index not in writer.done])
        )
        computed = 0
        for (index, _), layers in pool.run(_compute_chunk, tasks):
            for layer, (written, rows) in layers.items():
                writers[layer].note(index, written, rows)
            span = first.span(index)
            computed += span.stop - span.start
            on_progress("teacher", done + computed, len(store))
    return computed


def _set_up(job: _Job) -> None:
    """Open store and network in a worker."""
    global _opened  # noqa: PLW0603 - tasks share state through globals only
    keep_freed_memory(of_any_size=True)  # the teacher then takes a quarter less time
    store = FeatureStore(job.store)
    if store.fingerprint != job.fingerprint:
        raise StoredDataError(f"{job.store}: was replaced meanwhile; run the same command again")
    state = torch.load(job.weights, weights_only=True, map_location="cpu")
    teacher = replace(job.teacher, state=state)
    plan = next(iter(job.layers.values()))[1]
    _opened = _Opened(job, store, teacher, teacher_net(teacher, plan.key, _CPU), {})


def _compute_chunk(
    index: int, layers: Sequence[Layer]
) -> dict[Layer, tuple[dict[str, Written], list[NDArray[Any]]]]:
    """Compute and write a chunk of some layers; return what `LayerWriter.note` takes."""
    if _opened is None:
        raise RuntimeError("_set_up() was not called in this process")
    job, store, teacher, net, memory = _opened
    span = job.layers[layers[0]][2][0].span(index)
    plans = [job.layers[layer][1] for layer in layers]
    rows = rows_of_chunk(store, teacher, net, plans, span, job.batch_clips, _CPU, memory)
    results = {}
    for layer, arrays in rows.items():
        folder, _, specs = job.layers[layer]
        written, small = write_arrays(folder, specs, index, arrays)
        # Copies, as the memory is used again by the next chunk of the batch.
        results[layer] = written, [array.copy() for array in small]
    return results
