"""Run the jobs of a comparison in order of dependency, several at once, each in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.files import size_of
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.database import LEASE_S, Database
from antigram.studies.compare.jobs import Job
from antigram.studies.compare.predictions import predictions_of

__all__ = ["run_jobs"]

_POLL_S = 1.0  # for jobs that another process is doing
# The child ends when the thread that waits for it does: a killed comparison leaves no training.
_CHILD = """import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the comparison has ended")
sys.argv = sys.argv[2:]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_jobs(
    jobs: Sequence[Job],
    database: Database,
    workspace: Workspace,
    *,
    workers: int,
    on_message: OnMessage,
    do: Callable[[Job], dict[str, Any]] | None = None,
) -> dict[str, int]:
    """Run the jobs that are not done; other processes on the same database share them.

    Args:
        jobs: jobs in an order in which each comes after the jobs that it needs.
        database: states and results of the jobs.
        workspace: workspace that runs and caches are written to.
        workers: number of jobs at once, each with one thread.
        on_message: called with a line for each job that ends.
        do: function that runs a job and returns its answer; default: run the command in a process.

    Returns:
        ``done``: number of jobs run here; ``reused``: number of jobs that were done before.

    Raises:
        InputError: a job failed; the message has the job's own message. Other running jobs are
            finished first.
    """
    database.add(jobs)
    by_key = {job.key: job for job in jobs}
    if do is None:
        database.forget(_vanished(jobs, database.states(), workspace))
    states = database.states()
    reused = sum(states[key] == "done" for key in by_key)
    run = do or (lambda job: _command(job, workspace))
    failed: list[str] = []
    ended = threading.Event()
    threading.Thread(target=_renew, args=(database, ended), daemon=True).start()
    done, running = 0, dict[Future[float], Job]()
    try:
        with ThreadPoolExecutor(workers) as pool:
            while True:
                states = database.states()
                waiting = [job for job in jobs if states[job.key] == "new"]
                ready = [job for job in waiting if all(states[n] == "done" for n in job.needs)]
                for job in ready:
                    if len(running) >= workers or failed:
                        break
                    if job not in running.values() and database.claim(job.key):
                        running[pool.submit(_do, job, run, database, workspace)] = job
                if not running:
                    if failed or all(states[key] == "done" for key in by_key):
                        break
                    others = sum(states[key] == "running" for key in by_key)
                    if not others and not ready:
                        raise InputError(f"{database.path}: a job failed in another process")
                    time.sleep(_POLL_S)
                    continue
                for future in wait(running, _POLL_S, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        seconds = future.result()
                    except InputError as error:
                        database.fail(job.key, str(error))
                        failed.append(str(error))
                        continue
                    done += 1
                    left = sum(database.states()[key] != "done" for key in by_key)
                    on_message(f"{job.name}: {seconds:.0f} s; {left} of {len(jobs)} jobs left")
    finally:
        ended.set()
        database.release()
    if failed:
        raise InputError(failed[0])
    return {"done": done, "reused": reused}


def _vanished(jobs: Sequence[Job], states: Mapping[str, str], workspace: Workspace) -> list[str]:
    """Return the keys of finished jobs whose run or cache is gone and still needed.

    The database has all that the results need, but a job that is not done yet needs the files.
    Files may be missing if the database comes from another machine.
    """
    by_key = {job.key: job for job in jobs}
    gone: list[str] = []
    waiting = [job for job in jobs if states[job.key] != "done"]
    while waiting:
        for key in waiting.pop().needs:
            job = by_key[key]
            if states[key] == "done" and key not in gone and not _path_of(job, workspace).exists():
                gone.append(key)
                waiting.append(job)
    return gone


def _path_of(job: Job, workspace: Workspace) -> Path:
    """Return the cache or run that a job makes."""
    if job.kind == "cache":
        return workspace.grams / f"{job.name}.zarr"
    return workspace.runs / job.name


def _renew(database: Database, ended: threading.Event) -> None:
    while not ended.wait(LEASE_S / 4):
        database.renew()


def _do(
    job: Job,
    run: Callable[[Job], dict[str, Any]],
    database: Database,
    workspace: Workspace,
) -> float:
    """Run a job, and store its result, duration and disk space."""
    begun = time.perf_counter()
    result = run(job)
    found = {}
    if job.kind == "training" and "run" in result:
        data = workspace.named(workspace.features, job.data, "feature store")
        found = predictions_of(Path(result["run"]), data, job.task)
    if job.kind != "probe" and (size := size_of(_path_of(job, workspace))):
        result = {**result, "disk_bytes": size}
    seconds = time.perf_counter() - begun
    database.finish(job.key, result, seconds, found)
    return seconds


def _command(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Run a job's command; an interrupted training is resumed."""
    from antigram.studies.demo import antigram_command

    words = list(job.command)
    if job.kind in ("teacher", "training") and (workspace.runs / job.name).exists():
        words.append("--resume")
    line = [*antigram_command()[1:], "--workspace", str(workspace.root), "--json", *words]
    if line[0] == "-P":
        del line[0]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD, str(os.getpid()), *line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        shown = " ".join(("antigram", *words))
        raise InputError(
            f"`{shown}` ended with exit code {done.returncode}: {said[-1] if said else 'no word'}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
