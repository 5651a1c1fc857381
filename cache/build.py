"""Run the frozen net once over a feature store and write its rows, chunk by chunk, resumably.

One pass serves all layers asked for, cut off after the deepest. A layer is built in
``.NAME.zarr.partial`` beside the cache and put in place as a whole; a journal for each layer notes
every chunk that is flushed to disk, so that a killed build goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.grams import ARRAY_OF, FORMAT, VERSION, CacheLayer, open_root
from cache.key import CacheKey, layer_name
from model.at_loss import TapSpec
from model.checkpoint import Frozen
from model.gram import Rows, encode_rows, row_size
from model.vgg import Vgg, extractor_digest, tap_shape
from pipeline.chunks import (
    ArraySpec,
    Journal,
    Written,
    chunk_path,
    encode,
    replace_folder,
    write_chunk,
    write_text,
)
from pipeline.errors import InputError, StoredDataError
from pipeline.manifest import create_arrays, create_group, verify_group, write_manifest
from pipeline.mapped import is_whole
from pipeline.recipe import canonical_json, digest
from pipeline.store import FeatureStore

__all__ = ["Built", "LayerPlan", "build_cache", "plan_layers"]

_ROWS_PER_CHUNK = 128
_IN_FLIGHT = 2  # chunks that may wait for the disk while the net goes on

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What a layer of a cache will be."""

    key: CacheKey
    channels: int
    positions: int

    @property
    def values(self) -> int:
        """Values in a row."""
        return row_size(self.key.aggregation, self.channels, self.positions)

    @property
    def bytes_per_clip(self) -> int:
        """On disk, the two norms included."""
        return self.values * np.dtype(self.key.dtype).itemsize + 8

    def specs(self, clips: int) -> list[ArraySpec]:
        """The arrays of the layer's group."""
        per = max(1, min(_ROWS_PER_CHUNK, clips))
        name = ARRAY_OF[self.key.codec]
        return [
            ArraySpec(name, (clips, self.values), self.key.dtype, per),
            ArraySpec("norm", (clips,), "float32", per),
            ArraySpec("row_norm", (clips,), "float32", per),
        ]


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


def plan_layers(
    store: FeatureStore, frozen: Frozen, spec: TapSpec, *, codec: str, dtype: str
) -> dict[int, LayerPlan]:
    """Key and size of each layer, before anything is computed.

    Raises:
        InputError: the codec cannot hold the aggregation.
    """
    exact = "packed" if spec.aggregation == "gram" else "map"
    if codec not in ("auto", exact):
        raise InputError(
            f"--codec {codec}: the aggregation {spec.aggregation} is stored as {exact}; "
            "use --codec auto"
        )
    with torch.device("meta"):
        net = Vgg(frozen.arch, 0)
    plans = {}
    for layer in spec.layers:
        channels, positions = tap_shape(frozen.arch, layer, spec.tap, store.shape)
        key = CacheKey(
            extractor=extractor_digest(frozen.state, net, layer, spec.tap),
            arch=frozen.arch,
            features=store.fingerprint,
            layer=layer,
            tap=spec.tap,
            aggregation=spec.aggregation,
            codec=exact,
            dtype=dtype,
        )
        plans[layer] = LayerPlan(key, channels, positions)
    return plans


