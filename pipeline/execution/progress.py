"""Show progress on stderr: bars on a terminal, plain lines elsewhere, with rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from antigram.pipeline.execution.terminal import safe

__all__ = ["Progress"]

_EVERY_S = 5.0  # between two plain lines of one stage
_BAR = 20  # characters


@dataclass(frozen=True, slots=True)
class _Stage:
    """State of one stage of work.

    Attributes:
        done: units of work done.
        total: units of work in total.
        pace: rate and time left, as text: ``2.1/s, 12 s left``.
        note: further text of the caller.
    """

    done: int
    total: int
    pace: str
    note: str

    def line(self, name: str) -> str:
        return f"{name}: {self.done}/{self.total} ({self.pace}) {self.note}".rstrip()


class Progress:
    """Display of the stages of some work; a context manager that restores the terminal.

    Pass the methods `on_progress` and `on_message` to the library's functions.

    Args:
        above: called at each redraw; returns what a terminal shows above the bars.
        wording: function that is applied to each line before it is printed.
    """

    def __init__(
        self,
        above: Callable[[], RenderableType] | None = None,
        wording: Callable[[str], str] = str,
    ) -> None:
        self._above, self._wording = above, wording
        self._live: Live | None = None
        self._stages: dict[str, _Stage] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # start time, and the units done by then
        self._printed: dict[str, float] = {}
        self._last_s: float | None = None  # duration of the stage that ended last

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), get_renderable=self._view)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def live(self) -> bool:
        """Whether bars are shown on a terminal."""
        return self._live is not None

    def on_message(self, text: str) -> None:
        """Print a line above the bars."""
        text = safe(self._wording(text))
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints

    def on_progress(
        self, stage: str, done: int, total: int, note: str = "", *, further: int | None = None
    ) -> None:
        """Update a stage.

        Args:
            stage: name of the stage; a new name begins a new stage.
            done: units of work done.
            total: units of work in total.
            note: further text to show.
            further: largest number of similar stages that follow. The time left then covers them
                too, each estimated by the duration of the stage that ended last.
        """
        stage, now = safe(stage), time.monotonic()
        begun, first = self._begun.setdefault(stage, (now, done))
        rate = (done - first) / max(now - begun, 1e-9)
        pace = f"{rate:.1f}/s{self._left(done, total, rate, further)}"
        self._stages[stage] = shown = _Stage(done, total, pace, safe(note))
        if self._live is not None:
            return  # Live redraws by itself
        last = self._printed.get(stage, begun)
        if now - last < _EVERY_S and (done < total or stage not in self._printed):
            return
        self._printed[stage] = now
        self.on_message(shown.line(stage))

    def end(self, stage: str) -> float:
        """Remove the bar of a stage, and return how many seconds the stage took."""
        stage = safe(stage)
        self._stages.pop(stage, None)
        self._printed.pop(stage, None)
        begun, _ = self._begun.pop(stage, (time.monotonic(), 0))
        self._last_s = time.monotonic() - begun
        return self._last_s

    def lines(self) -> list[str]:
        """Return a plain line for each stage."""
        return [stage.line(name) for name, stage in list(self._stages.items())]

    def _left(self, done: int, total: int, rate: float, further: int | None) -> str:
        last_s = None if further is None else self._last_s
        stage_s = last_s or (total / rate if rate else 0)
        stages = (further or 0) + 1 - done / max(total, 1)
        if not stage_s or (done >= total and not further):
            return ""
        return f", {'at most ' * (further is not None)}{_duration(stage_s * stages)} left"

    def _view(self) -> RenderableType:
        bars = Table.grid(padding=(0, 1))
        for name, stage in list(self._stages.items()):  # a copy, as Live draws in its own thread
            bar = ProgressBar(max(stage.total, 1), stage.done, width=_BAR)
            bars.add_row(bar, Text(stage.line(name)))
        return bars if self._above is None else Group(self._above(), bars)


def _duration(seconds: float) -> str:
    """Format a duration: ``48 s``, or from two minutes on ``0 h 02 min``."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
