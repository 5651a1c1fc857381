"""Trainings that are killed at random moments, while they write checkpoints, resume.

The last checkpoint is intact at any moment, and the run ends in the same numbers as one that is
not killed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import load_checkpoint, load_tensors
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.features.store import FeatureStore
from tests.support.campaigns import keep
from tests.support.nets import CPU
from tests.support.runs import numbers_of

ROOT = Path(__file__).resolve().parents[2]
ARCH = Arch("vgg11", 2)
EPOCHS = 4

# One server starts all runs, by a fork for each line, because importing torch takes seconds.
SERVER = """
import os, sys, time
import torch
from tests.model.test_killed_run import go
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    store, folder, wait = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        go(store, folder)
        os._exit(0)
    if float(wait) >= 0:
        time.sleep(float(wait))
        os.kill(child, 9)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def go(store, folder):
    """Start a training, or resume the one in the folder."""
    store, folder = FeatureStore(Path(store)), Path(folder)
    config = TrainConfig(
        mode="online",
        task="label",
        arch=ARCH,
        layers=(3,),
        epochs=EPOCHS,
        patience=EPOCHS,
        lr=1e-3,
        batch_clips=3,
    )
    teacher = build_student(TrainConfig(mode="baseline", task="label", arch=ARCH, seed=9), 3, None)
    grams = LiveGrams(teacher, TapSpec(arch=ARCH, layers=(3,)))
    return train(
        build_student(config, 3, None),
        store,
        grams,
        config,
        folder,
        device=CPU,
        resume=folder.exists(),
        save_every_s=0,
    )


class Trainings:
    """A server that runs trainings in processes, one after the other."""

    def __init__(self, store):
        self.store = store
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def run(self, folder, wait=-1.0):
        """Train until the end, or until killed after ``wait`` seconds; return the status."""
        self.server.stdin.write(f"{self.store.path}\t{folder}\t{wait}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_in_the_same_numbers(store, tmp_path):
    with Trainings(store) as trainings:
        begun = time.time()
        assert trainings.run(tmp_path / "whole") == 0
        # Kills fall before the last epoch ends: evaluation and curves take longer than training.
        length = (tmp_path / "whole" / "metrics.jsonl").stat().st_mtime - begun
        want = numbers_of(tmp_path / "whole")
        assert len(want) == EPOCHS
        best = load_checkpoint(tmp_path / "whole" / "best.pt").state_dict
        tried, killed, equal, in_epoch = 0, 0, 0, 0
        # Ten kills, and more until enough of them hit the middle of an epoch.
        for number, wait in enumerate(np.random.default_rng(10).uniform(0, length, 40)):
            if number >= 10 and in_epoch >= 3:
                break
            tried += 1
            folder = tmp_path / str(number)
            killed += trainings.run(folder, wait) == 9
            if (folder / "last.pt").exists():
                last = load_tensors(folder / "last.pt")  # intact after any kill
                in_epoch += last["done"] > 0
            assert trainings.run(folder) == 0, f"killed after {wait:.3f} of {length:.3f} s"
            found = load_checkpoint(folder / "best.pt").state_dict
            same = all(torch.equal(best[name], found[name]) for name in best)
            equal += same and numbers_of(folder) == want
    keep(
        "SIGKILL at random moments: train",
        kind="kills",
        test="tests/model/test_killed_run.py",
        tried=killed,
        differences=tried - equal,
    )
    assert equal == tried
    assert killed >= 5
    assert in_epoch >= 3


def test_a_run_killed_before_it_noted_anything_begins_when_it_is_resumed(store, tmp_path):
    (tmp_path / "run").mkdir()
    result = go(store.path, tmp_path / "run")
    assert result["epochs"] == EPOCHS
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["mode"] == "online"
