"""Measure what checkpoints add to the time of epochs, at the full size of a VGG16.

Run it with ``python -m benchmarks.epoch_end [--written 3] [--step 0.1] [--width 64]``. The training
loop runs as it is, on a CPU, but a step only sleeps, as a host does that waits for a GPU, and each
epoch has a lower validation loss than the one before, so that the best weights always change.

Two trainings take turns, one epoch without and two with checkpoints, so that other programs disturb
both alike. The time of a turn that is not its own does not pass for the writer of
checkpoints, and no turn ends while a checkpoint is being written. The result is the ratio of the
mean times of a step, each with its share of the end of an epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone
from antigram.model.training import checkpoint_writer
from antigram.model.training import train as loop
from antigram.model.training.batches import Batch
from antigram.model.training.checkpoint_writer import CheckpointWriter
from antigram.model.training.config import TrainConfig
from antigram.model.training.run_files import RunFiles
from antigram.model.training.step import Sums
from antigram.model.training.student import build_student
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.archive import Sink
from benchmarks.cache import made_store
from benchmarks.record import save, warm_memory

_CLIPS = 720  # 70 % of them are for training
_MEMORY = 7 << 30  # bytes that averages, copies, and files in the system's cache take at most
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


@dataclass
class Arm:
    """A training that runs in turns with another one.

    Attributes:
        steps: steps, and batches of validation, since the first epoch.
        epochs: epochs since the first.
        seconds: time of the earlier turns since the first epoch.
        turn: released for each turn.
        writer: writer of its checkpoints, once the training has begun.
        over: whether it has ended.
    """

    steps: int = 0
    epochs: int = -1
    seconds: float = 0.0
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    writer: CheckpointWriter | None = None
    over: bool = False
    _began: float = 0.0

    def begin_turn(self) -> None:
        """Wait for the turn."""
        self.turn.acquire()
        self._began = time.perf_counter()

    def end_turn(self, other: Arm) -> None:
        """Let the other training run."""
        self.seconds = self.clock()
        other.turn.release()

    def clock(self) -> float:
        """Return the seconds of its turns, during a turn."""
        return self.seconds + time.perf_counter() - self._began

    def end_epoch(self, steps: int) -> None:
        """Count an epoch, and begin to count after the first."""
        self.epochs += 1
        if self.epochs:
            self.steps += steps
        else:
            self.seconds, self._began = 0.0, time.perf_counter()

    def to_json(self) -> dict[str, Any]:
        """Return what was measured."""
        return {
            "seconds_per_step": self.seconds / self.steps,
            "steps": self.steps,
            "epochs": self.epochs,
        }


def measure(
    store: FeatureStore, net: Backbone, folder: Path, step_s: float, most: int
) -> dict[str, Any]:
    """Train with and without checkpoints, in turns.

    Args:
        store: features.
        net: the student of both.
        folder: folder for the two runs.
        step_s: seconds of a step.
        most: number of checkpoints to write.

    Returns:
        ``ratio``; and ``with`` and ``without``, see `Arm.to_json`; ``with`` has ``written``: for
        each checkpoint its seconds and bytes.
    """
    config = TrainConfig(
        mode="baseline", task=store.main_label, arch=net.arch, epochs=100_000, patience=100_000
    )
    batches = {
        split: -(-len(store.rows(split, config.task)) // config.batch_clips)
        for split in ("train", "validation")
    }
    arms = {"without": Arm(), "with": Arm()}
    written: list[dict[str, float]] = []
    write_all = RunFiles.write_all

    def timed(self: RunFiles, contents: Mapping[str, Callable[[Sink], object]]) -> None:
        start = time.perf_counter()
        write_all(self, contents)
        if "last.pt" in contents:
            size = sum((self.folder / name).stat().st_size for name in contents)
            written.append({"seconds": time.perf_counter() - start, "bytes": size})

    def writer(files: RunFiles, *given: Any, **options: Any) -> CheckpointWriter | _NoCheckpoints:  # noqa: ANN401
        if files.folder.name == "without":
            return _NoCheckpoints()
        made = CheckpointWriter(files, *given, **options)
        arms["with"].writer = made
        return made

    def run(name: str, other: str) -> None:
        arm = arms[name]

        def on_progress(_epoch: int, _done: int, _steps: int, known: Mapping[str, float]) -> None:
            if "clips_per_second" in known:  # after a step
                return
            arm.end_epoch(sum(batches.values()))
            if arm.writer is not None and (arm.writer.writing or arm.epochs % 2):
                return
            arm.over = len(written) >= most and bool(arm.steps)
            if not arms[other].over:
                arm.end_turn(arms[other])
            else:  # the turn is its own until the end
                arm.seconds, arm._began = arm.clock(), time.perf_counter()
            if arm.over:
                raise _Over
            if not arms[other].over:
                arm.begin_turn()

        arm.begin_turn()
        with suppress(_Over):
            loop.train(
                net, store, None, config, folder / name, device=_CPU, on_progress=on_progress
            )

    clock = SimpleNamespace(perf_counter=arms["with"].clock)
    with (
        mock.patch.object(loop, "Step", lambda net, *_: _SleepingStep(net, _CPU, step_s)),
        mock.patch.object(loop, "CheckpointWriter", writer),
        mock.patch.object(torch.optim, "Adam", _FullAdam),
        mock.patch.object(RunFiles, "write_all", timed),
        mock.patch.object(checkpoint_writer, "time", clock),
    ):
        thread = threading.Thread(target=run, args=("without", "with"), daemon=True)
        thread.start()
        arms["with"].turn.release()
        run("with", "without")
        thread.join()
    ratio = (
        arms["with"].to_json()["seconds_per_step"] / arms["without"].to_json()["seconds_per_step"]
    )
    return {
        "ratio": ratio,
        "without": arms["without"].to_json(),
        "with": {**arms["with"].to_json(), "written": written},
    }


def main() -> None:
    """Measure, print the ratio, and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--written", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=64)
    asked = parser.parse_args()
    keep_freed_memory(of_any_size=True)  # `antigram train` does the same
    with tempfile.TemporaryDirectory() as folder:
        store = made_store(Path(folder), _CLIPS)
        config = TrainConfig(mode="baseline", task="label", arch=Arch("vgg16", asked.width))
        net = build_student(config, len(store.classes[store.main_label]), None, store.shape)
        with warm_memory(_MEMORY * asked.width**2 // 64**2):
            measured = measure(store, net, Path(folder), asked.step, asked.written)
    content = {"width": asked.width, "step": asked.step, **measured}
    print(json.dumps(content))
    print(save("epoch_end", content))


if __name__ == "__main__":
    main()
