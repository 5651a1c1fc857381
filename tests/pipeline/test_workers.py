"""A worker that dies affects no task but its own."""

import os
import signal
from pathlib import Path

import pytest

from antigram.pipeline.execution.workers import WorkerDiedError, Workers


def set_up(_shared):
    pass


def square(number: int, folder: str) -> int:
    if number == 3:
        os._exit(7)  # like a crashing decoder
    if number == 5 and not Path(folder, "once").exists():
        Path(folder, "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)  # like a machine that runs out of memory once
    return number * number


@pytest.fixture
def workers():
    with Workers(2, set_up, None, "antigram.pipeline.features.rendering") as pool:
        yield pool


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
