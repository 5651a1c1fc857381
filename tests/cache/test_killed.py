"""Builds that are killed at random moments resume and end in the same bytes.

Also caches that other processes read.
"""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.model.training.checkpoint import open_teacher
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import crc32c
from antigram.studies.verify import verify_cache
from tests.support.campaigns import keep
from tests.support.files import bytes_of
from tests.support.nets import CPU, VGG16

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (1, 5, 13)
CLIPS, ROWS = 15, 2  # 8 chunks in each of the 9 arrays

# One server starts all builds, by a fork for each line, because importing torch takes seconds.
SERVER = """
import os, sys, time
import antigram.pipeline.storage.folder
from tests.cache.test_killed import build

def slow_down():
    # Half of the wait lies before a chunk's bytes are written, half before its name is its own.
    real = antigram.pipeline.storage.folder.write_in_parts
    def slowly(file, raw):
        time.sleep(0.004)
        real(file, raw)
        time.sleep(0.004)
    antigram.pipeline.storage.folder.write_in_parts = slowly

def die_at(call):
    real, calls = os.fsync, []
    def dying(handle):
        calls.append(handle)
        if len(calls) == call:
            os.kill(os.getpid(), 9)
        real(handle)
    os.fsync = dying

print("ready", flush=True)
for line in sys.stdin:
    store, checkpoint, target, call = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        die_at(int(call)) if int(call) else slow_down()
        print(os.getpid(), flush=True)
        build(store, checkpoint, target)
        os._exit(0)
    sys.stdin.readline()  # until it is waited for, no other process can have its number
    print(os.waitpid(child, 0)[1], flush=True)
"""


