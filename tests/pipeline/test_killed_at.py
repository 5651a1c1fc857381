"""SIGKILL at points where data was once lost: the same command produces the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.verification import verify_group
from tests.support import corpus_trees
from tests.support.files import bytes_of, names_in
from tests.support.stores import ROW_BYTES, prepare_gsc

ROOT = Path(__file__).resolve().parents[2]
ROWS = 16  # a chunk: two of the parts in which workers normalise

# Python imports this in every process: it kills the first one that reaches the point.
SITECUSTOMIZE = """
import os, sys

place, once = os.environ["KILL_AT"], os.environ["KILL_ONCE"]

def die():
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)

def die_at_the_second_call(real):
    calls = []
    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            die()
        return real(*arguments)
    return dying

def hook(event, details):
    if event == "open" and place == "a chunk's second part":
        # A chunk that is written: each part is added to its checksum.
        render = sys.modules.get("antigram.pipeline.features.rendering")
        if "/features/c/1/0/0." in str(details[0]):
            render.crc32c = die_at_the_second_call(render.crc32c)
    if event == "os.rename" and str(details[1]).endswith(place):
        die()

sys.addaudithook(hook)
"""
SCRIPT = """
import sys
from pathlib import Path
from tests.pipeline.test_killed_at import make
if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def make(home, target):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.stores.ROW_BYTES", ROWS * ROW_BYTES // 4)  # it has 4 a chunk
        return prepare_gsc(home, target)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return corpus_trees.gsc(tmp_path_factory.mktemp("many"), per_word=12)


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory):
    return bytes_of(make(home, tmp_path_factory.mktemp("undisturbed") / "gsc.zarr").store.path)


@pytest.fixture
def killed_at(home, tmp_path):
    """Prepare in another process, with a SIGKILL at a point; return its exit code."""

    def run(place, target):
        (tmp_path / "armed").mkdir()
        (tmp_path / "armed" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        once = tmp_path / "armed" / "killed"
        path = f"{tmp_path / 'armed'}{os.pathsep}{ROOT}"
        script = tmp_path / "armed" / "run.py"
        script.write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, script, home, target],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "KILL_AT": place, "KILL_ONCE": str(once)},
            capture_output=True,
            check=False,
        )
        assert once.exists(), done.stderr.decode()
        return done.returncode

    return run


@pytest.mark.parametrize("place", ["a chunk's second part", "features/c/1/0/0"])
def test_a_worker_killed_while_it_normalises_changes_no_number(
    place, killed_at, undisturbed, tmp_path
):
    target = tmp_path / "features" / "gsc.zarr"
    assert killed_at(place, target) == 0  # the task is run again
    assert bytes_of(target) == undisturbed
    assert names_in(target.parent) == ["gsc.zarr"]


@pytest.mark.parametrize(
    "place",
    [
        "/.gsc.zarr.partial/store/zarr.json",
        pytest.param("/features/gsc.zarr", marks=pytest.mark.slow),
        pytest.param("/.gsc.zarr.partial/job.json", marks=pytest.mark.slow),
    ],
)
def test_a_killed_prepare_leaves_nothing_in_the_store_that_is_published_later(
    place, killed_at, home, undisturbed, tmp_path
):
    target = tmp_path / "features" / "gsc.zarr"
    assert killed_at(place, target) == -signal.SIGKILL
    make(home, target)
    assert list(verify_group(Folder(target))) == []
    assert bytes_of(target) == undisturbed
    assert names_in(target.parent) == ["gsc.zarr"]


class Killed(BaseException):
    """Raised in place of a SIGKILL: nothing may clean up after it."""


def killed_before(monkeypatch, name, when):
    """Make a method of `Path` raise at the first call for which ``when`` is true."""
    real = getattr(Path, name)

    def dying(path, *arguments, **keywords):
        if when(path, *arguments):
            raise Killed
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, name, dying)


def test_a_swap_that_is_killed_between_its_renames_does_not_lose_the_old_store(
    clean, gsc_home, tmp_path, monkeypatch
):
    target = tmp_path / "features" / "gsc.zarr"
    shutil.copytree(clean.store.path, target)
    with monkeypatch.context() as patch:
        killed_before(patch, "rename", lambda path, goal: path.name == "store" and goal == target)
        with pytest.raises(Killed):
            prepare_gsc(gsc_home, target, seed=1)
    assert not target.exists()
    again = prepare_gsc(gsc_home, target)
    assert (again.computed, again.left_alone) == (0, True)
    assert bytes_of(target) == bytes_of(clean.store.path)
    # The interrupted work of the other recipe is finished when that is prepared again.
    other = prepare_gsc(gsc_home, target, seed=1)
    assert other.computed == 0
    assert bytes_of(target) == bytes_of(
        prepare_gsc(gsc_home, tmp_path / "b.zarr", seed=1).store.path
    )
    assert names_in(target.parent) == ["gsc.zarr"]


@pytest.mark.slow
def test_killed_before_any_rename_a_swap_is_finished_by_the_next_run(
    clean, gsc_home, tmp_path, monkeypatch
):
    want = bytes_of(prepare_gsc(gsc_home, tmp_path / "want.zarr", seed=1).store.path)
    for call in range(1, 5):  # the renames of the old one, of the new one, and of two to be deleted
        target = tmp_path / str(call) / "gsc.zarr"
        shutil.copytree(clean.store.path, target)
        calls = []
        with monkeypatch.context() as patch:
            killed_before(patch, "rename", lambda *_: calls.append(1) or len(calls) == call)  # noqa: B023
            with pytest.raises(Killed):
                prepare_gsc(gsc_home, target, seed=1)
        assert prepare_gsc(gsc_home, target, seed=1).computed == 0
        assert bytes_of(target) == want
        assert names_in(target.parent) == ["gsc.zarr"]
