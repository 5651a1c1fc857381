"""The contract of executors: a worker that dies affects no task but its own."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.execution.executor import WorkerDiedError
from antigram.pipeline.execution.workers import Workers
from tests.support.dask_clusters import cluster_of

_shared = None


def set_up(shared):
    global _shared  # noqa: PLW0603 - as tasks share it
    _shared = shared


def add_shared(number: int) -> int:
    return number + _shared


def fail(number: int) -> int:
    raise FileNotFoundError(2, "No such file", f"/nowhere/{number}")


def square(number: int, folder: str) -> int:
    if number == 3:
        os._exit(7)  # like a crashing decoder
    if number == 5 and not Path(folder, "once").exists():
        Path(folder, "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)  # like a machine that runs out of memory once
    return number * number


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    with (
        cluster_of(2, tmp_path_factory.mktemp("dask")) as cluster,
        DaskCluster(str(cluster.file)) as opened,
    ):
        while opened.count < 2:
            time.sleep(0.1)
        yield opened


@pytest.fixture(params=["processes", "dask"])
def start(request):
    """A function that starts an executor with what its tasks share."""
    if request.param == "dask":
        return partial(request.getfixturevalue("dask").workers, set_up)
    return lambda shared: Workers(2, set_up, shared, "antigram.pipeline.features.rendering")


@pytest.fixture
def workers(start):
    with start(100) as pool:
        yield pool


def test_all_tasks_are_run_with_what_they_share(start):
    for shared in (100, 200):  # a worker may have run tasks of another executor before
        with start(shared) as pool:
            got = sorted(pool.run(add_shared, ((n,) for n in range(300))))
            assert got == [((n,), n + shared) for n in range(300)]
            assert pool.alone(add_shared, 7) == 7 + shared


def test_no_tasks_have_no_results(workers):
    assert list(workers.run(add_shared, [])) == []


def test_an_error_of_a_task_is_raised_as_it_is(workers):
    with pytest.raises(FileNotFoundError) as raised:
        list(workers.run(fail, [(8,)]))
    assert raised.value.filename == "/nowhere/8"
    assert workers.alone(add_shared, 1) == 101


def test_a_task_that_kills_its_worker_is_handed_back_and_all_others_are_done(workers, tmp_path):
    tasks = [(n, str(tmp_path)) for n in range(12)]
    crashed = []

    def on_crash(task):
        crashed.append(task[0])
        return -1

    got = {task[0]: result for task, result in workers.run(square, tasks, on_crash)}
    assert got == {n: -1 if n == 3 else n * n for n in range(12)}
    assert crashed == [3]  # 5 died once, and was run again


def test_without_a_hand_for_it_the_death_is_an_error(workers, tmp_path):
    with pytest.raises(WorkerDiedError, match="square"):
        list(workers.run(square, [(3, str(tmp_path))]))


def test_the_pool_works_on_after_a_death(workers, tmp_path):
    with pytest.raises(WorkerDiedError):
        workers.alone(square, 3, str(tmp_path))
    assert workers.alone(square, 4, str(tmp_path)) == 16