def build(store, checkpoint, target, layers=LAYERS):
    store, net = FeatureStore(Path(store)), open_teacher(Path(checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", ROWS)
        plans = plan_layers(store, net, TapSpec(arch=VGG16, layers=layers))
        return build_cache(
            store, net, plans, Path(target), made_from={}, batch_clips=ROWS, device=CPU
        )


class Builders:
    """A server that runs builds in processes, one after the other."""

    def __init__(self, store, checkpoint, log):
        self.asked = (str(store.path), str(checkpoint))
        self.log = log.open("w")
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        self.log.close()

    def run(self, target, *, wait=None, call=0):
        """Build until killed after ``wait`` seconds, or at the n-th flush; return the status."""
        self.server.stdin.write("\t".join((*self.asked, str(target), str(call))) + "\n")
        self.server.stdin.flush()
        process = int(self.server.stdout.readline())
        assert process > 1
        if wait is not None:
            time.sleep(wait)
            os.kill(
                process, signal.SIGKILL
            )  # the server still holds the id of a process that has ended
        self.server.stdin.write("wait for it\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def checkpoint(corpus, teacher):
    assert teacher.arch == VGG16
    return corpus.parent / "frozen.pt"


@pytest.fixture(scope="module")
def builders(store, checkpoint, tmp_path_factory):
    with Builders(store, checkpoint, tmp_path_factory.mktemp("builders") / "log.txt") as server:
        yield server


def acknowledged(target):
    """Return the chunks that the journals of every layer record, without the builder's code."""
    noted = []
    for layer in LAYERS:
        journal = target.with_name(f".{target.name}.partial") / f"layer{layer:02d}.jsonl"
        found = set()
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else []:
            head, _, text = line.rstrip(b"\n").partition(b" ")
            if line.endswith(b"\n") and int(head, 16) == crc32c(text):
                found.add(json.loads(text)["chunk"])
        noted.append(found)
    return set.intersection(*noted)


def clips_left(target):
    """Return the number of clips that a resumed build has to compute."""
    if target.exists():
        return 0
    every = range(-(-CLIPS // ROWS))
    return sum(min(ROWS, CLIPS - ROWS * n) for n in every if n not in acknowledged(target))


def resumed(target, store, checkpoint):
    """Resume a killed build, and check that it computes no recorded chunk again."""
    left = clips_left(target)
    built = build(store.path, checkpoint, target)
    assert built.computed == left
    assert not list(verify_cache(target, [store.path]))
    return left


@pytest.mark.slow
def test_killed_50_times_and_resumed_a_build_ends_in_the_same_bytes(
    builders, store, checkpoint, tmp_path
):
    begun = time.perf_counter()
    assert builders.run(tmp_path / "whole.zarr") == 0
    length = time.perf_counter() - begun
    want = bytes_of(tmp_path / "whole.zarr")
    kills, equal, left = 0, 0, []
    for number, wait in enumerate(np.random.default_rng(50).uniform(0, length, 50)):
        target = tmp_path / str(number) / "grams.zarr"
        kills += builders.run(target, wait=wait) == signal.SIGKILL
        left.append(resumed(target, store, checkpoint))
        equal += bytes_of(target) == want
    keep(
        "SIGKILL at random moments: cache-grams",
        kind="kills",
        test="tests/cache/test_killed.py",
        tried=kills,
        differences=50 - equal,
    )
    assert equal == 50
    assert kills >= 25
    assert sum(0 < n < CLIPS for n in left) >= 10  # the others hit the start or the end


@pytest.mark.slow
def test_killed_over_and_over_a_build_still_gets_to_its_end(builders, store, checkpoint, tmp_path):
    target, left = tmp_path / "killed" / "grams.zarr", [CLIPS]
    for wait in np.random.default_rng(8).uniform(0.1, 0.4, 8):
        builders.run(target, wait=wait)
        left.append(clips_left(target))
    assert left == sorted(left, reverse=True)
    resumed(target, store, checkpoint)
    assert bytes_of(target) == bytes_of(build(store.path, checkpoint, tmp_path / "w.zarr").path)


@pytest.mark.slow
@pytest.mark.parametrize("there", [(), (5,)], ids=["new", "layers added"])
def test_killed_at_any_flush_a_build_ends_in_the_same_bytes(
    there, builders, store, checkpoint, tmp_path
):
    want = bytes_of(build(store.path, checkpoint, tmp_path / "whole.zarr").path)
    for call in range(1, 1000, 7):
        target = tmp_path / str(call) / "grams.zarr"
        if there:
            build(store.path, checkpoint, target, there)
        if builders.run(target, call=call) != signal.SIGKILL:
            break  # it has fewer
        build(store.path, checkpoint, target)
        assert bytes_of(target) == want, f"killed at flush {call}"
        assert not list(verify_cache(target, [store.path])), f"killed at flush {call}"
    assert 100 < call < 999


def rows_in_another_process(pickled, clips, answers):
    rows = pickle.loads(pickled).read(clips)
    answers.put(
        {
            n: [t.numpy() for t in (found.data, found.norm, found.row_norm)]
            for n, found in rows.items()
        }
    )


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
def test_a_cache_gives_the_same_rows_in_another_process(method, store, checkpoint, tmp_path):
    grams = GramCache(build(store.path, checkpoint, tmp_path / "grams.zarr").path, store)
    clips = np.array([9, 2, 14, 2, 0])
    want = grams.read(clips)  # opens memory maps, which must not be pickled
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    pickled = pickle.dumps(grams)
    readers = [
        context.Process(target=rows_in_another_process, args=(pickled, clips, answers))
        for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    found = [answers.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0]
    for rows in found:
        assert list(rows) == list(LAYERS)
        for layer, (data, norm, row_norm) in rows.items():
            np.testing.assert_array_equal(data, want[layer].data)
            np.testing.assert_array_equal(norm, want[layer].norm)
            np.testing.assert_array_equal(row_norm, want[layer].row_norm)


def test_a_pickled_cache_holds_no_rows(store, checkpoint, tmp_path):
    grams = GramCache(build(store.path, checkpoint, tmp_path / "grams.zarr").path, store)
    before = len(pickle.dumps(grams))
    grams.read(np.arange(CLIPS))
    assert len(pickle.dumps(grams)) == before
