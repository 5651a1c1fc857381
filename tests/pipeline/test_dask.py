"""`prepare` on a Dask cluster: the same bytes after any death, and one line for each refusal."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import InputError
from antigram.pipeline.execution import dask_cluster, dask_tasks
from antigram.pipeline.execution.dask_cluster import DaskCluster, cluster_at
from antigram.pipeline.workspace import Workspace
from antigram.studies.verify import verify_named
from tests.support import corpus_trees
from tests.support.dask_clusters import cluster_of
from tests.support.files import bytes_of
from tests.support.stores import Stopped, prepare_gsc, stop_at

pytest.importorskip("distributed", reason="the extra `dask` is not installed")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster_of(2, tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running):
    with DaskCluster(str(running.file)) as opened:
        while opened.count < 2:
            time.sleep(0.1)
        yield opened


def test_a_store_has_the_bytes_of_a_local_run(cluster, noisy, gsc_home, noise_home, tmp_path):
    target = tmp_path / "gsc-high.zarr"
    done = prepare_gsc(gsc_home, target, noise_home=noise_home, cluster=cluster)
    assert done.computed == 24
    assert bytes_of(target) == bytes_of(noisy.store.path)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("stage", ["features", "normalise"])
def test_a_killed_worker_changes_no_byte(stage, cluster, noisy, gsc_home, noise_home, tmp_path):
    killed = []

    def on_progress(now, done, _total):
        if now == stage and done and not killed:
            killed.append(next(iter(cluster.client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    target = tmp_path / "gsc-high.zarr"
    prepare_gsc(gsc_home, target, noise_home=noise_home, cluster=cluster, on_progress=on_progress)
    assert killed
    assert bytes_of(target) == bytes_of(noisy.store.path)


@pytest.mark.parametrize(("stage", "done", "left"), [("features", 8, 16), ("normalise", 2, 0)])
@pytest.mark.parametrize("then", ["cluster", "local"])
def test_what_a_stopped_run_did_is_not_done_again_by_either_executor(
    stage, done, left, then, cluster, clean, gsc_home, tmp_path
):
    target = tmp_path / "gsc.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, on_progress=stop_at(stage, done), cluster=cluster)
    again = prepare_gsc(gsc_home, target, cluster=cluster if then == "cluster" else None)
    assert again.computed <= left
    assert bytes_of(target) == bytes_of(clean.store.path)


def test_an_unusable_recording_is_rejected_as_in_a_local_run(cluster, gsc_home, tmp_path):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    corpus_trees.wav(
        home / "one" / "0000ab00_nohash_0.wav", np.full(16_000, np.nan), subtype="FLOAT"
    )
    local = prepare_gsc(home, tmp_path / "local.zarr", max_rejected=1).store
    store = prepare_gsc(home, tmp_path / "dask.zarr", max_rejected=1, cluster=cluster).store
    assert store.root["rejected"] == local.root["rejected"]
    assert bytes_of(store.path) == bytes_of(local.path)


def test_problems_of_a_store_are_those_of_a_local_look(running, cluster, store_copy):
    def problems(**given):
        workspace = Workspace(store_copy.parent)
        [done] = verify_named(workspace, [str(store_copy)], **given)
        return done.problems

    assert problems(scheduler=str(running.file)) == []
    (store_copy / "features" / "c" / "1" / "0" / "0").write_bytes(b"x" * 1000)
    (store_copy / "features" / "c" / "4" / "0" / "0").unlink()
    found = problems(scheduler=str(running.file))
    assert len(found) == 2
    assert found == problems()


def test_a_file_that_no_scheduler_wrote_is_refused(tmp_path):
    file = tmp_path / "scheduler.json"
    with pytest.raises(InputError, match=r"`scheduler` .*No such file"), cluster_at(str(file)):
        pass
    file.write_text("{}")
    with pytest.raises(InputError, match="not a file that a Dask scheduler"), cluster_at(str(file)):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nothing://127.0.0.1:9"])
def test_a_scheduler_that_does_not_answer_is_refused(address, monkeypatch):
    monkeypatch.setattr(dask_cluster, "_CONNECT_S", 0.5)
    with pytest.raises(InputError, match=f"{address}: no Dask scheduler answers"):
        DaskCluster(address)


def test_a_worker_with_another_package_is_named(running, cluster, monkeypatch):
    other = {**dask_tasks.identity(), "numpy": "0.1"}
    monkeypatch.setattr(dask_cluster, "identity", lambda: other)
    text = r"worker tcp://127.0.0.1:\d+ has another numpy: .*, here 0.1"
    with pytest.raises(InputError, match=text):
        DaskCluster(str(running.file))
    with pytest.raises(InputError, match=text):  # a worker that came later
        list(cluster.workers(None, None).run(abs, [(-1,)]))


def test_files_that_a_worker_does_not_see_are_named(cluster, tmp_path):
    cluster.check_files([tmp_path])
    with pytest.raises(InputError, match=r"worker tcp://127.0.0.1:\d+ does not see .*nowhere"):
        cluster.check_files([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"a worker is unfit .*nowhere is not there"):
        cluster.workers(None, None, tmp_path / "nowhere").alone(abs, -1)


def test_a_cluster_without_workers_and_a_worker_without_antigram_are_refused(tmp_path):
    with cluster_of(0, tmp_path / "dask") as running:
        with pytest.raises(InputError, match="has had no worker for 0 s"):
            DaskCluster(str(running.file), worker_s=0.2)
        (tmp_path / "antigram.py").write_text("raise ModuleNotFoundError('No antigram here')")
        running.add_worker(PYTHONPATH=str(tmp_path))
        with pytest.raises(InputError, match=r"worker tcp://.* cannot import antigram \(No anti"):
            DaskCluster(str(running.file))


def test_a_scheduler_that_goes_midway_costs_one_line_and_no_finished_work(
    clean, gsc_home, tmp_path
):
    target = tmp_path / "gsc.zarr"
    with cluster_of(1, tmp_path / "dask") as running:

        def on_progress(now, done, _total):
            if now == "features" and done >= 8:
                running.scheduler.kill()

        with (
            DaskCluster(str(running.file)) as cluster,
            pytest.raises(InputError, match="the Dask scheduler has gone"),
        ):
            prepare_gsc(gsc_home, target, cluster=cluster, on_progress=on_progress)
    again = prepare_gsc(gsc_home, target)
    assert again.computed <= 16
    assert bytes_of(target) == bytes_of(clean.store.path)
