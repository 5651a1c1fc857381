"""A Dask scheduler and its workers, as processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_S = 60  # for a start on a busy machine
_SETTINGS = {
    # A batch that kills its worker comes back at once, not after four workers.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "PYTHONPATH": str(ROOT),
}


class Cluster:
    """A scheduler with workers of one thread each.

    Attributes:
        file: the scheduler's file.
        scheduler: process of the scheduler.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self._started: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--scheduler-file", str(self.file), name="scheduler"
        )
        limit = time.monotonic() + _S
        while not self.file.exists():
            assert self.scheduler.poll() is None, self.log("scheduler")
            assert time.monotonic() < limit
            time.sleep(0.05)

    def add_worker(self, **environment: str) -> None:
        """Start a worker; it may take some seconds until it is there."""
        name = f"worker{len(self._started)}"
        local = ("--nthreads", "1", "--local-directory", str(self.folder / name))
        self._start(
            "worker", "--scheduler-file", str(self.file), *local, name=name, environment=environment
        )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self._started:
            process.kill()  # a worker ends with its nanny
        for process in self._started:
            process.wait()

    def _start(
        self, kind: str, *options: str, name: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", *options],
                cwd=self.folder,
                env={**os.environ, **_SETTINGS, **(environment or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process


@contextmanager
def cluster_of(workers: int, folder: Path) -> Iterator[Cluster]:
    """Start a scheduler and workers, and end them with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder)
    try:
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.end()
