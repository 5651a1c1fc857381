"""Measure what grows with the number of segments: time and memory at 1, 4 and 36 million.

Run it with ``python -m benchmarks.scale [MILLIONS ...]``; 36 million segments take about 6 GB of
disk and half an hour. A store is written with the functions that `prepare` writes with, chunk by
chunk; its features are tiny, 3 frames x 2 bins, but it has as many chunks, ids and labels as one
with a second of speech in each segment. Each stage runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from antigram.pipeline.features import store as stores
from antigram.pipeline.features.assembly import sort_classes
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.split import assign
from antigram.pipeline.features.store import FeatureStore, store_fingerprint
from antigram.pipeline.storage.chunks import (
    STRING,
    ArraySpec,
    Written,
    encode,
    small_rows_per_chunk,
    write_chunk,
)
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
    write_manifest,
)
from antigram.pipeline.storage.map_limit import most_maps
from antigram.pipeline.storage.text_index import TextIndex
from antigram.pipeline.storage.verification import verify_group
from benchmarks.record import save

__all__ = ["STAGES", "build", "measure"]

MILLIONS = (1, 4, 36)
ROWS = 128  # in a chunk, as of one second of speech
OF_RECORDING, OF_SPEAKER = 100, 30_000  # segments
WORDS = [f"word{number}" for number in range(10)]
STEPS, BATCH = 1_000, 256
_SAMPLE = 64
_NET = """from torch import nn
def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, classes))
"""


def _ids(rows: range) -> list[str]:
    return [f"s{n // OF_SPEAKER:04d}/r{n // OF_RECORDING:06d}#{n % OF_RECORDING:05d}" for n in rows]


def _sources(rows: range) -> list[str]:
    return [f"s{n // OF_SPEAKER:04d}/r{n // OF_RECORDING:06d}.wav#{n % 100}" for n in rows]


def build(path: Path, count: int) -> dict[str, Any]:
    """Write a store of ``count`` segments at ``path``; only one chunk at a time is in memory."""
    recipe = Recipe(
        corpus="folder", longer="segment", dtype="float16", n_fft=2, hop=1, seconds=2 / 16_000
    )
    speakers = sort_classes(f"s{n:04d}" for n in range(-(-count // OF_SPEAKER)))
    small = small_rows_per_chunk(count)
    specs = [
        ArraySpec("features", (count, *recipe.shape), "float16", min(ROWS, count)),
        ArraySpec("labels/word", (count,), "int32", small, {"classes": WORDS}),
        ArraySpec("labels/speaker", (count,), "int32", small, {"classes": speakers}),
        ArraySpec("split", (count,), "int8", small),
        ArraySpec("clip_id", (count,), STRING, small),
        ArraySpec("source", (count,), STRING, small),
    ]
    rng = np.random.default_rng(0)
    splits = rng.choice(3, -(-count // OF_RECORDING), p=[0.7, 0.2, 0.1]).astype(np.int8)
    values: dict[str, Callable[[range], Any]] = {
        "features": lambda rows: rng.standard_normal((len(rows), *recipe.shape), np.float32),
        "labels/word": lambda rows: np.arange(rows.start, rows.stop) % len(WORDS),
        "labels/speaker": lambda rows: np.arange(rows.start, rows.stop) // OF_SPEAKER,
        "split": lambda rows: splits[np.arange(rows.start, rows.stop) // OF_RECORDING],
        "clip_id": _ids,
        "source": _sources,
    }
    group = Folder(path)
    create_group(group, {})
    create_group(group.below("labels"), {})
    create_arrays(group, specs)
    arrays: dict[str, list[Written]] = {}
    for spec in specs:
        spans = ((index, spec.span(index)) for index in range(spec.chunks))
        arrays[spec.name] = [
            write_chunk(
                group,
                spec,
                index,
                encode(spec, index, values[spec.name](range(span.start, span.stop))),
                flush=False,
            )
            for index, span in spans
        ]
    root = {
        "format": stores.FORMAT,
        "format_version": stores.VERSION,
        "complete": True,
        "recipe": recipe.to_json(),
        "mean": 0.0,
        "std": 1.0,
        "corpus": "folder",
        "main_label": "word",
        "classes": {"word": WORDS, "speaker": speakers},
        "rejected": [],
        "skipped": {},
        "silent": 0,
    }
    create_group(group, {"antigram": root})
    root["fingerprint"] = store_fingerprint(root, write_manifest(group, arrays))
    create_group(group, {"antigram": root})
    write_manifest(group, arrays)
    return {"chunks": sum(spec.chunks for spec in specs)}


def _manifest(path: Path) -> None:
    read_manifest(Folder(path))


def _open(path: Path) -> None:
    FeatureStore(path)


def _index(path: Path) -> None:
    FeatureStore(path).read_index("word")


def _ids_found(path: Path) -> None:
    ids = FeatureStore(path).clip_ids
    rows = np.random.default_rng(0).integers(0, len(ids), 1_000)
    found = TextIndex(ids).rows([ids[row] for row in rows.tolist()])
    if not np.array_equal(found, rows):
        raise RuntimeError("an id was found at another row")


def _verify(path: Path) -> None:
    problems = list(islice(verify_group(Folder(path), sample=_SAMPLE), 1))
    if problems:
        raise RuntimeError(f"the store that was just written has a problem: {problems[0]}")


def _split(path: Path) -> dict[str, Any]:
    store = FeatureStore(path)
    words: list[str] = np.array(WORDS, object)[store.labels("word")].tolist()
    counts = np.bincount(assign(store.recordings, words, seed=0))
    return {"shares": np.round(counts / counts.sum(), 3).tolist()}


def _folds(path: Path) -> dict[str, Any]:
    from antigram.pipeline.features.folds import make_folds

    store = FeatureStore(path)
    paths = make_folds(store, "kfold:speaker:3", seed=0)
    trained = [len(FeatureStore(fold).rows("train")) / len(store) for fold in paths]
    return {"trained": [round(share, 3) for share in trained]}


def _order(path: Path) -> None:
    from antigram.model.training.streams import Streams

    Streams(0).order(FeatureStore(path).rows("train"), 1)


def _train(path: Path) -> dict[str, Any]:
    """Train a network of 50 weights for 1,000 steps, and evaluate it on all segments."""
    import torch

    from antigram.model.nets.own import own_arch
    from antigram.model.training.config import TrainConfig
    from antigram.model.training.student import build_student
    from antigram.model.training.train import train

    file = path.with_name("net.py")
    file.write_text(_NET)
    store = FeatureStore(path)
    config = TrainConfig(
        mode="baseline",
        task="word",
        arch=own_arch(f"{file}:net"),
        batch_clips=BATCH,
        max_steps=STEPS,
    )
    run = path.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    begun, first, last = time.perf_counter(), 0.0, 0.0

    def on_progress(_epoch: int, done: int, _of: int, _known: object) -> None:
        nonlocal first, last
        now = time.perf_counter() - begun
        first, last = first or now, now if done <= STEPS else last

    net = build_student(config, len(WORDS), None, store.shape)
    train(net, store, None, config, run, device=torch.device("cpu"), on_progress=on_progress)
    return {
        "until_first_step_s": round(first, 2),
        "steps_s": round(last - first, 2),
        "validation_and_evaluation_s": round(time.perf_counter() - begun - last, 2),
        "chunks_mapped": store.features.spec.chunks <= most_maps(),
    }


STAGES: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    "manifest": _manifest,
    "open": _open,
    "labels, split and ids": _index,
    "ids found": _ids_found,
    "verify by sample": _verify,
    "split": _split,
    "three folds": _folds,
    "epoch order": _order,
    "1,000 steps": _train,
}


def measure(name: str, path: Path, count: int) -> dict[str, Any]:
    """Run a stage in this process; return its times, its peak memory, and what it says."""
    if name in ("epoch order", "1,000 steps"):
        import antigram.model.training.train  # noqa: F401 - seconds that do not count

    begun, cpu = time.perf_counter(), time.process_time()
    said = build(path, count) if name == "build" else STAGES[name](path)
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **(said or {}),
    }


def _apart(name: str, path: Path, count: int) -> dict[str, Any]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--stage", name]
    done = subprocess.run(
        [*command, "--path", str(path), str(count)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measured(millions: Sequence[float]) -> Iterable[tuple[str, dict[str, Any]]]:
    for million in millions:
        with tempfile.TemporaryDirectory() as folder:
            path, count = Path(folder) / "large.zarr", int(million * 1e6)
            stages = {}
            for name in ("build", *STAGES):
                stages[name] = _apart(name, path, count)
                print(million, name, stages[name], file=sys.stderr)
            yield f"{million:g}", stages


def _growth(results: dict[str, Any]) -> dict[str, Any]:
    """Return by how much more CPU time grew than segments, from one size to the next.

    CPU time is disturbed less by other programs than time. Stages that take less than a second are
    left out, as starting and importing decide there.
    """
    growth: dict[str, Any] = {}
    for small, large in zip(list(results), list(results)[1:], strict=False):
        for name, stage in results[large].items():
            before = results[small][name]["cpu_seconds"]
            if before >= 1:
                share = stage["cpu_seconds"] / before / (float(large) / float(small))
                growth.setdefault(name, {})[f"{small} to {large}"] = round(share, 2)
    return growth


def main() -> None:
    """Measure all stages at some sizes, or one stage, and save or print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("millions", nargs="*", type=float)
    parser.add_argument("--stage")
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(measure(options.stage, options.path, int(options.millions[0]))))
        return
    results = dict(_measured(options.millions or MILLIONS))
    save(
        "scale",
        {
            "steps": STEPS,
            "batch": BATCH,
            "segments_in_millions": results,
            "cpu_time_over_linear": _growth(results),
        },
    )


if __name__ == "__main__":
    main()
