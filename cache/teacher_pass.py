"""Run the teacher over a store, and write the chunks that are missing in at least one layer.

A thread writes the rows of earlier chunks while the teacher runs on the next chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.cache.layer_writer import LayerWriter
from antigram.cache.mean_gram import mean_rows
from antigram.cache.plan import LayerPlan, run_taps, teacher_net
from antigram.model.choices import Layer
from antigram.model.loss.codecs import encode_rows
from antigram.model.nets.backbone import Backbone
from antigram.model.training.any_teacher import AnyTeacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.features.store import FeatureStore

__all__ = ["compute_chunks", "rows_of_chunk"]

_IN_FLIGHT = 2  # chunks that may wait for the disk while the teacher runs
_CACHE_BYTES = 8 << 20  # size of a CPU's cache
_NO_LIMIT = 1 << 20  # segments, more than in any batch


def compute_chunks(
    store: FeatureStore,
    teacher: AnyTeacher,
    writers: Mapping[Layer, LayerWriter],
    batch_clips: int,
    device: torch.device,
    on_progress: OnProgress,
    distributed: DistributedContext,
) -> int:
    """Compute and write the chunks that are missing in at least one layer.

    Chunk i belongs to rank i mod world size, whichever chunks exist already.

    Args:
        store: features.
        teacher: network that computes the rows.
        writers: writers of the layers, by number.
        batch_clips: segments in a batch; no batch spans two chunks.
        device: device that the teacher runs on.
        on_progress: called with the stage, the segments that are done and their total.
        distributed: rank and world size.

    Returns:
        Number of segments that went through the teacher on this rank.
    """
    plans = {number: writer.plan for number, writer in writers.items()}
    key = next(iter(plans.values())).key
    first = next(iter(writers.values())).specs[0]
    net = teacher_net(teacher, key, device)
    computed, pending = 0, list[Future[None]]()
    constant = (
        mean_rows(store, teacher, list(plans.values()), batch_clips, device)
        if key.control is not None and any(len(w.done) < first.chunks for w in writers.values())
        else None
    )
    memories: list[dict[Layer, tuple[torch.Tensor, ...]]] = [{} for _ in range(_IN_FLIGHT + 1)]
    slot = 0
    with ThreadPoolExecutor(1) as disk:
        for index in range(distributed.rank, first.chunks, distributed.size):
            span = first.span(index)
            missing = [n for n, writer in writers.items() if index not in writer.done]
            if missing and constant is not None:
                size = span.stop - span.start
                same = {
                    n: tuple(
                        t.expand(size, *t.shape[1:]).contiguous().numpy()
                        for t in constant[n].arrays()
                    )
                    for n in missing
                }
                _write_all(writers, index, same)
                computed += size
            elif missing:
                while len(pending) >= _IN_FLIGHT:
                    pending.pop(0).result()
                # The memory of a written chunk is reused, as allocating new memory is slow.
                memory = memories[slot := (slot + 1) % len(memories)]
                wanted = [plans[n] for n in missing]
                rows = rows_of_chunk(store, teacher, net, wanted, span, batch_clips, device, memory)
                pending.append(disk.submit(_write_all, writers, index, rows))
                computed += span.stop - span.start
            on_progress("teacher", span.stop, len(store))
        for future in pending:
            future.result()
    return computed


def rows_of_chunk(
    store: FeatureStore,
    teacher: AnyTeacher,
    net: Backbone,
    plans: Sequence[LayerPlan],
    span: slice,
    batch_clips: int,
    device: torch.device,
    memory: dict[Layer, tuple[torch.Tensor, ...]],
) -> dict[Layer, tuple[NDArray[Any], ...]]:
    """Read the segments of a chunk, and compute its rows.

    Args:
        store: features.
        teacher: reads what ``net`` takes.
        net: the teacher's network, from `teacher_net`.
        plans: layers to compute; their views are the same.
        span: rows of the chunk in the store.
        batch_clips: segments in a batch.
        device: device of ``net``.
        memory: tensors that may be used for the result: see `_run_net`.

    Returns:
        By layer, the arrays of the chunk, in the order of `LayerPlan.specs`.

    Raises:
        DamagedError: the features were overwritten meanwhile, or are damaged.
    """
    x, views = teacher.read(store, span), plans[0].key.views
    if views is not None:
        x, params, view_rows = _views_of(x, store, span, views)
    rows = _run_net(net, x, plans, batch_clips, device, memory)
    if views is not None:
        rows = {n: (*(array[view_rows] for array in arrays), params) for n, arrays in rows.items()}
    store.features.look(span)  # raises if the features were overwritten meanwhile
    return rows


def _views_of(
    x: NDArray[np.float32], store: FeatureStore, span: slice, views: Views
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Augment the segments of a chunk.

    Segments outside the training split are not augmented; all their views are the same.

    Args:
        x: ``(segment, frame, freq)`` features of the chunk.
        store: features, with ids and splits.
        span: rows of the chunk in the store.
        views: augmentation.

    Returns:
        ``(row, frame, freq)`` distinct views of all segments; ``(segment, view, parameter)``
        augmentation parameters; and ``(segment, view)`` the row of each view.
    """
    count = views.count
    ids = store.clip_ids[span]
    params = np.stack([views.params(ids, v, store.shape) for v in range(count)], axis=1)
    fixed = store.split[span] != 0
    params[fixed] = 0
    distinct = np.where(fixed, 1, count)
    first_row = (np.cumsum(distinct) - distinct)[:, None]
    view_rows = first_row + np.where(fixed[:, None], 0, np.arange(count))
    x = np.repeat(x, distinct, axis=0)
    params_of_rows = np.zeros((len(x), params.shape[2]), np.float32)
    params_of_rows[view_rows] = params
    apply_views(x, params_of_rows, store.levels)
    return x, params, view_rows


