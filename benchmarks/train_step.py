"""Measure the cost of a training step: baseline, online, cached, and as in the released code.

``python -m benchmarks.train_step [--device cpu] [--steps 15] [--layers 1,5,8,13] [--nets 1,2,4]
[--batch 13,128] [--precision 32] [--device-memory 0,auto]``

A full VGG16 runs on random clips of one second. The arms take turns within one run, and the results
are medians over the steps:

* ``baseline``: no AT,
* ``online``: a teacher runs live, cut off at the layer,
* ``cached``: rows from a cache on disk, gathered ahead by the loading thread, or, with
  ``--device-memory auto`` on a GPU, held there,
* ``released``: written from the paper's description of its code: the student run twice, the teacher
  with gradients, the Gram of the complete batch folded into the channels.

For each layer, and for several teachers at once: step time, clips/s, wait for data, FLOPs and
operations (counted, deterministic), and on a GPU the peak memory beside the prediction of `antigram
plan`, and the share of the chip's peak FLOPs. The output is a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.choices import PRECISIONS, Mode
from antigram.model.loss.sources import LiveGrams, Sources, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batch, Batches
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.config import TrainConfig
from antigram.model.training.released import ReleasedStep
from antigram.model.training.resident import budget_for
from antigram.model.training.step import Step, Sums
from antigram.model.training.student import build_student
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from antigram.studies import plan
from antigram.studies.plan import step_cost
from benchmarks.cache import made_store
from benchmarks.operations import OperationCounter
from benchmarks.record import save

_MOST_STEPS = 1000  # most steps of an arm
# H200, dense, in FLOPs a second, by NVIDIA's data sheet (without sparsity).
_PEAK = {"NVIDIA H200": {"32": 67e12, "tf32": 494e12, "bf16": 989e12}}


class Arm:
    """One way to train, with its net and optimiser, or another arm's, and its stream of batches."""

    def __init__(
        self,
        store: FeatureStore,
        config: TrainConfig,
        sources: Sources | None,
        device: torch.device,
        device_memory: int,
        step: Callable[[Backbone], Any] | None = None,
        shared: Arm | None = None,
    ) -> None:
        self.device = device
        if shared is None:
            first = _student(config.arch, len(store.classes[config.task]))
            self.net = copy.deepcopy(first).to(device).to(memory_format=torch.channels_last).train()
            self.adam = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        else:
            self.net, self.adam = shared.net, shared.adam
        self.step = step(self.net) if step else Step(self.net, sources, config, device)
        self.batches = Batches(
            store, config.task, sources, config.batch_clips, device, device_memory=device_memory
        )
        self.names = sources.names if sources else ()
        self.clips = config.batch_clips
        self.stream = self._stream(len(store))
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []  # of all threads, those of the loading among them
        self.waits: list[float] = []
        self.peak = 0

    def _stream(self, clips: int) -> Generator[Batch]:
        rng = np.random.default_rng(0)
        # One long pass: the thread that loads does not begin anew in the middle of a measurement.
        used = clips // self.clips * self.clips
        passes = [
            rng.permutation(clips)[:used] for _ in range(-(-_MOST_STEPS * self.clips // used))
        ]
        yield from self.batches.passes(np.concatenate(passes).astype(np.int64))

    def run(self, *, keep: bool = True) -> None:
        """Run one step and time it."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        begun, before, cpu = time.perf_counter(), self.batches.wait_s, time.process_time()
        batch = next(self.stream)
        waited = self.batches.wait_s - before
        loss = self.step(batch, Sums(self.names, self.device))
        loss.backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)  # gradients of one arm at a time
        if on_cuda:
            torch.cuda.synchronize(self.device)
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device))
        if keep:
            self.seconds.append(time.perf_counter() - begun)
            self.cpu_seconds.append(time.process_time() - cpu)
            self.waits.append(waited)

    def close(self) -> None:
        """End the loading thread, which keeps the arm alive."""
        self.stream.close()

    def counted(self) -> tuple[int, int]:
        """Count the FLOPs and the operations of one step, without the optimiser's."""
        for _ in range(2):  # the first step makes tables that are kept
            batch, sums = next(self.stream), Sums(self.names, self.device)
            with FlopCounterMode(display=False) as flops, OperationCounter() as operations:
                self.step(batch, sums).backward()
            self.adam.zero_grad(set_to_none=True)
        return int(flops.get_total_flops()), operations.total


@cache
def _student(arch: Arch, classes: int) -> Backbone:
    """Return the student, cached, as drawing 134 million weights takes longer than the steps."""
    return build_student(TrainConfig(mode="baseline", task="label", arch=arch), classes, None)


@cache
def teacher_net(seed: int, arch: Arch) -> Teacher:
    """Return a net with weights drawn from a seed."""
    torch.manual_seed(seed)
    return Teacher(arch, dict(Vgg(arch, 0).state_dict()), "")


def measure(
    asked: argparse.Namespace,
    store: FeatureStore,
    folder: Path,
    layer: int,
    nets: int,
    batch: int,
    place: str,
) -> dict[str, Any]:
    """Measure all arms at one layer, in turns."""
    device = torch.device(asked.device)
    memory = budget_for(device, None if place == "auto" else 0)
    arch = Arch("vgg16", asked.width)
    teacher = [teacher_net(seed, arch) for seed in range(1, nets + 1)]
    spec = TapSpec(arch=arch, layers=(layer,))
    # In all arms, the teacher runs in the precision of the training.
    plans = plan_layers(store, teacher[0], spec, precision=asked.precision)
    targets = {}
    for number, net in enumerate(teacher):
        target = folder / f"net{number}.zarr"
        build_cache(store, net, plans, target, made_from={}, device=device)
        targets[f"net{number}"] = target

    def caches() -> Sources:
        return Sources(
            {name: GramCache(path, store, [layer], device=device) for name, path in targets.items()}
        )

    def live() -> Sources:
        nets_by_name = zip(targets, teacher, strict=True)
        return Sources({name: LiveGrams(net.net().to(device), spec) for name, net in nets_by_name})

    def config(mode: Mode) -> TrainConfig:
        layers = () if mode == "baseline" else (layer,)
        return TrainConfig(
            mode=mode,
            task="label",
            arch=arch,
            layers=layers,
            batch_clips=batch,
            precision=asked.precision,
        )

    makers: dict[plan.Arm, Callable[[], Arm]] = {
        "baseline": lambda: Arm(store, config("baseline"), None, device, memory),
        "cached": lambda: Arm(store, config("cached"), caches(), device, memory),
        "online": lambda: Arm(store, config("online"), live(), device, memory),
    }
    if nets == 1 and not asked.no_released:
        makers["released"] = lambda: Arm(
            store,
            config("baseline"),
            None,
            device,
            memory,
            lambda net: ReleasedStep(
                net,
                teacher[0].net().to(device).to(memory_format=torch.channels_last),
                layer,
                asked.precision,
            ),
        )
    full = asked.precision == "32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not full
    flops, operations, peaks = {}, {}, {}
    if device.type == "cuda":  # one arm at a time, as their memory would add up
        for name, make in makers.items():
            arm = make()
            for _ in range(3):
                arm.run(keep=False)
            peaks[name] = arm.peak
            arm.close()
            del arm
            gc.collect()
            torch.cuda.empty_cache()
    arms = {name: make() for name, make in makers.items()}
    for name, arm in arms.items():
        flops[name], operations[name] = arm.counted()
        arm.run(keep=False)
    # While others have their turn an arm's thread loads four batches ahead. On a GPU, where loading
    # may be what limits, a turn is so long that they are used up before it counts, if a batch takes
    # a fifth longer to load than to learn.
    unseen, turn = (24, 44) if device.type == "cuda" else (0, 1)
    for _ in range(-(-asked.steps // (turn - unseen))):
        for arm in arms.values():
            for number in range(turn):
                arm.run(keep=number >= unseen)
    found: dict[str, Any] = {}
    base = statistics.median(arms["baseline"].seconds)
    for name, arm in arms.items():
        seconds = statistics.median(arm.seconds)
        found[name] = {
            "seconds": seconds,
            "clips_per_second": batch / seconds,
            "over_baseline": seconds / base,
            "flops": flops[name],
            "flops_over_baseline": flops[name] / flops["baseline"],
            "operations": operations[name],
            "data_wait": sum(arm.waits) / sum(arm.seconds),
            "peak_bytes": peaks.get(name),
            "peak_over_baseline": peaks[name] / peaks["baseline"] if peaks else None,
            "predicted_bytes": step_cost(
                name,
                arch,
                plans,
                store.shape,
                classes=len(store.classes["label"]),
                batch_clips=batch,
                nets=nets,
                precision=asked.precision,
            ).memory,
            "data_on_device": arm.batches.resident,
            "share_of_peak_flops": _share(flops[name] / seconds, device, asked.precision),
        }
        arm.close()
    return found


def _share(rate: float, device: torch.device, precision: str) -> float | None:
    if device.type != "cuda":
        return None
    known = _PEAK.get(torch.cuda.get_device_name(device), {})
    return rate / known[precision] if precision in known else None


def _line(found: dict[str, Any]) -> str:
    memory = ""
    if found["peak_bytes"]:
        share = found["predicted_bytes"] / found["peak_bytes"]
        memory = (
            f"  {found['peak_bytes'] / 2**20:7.0f} MiB {found['peak_over_baseline']:.3f} x "
            f"(predicted: {share:.2f} of it)"
        )
    return (
        f"{found['seconds']:7.4f} s  {found['clips_per_second']:7.1f} /s"
        f"  {found['over_baseline']:.3f} x  FLOPs {found['flops_over_baseline']:.3f} x"
        f"  data wait {found['data_wait']:.1%}{memory}"
    )


def main() -> None:
    """Measure all layers, print the tables, and save the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--layers", default="1,5,8,13")
    parser.add_argument("--nets", default="1", help="numbers of teachers, as 1,2,4")
    parser.add_argument("--batch", default="13", help="clips in a batch, as 13,128")
    parser.add_argument("--precision", default="32", choices=PRECISIONS)
    parser.add_argument("--device-memory", default="0", help="0, auto or 0,auto")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--clips", type=int, default=130)
    parser.add_argument("--no-released", action="store_true")
    parser.add_argument("--name", help="of the result; default: train_step-DEVICE")
    asked = parser.parse_args()
    if asked.device == "cpu":
        keep_freed_memory(of_any_size=True)  # `antigram train` does the same

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if asked.device.startswith("cuda") else "cpu",
        "width": asked.width,
        "steps": asked.steps,
        "precision": asked.precision,
        "arms": {},
    }
    with tempfile.TemporaryDirectory() as place:
        store = made_store(Path(place), max(asked.clips, 2 * max(numbers(asked.batch))))
        every = itertools.product(
            numbers(asked.batch),
            numbers(asked.nets),
            numbers(asked.layers),
            asked.device_memory.split(","),
        )
        for number, (batch, nets, layer, where) in enumerate(every):
            folder = Path(place, str(number))
            found = measure(asked, store, folder, layer, nets, batch, where)
            gc.collect()  # frees nets and optimisers, which take gigabytes
            shutil.rmtree(folder)
            held = "data on the device, where it fits" if where == "auto" else "data on the host"
            key = f"layer {layer}, {nets} nets, batch {batch}, {held}"
            content["arms"][key] = found
            # Saved at once, as a machine may be available for minutes only.
            path = save(asked.name or f"train_step-{asked.device.partition(':')[0]}", content)
            print(key)
            for arm, f in found.items():
                print(f"  {arm:9s} {_line(f)}", flush=True)
    print(json.dumps(content))
    print(path)


if __name__ == "__main__":
    main()
