"""Measure how fast a Gram cache is read, built and verified, and how large it is.

``python -m benchmarks.cache [--clips 4000] [--layers 5,13] [--codecs packed,factor,lowrank]``

Reading: medians over random batches of 13 rows, after first touch; these ways take turns:

* ``antigram``: `CacheLayer.take`, which the trainer's loading thread calls,
* ``memmap``: ``array[rows]`` of one raw numpy memmap of the same values,
* ``zarr``: zarr-python, one row after the other, from the same chunk files,
* ``h5py``: h5py, one row after the other, from the exported file.

Building: clips/s of `build_cache` against the bare forward pass of the same net, cut off at the
same layer, with the same batches; the two take turns. The network is a full VGG16. The result is
saved in results/cache.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
import zarr

from antigram.cache.build import build_cache
from antigram.cache.grams import LayerRows
from antigram.cache.key import layer_name
from antigram.cache.layer import CacheLayer, layer_fingerprint
from antigram.cache.plan import LayerPlan, plan_layers, teacher_net
from antigram.model.choices import Codec, RowDtype
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import Teacher
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import ArraySpec, array_digest, encode, write_chunk
from antigram.pipeline.storage.exchange import export_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    write_manifest,
)
from antigram.pipeline.storage.verification import verify_group
from benchmarks.record import save, warm_memory

BATCH = 13
SHAPE = (126, 129)
CPU = torch.device("cpu")
_SPARE = 512 << 20  # bytes of memory that are touched in addition to the data that are written


def made_store(folder: Path, clips: int) -> FeatureStore:
    """Prepare a feature store from clips of noise that are written here."""
    import soundfile

    from antigram.pipeline.corpora import CORPORA
    from antigram.pipeline.features.naming import recipe_for
    from antigram.pipeline.features.preparation import prepare

    home = folder / "corpus"
    rng = np.random.default_rng(0)
    for label in "ab":
        (home / label).mkdir(parents=True)
    for number in range(clips):
        y = rng.standard_normal(16_000).astype(np.float32) * 0.1
        soundfile.write(home / "ab"[number % 2] / f"{number:06d}.wav", y, 16_000)
    corpus, recipe = recipe_for(CORPORA["folder"], {})
    return prepare(corpus, home, recipe, folder / "noise.zarr").store


def teacher(seed: int = 0) -> Teacher:
    """Return a full VGG16 with weights drawn from a seed."""
    torch.manual_seed(seed)
    arch = Arch()
    return Teacher(arch, dict(Vgg(arch, 0).state_dict()), "")


def made_layer(path: Path, plan: LayerPlan, clips: int) -> CacheLayer:
    """Return a layer of ``clips`` segments with random values, on which reading does not depend."""
    cache = Folder(path)
    group = cache.below(layer_name(plan.key.layer))
    specs = plan.specs(clips)
    rng = np.random.default_rng(plan.channels)
    values = rng.standard_normal((specs[0].rows, *specs[0].shape[1:]), np.float32)
    written = {
        spec.name: [
            write_chunk(
                group, spec, index, encode(spec, index, _part(spec, index, values)), flush=False
            )
            for index in range(spec.chunks)
        ]
        for spec in specs
    }
    attributes: dict[str, Any] = {
        "complete": True,
        "key": plan.key.to_json(),
        "channels": plan.channels,
        "positions": plan.positions,
        "pilot": {},
    }
    content = {name: array_digest([w.sha256 for w in chunks]) for name, chunks in written.items()}
    attributes["fingerprint"] = layer_fingerprint(attributes, content)
    create_group(group, {"antigram": attributes})
    create_arrays(group, specs)
    write_manifest(group, written)
    create_group(
        cache, {"antigram": {"format": "antigram/grams", "format_version": 1, "features": ""}}
    )
    write_manifest(cache, {})
    return CacheLayer(path, plan.key.layer)


def _part(spec: ArraySpec, index: int, values: np.ndarray) -> np.ndarray:
    span = spec.span(index)
    rows = span.stop - span.start
    if spec.shape[1:] != values.shape[1:]:  # norms, energies or scales
        return np.ones((rows, *spec.shape[1:]), spec.dtype)
    return values[:rows]


def reading(layer: CacheLayer, folder: Path, clips: int, rounds: int) -> dict[str, float]:
    """Return the median time of a batch in microseconds, for each way of reading."""
    name = layer.values.spec.name
    raw = folder / "raw"
    flat = layer.values.read()
    flat.tofile(raw)
    memmap = np.memmap(raw, flat.dtype, mode="r", shape=flat.shape)
    int(memmap.reshape(-1).view(np.uint16)[::2048].sum(dtype=np.int64))  # reads every page once
    del flat
    of_zarr: Any = zarr.open_group(str(layer.path), mode="r")[f"{layer.folder.name}/{name}"]
    export_file(layer.path, folder / "one.h5")
    of_h5 = h5py.File(folder / "one.h5", "r")[f"{layer.folder.name}/{name}"]
    for index in range(layer.values.spec.chunks):
        layer.values.chunk(index)
    rng = np.random.default_rng(1)
    ways: dict[str, Callable[[np.ndarray], object]] = {
        "antigram": LayerRows(layer).take,
        "memmap": lambda rows: memmap[rows],
        "zarr": lambda rows: [of_zarr[int(row)] for row in rows],
        "h5py": lambda rows: [of_h5[int(row)] for row in rows],
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, read in ways.items():
            if way in ("zarr", "h5py") and number % 20:
                continue  # fewer batches suffice for the slow ways
            rows = rng.integers(0, clips, BATCH)
            begun = time.perf_counter()
            read(rows)
            times[way].append(time.perf_counter() - begun)
    raw.unlink()
    (folder / "one.h5").unlink()
    return {way: 1e6 * statistics.median(seconds) for way, seconds in times.items()}


def building(
    store: FeatureStore, net: Teacher, plan: LayerPlan, folder: Path, rounds: int
) -> dict[str, float]:
    """Return clips/s of a build and of the bare forward pass, as medians of alternating rounds.

    Clips for each second of CPU time (``_cpu``) are disturbed less by other programs.
    """
    bare = teacher_net(net, plan.key, CPU)
    target_bytes = plan.bytes_per_clip * len(store)
    x = torch.from_numpy(store.features.read().astype(np.float32))[:, None]
    rates: dict[str, list[float]] = {"bare": [], "build": [], "bare_cpu": [], "build_cpu": []}
    for number in range(rounds):
        with torch.no_grad(), warm_memory(_SPARE):
            begun, cpu = time.perf_counter(), time.process_time()
            for start in range(0, len(x), 32):
                bare.run_features(
                    x[start : start + 32],
                    [plan.key.layer],
                    plan.key.tap,
                    lambda *_: None,
                    stop=True,
                )
            took = time.perf_counter() - begun
        rates["bare"].append(len(x) / took)
        rates["bare_cpu"].append(len(x) / (time.process_time() - cpu))
        target = folder / f"build-{plan.key.layer}-{plan.key.codec}-{number}.zarr"
        with warm_memory(target_bytes + _SPARE):
            cpu = time.process_time()
            built = build_cache(
                store, net, {plan.key.layer: plan}, target, made_from={}, device=CPU
            )
        rates["build"].append(built.computed / built.seconds)
        rates["build_cpu"].append(built.computed / (time.process_time() - cpu))
    return {arm: statistics.median(found) for arm, found in rates.items()}


def verifying(layer: CacheLayer, size: int) -> dict[str, float]:
    """Return the speed of `verify_group` in GB/s, by the clock and by CPU time, as medians."""
    speeds, by_cpu = [], []
    for _ in range(5):
        begun, cpu = time.perf_counter(), time.process_time()
        problems = list(verify_group(layer.group))
        speeds.append(size / (time.perf_counter() - begun) / 1e9)
        by_cpu.append(size / (time.process_time() - cpu) / 1e9)
        if problems:
            raise RuntimeError(f"{layer.folder}: {problems[0]}")
    return {
        "verify_gb_per_s": statistics.median(speeds),
        "verify_gb_per_cpu_s": statistics.median(by_cpu),
    }


def main() -> None:
    """Measure reading and building, print the table, and save the result."""
    keep_freed_memory(of_any_size=True)  # `antigram cache-grams` does the same
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=4_000)
    parser.add_argument("--build-clips", type=int, default=256)
    parser.add_argument("--layers", default="5,13")
    parser.add_argument("--codecs", default="packed,packed-int8,factor,factor-int8,lowrank")
    parser.add_argument("--build-layers", default="3,5,13")
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="cache")
    asked = parser.parse_args()
    layers = [int(text) for text in asked.layers.split(",")]
    content: dict[str, Any] = {
        "clips": asked.clips,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "reading": {},
        "building": {},
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store, net = made_store(folder, asked.build_clips), teacher()

        def plan_of(layer: int, form: str) -> LayerPlan:
            codec, _, dtype = form.partition("-")
            spec = TapSpec(arch=net.arch, layers=(layer,))
            rank = 15 if codec == "lowrank" else None
            given = cast("Codec", codec), cast("RowDtype", dtype or "float16")
            return plan_layers(store, net, spec, codec=given[0], dtype=given[1], rank=rank)[layer]

        for layer in layers:
            for codec in asked.codecs.split(","):
                plan = plan_of(layer, codec)
                cache = folder / f"{layer}-{codec}.zarr"
                made = made_layer(cache, plan, asked.clips)
                found: dict[str, Any] = {"us": reading(made, folder, asked.clips, asked.batches)}
                found["bytes_per_clip"] = plan.bytes_per_clip
                found["over_memmap"] = found["us"]["memmap"] / found["us"]["antigram"]
                found["over_zarr"] = found["us"]["zarr"] / found["us"]["antigram"]
                found |= verifying(made, plan.bytes_per_clip * asked.clips)
                content["reading"][f"layer {layer} {codec.replace('-', ' ')}"] = found
                times = ", ".join(f"{way} {us:.0f}" for way, us in found["us"].items())
                print(
                    f"layer {layer:2d} {codec:12s} {found['bytes_per_clip'] >> 10:5d} KiB a clip; "
                    f"us a batch: {times}; {found['over_memmap']:.2f} of a memmap's speed, "
                    f"{found['over_zarr']:.0f} x zarr; verify {found['verify_gb_per_s']:.1f} GB/s"
                )
        for layer in [int(text) for text in asked.build_layers.split(",")]:
            for codec in ("packed", "factor"):
                rates = building(store, net, plan_of(layer, codec), folder, asked.rounds)
                share = rates["build"] / rates["bare"]
                cpu_share = rates["build_cpu"] / rates["bare_cpu"]
                content["building"][f"layer {layer} {codec}"] = {
                    **rates, "of_bare": share, "of_bare_cpu": cpu_share,
                }  # fmt: skip
                print(
                    f"layer {layer:2d} {codec:8s} built at {rates['build']:.1f} clips/s, "
                    f"bare forward {rates['bare']:.1f}: {share:.2f}, in CPU time {cpu_share:.2f}"
                )
    print(json.dumps(content))
    print(save(asked.name, content))


if __name__ == "__main__":
    main()
