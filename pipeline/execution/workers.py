"""A process pool that survives the death of its workers.

A crashing decoder, or a lack of memory, kills a worker. ProcessPoolExecutor then gives up all its
tasks and does not say which one was at fault. Here the tasks that were running are run again, one
at a time. A task that kills its worker again is passed to the caller, who can look for the cause.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver
from types import TracebackType
from typing import Any, Generic, TypeVar

from antigram.pipeline.execution.executor import Task, WorkerDiedError
from antigram.pipeline.execution.process import keep_freed_memory

__all__ = ["Workers"]

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_METHOD = multiprocessing.get_context("forkserver")
Result = TypeVar("Result")


class Workers:
    """The executor on this machine, a pool of processes; a context manager.

    Args:
        count: number of processes.
        set_up: called once in each process; None if there is nothing to set up.
        shared: argument of ``set_up``.
        preload: module that the fork server imports, so that workers start fast.
    """

    def __init__(
        self, count: int, set_up: Callable[[Any], None] | None, shared: object, preload: str
    ) -> None:
        self.count = count
        self._set_up, self._shared = set_up, shared
        self.warm_up(preload)
        self._pool = self._start(count)

    @staticmethod
    def warm_up(preload: str) -> None:
        """Start the fork server early, so that its imports run while other work is done.

        Workers come from a fork server because children of a process with threads (zarr has some)
        may hang, and because starting a new interpreter for each worker takes longer than
        preparing a small corpus.
        """
        _METHOD.set_forkserver_preload([preload])
        # One thread for each process: BLAS would start a thread per core in each worker, for
        # products that take a microsecond.
        saved = {name: os.environ.get(name) for name in _BLAS_THREADS}
        os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
        try:
            forkserver.ensure_running()
        finally:
            for name, value in saved.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _start(self, count: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            count, _METHOD, initializer=_begin, initargs=(self._set_up, self._shared)
        )
        _submit(pool, os.getpid)  # the first task starts a process
        return pool

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def alone(self, function: Callable[..., Result], *task: object) -> Result:
        """Run one task while no other task runs.

        Raises:
            WorkerDiedError: the task killed its worker.
        """
        try:
            return _submit(self._pool, function, *task).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=True)
            self._pool = self._start(self.count)
            raise WorkerDiedError(f"{function.__name__} killed its worker") from None

    def run(
        self,
        function: Callable[..., Result],
        tasks: Iterable[Task],
        on_crash: Callable[[Task], Result] | None = None,
    ) -> Iterator[tuple[Task, Result]]:
        """Run tasks in the pool, and yield results in the order in which they are done.

        At most two tasks for each process are submitted at a time.

        Args:
            function: runs a task; importable by name, as workers are other processes.
            tasks: arguments of ``function``, one tuple for each task.
            on_crash: called with a task that kills its worker even when it runs alone; returns a
                result in its place.

        Yields:
            A task and its result.

        Raises:
            WorkerDiedError: a task killed its worker twice, and there is no ``on_crash``.
        """
        submitted = _Submitted(self, function, on_crash)
        for task in tasks:
            submitted.add(task)
            if submitted.full:
                yield from submitted.finished()
        while submitted.running:
            yield from submitted.finished()


def _submit(
    pool: ProcessPoolExecutor, function: Callable[..., Result], *task: object
) -> Future[Result]:
    """Submit a task; the pool starts a process if no process is idle."""
    with _main_hidden():
        return pool.submit(function, *task)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Hide the main module from processes that are being started.

    A worker would import it, although it does not need it, and the imports of the command line take
    five times as long as the rest of a worker's start.
    """
    main = vars(sys.modules["__main__"])
    names: tuple[str, ...] = ("__spec__", "__file__")
    hidden = {name: main.pop(name) for name in names if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


def _begin(set_up: Callable[[Any], None] | None, shared: object) -> None:
    """Initialise a worker: ignore interrupts, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and says how to resume
    keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if set_up is not None:
        set_up(shared)


def _die_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class _Submitted(Generic[Result]):
    """The tasks that have been submitted and are not done."""

    def __init__(
        self,
        workers: Workers,
        function: Callable[..., Result],
        on_crash: Callable[[Task], Result] | None,
    ) -> None:
        self.workers, self.function, self.on_crash = workers, function, on_crash
        self.running: dict[Future[Result], Task] = {}
        self.unsubmitted: list[Task] = []  # tasks that a pool refused because it was broken already

    @property
    def full(self) -> bool:
        return len(self.running) + len(self.unsubmitted) >= 2 * self.workers.count

    def add(self, task: Task) -> None:
        try:
            self.running[_submit(self.workers._pool, self.function, *task)] = task
        except BrokenProcessPool:
            self.unsubmitted.append(task)

    def finished(self) -> Iterator[tuple[Task, Result]]:
        """Yield the tasks that are done; after a crash, all tasks that were running."""
        done, _ = wait(self.running, return_when=FIRST_COMPLETED)
        for future in done:
            if not isinstance(future.exception(), BrokenProcessPool):
                yield self.running.pop(future), future.result()
        if any(isinstance(f.exception(), BrokenProcessPool) for f in done if f in self.running):
            yield from self._recover()

    def _recover(self) -> Iterator[tuple[Task, Result]]:
        wait(self.running)
        suspects = [*self.running.items()]
        self.running.clear()
        self.workers._pool.shutdown(wait=True)
        self.workers._pool = self.workers._start(self.workers.count)
        retries = [*self.unsubmitted]
        self.unsubmitted.clear()
        for future, task in suspects:
            if isinstance(future.exception(), BrokenProcessPool):
                retries.append(task)
            else:
                yield task, future.result()
        for task in retries:
            yield task, self._alone(task)

    def _alone(self, task: Task) -> Result:
        """Run a task alone: it was running when a worker died, but may not be the cause."""
        with suppress(WorkerDiedError):
            return self.workers.alone(self.function, *task)
        try:
            return self.workers.alone(self.function, *task)
        except WorkerDiedError:
            if self.on_crash is None:
                raise
            return self.on_crash(task)
