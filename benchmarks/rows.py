"""Measure what int8 rows cost in accuracy, and how rows that are not in memory are read.

``python -m benchmarks.rows [--data STORE.zarr --ckpt ONE.pt --ckpt TWO.pt] [--clips 12000]``

* ``int8``: the error of a similarity, with a scale for each channel of a segment, as caches have
  them, and with a single scale for each segment. Students are the second network, and the first one
  on another segment. Without ``--ckpt``, both networks are untrained, and the store is noise.
* ``first``: chunks are checked for the first time, with their pages in no memory: with and without
  reading them before the checksum, which holds the interpreter's lock.
* ``ahead``: batches of 13 in random order from checked chunks whose pages are in no memory, with
  and without reading ahead, while a step of 10 ms (a sleep) follows each batch.
* ``threads``: a batch of rows gathered by one thread and by as many as there are cores, up to four.

Pages are dropped with ``posix_fadvise`` in place of a memory that is too small. The result is saved
in results/rows.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from antigram.cache.grams import LayerRows
from antigram.cache.layer import CacheLayer
from antigram.cache.plan import plan_layers
from antigram.model.choices import Aggregation
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import Rows, encode_rows, exact_codec, stored_rows
from antigram.model.loss.sources import TapSpec
from antigram.model.training.checkpoint import Teacher, open_teacher
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage import gathering
from antigram.pipeline.storage.folder import MappedFiles
from antigram.pipeline.storage.mapped import MappedArray
from benchmarks.cache import BATCH, made_layer, made_store, teacher
from benchmarks.record import save

LAYERS = (1, 3, 5, 8, 13)
STEP_S = 0.01
AHEAD = 2  # batches
_TICK_S = 0.0005
_HELD_S = 0.005  # a thread that waits longer than this for a tick was held up


def int8_errors(store: FeatureStore, nets: list[Teacher], segments: int) -> dict[str, Any]:
    """Return errors of similarities by layer, aggregation and number of scales."""
    rows = np.linspace(0, len(store) - 1, min(segments, len(store))).astype(int)
    x = torch.from_numpy(store.features.take(rows).astype(np.float32))[:, None]
    tapped = [_maps_of(net, x) for net in nets]
    found: dict[str, Any] = {}
    for layer in LAYERS:
        maps = tapped[0][layer]
        for aggregation in cast("list[Aggregation]", ["gram", "pairwise"]):
            exact = encode_rows(
                maps,
                aggregation,
                torch.float32,
                exact_codec(aggregation, maps.shape[1], maps[0, 0].numel()),
            )
            rounded = {
                "channel scales": encode_rows(
                    maps, aggregation, torch.int8, exact.codec, grid=exact.grid
                ),
                "one scale": _one_scale(exact, maps.shape[1]),
            }
            students = {"another segment": maps.roll(1, 0), "another network": tapped[1][layer]}
            for name, other in students.items():
                want = at_loss(other, exact, aggregation).double()
                key = f"layer {layer} {aggregation} ({exact.codec}), {name}"
                found[key] = {"channels": maps.shape[1], "similarity": float(want.mean())}
                for scales, given in rounded.items():
                    apart = (at_loss(other, given, aggregation).double() - want).abs()
                    found[key][scales] = {
                        "largest": float(apart.max()),
                        "root_mean_square": float(apart.square().mean().sqrt()),
                    }
    return found


def _maps_of(net: Teacher, x: torch.Tensor) -> dict[Any, torch.Tensor]:
    found: dict[Any, list[torch.Tensor]] = {}
    with torch.no_grad():
        backbone = net.net().eval()
        for first in range(0, len(x), 16):
            backbone.run_features(
                x[first : first + 16],
                list(LAYERS),
                "relu",
                lambda layer, maps: found.setdefault(layer, []).append(maps.clone()),
                stop=True,
            )
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _one_scale(exact: Rows, channels: int) -> Rows:
    """Return rows that are rounded to 127 multiples of a step of each segment."""
    values = exact.columns
    step = values.abs().flatten(1).amax(1) / 127
    step = step.view(-1, *[1] * (values.ndim - 1)).clamp_min(1e-30)
    side = exact.grid[0] * exact.grid[1] if exact.grid else channels
    rounded = (values / step).round() * step
    norm = exact.norm.double()
    return stored_rows(exact.codec, rounded, norm, torch.float32, side=side, grid=exact.grid)


def dropped(layer: CacheLayer, values: MappedArray | None = None) -> None:
    """Drop the pages of a layer's files from memory, and from the map of an array."""
    if values is not None and isinstance(values._files, MappedFiles):
        import ctypes

        region = values._files._region
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(region.address), ctypes.c_size_t(region.bytes.nbytes), 4)
    for path in layer.folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


