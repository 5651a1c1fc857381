"""The teacher's pass over a store: rows of the chunks that some layer lacks, written as it goes on.

A thread writes the last chunks while the teacher runs on the next.
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
from antigram.model.loss.codecs import encode_rows
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.distributed import DistributedContext
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.features.store import FeatureStore

__all__ = ["compute_chunks"]

_IN_FLIGHT = 2  # chunks that may wait for the disk while the net goes on
_CACHE_BYTES = 8 << 20  # of a CPU
_ROWS_AT_ONCE = 1 << 20  # all


def compute_chunks(
    store: FeatureStore,
    teacher: Teacher,
    writers: Mapping[int, LayerWriter],
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
    constant = (
        mean_rows(store, teacher, list(plans.values()), batch_clips, device)
        if key.control is not None and any(len(w.done) < first.chunks for w in writers.values())
        else None
    )
    memories: list[dict[int, tuple[torch.Tensor, ...]]] = [{} for _ in range(_IN_FLIGHT + 1)]
    turn = 0
    with ThreadPoolExecutor(1) as disk:
        for index in range(distributed.rank, first.chunks, distributed.size):
            span = first.span(index)
            wanted = [n for n, writer in writers.items() if index not in writer.done]
            if wanted and constant is not None:
                size = span.stop - span.start
                same = {
                    n: tuple(t.expand(size, *t.shape[1:]).contiguous().numpy() for t in constant[n])
                    for n in wanted
                }
                _write_all(writers, index, same)
                computed += size
            elif wanted:
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
    writers: Mapping[int, LayerWriter], index: int, rows: Mapping[int, tuple[NDArray[Any], ...]]
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
