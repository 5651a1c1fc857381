"""An interrupted export or import changes nothing, and the next one deletes its leftovers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.exchange import export_file, import_file
from tests.support.files import all_names_in, bytes_of

ROOT = Path(__file__).resolve().parents[2]


def test_an_interrupted_export_leaves_the_old_file(clean, tmp_path):
    goal = tmp_path / "goal.h5"
    goal.write_bytes(b"old")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_file(clean.store.path, goal, stop)
    assert all_names_in(tmp_path) == ["goal.h5"]
    assert goal.read_bytes() == b"old"


def test_an_interrupted_import_leaves_the_old_folder(half, exported, features):
    goal = Path(shutil.copytree(half.store.path, features / "gsc.zarr"))

    def stop(_, done, __):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(exported, goal, stop)
    assert all_names_in(features) == ["gsc.zarr"]
    assert bytes_of(goal) == bytes_of(half.store.path)


KILLED = """
import os, signal, sys
from pathlib import Path
from antigram.pipeline.storage.exchange import export_file, import_file, verify_export
def tick(what, done, of):
    if done == 3 or what == "exported":
        os.kill(os.getpid(), signal.SIGKILL)
{"import": import_file, "export": export_file}[sys.argv[1]](
    Path(sys.argv[2]), Path(sys.argv[3]), tick
)
"""


def killed(*arguments) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_import_shows_nothing_and_the_next_one_clears_up(clean, exported, features):
    killed("import", exported, features / "gsc.zarr")
    assert all_names_in(features) == [".gsc.zarr.import"]
    (features / ".gsc.zarr.import" / "rubbish").write_text("left by another version")
    assert import_file(exported, features / "gsc.zarr") is True
    assert all_names_in(features) == ["gsc.zarr"]
    assert bytes_of(features / "gsc.zarr") == bytes_of(clean.store.path)


def test_a_killed_export_shows_nothing_and_the_next_one_clears_up(clean, tmp_path):
    killed("export", clean.store.path, tmp_path / "gsc.h5")
    assert all_names_in(tmp_path) == [".gsc.h5.partial"]
    export_file(clean.store.path, tmp_path / "gsc.h5")
    assert all_names_in(tmp_path) == ["gsc.h5"]
    assert FeatureStore(tmp_path / "gsc.h5").fingerprint == clean.store.fingerprint
