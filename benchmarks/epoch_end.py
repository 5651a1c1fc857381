"""Measure what checkpoints add to the time of epochs, at the full size of a VGG16.

Run it with ``python -m benchmarks.epoch_end [--pairs 2] [--step 0.1] [--width 64]``. The training
loop runs as it is, on a CPU, but a step only sleeps, as a host does that waits for a GPU, and each
epoch has a lower validation loss than the one before, so that the best weights always change. Two
arms take turns: without checkpoints, and with them until at least three have been written. Results
are seconds of epochs and validations, divided by the number of steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone
from antigram.model.training import train as loop
from antigram.model.training.batches import Batch
from antigram.model.training.checkpoint_writer import CheckpointWriter
from antigram.model.training.config import TrainConfig
from antigram.model.training.run_files import RunFiles
from antigram.model.training.step import Sums
from antigram.model.training.student import build_student
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from benchmarks.cache import made_store
from benchmarks.record import save, warm_memory

_CLIPS = 720  # 70 % of them are for training
_SNAPSHOTS = 3
_LEAST_EPOCHS = 6
_MEMORY = 5 << 30  # bytes that averages and copies take
_CPU = torch.device("cpu")


class _SleepingStep:
    """Stands for `Step`: sleeps, and has a loss that falls with each call."""

    names: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()

    def __init__(self, net: Backbone, device: torch.device, seconds: float) -> None:
        self.net, self.device, self.weights = net, device, dict[str, float]()
        self._seconds, self._calls = seconds, 0
        self._trained = list(net.parameters())[-1]  # the smallest: its gradient costs nothing

    def __call__(self, batch: Batch, sums: Sums, probe: object = None) -> Tensor:
        time.sleep(self._seconds)
        self._calls += 1
        loss = self._trained.sum() * 0 + 1 / self._calls
        sums.add(loss, torch.zeros(()), torch.zeros(0), len(batch.y))
        return loss


class _FullAdam(torch.optim.Adam):
    """Has averages of all weights after its first step, though it trains few."""

    def step(self, closure: Any = None) -> Any:  # noqa: ANN401 - as torch has it
        done = super().step(closure)
        for group in self.param_groups:
            for weights in group["params"]:
                if weights not in self.state:
                    averages = {
                        name: torch.ones_like(weights) for name in ("exp_avg", "exp_avg_sq")
                    }
                    self.state[weights] = {"step": torch.ones(()), **averages}
        return done


class _NoCheckpoints:
    """Stands for `CheckpointWriter`: writes nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> _NoCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settle(self) -> None:
        pass

    def due(self) -> bool:
        return False

    def end_epoch(self, *_: object, **__: object) -> None:
        pass


class _Over(Exception):
    """Ends a training when enough was measured."""


def measure(
    store: FeatureStore, net: Backbone, run: Path, step_s: float, *, checkpoints: bool
) -> dict[str, Any]:
    """Train until enough epochs, and with checkpoints enough of these, are complete.

    Args:
        store: features.
        net: the student.
        run: folder of the run.
        step_s: seconds of a step.
        checkpoints: whether checkpoints are written.

    Returns:
        ``seconds_per_step`` from the end of the first step, ``steps``, those of validation
        included, ``epochs``, and ``written``: for each written checkpoint its seconds and bytes.
    """
    config = TrainConfig(
        mode="baseline", task=store.main_label, arch=net.arch, epochs=10_000, patience=10_000
    )
    written: list[dict[str, float]] = []
    write_all, begun, ended, epochs, steps = RunFiles.write_all, 0.0, 0.0, 0, 0
    validated = -(-len(store.rows("validation", config.task)) // config.batch_clips)

    def timed(self: RunFiles, contents: dict[str, Callable[..., object]]) -> None:
        start = time.perf_counter()
        write_all(self, contents)
        if "last.pt" in contents:
            size = sum((run / name).stat().st_size for name in contents)
            written.append({"seconds": time.perf_counter() - start, "bytes": size})

    def on_progress(_epoch: int, _done: int, _steps: int, known: Any) -> None:  # noqa: ANN401
        nonlocal begun, ended, epochs, steps
        if "clips_per_second" in known:  # after a step
            begun, steps = (begun, steps + 1) if begun else (time.perf_counter(), 0)
            return
        epochs, steps = epochs + 1, steps + validated
        if epochs >= _LEAST_EPOCHS and (len(written) >= _SNAPSHOTS or not checkpoints):
            ended = time.perf_counter()
            raise _Over

    with (
        mock.patch.object(loop, "Step", lambda net, *_: _SleepingStep(net, _CPU, step_s)),
        mock.patch.object(torch.optim, "Adam", _FullAdam),
        mock.patch.object(RunFiles, "write_all", timed),
        mock.patch.object(
            loop, "CheckpointWriter", CheckpointWriter if checkpoints else _NoCheckpoints
        ),
        suppress(_Over),
    ):
        loop.train(net, store, None, config, run, device=_CPU, on_progress=on_progress)
    return {
        "seconds_per_step": (ended - begun) / steps,
        "steps": steps,
        "epochs": epochs,
        "written": written,
    }


def main() -> None:
    """Measure, print the ratio, and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=64)
    asked = parser.parse_args()
    keep_freed_memory(of_any_size=True)  # `antigram train` does the same
    arms: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        store = made_store(Path(folder), _CLIPS)
        config = TrainConfig(mode="baseline", task="label", arch=Arch("vgg16", asked.width))
        net = build_student(config, len(store.classes[store.main_label]), None, store.shape)
        with warm_memory(_MEMORY * asked.width**2 // 64**2):
            for number in range(asked.pairs):
                for arm, measured in arms.items():
                    run = Path(folder, f"{arm}-{number}")
                    one = measure(store, net, run, asked.step, checkpoints=arm == "with")
                    measured.append(one)
                    gc.collect()  # frees averages and copies, which take gigabytes
                    shutil.rmtree(run)
                    print(arm, json.dumps(one), flush=True)
    ratios = [
        one["seconds_per_step"] / other["seconds_per_step"]
        for one, other in zip(arms["with"], arms["without"], strict=True)
    ]
    content = {
        "width": asked.width,
        "step": asked.step,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **arms,
    }
    print(json.dumps(content))
    print(save("epoch_end", content))


if __name__ == "__main__":
    main()