class _Ticks:
    """A thread that wants the interpreter every half millisecond, and notes when it gets it."""

    def __enter__(self) -> _Ticks:
        self.gaps: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            time.sleep(_TICK_S)
            now = time.perf_counter()
            self.gaps.append(now - last)
            last = now

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def first_touch(path: Path, rounds: int) -> dict[str, Any]:
    """Return the speed of the first check of all chunks, and how long it held up other threads."""
    found: dict[str, list[tuple[float, float]]] = {"fetched": [], "as they are touched": []}
    fetch = MappedFiles.fetch
    for _ in range(rounds):
        for arm, results in found.items():
            layer = CacheLayer(path, 5)
            dropped(layer)
            MappedFiles.fetch = fetch if arm == "fetched" else (lambda *_: None)  # type: ignore[method-assign]
            begun = time.perf_counter()
            with _Ticks() as ticks:
                for index in range(layer.values.spec.chunks):
                    layer.values.chunk(index)
                took = time.perf_counter() - begun
            held = sum(gap for gap in ticks.gaps if gap > _HELD_S)
            size = layer.values.spec.row_bytes * len(layer.values)
            results.append((size / took / 1e9, min(1.0, held / took)))
    MappedFiles.fetch = fetch  # type: ignore[method-assign]
    return {
        arm: {
            "gb_per_s": statistics.median(speed for speed, _ in results),
            "others_held_up": statistics.median(share for _, share in results),
        }
        for arm, results in found.items()
    }


def ahead(path: Path, batches: int, rounds: int) -> dict[str, Any]:
    """Return the wait for a batch from the disk, in ms, with and without reading ahead."""
    layer = CacheLayer(path, 5)
    values = layer.values
    values.read()  # checks every chunk
    found: dict[str, list[float]] = {"read ahead": [], "when needed": []}
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(values))[: batches * BATCH]
        parts = order.reshape(-1, BATCH)
        for arm, waits in found.items():
            dropped(layer, values)
            waits.extend(_waits(values, parts, ahead=arm == "read ahead"))
    warm = list(_waits(values, parts, ahead=False))
    return {
        **{
            arm: {
                "mean_ms": 1e3 * statistics.mean(waits),
                "median_ms": 1e3 * statistics.median(waits),
                "slowest_of_100_ms": 1e3 * float(np.quantile(waits, 0.99)),
            }
            for arm, waits in found.items()
        },
        "in memory": {"mean_ms": 1e3 * statistics.mean(warm)},
        "row_bytes": values.spec.row_bytes,
    }


def _waits(values: MappedArray, parts: np.ndarray, *, ahead: bool) -> Iterator[float]:
    if ahead:
        for part in parts[:AHEAD]:
            values.expect(part, again=True)
    for number, part in enumerate(parts):
        begun = time.perf_counter()
        if ahead and number + AHEAD < len(parts):
            values.expect(parts[number + AHEAD], again=True)
        values.take(part)
        yield time.perf_counter() - begun
        time.sleep(STEP_S)


def threads(path: Path, batches: int) -> dict[str, Any]:
    """Return GB/s of a batch gathered by one thread and by several, for some sizes of a batch."""
    layer = CacheLayer(path, 5)
    LayerRows(layer).take(np.arange(len(layer.values)))
    values, rng = layer.values, np.random.default_rng(0)
    least = gathering._LEAST_BYTES
    found: dict[str, Any] = {}
    for clips in (13, 128, 512):
        out = np.empty((clips, *values.shape[1:]), np.dtype(values.spec.dtype))
        times: dict[str, list[float]] = {"one thread": [], "several": []}
        for _ in range(batches):
            rows = rng.integers(0, len(values), clips)
            for arm, seconds in times.items():
                gathering._LEAST_BYTES = 0 if arm == "several" else 1 << 60
                begun = time.perf_counter()
                values.take(rows, out=out)
                seconds.append(time.perf_counter() - begun)
        found[f"{out.nbytes / 1e6:.1f} MB"] = {
            arm: out.nbytes / statistics.median(seconds) / 1e9 for arm, seconds in times.items()
        }
    gathering._LEAST_BYTES = least
    return found


def main() -> None:
    """Measure all of it, print the results, and save them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ckpt", type=Path, action="append", default=[])
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--clips", type=int, default=12_000)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="rows")
    asked = parser.parse_args()
    content: dict[str, Any] = {"clips": asked.clips, "batch": BATCH, "step_ms": 1e3 * STEP_S}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        noise = made_store(folder, 8 if asked.data else asked.segments)
        store = FeatureStore(asked.data) if asked.data else noise
        nets = [open_teacher(path) for path in asked.ckpt] or [teacher(0), teacher(1)]
        trained = "trained" if asked.ckpt else "untrained"
        content["networks"] = f"{trained} {nets[0].arch}"
        content["int8"] = int8_errors(store, nets, asked.segments)
        spec = TapSpec(arch=teacher().arch, layers=(5,))
        plan = plan_layers(noise, teacher(), spec, codec="packed")[5]
        made_layer(folder / "large.zarr", plan, asked.clips)
        os.sync()
        content["first"] = first_touch(folder / "large.zarr", asked.rounds)
        content["ahead"] = ahead(folder / "large.zarr", asked.batches, asked.rounds)
        content["threads"] = threads(folder / "large.zarr", asked.batches)
    for name, found in content.items():
        print(name, found)
    print(save(asked.name, content))


if __name__ == "__main__":
    main()
