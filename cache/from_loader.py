"""Build a cache of any network from the batches of any data loader.

The rows have the order in which the loader gives the segments. A build that was killed is resumed:
the loader is read again, and the network runs only on chunks of segments that are missing, or whose
ids or input have changed. What is written, and how, is as in `cache.build`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from antigram.cache.build import Built
from antigram.cache.layer import BATCHES, CacheLayer, layers_of, open_root
from antigram.cache.layer_writer import LayerWriter
from antigram.cache.loaded import LoadedBatch
from antigram.cache.loader_teacher import NOT_KNOWN, Form, LoaderTeacher, frozen, names_of
from antigram.cache.work import drop_finished, publish_layers, write_root
from antigram.model.choices import AGGREGATIONS, ROW_DTYPES, Aggregation, Codec, Layer, RowDtype
from antigram.model.loss.int8 import INT8_REFUSED
from antigram.model.loss.pairwise import Grid
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.storage.hashing import digest
from antigram.pipeline.storage.publish import discard, recover, work_folder
from antigram.pipeline.storage.verification import verify_group
from antigram.pipeline.workspace import locked

__all__ = ["build_from_loader"]

_UNKNOWN = 1 << 40  # segments, before the loader has ended


def build_from_loader(
    net: nn.Module,
    layers: Sequence[Layer],
    loader: Iterable[Any],
    target: str | Path,
    *,
    aggregation: Aggregation = "gram",
    grid: Grid | None = None,
    codec: Codec | Literal["auto"] = "auto",
    dtype: RowDtype = "float16",
    device: torch.device | str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Built:
    """Run a teacher over the batches of a loader, and store the rows of some of its layers.

    The teacher runs in eval mode, without gradients and without autocast; afterwards its modules
    are in the modes in which they were. An existing cache of the same network and segments is
    completed; any other cache is replaced once the new one is complete.

    Args:
        net: the teacher, any module.
        layers: names of its modules, as in ``net.named_modules()``; in a VGG of antigram or of
            torchvision also numbers of convolution layers, which stand for their ReLUs.
        loader: gives each segment once, in batches: ``(x, ..., clip_ids)``, or dictionaries with
            ``clip_ids`` and ``x``, or with ``clip_ids`` and the arguments of the network by name.
            Segments need the same size, except for ``gram`` with the codec ``packed`` and for
            ``pairwise``.
        target: path of the cache, ``NAME.zarr``.
        aggregation: ``gram``, ``pairwise``, ``mean``, ``sum``, ``max`` or ``compmul``.
        grid: for ``pairwise``, positions that maps are averaged to; by default `default_grid`.
        codec: ``packed`` or ``factor`` for ``gram`` and ``pairwise``; ``auto`` is the smaller one.
        dtype: dtype of the stored values: float32, float16 or int8.
        device: device that the teacher is moved to; by default the one where it is.
        on_progress: called with the name of the stage, the segments done so far, and their total,
            which is 0 if the loader does not know it.

    Returns:
        The cache, and the number of segments that went through the teacher.

    Raises:
        InputError: a layer, a batch or an argument is not as described, a segment comes twice, maps
            are not finite, or another process is building ``target``.
    """
    start = time.perf_counter()
    check_choice("aggregation", aggregation, AGGREGATIONS)
    check_choice("dtype", dtype, ROW_DTYPES)
    of_matrix = aggregation in ("gram", "pairwise")
    if dtype == "int8" and not of_matrix:
        raise InputError(INT8_REFUSED)
    check_choice("codec", codec, ("auto", "packed", "factor") if of_matrix else ("auto", "map"))
    target, names = Path(target), names_of(net, layers)
    if device is not None:
        net = net.to(device)
    form = Form(aggregation, grid, codec, dtype)
    with locked(target, "building"), frozen(net):
        recover(target)
        build = _Build(LoaderTeacher(net, names, form), target, on_progress, _length(loader))
        with build.open_journals:
            for batch in loader:
                build.add(LoadedBatch.of(batch))
            published = build.finish()
    opened = {layer: CacheLayer(target, layer) for layer in names}
    return Built(target, published, build.computed, opened, time.perf_counter() - start)


@dataclass
class _Kept:
    """An existing layer, and those of its chunks that need not be computed again.

    Attributes:
        layer: the layer; its key differs in the segments alone.
        inputs: digest of the input of each chunk.
        chunks: chunks of the same input, and its digest.
    """

    layer: CacheLayer
    inputs: Sequence[str]
    chunks: dict[int, str] = field(default_factory=dict)


class _Build:
    """State of a build: the batches that wait for a chunk to fill, and what is written.

    Args:
        teacher: the network.
        target: path of the cache.
        on_progress: as in `build_from_loader`.
        total: number of segments, 0 if it is not known.
    """

    def __init__(
        self, teacher: LoaderTeacher, target: Path, on_progress: OnProgress, total: int
    ) -> None:
        self.teacher, self.target, self.on_progress, self.total = (
            teacher, target, on_progress, total,
        )  # fmt: skip
        self.partial = work_folder(target)
        self.open_journals = ExitStack()
        self.computed = 0
        self._waiting: deque[tuple[LoadedBatch, list[str], int]] = deque()  # and rows used
        self._ids: dict[str, None] = {}
        self._inputs: list[str] = []  # digest of each chunk
        self._writers: dict[Layer, LayerWriter] = {}
        self._kept: dict[Layer, _Kept] = {}

    def add(self, batch: LoadedBatch) -> None:
        """Take a batch, and write the chunks that it completes."""
        if not batch.ids:
            return
        for clip_id in batch.ids:
            if clip_id in self._ids:
                raise InputError(
                    f"`loader`: segment {clip_id!r} comes twice; wanted each segment once, without "
                    "a sampler that repeats some"
                )
            self._ids[clip_id] = None
        if not self.teacher.plans:
            self.teacher.run(batch)
            self.computed += len(batch.ids)
        self._waiting.append((batch, batch.digests(), 0))
        plan = next(iter(self.teacher.plans.values()))
        rows = plan.specs(_UNKNOWN)[0].rows
        while len(self._ids) - len(self._inputs) * rows >= rows:
            self._write(rows, _UNKNOWN)
        self.on_progress("teacher", len(self._ids), self.total)

    def finish(self) -> int:
        """Write what waits, complete the layers, and publish them.

        Returns:
            Number of segments.
        """
        if not self._ids:
            raise InputError("`loader` gave no segment; wanted batches of segments and their ids")
        count = len(self._ids)
        if left := sum(len(batch.ids) - used for batch, _, used in self._waiting):
            for writer in self._writers.values():
                writer.specs = writer.plan.specs(count)
            self._write(left, count)
        features = digest({"format": "antigram/batches", "clips": count, "chunks": self._inputs})
        root = {
            "features": features,
            "source": BATCHES,
            "inputs": self._inputs,
            "made_from": {"store": "batches", "checkpoint": type(self.teacher.net).__name__},
            "versions": versions(("antigram", "numpy", "torch", "zarr")),
        }
        replaces = self._replaces(features)
        changed = [
            layer for layer in self._writers if replaces or not self._is_unchanged(layer, features)
        ]
        for layer in changed:
            writer = self._writers[layer]
            writer.specs = writer.plan.specs(count)
            if (kept := self._kept.get(layer)) is not None:
                writer.adopt(kept.layer, kept.chunks)
            plan = writer.plan
            writer.plan = replace(plan, key=replace(plan.key, features=features))
            writer.finish()
        ids = list(self._ids)
        if changed:
            publish_layers(self.target, self.partial, root, changed, ids, replace_cache=replaces)
        write_root(self.target, root, self.partial, ids)
        drop_finished(self.partial, self.teacher.plans)
        return count

    def _write(self, rows: int, clips: int) -> None:
        """Write the next chunk of every layer that lacks it.

        Args:
            rows: rows of the chunk.
            clips: number of all segments, as far as it is known.
        """
        if not self._writers:
            self._open(clips)
        index, parts, missing = len(self._inputs), [], rows
        for batch, digests, used in self._waiting:
            take = min(missing, len(batch.ids) - used)
            parts.append((batch, digests, slice(used, used + take)))
            missing -= take
            if not missing:
                break
        given = digest([each for _, digests, span in parts for each in digests[span]])
        lacking = [layer for layer in self._writers if not self._has(layer, index, given, rows)]
        if lacking:
            for batch, _, _ in parts:
                if not batch.rows:
                    self.teacher.run(batch)
                    self.computed += len(batch.ids)
            for layer in lacking:
                pieces = [[array[span] for array in batch.rows[layer]] for batch, _, span in parts]
                arrays = tuple(np.concatenate(each) for each in zip(*pieces, strict=True))
                self._writers[layer].write(index, arrays, given)
        self._inputs.append(given)
        for batch, digests, span in parts:
            self._waiting.popleft()
            if span.stop < len(batch.ids):
                self._waiting.appendleft((batch, digests, span.stop))

    def _open(self, clips: int) -> None:
        """Open a writer for each layer, and the layers of an existing cache."""
        if not self.partial.is_dir():
            discard(self.partial)  # a file with the folder's name
        for layer, plan in self.teacher.plans.items():
            writer = self._writers[layer] = LayerWriter(plan, self.partial, clips, 0)
            self.open_journals.enter_context(writer.journal)
            try:
                old, inputs = CacheLayer(self.target, layer), _inputs_of(self.target)
            except (InputError, StoredDataError):
                continue  # there is none, or it is damaged
            if replace(old.key, features=NOT_KNOWN) == plan.key:
                self._kept[layer] = _Kept(old, inputs)

    def _has(self, layer: Layer, index: int, given: str, rows: int) -> bool:
        """Whether a chunk of the same input is written, or is in the existing cache."""
        writer = self._writers[layer]
        if index in writer.done and writer.inputs.get(index) == given:
            return True
        kept = self._kept.get(layer)
        if kept is None or index >= len(kept.inputs) or kept.inputs[index] != given:
            return False
        spec = kept.layer.values.spec
        alike = spec.rows == writer.specs[0].rows
        if not alike or len(range(*spec.span(index).indices(spec.shape[0]))) != rows:
            return False
        try:
            for name in ("norm", "row_norm"):
                kept.layer.array(name).read_span(spec.span(index))
            kept.layer.values.chunk(index)
        except StoredDataError:
            return False
        kept.chunks[index] = given
        return True

    def _is_unchanged(self, layer: Layer, features: str) -> bool:
        """Whether the existing cache has all chunks of a layer, intact."""
        kept = self._kept.get(layer)
        return (
            kept is not None
            and kept.layer.key.features == features
            and len(kept.chunks) == len(self._inputs)
            and not any(verify_group(kept.layer.group, content=False))
        )

    def _replaces(self, features: str) -> bool:
        """Whether the existing cache is to be replaced, as it is of other segments or another net.

        A layer of the cache that is not built now is kept if it is of the same network.
        """
        try:
            if open_root(self.target)["features"] != features:
                return True
        except (InputError, StoredDataError):
            return True
        for layer in set(layers_of(self.target)) - set(self._writers):
            try:
                (name,) = names_of(self.teacher.net, [layer]).values()
                if CacheLayer(self.target, layer).key.extractor != self.teacher.extractor(name):
                    return True
            except (InputError, StoredDataError):
                return True
        return False


def _inputs_of(target: Path) -> Sequence[str]:
    """Return the digests of the chunks of a cache that was built from batches."""
    root = open_root(target)
    inputs = root.get("inputs")
    if root.get("source") != BATCHES or not isinstance(inputs, list):
        raise InputError(f"{target}: was not built from batches")
    return inputs


def _length(loader: Iterable[Any]) -> int:
    """Return the number of a loader's segments, 0 if it does not know it."""
    data = getattr(loader, "dataset", None)
    size: Callable[[], int] | None = getattr(data, "__len__", None)
    return 0 if size is None else size()
