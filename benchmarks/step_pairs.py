"""Measure how much longer a cached step takes than a baseline step, with an interval.

``python -m benchmarks.step_pairs [--pairs 60] [--layers 1,5,8,13] [--width 64] [--batch 13]``

A full VGG16 on the CPU. In each round, one baseline step and one cached step at each layer are
timed, in an order that rotates; all of them train the same network. Reported are the median over
the rounds of the ratio to the baseline's step of the same round, with a 95 % bootstrap interval of
this median, of time and of CPU time, which other programs disturb less; and, for one and four
teachers, FLOPs and operations, which are counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import Sources, TapSpec
from antigram.model.nets.arch import Arch as Architecture
from antigram.model.training.config import TrainConfig
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from benchmarks.cache import made_store
from benchmarks.record import save
from benchmarks.train_step import Arm, teacher_net

_CPU = torch.device("cpu")
_DRAWS = 10_000
_MOST_TEACHERS = 4
_SAVED_EVERY = 5  # rounds


def _sources(
    store: FeatureStore, arch: Architecture, layer: int, folder: Path, teachers: int
) -> Sources:
    """Return caches of a layer, which are built in a folder if they are not there."""
    caches = {}
    for number in range(teachers):
        teacher = teacher_net(number + 1, arch)
        target = folder / f"teacher{number}.zarr"
        plans = plan_layers(store, teacher, TapSpec(arch=arch, layers=(layer,)))
        build_cache(store, teacher, plans, target, made_from={}, device=_CPU)
        caches[f"teacher{number}"] = GramCache(target, store, [layer])
    return Sources(caches)


def _interval(own: list[float], baseline: list[float]) -> dict[str, float]:
    """Return the median of the ratios of each round, and its 95 % bootstrap interval."""
    values = np.array(own) / np.array(baseline)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (_DRAWS, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def measure(
    store: FeatureStore, folder: Path, layers: list[int], width: int, batch: int, pairs: int
) -> Iterator[dict[str, Any]]:
    """Count FLOPs and operations, and measure all layers in turns; yield what is known so far."""
    arch = Architecture("vgg16", width)
    plain = TrainConfig(mode="baseline", task="label", arch=arch, batch_clips=batch)
    baseline = Arm(store, plain, None, _CPU, 0)
    flops, operations = baseline.counted()
    found: dict[str, Any] = {}
    arms = {"baseline": baseline}
    for layer in layers:
        config = TrainConfig(
            mode="cached", task="label", arch=arch, layers=(layer,), batch_clips=batch
        )
        counted = {}
        for teachers in (_MOST_TEACHERS, 1):
            place = folder / f"{layer}-{teachers}"
            sources = _sources(store, arch, layer, place, teachers)
            arm = Arm(store, config, sources, _CPU, 0, shared=baseline)
            own_flops, own_operations = arm.counted()
            counted[str(teachers)] = {
                "flops_over_baseline": own_flops / flops,
                "operations_more": own_operations - operations,
            }
            if teachers > 1:
                arm.close()
                shutil.rmtree(place)
        arms[str(layer)] = arm
        found[str(layer)] = {"teachers": counted}
    for arm in arms.values():
        arm.run(keep=False)
    names = list(arms)
    for number in range(pairs):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            arms[name].run()
        if number + 1 < pairs and (number + 1) % _SAVED_EVERY:
            continue
        for layer in layers:
            own = arms[str(layer)]
            found[str(layer)] |= _interval(own.seconds, baseline.seconds)
            found[str(layer)]["cpu"] = _interval(own.cpu_seconds, baseline.cpu_seconds)
            found[str(layer)]["data_wait"] = sum(own.waits) / sum(own.seconds)
        yield {
            "pairs": number + 1,
            "baseline_seconds": float(np.median(baseline.seconds)),
            "operations": operations,
            "layers": found,
        }
    for arm in arms.values():
        arm.close()


def main() -> None:
    """Measure, print a line for each layer, and save the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--layers", default="1,5,8,13")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=13)
    parser.add_argument("--name", default="step_pairs", help="of the result")
    asked = parser.parse_args()
    keep_freed_memory(of_any_size=True)  # `antigram train` does the same
    layers = [int(layer) for layer in asked.layers.split(",")]
    with tempfile.TemporaryDirectory() as place:
        store = made_store(Path(place), 10 * asked.batch)
        of_all = {"device": "cpu", "width": asked.width, "batch": asked.batch}
        for known in measure(store, Path(place), layers, asked.width, asked.batch, asked.pairs):
            content = of_all | known
            path = save(asked.name, content)  # saved now and then, as it takes long
    for layer, one in content["layers"].items():
        print(
            f"layer {layer}: {one['median']:.3f} ({one['low']:.3f} to {one['high']:.3f}) x, CPU "
            f"{one['cpu']['median']:.3f} ({one['cpu']['low']:.3f} to {one['cpu']['high']:.3f}) x "
            f"{content['baseline_seconds']:.3f} s, data wait {one['data_wait']:.1%}"
        )
        for teachers, counts in one["teachers"].items():
            print(
                f"  {teachers} teacher(s): FLOPs {counts['flops_over_baseline']:.4f} x, "
                f"{counts['operations_more']} operations more"
            )
    print(json.dumps(content))
    print(path)


if __name__ == "__main__":
    main()
