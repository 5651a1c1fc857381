"""What runs tasks for the library: processes of this machine, or workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

__all__ = ["Executor", "Task", "WorkerDiedError"]

Task = tuple[Any, ...]
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A task killed its worker, and killed one again when it ran alone."""


class Executor(Protocol):
    """Runs tasks in other processes; a context manager.

    A task is run once, or again if its worker dies. A function is importable by name, and what it
    needs beside its task was given to the executor when that was started.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def alone(self, function: Callable[..., Result], *task: object) -> Result:
        """Run one task while no other task runs.

        Raises:
            WorkerDiedError: the task killed its worker.
        """

    def run(
        self,
        function: Callable[..., Result],
        tasks: Iterable[Task],
        on_crash: Callable[[Task], Result] | None = None,
    ) -> Iterator[tuple[Task, Result]]:
        """Run tasks, and yield results in the order in which they are done.

        Args:
            function: runs a task.
            tasks: arguments of ``function``, one tuple for each task; not all are taken at once.
            on_crash: called with a task that kills its worker even when it runs alone; returns a
                result in its place.

        Yields:
            A task and its result.

        Raises:
            WorkerDiedError: a task killed its worker twice, and there is no ``on_crash``.
        """
