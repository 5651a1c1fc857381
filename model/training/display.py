"""A training to look at: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from antigram.pipeline.execution.progress import Progress
from antigram.pipeline.execution.terminal import safe

__all__ = ["TrainingDisplay"]

_SHOWN = 12  # epochs; the whole run is in metrics.jsonl
_COLUMNS = {"loss": "loss", "ce": "task", "at": "AT", "accuracy": "accuracy"}


class TrainingDisplay:
    """Shows epochs, losses, accuracy, segments/s, wait for data, memory, time left.

    A context manager, so that the terminal is left as it was. Its method `tell` is what `train`
    calls.

    Args:
        epochs: the most there can be.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._plain = Progress()
        self._live: Live | None = None
        self._done: list[tuple[int, float, Mapping[str, float]]] = []
        self._now = Text("")
        self._begun = self._epoch_begun = time.monotonic()
        self._epoch = 0
        self._first = 0  # steps done when this process began with the epoch

    def __enter__(self) -> TrainingDisplay:
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._now = Text("")
            self._live.update(self._view(), refresh=True)
            self._live.stop()

    def on_message(self, text: str) -> None:
        """Print a line above the table."""
        if self._live is not None:
            self._live.console.print(safe(text), markup=False, highlight=False)
        else:
            self._plain.on_message(text)

    def on_progress(self, epoch: int, done: int, steps: int, known: Mapping[str, float]) -> None:
        """Show where a training is.

        Args:
            epoch: counted from 1.
            done: steps done in it.
            steps: that it has.
            known: of a step ``loss``, ``clips_per_second``, ``data_wait`` and ``memory_mb``; of a
                whole epoch ``train loss``, ``validation at`` and so on.
        """
        now = time.monotonic()
        if epoch != self._epoch:
            self._epoch, self._epoch_begun, self._first = epoch, now, done
        whole = any(key.startswith("validation") for key in known)
        if whole:
            self._done.append((epoch, now - self._epoch_begun, known))
        if self._live is None:
            self._tell_plainly(epoch, done, steps, known, whole=whole)
            return
        if not whole:
            left = self._left(done, steps)
            self._now = Text(f"epoch {epoch}: {done}/{steps}  {_step_text(known)}{left}")
        self._live.update(self._view())

    def _tell_plainly(
        self, epoch: int, done: int, steps: int, known: Mapping[str, float], *, whole: bool
    ) -> None:
        if whole:
            note = " ".join(f"{key} {value:.4g}" for key, value in known.items())
            self._plain.on_message(f"epoch {epoch}: {note}")
        else:
            self._plain.on_progress(f"epoch {epoch}", done, steps, _step_text(known))

    def _left(self, done: int, steps: int) -> str:
        """How long the rest takes if no epoch is the last before its time."""
        spent = time.monotonic() - self._epoch_begun
        if done <= self._first or not spent:
            return ""
        # Of whole epochs, which validate too, once there is one.
        each = self._done[-1][1] if self._done else spent * steps / (done - self._first)
        left = each * (self.epochs - self._epoch + 1 - done / steps)
        minutes = round(max(0.0, left) / 60)
        return f"  at most {minutes // 60} h {minutes % 60:02d} min left"

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("epoch", justify="right")
        for split in ("train", "validation"):
            for title in _COLUMNS.values():
                table.add_column(f"{split}\n{title}", justify="right")
        table.add_column("seconds", justify="right")
        best = min((k.get("validation loss", float("inf")) for _, _, k in self._done), default=0.0)
        for epoch, seconds, known in self._done[-_SHOWN:]:
            cells = [
                f"{known[f'{split} {key}']:.4f}" if f"{split} {key}" in known else ""
                for split in ("train", "validation")
                for key in _COLUMNS
            ]
            is_best = known.get("validation loss") == best
            style = "bold" if is_best else None
            table.add_row(str(epoch), *cells, f"{seconds:.1f}", style=style)
        return Group(table, self._now)


def _step_text(known: Mapping[str, float]) -> str:
    """``loss 1.2  410 segments/s  data wait 0.1 %  2140 MB``."""
    parts = []
    if "loss" in known:
        parts.append(f"loss {known['loss']:.4g}")
    if "clips_per_second" in known:
        parts.append(f"{known['clips_per_second']:.0f} segments/s")
    if "data_wait" in known:
        parts.append(f"data wait {known['data_wait']:.1%}")
    if "memory_mb" in known:
        parts.append(f"{known['memory_mb']:.0f} MB")
    return "  ".join(parts)
