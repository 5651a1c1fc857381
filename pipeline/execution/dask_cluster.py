"""Run tasks on a Dask cluster: connect to a scheduler, look at its workers, send batches.

The scheduler and its workers are started by others (`dask scheduler`, `dask worker`). Everything a
batch needs is sent with it, so that a driver that is killed leaves nothing on the workers. Each
result is fetched as soon as it is there, and released: what a worker holds is lost when it dies.

A task that kills its worker is run again by the scheduler, on four workers at most; batches that
waited behind it share the blame. All of them are run again, one at a time.

The file is long, as connection and executor have their failures in common.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.dask_tasks import (
    CALL,
    IDENTITY,
    MISSING,
    UnfitWorkerError,
    identity,
    packed,
)
from antigram.pipeline.execution.executor import Task, WorkerDiedError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskCluster", "DaskWorkers", "cluster_at"]

_CONNECT_S = 8  # until a scheduler counts as missing
_WORKER_S = 60  # until a cluster counts as one without workers
_LOOK_S = 5  # between two looks at whether the cluster is alive
_TASKS = 16  # in a batch: with one task each, the scheduler takes half as long as the work
_SHARES = 4  # a small amount of work is divided into so many batches for each worker
Result = TypeVar("Result")


@contextmanager
def cluster_at(
    scheduler: str | None, on_message: Callable[[str], None] = lambda _: None
) -> Iterator[DaskCluster | None]:
    """Connect to a scheduler while the block runs; yields None without a scheduler."""
    if scheduler is None:
        yield None
        return
    with DaskCluster(scheduler, on_message=on_message) as cluster:
        yield cluster


class DaskCluster:
    """A connection to a Dask scheduler; a context manager.

    Args:
        scheduler: address such as ``tcp://10.0.0.1:8786``, or the path of a scheduler file.
        worker_s: how long to wait for the first worker, in seconds.
        on_message: called with a line that names the cluster.

    Raises:
        InputError: the package distributed is missing, nothing answers, the cluster has no worker,
            or a worker has another installation than this process.
    """

    def __init__(
        self,
        scheduler: str,
        *,
        worker_s: float = _WORKER_S,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "`scheduler` needs the package distributed: pip install 'antigram[dask]'"
            ) from None
        self.address, self._worker_s = _address(scheduler), worker_s
        # Dask reports what is raised here as well; the tracebacks would bury our line.
        for name in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            self.client: Client = Client(
                self.address, timeout=_CONNECT_S, set_as_default=False, name="antigram"
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).partition("\n")[0]
            raise InputError(
                f"`scheduler` {scheduler}: no Dask scheduler answers there ({first}). Start one "
                "with `dask scheduler`, or leave `scheduler` out"
            ) from None
        try:
            self._wait_for_worker()
            self.probe()
        except BaseException:
            self.close()
            raise
        on_message(
            f"Dask scheduler {self.address}: {self.count} workers; {self.client.dashboard_link}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the scheduler forgets what was submitted and not fetched."""
        with suppress(Exception):
            self.client.close(timeout=_LOOK_S)

    @property
    def count(self) -> int:
        """Number of worker processes now.

        Raises:
            InputError: the scheduler is gone.
        """
        try:
            return len(self.client.nthreads())
        except (OSError, CancelledError, RuntimeError, ValueError):
            raise self.gone() from None

    def gone(self) -> InputError:
        """Return the error of a scheduler that has ended."""
        return InputError(
            f"`scheduler` {self.address}: the Dask scheduler has gone. Finished work is kept: "
            "start it and its workers again, and run the same command"
        )

    def _wait_for_worker(self) -> None:
        try:
            self.client.wait_for_workers(1, timeout=self._worker_s)
        except TimeoutError:
            raise self.no_worker() from None

    def no_worker(self) -> InputError:
        """Return the error of a cluster without workers."""
        return InputError(
            f"`scheduler` {self.address}: has had no worker for {self._worker_s:.0f} s. Start some "
            "with `dask worker`, and run the same command; finished work is kept"
        )

    def probe(self) -> None:
        """Look at the installation of each worker.

        Raises:
            InputError: a worker has no antigram, or another version of a package.
        """
        wanted = identity()
        for worker, answer in self._on_each(IDENTITY, {}).items():
            if isinstance(answer, ImportError):
                raise InputError(
                    f"`scheduler`: worker {worker} cannot import antigram ({answer}). Install "
                    "antigram there, in the version of this command, and start the worker again"
                )
            if isinstance(answer, BaseException):
                raise answer
            for name, own in wanted.items():
                if (other := answer.get(name, "missing")) != own:
                    raise InputError(
                        f"`scheduler`: worker {worker} has another {name}: {other}, here {own}. "
                        "Results would differ: install the same there, and start it again"
                    )

    def check_files(self, paths: Sequence[Path]) -> None:
        """Raise if a worker does not see some files or folders of this process.

        Raises:
            InputError: a path is not there for a worker.
        """
        names = [str(path) for path in paths]
        for worker, answer in self._on_each(MISSING, {"paths": names}).items():
            if isinstance(answer, BaseException):
                raise answer
            if answer:
                raise InputError(
                    f"`scheduler`: worker {worker} does not see {answer[0]}. All workers need the "
                    "file system of this process, at the same paths"
                )

    def _on_each(self, text: str, names: dict[str, object]) -> dict[str, Any]:
        """Evaluate an expression on each worker: worker -> value, or the error that it raised."""
        try:
            answers = self.client.run(eval, text, names, on_error="return")
        except (OSError, CancelledError):
            raise self.gone() from None
        return {w: answer for w, answer in answers.items() if not isinstance(answer, OSError)}

    def workers(
        self, set_up: Callable[[Any], None] | None, shared: object, token: Path | None = None
    ) -> DaskWorkers:
        """Return an executor.

        Args:
            set_up: called in a worker before tasks of this executor; None if nothing is to be done.
            shared: argument of ``set_up``; sent with each batch.
            token: file that a worker must see before it runs a task.
        """
        return DaskWorkers(self, set_up, shared, token)

    def seeing(self, folder: Path) -> DaskWorkers:
        """Return an executor on workers that see a folder, for tasks that share nothing else.

        Raises:
            InputError: a worker does not see it.
        """
        self.check_files([folder.absolute()])
        return self.workers(None, None, folder.absolute())


