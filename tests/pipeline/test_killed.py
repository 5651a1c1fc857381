"""SIGKILL at random moments: the same command resumes, and produces the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.features.store import FeatureStore
from tests.support import corpus_trees
from tests.support.campaigns import keep
from tests.support.files import bytes_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tests.support.stores import prepare_gsc
if __name__ == "__main__":
    home, noise, target, workers = sys.argv[1:]
    print("begun", flush=True)
    prepare_gsc(Path(home), Path(target), noise_home=Path(noise), workers=int(workers))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return corpus_trees.gsc(tmp_path_factory.mktemp("many"), per_word=60)


@pytest.fixture(scope="module")
def noise_home(tmp_path_factory):
    return corpus_trees.noise(tmp_path_factory.mktemp("noise"))


def start(tmp_path, home, noise_home, target, workers=2):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, home, noise_home, target, str(workers)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed_until_done(tmp_path, home, noise_home, waits, whole):
    """Kill a run after each wait, and let the last one finish.

    A store that is finished in the meantime is compared, and the next runs make another.

    Returns:
        The number of killed runs, of finished stores, and of those with other bytes.
    """
    kills, stores, different = 0, 1, 0
    target = tmp_path / "killed 1" / "gsc.zarr"
    for wait in [*waits, None]:
        with start(tmp_path, home, noise_home, target) as run:
            run.stdout.readline()
            if wait is None:
                _, err = run.communicate()
                assert run.returncode == 0, err
            else:
                time.sleep(wait)
            if run.poll() is None:
                run.send_signal(signal.SIGKILL)
                kills += 1
        if target.exists():  # a store that exists is complete
            FeatureStore(target)
            different += bytes_of(target) != bytes_of(whole)
            stores += 1
            target = tmp_path / f"killed {stores}" / "gsc.zarr"
    return kills, stores - 1, different


@pytest.mark.parametrize(
    "count", [2, pytest.param(20, marks=pytest.mark.slow)], ids=lambda n: f"{n} kills"
)
def test_killed_and_run_again_gives_the_bytes_of_an_uninterrupted_run(
    count, tmp_path, home, noise_home
):
    whole = tmp_path / "whole" / "gsc.zarr"
    begun = time.perf_counter()
    with start(tmp_path, home, noise_home, whole) as run:
        run.stdout.readline()
        begun = time.perf_counter()
        run.communicate()
    length = time.perf_counter() - begun
    waits = np.random.default_rng(count).uniform(0, length, count)
    kills, stores, different = killed_until_done(tmp_path, home, noise_home, waits, whole)
    if count == 20:
        keep(
            "SIGKILL at random moments: prepare",
            kind="kills",
            test="tests/pipeline/test_killed.py",
            tried=kills,
            stores_finished=stores,
            differences=different,
        )
    assert not different
    assert stores > 0
    assert kills >= count // 2


def test_workers_do_not_outlive_a_killed_run(tmp_path, home, noise_home):
    with start(tmp_path, home, noise_home, tmp_path / "x" / "gsc.zarr") as run:
        run.stdout.readline()
        # The run, the server that workers are forked from, and at least one of them.
        while len(alive_with(tmp_path)) < 3:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not alive_with(tmp_path):
            break
        time.sleep(0.1)
    assert alive_with(tmp_path) == []


def alive_with(folder):
    """Return the processes whose command line names a folder."""
    lines = Path("/proc").glob("[0-9]*/cmdline")
    return [p for p in lines if str(folder).encode() in _read(p)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