def _write_all(
    writers: Mapping[Layer, LayerWriter], index: int, rows: Mapping[Layer, tuple[NDArray[Any], ...]]
) -> None:
    for layer, arrays in rows.items():
        writers[layer].write(index, arrays)


def _run_net(
    net: Backbone,
    x: NDArray[np.float32],
    plans: Sequence[LayerPlan],
    batch_clips: int,
    device: torch.device,
    memory: dict[Layer, tuple[torch.Tensor, ...]],
) -> dict[Layer, tuple[NDArray[Any], ...]]:
    """Compute the rows of a chunk.

    Args:
        net: the teacher, from `teacher_net`.
        x: ``(row, frame, freq)`` features, or ``(row, sample)`` audio.
        plans: layers to compute.
        batch_clips: segments in a batch.
        device: device of ``net``.
        memory: tensors of an earlier chunk by layer, in host memory; used for the result if they
            are large enough, else replaced.

    Returns:
        By layer, the arrays of the chunk, in the order of `LayerPlan.specs` without views.
    """
    results = {}
    for plan in plans:
        buffers = memory.get(plan.key.layer)
        if buffers is None or len(buffers[0]) < len(x):
            buffers = memory[plan.key.layer] = tuple(
                torch.empty((len(x), *spec.shape[1:]), dtype=getattr(torch, spec.dtype))
                for spec in replace(plan, key=replace(plan.key, views=None)).specs(len(x))
            )
        results[plan.key.layer] = tuple(tensor[: len(x)] for tensor in buffers)
    next_row = dict.fromkeys(results, 0)

    def on_tap(plan: LayerPlan, maps: torch.Tensor) -> None:
        key = plan.key
        dtype = getattr(torch, key.dtype)
        for part in torch.split(maps, _at_once(plan, device)):
            rows = encode_rows(part, key.aggregation, dtype, key.codec, plan.rank, key.grid)
            first = next_row[key.layer]
            next_row[key.layer] += len(part)
            for result, array in zip(results[key.layer], rows.arrays(), strict=True):
                result[first : first + len(part)].copy_(array)

    run_taps(net, x, plans, batch_clips, device, on_tap)
    return {layer: tuple(t.numpy() for t in tensors) for layer, tensors in results.items()}


def _at_once(plan: LayerPlan, device: torch.device) -> int:
    """Return the number of segments to encode at once.

    On a CPU, these are as many segments as fit into its cache, which is a third faster.
    """
    if device.type != "cpu":
        return _NO_LIMIT
    largest = 4 * plan.side * max(plan.channels, plan.positions)  # float32, maps or matrix
    return max(1, _CACHE_BYTES // largest)