class DaskWorkers:
    """The executor on a Dask cluster; a context manager, which leaves the connection open."""

    def __init__(
        self,
        cluster: DaskCluster,
        set_up: Callable[[Any], None] | None,
        shared: object,
        token: Path | None,
    ) -> None:
        self._cluster, self._set_up = cluster, set_up
        self._shared = pickle.dumps(shared, pickle.HIGHEST_PROTOCOL)
        self._token = "" if token is None else str(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def alone(self, function: Callable[..., Result], *task: object) -> Result:
        """Run one task while no other task of this executor runs; see `Executor.alone`."""
        submitted = _Submitted(self, function)
        submitted.add([task])
        with submitted.released():
            while submitted.running:
                for _, result in submitted.finished():
                    done: Result = result
                    return done
        raise WorkerDiedError(f"{function.__name__} killed its worker")

    def run(
        self,
        function: Callable[..., Result],
        tasks: Iterable[Task],
        on_crash: Callable[[Task], Result] | None = None,
    ) -> Iterator[tuple[Task, Result]]:
        """Run tasks in batches; see `Executor.run`. Two batches for each worker are submitted."""
        submitted = _Submitted(self, function)
        with submitted.released():
            for batch in self._batches(tasks):
                submitted.add(batch)
                while submitted.full:
                    yield from submitted.finished()
            while submitted.running:
                yield from submitted.finished()
            for suspect in submitted.suspects:
                yield from self._again(function, suspect, on_crash)

    def _again(
        self,
        function: Callable[..., Result],
        batch: Sequence[Task],
        on_crash: Callable[[Task], Result] | None,
    ) -> Iterator[tuple[Task, Result]]:
        """Run a batch that may have killed workers; if it does so again, run each task alone."""
        submitted = _Submitted(self, function)
        with submitted.released():
            if len(batch) > 1:
                submitted.add(batch)
            while submitted.running:
                yield from submitted.finished()
        if len(batch) > 1 and not submitted.suspects:
            return
        for task in batch:
            try:
                result = self.alone(function, *task)
            except WorkerDiedError:
                if on_crash is None:
                    raise
                result = on_crash(task)
            yield task, result

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        remaining = iter(tasks)
        enough = _TASKS * _SHARES * max(1, self._cluster.count)
        first = list(islice(remaining, enough))
        size = max(1, _TASKS * len(first) // enough)
        everything = chain(first, remaining)
        while batch := list(islice(everything, size)):
            yield batch

    def _submit(self, function: Callable[..., object], tasks: Sequence[Task]) -> Future:
        names = {
            "wanted": identity(),
            "token": self._token,
            "batch": packed(self._set_up, self._shared, function, tasks),
        }
        try:
            # Not pure: equal batches of two drivers, or of two runs, are not one task.
            return self._cluster.client.submit(eval, CALL, names, pure=False)
        except Exception:
            if self._cluster.client.status == "running":
                raise
            raise self._cluster.gone() from None


class _Submitted:
    """The batches that have been submitted and whose results are not fetched yet."""

    def __init__(self, workers: DaskWorkers, function: Callable[..., Any]) -> None:
        self.workers, self.function = workers, function
        self.running: dict[Future, Sequence[Task]] = {}
        self.suspects: list[Sequence[Task]] = []  # batches that ran, or waited, when a worker died
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._looked = self._alive = time.monotonic()
        self._count = workers._cluster.count

    @property
    def full(self) -> bool:
        return len(self.running) >= 2 * max(1, self._count)

    def add(self, batch: Sequence[Task]) -> None:
        future = self.workers._submit(self.function, batch)
        self.running[future] = batch
        future.add_done_callback(self._done.put)

    def finished(self) -> Iterator[tuple[Task, Any]]:
        """Wait a little for a batch, and yield its tasks and results."""
        from distributed import KilledWorker

        cluster = self.workers._cluster
        self._look()
        try:
            future = self._done.get(timeout=_LOOK_S)
        except Empty:
            return
        batch = self.running.pop(future)
        try:
            results = future.result(timeout=_LOOK_S)
        except TimeoutError:
            if future.status == "error":  # the task itself raised it
                raise
            self.running[future] = batch  # its worker died with the result: it is run again
            future.add_done_callback(self._done.put)
            return
        except KilledWorker:
            self.suspects.append(batch)
            return
        except CancelledError:
            raise cluster.gone() from None
        except (ImportError, UnfitWorkerError) as error:
            cluster.probe()  # names the worker
            text = f"`scheduler` {cluster.address}: a worker is unfit ({error}); finished work is "
            raise InputError(f"{text}kept, run the same command again") from None
        finally:
            if future not in self.running:
                future.release()
        yield from zip(batch, results, strict=True)

    def _look(self) -> None:
        """Look from time to time how many workers there are.

        Raises:
            InputError: there has been no worker for a minute, or the scheduler is gone.
        """
        cluster, now = self.workers._cluster, time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked, self._count = now, cluster.count
        if self._count:
            self._alive = now
        elif now - self._alive > cluster._worker_s:
            raise cluster.no_worker()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Cancel the batches that are still running when the block ends early."""
        try:
            yield
        finally:
            with suppress(Exception):
                for future in self.running:
                    future.cancel()


def _address(scheduler: str) -> str:
    """Return the address of a scheduler, from itself or from the file that the scheduler wrote."""
    if "://" in scheduler:
        return scheduler
    try:
        address = json.loads(Path(scheduler).read_bytes())["address"]
    except OSError as error:
        raise InputError(
            f"`scheduler` {scheduler}: {error.strerror}. Give an address such as "
            "tcp://10.0.0.1:8786, or the file that the scheduler wrote"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"`scheduler` {scheduler}: not a file that a Dask scheduler wrote"
        ) from None
    return str(address)