def build_cache(
    store: FeatureStore,
    frozen: Frozen,
    plans: Mapping[int, LayerPlan],
    target: Path,
    *,
    made_from: Mapping[str, str],
    batch_clips: int = 32,
    device: torch.device,
    tick: Tick = lambda *_: None,
) -> Built:
    """Make the layers of a cache that are not there yet, or are there with another key.

    Args:
        store: the features.
        frozen: the net.
        plans: from `plan_layers`.
        target: ``NAME.zarr``.
        made_from: names of store and checkpoint, for people; no part of the key.
        batch_clips: clips in a batch of the net; no batch spans two chunks.
        device: where the net runs.
        tick: told of progress.

    Raises:
        InputError: the disk has not the room.
        StoredDataError: the store is damaged.
    """
    begun = time.perf_counter()
    root = {
        "format": FORMAT,
        "format_version": VERSION,
        "features": store.fingerprint,
        "frozen": _whole_digest(frozen),
        "made_from": dict(made_from),
        "versions": {
            n: importlib.metadata.version(n) for n in ("antigram", "numpy", "torch", "zarr")
        },
    }
    keep = _layers_there(target, root)
    missing = {n: plan for n, plan in plans.items() if n not in keep or keep[n].key != plan.key}
    computed = 0
    if missing:
        partial = target.with_name(f".{target.name}.partial")
        _check_free(target, missing, len(store))
        computed = _compute(store, frozen, missing, partial, batch_clips, device, tick)
        _publish(target, partial, root, missing, replace=not keep)
    os.utime(target / "zarr.json")  # it is now the cache of this store made last
    opened = {n: CacheLayer(target, n) for n in plans}
    return Built(target, len(store), computed, opened, time.perf_counter() - begun)


def _whole_digest(frozen: Frozen) -> str:
    """Digest of all convolution layers: a cache holds layers of one net only."""
    with torch.device("meta"):
        net = Vgg(frozen.arch, 0)
    return extractor_digest(frozen.state, net, frozen.arch.layers, "relu")


def _layers_there(target: Path, root: Mapping[str, Any]) -> dict[int, CacheLayer]:
    """Whole layers of a cache that was made from the same store and net; none of another's."""
    if not target.exists():
        return {}
    try:
        there = open_root(target)
        if any(there.get(field) != root[field] for field in ("features", "frozen")):
            return {}
        found = {}
        for path in sorted(target.glob("layer[0-9][0-9]")):
            number = int(path.name.removeprefix("layer"))
            if not any(verify_group(path, content=False)):
                found[number] = CacheLayer(target, number)
    except (InputError, StoredDataError):
        return {}  # damaged or foreign: replaced once the new one is whole
    return found


