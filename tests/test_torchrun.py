"""Two processes that torchrun starts do what one process does (gloo on a CPU; GPUs use NCCL)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from antigram.model.nets.arch import Arch
from tests.support.checkpoints import save_teacher
from tests.support.class_recordings import write_corpus
from tests.support.files import bytes_of
from tests.support.runs import metrics
from tests.support.stores import make_store

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# 42 clips: the last batch of 29 train clips is not full, and has an odd number of clips.
TRAIN = ["train", "--layer", "3", "--epochs", "2", "--dropout", "0", "--batch-size", "6", "--json"]
OPTIMISATION = ["--class-weights", "balanced", "--schedule", "cosine"]
OPTIMISATION += ["--warmup", "0.5", "--clip-norm", "1"]


def command(workspace, *words, processes):
    head = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else [sys.executable]
    return [*head, str(ROOT / "cli.py"), "--workspace", str(workspace), *map(str, words)]


def antigram(workspace, *words, processes=1):
    return subprocess.run(
        command(workspace, *words, processes=processes),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with a store of 42 clips, and a checkpoint beside it."""
    home = tmp_path_factory.mktemp("torchrun")
    corpus = write_corpus(home / "corpus")
    store = make_store(corpus, home / "workspace" / "features" / "tiny.zarr")
    save_teacher(home / "net.pt", Arch("vgg11", 2), store)
    return home


@pytest.fixture(scope="module")
def cached(made):
    """The same with a cache of layer 3 that one process built."""
    done = antigram(made / "workspace", "cache-grams", "--ckpt", made / "net.pt", "--layer", 3)
    assert done.returncode == 0, done.stderr
    return made


def test_two_processes_build_the_same_cache(made, cached, tmp_path, monkeypatch):
    del made
    features = tmp_path / "workspace" / "features"
    shutil.copytree(cached / "workspace" / "features", features)
    words = ("cache-grams", "--ckpt", cached / "net.pt", "--layer", 3, "--json")
    done = antigram(features.parent, *words, processes=2)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # of two processes one speaks
    assert said["clips"] == 42
    path = Path("grams", "tiny--net.zarr")
    want = bytes_of(cached / "workspace" / path)
    assert bytes_of(features.parent / path) == want
    assert not list((features.parent / "grams").glob(".*partial*"))


@pytest.mark.parametrize("mode", [pytest.param("online", marks=pytest.mark.slow), "cached"])
def test_two_processes_train_to_the_losses_of_one(mode, cached, tmp_path):
    net = ("--ckpt", cached / "net.pt") if mode == "online" else ()
    runs = []
    for processes in (1, 2):
        more = OPTIMISATION if mode == "cached" else ()
        words = (*TRAIN, *more, "--mode", mode, *net, "--name", f"{mode}-{processes}")
        done = antigram(cached / "workspace", *words, processes=processes)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        runs.append((metrics(Path(result["run"])), result))
    (one, alone), (two, distributed) = runs
    assert [e["epoch"] for e in one] == [e["epoch"] for e in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        assert a.get("lr") == b.get("lr")
        assert ("lr" in a) == (mode == "cached")
        for split in ("train", "validation"):
            assert a[split].keys() == b[split].keys()
            for key, value in a[split].items():
                assert b[split][key] == pytest.approx(value, rel=1e-5, abs=1e-6), (split, key)
    assert distributed["steps"] == alone["steps"] > 2
    assert distributed["accuracy"] == alone["accuracy"]
    for field in ("at_initial", "at_best"):  # means over all ranks' segments
        (name,) = alone[field]["3"]
        assert distributed[field]["3"][name] == pytest.approx(alone[field]["3"][name], rel=1e-4)
        assert all(0 < ratio < 100 for ratio in distributed["gradient_ratio"]["3"][name])
    weights = [
        torch.load(result["run"] + "/best.pt", weights_only=True)["state_dict"]
        for result in (alone, distributed)
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bad_input_is_said_once_by_each_process_and_ends_the_job(cached):
    words = (*TRAIN, "--mode", "online", "--ckpt", "nowhere.pt")
    done = antigram(cached / "workspace", *words, processes=2)
    assert done.returncode != 0
    assert "antigram: nowhere.pt" in done.stderr
    assert 'cli.py", line' not in done.stderr  # no traceback of ours


def test_the_death_of_a_process_ends_the_job_with_a_line(cached):
    long = ("train", "--mode", "baseline", "--epochs", "5000", "--patience", "5000")
    words = (*long, "--batch-size", "6", "--width", "2", "--arch", "vgg11", "--name", "dies")
    job = subprocess.Popen(
        command(cached / "workspace", *words, processes=2),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        metrics_file = cached / "workspace" / "runs" / "dies" / "metrics.jsonl"
        while not metrics_file.exists() and time.monotonic() < end:
            time.sleep(0.2)
        assert metrics_file.exists()
        os.kill(rank_of(job.pid, 1), signal.SIGKILL)
        _, text = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode != 0
    assert "antigram: " in text
    assert "--resume" in text


def rank_of(parent: int, rank: int) -> int:
    """The process of a rank among a launcher's children."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"launcher {parent} has no process of rank {rank}")
