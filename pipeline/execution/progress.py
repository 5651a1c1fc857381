"""Progress on stderr: a bar with rate and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from antigram.pipeline.execution.terminal import safe

__all__ = ["Progress"]

_EVERY_S = 5.0  # between two plain lines of one stage


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


class Progress:
    """Shows stages of work; a context manager, so that the terminal is left as it was.

    Its method `tick` is what the library's functions call.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, int] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def on_message(self, text: str) -> None:
        """Print a line above the bars."""
        text = safe(text)
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is where it is printed

    def on_progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how much of a stage is done."""
        stage, note = safe(stage), safe(note)
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total, note=note)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        begun, first = self._begun.setdefault(stage, (now, done))
        last = self._shown.get(stage, begun)
        if now - last < _EVERY_S and (done < total or self._shown.get(stage) is None):
            return
        self._shown[stage] = now
        rate = (done - first) / max(now - begun, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        self.on_message(f"{stage}: {done}/{total} ({rate:.1f}/s{left}) {note}".rstrip())