def _check_free(target: Path, missing: Mapping[int, LayerPlan], clips: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = clips * sum(plan.bytes_per_clip for plan in missing.values())
    free = shutil.disk_usage(target.parent).free
    if wanted > free:
        raise InputError(
            f"{target.parent}: {free / 1e9:.1f} GB free, the cache takes {wanted / 1e9:.1f} GB. "
            "Make room, ask for fewer layers, or use --workspace on another disk."
        )


class _LayerWriter:
    """One layer in the making: its chunks, and the journal of those that are done."""

    def __init__(self, plan: LayerPlan, partial: Path, clips: int) -> None:
        self.plan = plan
        self.specs = plan.specs(clips)
        self.folder = partial / layer_name(plan.key.layer)
        staged = partial / "root" / self.folder.name
        if staged.is_dir() and not self.folder.exists():
            staged.rename(self.folder)  # killed while it was being published
        note, text = self.folder.with_suffix(".json"), canonical_json(plan.key.to_json())
        if not note.is_file() or note.read_text() != text or not self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.with_suffix(".jsonl").unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, text)
        self.journal = Journal(self.folder.with_suffix(".jsonl"))
        self.done = {entry["chunk"] for entry in self.journal if self._is_whole(entry)}

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        """Whether a chunk that the journal notes is there: a power cut may lose a rename."""
        return all(
            is_whole(
                chunk_path(self.folder, spec, entry["chunk"]),
                spec.rows * spec.row_bytes,
                entry["written"][spec.name]["crc32c"],
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
        entries = {entry["chunk"]: entry["written"] for entry in self.journal}
        arrays = {
            spec.name: [Written(**entries[i][spec.name]) for i in range(spec.chunks)]
            for spec in self.specs
        }
        plan = self.plan
        attributes = {
            "complete": True,
            "key": plan.key.to_json(),
            "channels": plan.channels,
            "positions": plan.positions,
        }
        content = {name: [asdict(w) for w in chunks] for name, chunks in arrays.items()}
        attributes["fingerprint"] = digest({**attributes, "content": content})
        create_group(self.folder, {"antigram": attributes})
        create_arrays(self.folder, self.specs)
        write_manifest(self.folder, arrays)


def _compute(
    store: FeatureStore,
    frozen: Frozen,
    plans: Mapping[int, LayerPlan],
    partial: Path,
    batch_clips: int,
    device: torch.device,
    tick: Tick,
) -> int:
    """Fill in the chunks that the journals lack; return how many clips that took."""
    with ExitStack() as open_journals:
        writers = {n: _LayerWriter(plan, partial, len(store)) for n, plan in plans.items()}
        for writer in writers.values():
            open_journals.enter_context(writer.journal)
        computed = _fill(store, frozen, plans, writers, batch_clips, device, tick)
    for writer in writers.values():
        writer.finish()
    return computed


def _fill(
    store: FeatureStore,
    frozen: Frozen,
    plans: Mapping[int, LayerPlan],
    writers: Mapping[int, _LayerWriter],
    batch_clips: int,
    device: torch.device,
    tick: Tick,
) -> int:
    """Run the net over the chunks that some layer lacks, while a thread writes the last ones."""
    first = next(iter(writers.values())).specs[0]
    any_plan = next(iter(plans.values()))
    tap, aggregation = any_plan.key.tap, any_plan.key.aggregation
    net = frozen.net().to(device).requires_grad_(False)  # noqa: FBT003 - torch's own signature
    net.set_tap(tap)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    computed, pending = 0, list[Future[None]]()
    with ThreadPoolExecutor(1) as disk:
        for index in range(first.chunks):
            span = first.span(index)
            wanted = [n for n, writer in writers.items() if index not in writer.done]
            if wanted:
                x = store.features.read_span(span).astype(np.float32, copy=False)
                rows = _run_net(net, x, wanted, tap, aggregation, plans, batch_clips, device)
                while len(pending) >= _IN_FLIGHT:
                    pending.pop(0).result()
                pending.append(disk.submit(_write_all, writers, index, dict(rows)))
                computed += span.stop - span.start
            tick("frozen net", span.stop, len(store))
        for future in pending:
            future.result()
    return computed


def _write_all(
    writers: Mapping[int, _LayerWriter], index: int, rows: Mapping[int, tuple[NDArray[Any], ...]]
) -> None:
    for layer, arrays in rows.items():
        writers[layer].write(index, arrays)


@torch.no_grad()
def _run_net(
    net: Vgg,
    x: NDArray[np.float32],
    layers: list[int],
    tap: str,
    aggregation: str,
    plans: Mapping[int, LayerPlan],
    batch_clips: int,
    device: torch.device,
) -> Iterator[tuple[int, tuple[NDArray[Any], ...]]]:
    """Rows of one chunk's clips for each layer: values, norms, norms of the rounded rows."""
    parts: dict[int, list[Rows]] = {layer: [] for layer in layers}

    def on_tap(layer: int, maps: torch.Tensor) -> None:
        dtype = getattr(torch, plans[layer].key.dtype)
        parts[layer].append(encode_rows(maps, aggregation, dtype).to(torch.device("cpu")))

    for start in range(0, len(x), batch_clips):
        batch = torch.from_numpy(x[start : start + batch_clips])[:, None].to(device)
        net.run_features(batch, layers, tap, on_tap, stop=True)
    for layer, rows in parts.items():
        joined = (
            torch.cat([getattr(part, field) for part in rows]).numpy()
            for field in ("data", "norm", "row_norm")
        )
        yield layer, tuple(joined)


def _publish(
    target: Path,
    partial: Path,
    root: Mapping[str, Any],
    built: Mapping[int, LayerPlan],
    *,
    replace: bool,
) -> None:
    """Put finished layers in place: into the cache that is there, or as a new one in one swap."""
    if replace:
        fresh = partial / "root"
        shutil.rmtree(fresh, ignore_errors=True)
        create_group(fresh, {"antigram": dict(root)})
        write_manifest(fresh, {})
        for layer in built:
            (partial / layer_name(layer)).rename(fresh / layer_name(layer))
        replace_folder(fresh, target)
    else:
        for layer in built:
            replace_folder(partial / layer_name(layer), target / layer_name(layer))
    shutil.rmtree(partial, ignore_errors=True)
