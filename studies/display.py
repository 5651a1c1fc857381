"""Show a training: a live table of its epochs on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.table import Table

from antigram.pipeline.execution.progress import Progress

__all__ = ["TrainingDisplay"]

_SHOWN = 12  # epochs; the complete run is in metrics.jsonl
_COLUMNS = {"loss": "loss", "ce": "task", "at": "AT", "accuracy": "accuracy"}


class TrainingDisplay:
    """Show epochs, losses, accuracy, segments/s, wait for data, memory and remaining time.

    It is a context manager that restores the terminal. `train` takes its methods `on_progress`
    and `on_message` as callbacks.

    Args:
        epochs: maximum number of epochs.
        wording: function applied to each line before it is shown.
    """

    def __init__(self, epochs: int, wording: Callable[[str], str] = str) -> None:
        self.epochs = epochs
        self._progress = Progress(above=self._table, wording=wording)
        self._done: list[tuple[int, float, Mapping[str, float]]] = []

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def on_message(self, text: str) -> None:
        """Print a line above the table."""
        self._progress.on_message(text)

    def on_progress(self, epoch: int, done: int, steps: int, known: Mapping[str, float]) -> None:
        """Show the steps done in an epoch and the latest measured values.

        Args:
            epoch: number of the epoch, from 1.
            done: steps done in the epoch.
            steps: steps of the epoch.
            known: measured values by name: ``loss``, ``clips_per_second``, ``data_wait`` and
                ``memory_mb`` for a step; ``train loss``, ``validation at`` and so on for an epoch.
        """
        stage = f"epoch {epoch}"
        if not any(key.startswith("validation") for key in known):
            further = self.epochs - epoch
            self._progress.on_progress(stage, done, steps, _step_text(known), further=further)
            return
        self._done.append((epoch, self._progress.end(stage), known))
        if not self._progress.live:
            note = " ".join(f"{key} {value:.4g}" for key, value in known.items())
            self.on_message(f"{stage}: {note}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("epoch", justify="right")
        for split in ("train", "validation"):
            for title in _COLUMNS.values():
                table.add_column(f"{split}\n{title}", justify="right")
        table.add_column("seconds", justify="right")
        done = list(self._done)  # a copy, as another thread draws the terminal
        best = min((known.get("validation loss", float("inf")) for *_, known in done), default=0.0)
        for epoch, seconds, known in done[-_SHOWN:]:
            cells = [
                f"{known[f'{split} {key}']:.4f}" if f"{split} {key}" in known else ""
                for split in ("train", "validation")
                for key in _COLUMNS
            ]
            style = "bold" if known.get("validation loss") == best else None
            table.add_row(str(epoch), *cells, f"{seconds:.1f}", style=style)
        return table


def _step_text(known: Mapping[str, float]) -> str:
    """Return text such as ``loss 1.2  410 segments/s  data wait 0.1%  2140 MB``."""
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
